package linux

import (
	"errors"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/tombolo-mesh/tombolo/agent"
)

// ErrNoTunnel says that the WireGuard device is not there (or not usable) at
// present. Rows that need it are put again when it comes back.
var ErrNoTunnel = errors.New("no tunnel device")

// keepalive makes every node speak first: one that lost power and comes back
// under another address is found by its own packets, and NAT stays open.
const keepalive = 15 * time.Second

// Making a peer speak costs a handshake, some hundred microseconds in user space.
// Of many new peers they would all come at once, ours and theirs, and everything
// else that is to enter the kernel would wait: so the keepalive of more than
// speakAtOnce follows a little later, so many at a time. Packets to such a peer
// make the handshake when they come.
const (
	speakAtOnce = 64
	speakFirst  = 3 * time.Second
	speakPause  = 200 * time.Millisecond
)

// fresh is how long after a handshake an endpoint that differs from what we
// configured counts as roaming (WireGuard renews sessions every 120 s).
const fresh = 3 * time.Minute

// peers is the Table of WireGuard peers of our own device, by name: other
// devices of the machine, and stale sockets, are none of its business.
type peers struct {
	wg     *wgctrl.Client
	device string
	err    error
	// put is what was last written, so that a peer that has roamed since is not
	// mistaken for drift and pushed back to an address it has left.
	put map[agent.PeerKey]agent.PeerRow
	now func() time.Time

	mu       sync.Mutex
	silent   map[agent.PeerKey]struct{}      // peers without a keepalive
	speaking bool                            // a goroutine gives them one
	held     map[agent.PeerKey]agent.PeerRow // new peers that may speak first; see yield
}

func newPeers(wg *wgctrl.Client, device string) *peers {
	return &peers{wg: wg, device: device, put: map[agent.PeerKey]agent.PeerRow{}, now: time.Now,
		silent: map[agent.PeerKey]struct{}{}, held: map[agent.PeerKey]agent.PeerRow{}}
}

func (t *peers) Dump() iter.Seq2[agent.PeerKey, agent.PeerRow] {
	return func(yield func(agent.PeerKey, agent.PeerRow) bool) {
		var now peersNow
		if now, t.err = t.read(); t.err != nil {
			return
		}
		for k, v := range now.rows {
			if !yield(k, v) {
				return
			}
		}
	}
}

func (t *peers) DumpErr() error { return t.err }

// peersNow is the device at one moment.
type peersNow struct {
	own     wgtypes.Key // its public key
	rows    map[agent.PeerKey]agent.PeerRow
	talking map[agent.PeerKey]bool // with a fresh handshake
}

func (t *peers) read() (peersNow, error) {
	dev, err := t.wg.Device(t.device)
	if err != nil {
		return peersNow{}, absent(t.device, err)
	}
	rows := make(map[agent.PeerKey]agent.PeerRow, len(dev.Peers))
	talking := map[agent.PeerKey]bool{}
	var silent []agent.PeerKey
	for i := range dev.Peers {
		p := &dev.Peers[i]
		if row, held := t.heldRow(agent.PeerKey(p.PublicKey)); held {
			rows[agent.PeerKey(p.PublicKey)] = row
			continue
		}
		if p.PersistentKeepaliveInterval == 0 {
			silent = append(silent, agent.PeerKey(p.PublicKey))
		}
		row := agent.PeerRow{Allowed: allowedText(p.AllowedIPs)}
		if p.Endpoint != nil {
			ap := p.Endpoint.AddrPort()
			row.Endpoint = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
		}
		isFresh := t.now().Sub(p.LastHandshakeTime) < fresh
		talking[agent.PeerKey(p.PublicKey)] = isFresh
		// Without an endpoint of ours it has none but what it was heard from.
		if last, ok := t.put[agent.PeerKey(p.PublicKey)]; ok && (isFresh || !last.Endpoint.IsValid()) {
			row.Endpoint = last.Endpoint
		}
		rows[agent.PeerKey(p.PublicKey)] = row
	}
	t.speak(silent)
	return peersNow{own: dev.PublicKey, rows: rows, talking: talking}, nil
}

// Put touches only peers whose row differs, and of these only what differs:
// configuring a peer interrupts it. One that is heard from where its row does not
// say has roamed, or is behind NAT, and keeps the endpoint that works.
func (t *peers) Put(rows map[agent.PeerKey]agent.PeerRow) error {
	now, err := t.read()
	if err != nil {
		return fmt.Errorf("put %d peers: %w", len(rows), err)
	}
	given := givenBy(rows)
	var cfg wgtypes.Config
	var errs []error
	for key, row := range rows {
		have, ok := now.rows[key]
		if _, remembered := t.put[key]; !remembered && now.talking[key] {
			have.Endpoint = row.Endpoint
		}
		if ok && have == row {
			t.put[key] = row
			continue
		}
		p, err := peerConfig(key, row)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if _, held := t.heldRow(key); ok && !held {
			spare(&p, have, row, given)
		}
		cfg.Peers = append(cfg.Peers, p)
	}
	if len(cfg.Peers) > 0 {
		if len(cfg.Peers) > speakAtOnce {
			defer t.speak(t.hush(cfg.Peers))
		} else {
			t.yield(now.own, cfg.Peers, rows, now.rows)
		}
		if err := t.wg.ConfigureDevice(t.device, cfg); err != nil {
			return errors.Join(append(errs, fmt.Errorf("put %d peers: %w", len(cfg.Peers), absent(t.device, err)))...)
		}
		for _, p := range cfg.Peers {
			t.put[agent.PeerKey(p.PublicKey)] = rows[agent.PeerKey(p.PublicKey)]
		}
	}
	return errors.Join(errs...)
}

// hush takes the keepalive out of configurations, and returns whose. They are written
// as a whole: nothing that was held back earlier may follow.
func (t *peers) hush(cfgs []wgtypes.PeerConfig) (silent []agent.PeerKey) {
	for i := range cfgs {
		key := agent.PeerKey(cfgs[i].PublicKey)
		t.forgetHeld(key)
		cfgs[i].PersistentKeepaliveInterval = nil
		silent = append(silent, key)
	}
	return silent
}

func (t *peers) Delete(keys []agent.PeerKey) error {
	now, err := t.read()
	if err != nil {
		return fmt.Errorf("delete %d peers: %w", len(keys), err)
	}
	var cfg wgtypes.Config
	for _, key := range keys {
		delete(t.put, key)
		t.forgetHeld(key)
		if _, ok := now.rows[key]; ok {
			cfg.Peers = append(cfg.Peers, wgtypes.PeerConfig{PublicKey: wgtypes.Key(key), Remove: true, UpdateOnly: true})
		}
	}
	if len(cfg.Peers) == 0 {
		return nil
	}
	if err := t.wg.ConfigureDevice(t.device, cfg); err != nil {
		return fmt.Errorf("delete %d peers: %w", len(cfg.Peers), absent(t.device, err))
	}
	return nil
}

// speak gives peers their keepalive, by and by. Those that are gone by then are
// left alone; those that an agent before us left silent are found by read.
func (t *peers) speak(keys []agent.PeerKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range keys {
		t.silent[k] = struct{}{}
	}
	if t.speaking || len(t.silent) == 0 {
		return
	}
	t.speaking = true
	go func() {
		for pause := speakFirst; ; pause = speakPause {
			time.Sleep(pause)
			cfg := t.nextToSpeak()
			if len(cfg.Peers) == 0 {
				return
			}
			// An error is the device's absence, or a peer's: what is silent still
			// is found at the next reading.
			_ = t.wg.ConfigureDevice(t.device, cfg)
		}
	}()
}

func (t *peers) nextToSpeak() (cfg wgtypes.Config) {
	t.mu.Lock()
	defer t.mu.Unlock()
	interval := keepalive
	for k := range t.silent {
		if len(cfg.Peers) == speakAtOnce {
			break
		}
		delete(t.silent, k)
		cfg.Peers = append(cfg.Peers, wgtypes.PeerConfig{PublicKey: wgtypes.Key(k), UpdateOnly: true, PersistentKeepaliveInterval: &interval})
	}
	t.speaking = len(cfg.Peers) > 0
	return cfg
}

func peerConfig(key agent.PeerKey, row agent.PeerRow) (wgtypes.PeerConfig, error) {
	interval := keepalive
	p := wgtypes.PeerConfig{PublicKey: wgtypes.Key(key), ReplaceAllowedIPs: true, PersistentKeepaliveInterval: &interval}
	if row.Endpoint.IsValid() {
		p.Endpoint = net.UDPAddrFromAddrPort(row.Endpoint)
	}
	if row.Allowed == "" {
		return p, nil
	}
	for text := range strings.SplitSeq(row.Allowed, ",") {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return p, fmt.Errorf("peer %s: allowed IPs %q: %w", wgtypes.Key(key), row.Allowed, err)
		}
		p.AllowedIPs = append(p.AllowedIPs, *ipNet(prefix))
	}
	return p, nil
}

// allowedText is PeerRow.Allowed of what the kernel holds: in the order of the
// plan's rows, else what is equal looks different.
func allowedText(nets []net.IPNet) string {
	prefixes := make([]netip.Prefix, 0, len(nets))
	for _, n := range nets {
		if p, ok := prefixOf(n); ok {
			prefixes = append(prefixes, p)
		}
	}
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	texts := make([]string, len(prefixes))
	for i, p := range prefixes {
		texts[i] = p.String()
	}
	return strings.Join(texts, ",")
}

func prefixOf(n net.IPNet) (netip.Prefix, bool) {
	addr, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits).Masked(), ok
}

// absent gives errors of a missing device one meaning and says what to do. A
// refused socket is what a killed tunnel process leaves behind.
func absent(device string, err error) error {
	if isAbsent(err) {
		return fmt.Errorf("%w: device %s is absent: start `tombolo-agent tunnel --device %s` in this network namespace (or load the wireguard module): %w", ErrNoTunnel, device, device, err)
	}
	return fmt.Errorf("device %s: %w", device, err)
}

func isAbsent(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENODEV) || isLinkNotFound(err)
}
