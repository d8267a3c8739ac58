package gossip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/tombolo-mesh/tombolo/agent"
)

// Config makes a Gossip.
type Config struct {
	Cluster string     // members of others are not listened to
	Node    string     // this node's name
	Address netip.Addr // of the underlay, to listen at and to be reached by
	Port    int        // UDP and TCP; the same on all nodes of the cluster
	Log     *slog.Logger

	transport memberlist.Transport // of tests; nil = UDP and TCP
}

// Gossip is this node's membership. It implements agent.Gossip.
type Gossip struct {
	cfg     Config
	log     *slog.Logger
	ring    memberlist.Keyring
	queue   memberlist.TransmitLimitedQueue
	changed chan struct{}
	nudge   chan struct{} // peers or keys are others
	count   atomic.Int32  // of members

	mu      sync.Mutex
	life    uint64
	leaving bool
	ledger  *ledger
	peers   map[string]netip.AddrPort
	own     map[partKey]part // what was said last
	problem error            // why this node does not gossip; nil = it does
}

var _ agent.Gossip = (*Gossip)(nil)

var errNoKey = errors.New("the mesh API server has not handed out a key yet")

// New makes one; it is silent before Run, and until SetKeys.
func New(cfg Config) *Gossip {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	g := &Gossip{
		cfg: cfg, log: cfg.Log, changed: make(chan struct{}, 1), nudge: make(chan struct{}, 1),
		ledger: newLedger(), peers: map[string]netip.AddrPort{}, own: map[partKey]part{},
	}
	// So many packets a word, times the digits of the number of members: each who
	// hears it passes it on that often. With 3, one of six members missed one word in
	// a hundred until the refresh; with 8 it is one in ten million.
	g.queue.RetransmitMult = 8
	g.queue.NumNodes = func() int { return int(max(g.count.Load(), 1)) }
	return g
}

// SetKeys says what to encrypt by (the first), and what else to understand. No
// keys change nothing: a mesh API server that has none yet takes none away.
func (g *Gossip) SetKeys(keys [][]byte) error {
	if len(keys) == 0 {
		return nil
	}
	for _, k := range keys {
		if err := g.ring.AddKey(k); err != nil {
			return fmt.Errorf("gossip key: %w", err)
		}
	}
	if err := g.ring.UseKey(keys[0]); err != nil {
		return fmt.Errorf("gossip key: %w", err)
	}
	for _, k := range slices.Clone(g.ring.GetKeys()) {
		if !slices.ContainsFunc(keys, func(o []byte) bool { return bytes.Equal(o, k) }) {
			if err := g.ring.RemoveKey(k); err != nil {
				return fmt.Errorf("gossip key: %w", err)
			}
		}
	}
	kick(g.nudge)
	return nil
}

// SetPeers implements agent.Gossip. Of a node's addresses the first of this
// node's family counts: there its agent listens.
func (g *Gossip) SetPeers(peers map[string][]netip.Addr) {
	next := make(map[string]netip.AddrPort, len(peers))
	for name, addrs := range peers {
		for _, a := range addrs {
			if a.Is4() == g.cfg.Address.Is4() {
				next[name] = netip.AddrPortFrom(a, uint16(g.cfg.Port))
				break
			}
		}
	}
	g.mu.Lock()
	same := maps.Equal(g.peers, next)
	g.peers = next
	g.mu.Unlock()
	if !same {
		kick(g.nudge)
	}
}

// Report implements agent.Gossip.
func (g *Gossip) Report(missing map[agent.NodeKey]uint8) {
	g.mu.Lock()
	defer g.mu.Unlock()
	next := parts(g.cfg.Node, missing)
	for k, old := range g.own {
		if _, still := next[k]; !still && len(old.missing) > 0 {
			next[k] = part{prober: old.prober, cluster: old.cluster, block: old.block} // said once: nothing is missed any more
		}
	}
	for k, p := range next {
		if old, was := g.own[k]; !was || !maps.Equal(old.missing, p.missing) {
			g.sayLocked(p)
		}
	}
}

// sayLocked broadcasts a part of this node's own.
func (g *Gossip) sayLocked(p part) {
	p.life, p.seq = g.life, g.own[p.key()].seq+1
	g.own[p.key()] = p
	g.queue.QueueBroadcast(broadcast{p.key(), p.encode()})
}

// View implements agent.Gossip.
func (g *Gossip) View() agent.GossipView {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.ledger.view()
}

// Changed implements agent.Gossip.
func (g *Gossip) Changed() <-chan struct{} { return g.changed }

func (g *Gossip) signal() { kick(g.changed) }

func kick(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Problem is why this node does not gossip; nil = it does.
func (g *Gossip) Problem() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.problem
}

func (g *Gossip) setProblem(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.problem = err
}

const (
	openAgain = 5 * time.Second
	joinAgain = 5 * time.Second
	joinAtOne = 3 // members that are missing are sought by so many at a time
	leaveTime = time.Second
	// keyPatience is how long a new cluster may take to make its first key.
	keyPatience = time.Minute
)

// Run gossips until ctx ends; then it takes leave, so that nobody looks for it.
func (g *Gossip) Run(ctx context.Context) error {
	members, err := g.open(ctx)
	if err != nil {
		return nil // ctx ended
	}
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	var joined, repeated time.Time
	for {
		select {
		case <-ctx.Done():
			return g.leave(members)
		case <-g.nudge:
			joined = time.Time{}
		case <-ticker.C:
		}
		now := time.Now()
		g.mu.Lock()
		expired := g.ledger.expire(now)
		g.mu.Unlock()
		if expired {
			g.signal()
		}
		if now.Sub(repeated) >= refresh {
			repeated = now
			g.repeat()
		}
		if now.Sub(joined) >= joinAgain {
			joined = now
			g.join(members)
		}
	}
}

// open waits for a key and starts memberlist; an error only when ctx ended.
func (g *Gossip) open(ctx context.Context) (*memberlist.Memberlist, error) {
	began := time.Now()
	for {
		if len(g.ring.GetKeys()) == 0 {
			if time.Since(began) > keyPatience {
				g.setProblem(errNoKey)
			}
		} else {
			g.mu.Lock()
			g.life = uint64(time.Now().UnixNano())
			g.mu.Unlock()
			members, err := memberlist.Create(g.memberlist())
			g.setProblem(err)
			if err == nil {
				g.log.Info("gossip begins", "address", g.cfg.Address.String(), "port", g.cfg.Port)
				return members, nil
			}
			g.log.Warn("this node does not gossip; its own probes judge alone", "err", err, "retry", openAgain)
		}
		timer := time.NewTimer(openAgain)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		case <-g.nudge:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// memberlist is the configuration. Verdicts on nodes come from the agents' own
// probes; that a member is gone only starts them. So members are watched more
// closely than memberlist's own defaults do, but not at the price of an idle agent's
// processor: one probes another each 500 ms, and if that does not answer within
// 200 ms, directly, then by three others or by TCP, it is suspected, and given up
// when it has not refuted that for 1.5 s (more where there are more than ten: log10
// times) after somebody else agreed. A dead one is found within a few seconds.
func (g *Gossip) memberlist() *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name, c.Label = g.cfg.Node, "tombolo/"+g.cfg.Cluster
	c.BindAddr, c.BindPort = g.cfg.Address.String(), g.cfg.Port
	c.AdvertiseAddr, c.AdvertisePort = c.BindAddr, c.BindPort
	c.Transport = g.cfg.transport
	c.Keyring = &g.ring
	c.Delegate, c.Events = delegate{g}, delegate{g}
	c.ProbeInterval, c.ProbeTimeout, c.IndirectChecks = 500*time.Millisecond, 200*time.Millisecond, 3
	c.SuspicionMult, c.SuspicionMaxTimeoutMult = 3, 3
	c.GossipInterval, c.GossipNodes = 50*time.Millisecond, 4
	c.PushPullInterval, c.TCPTimeout = 15*time.Second, time.Second
	c.DeadNodeReclaimTime = 10 * time.Second // a node that comes back with another address
	c.EnableCompression = false              // packets are small
	c.DNSConfigPath = "/dev/null"            // there are no names to resolve
	c.Logger = logger(g.log)
	return c
}

// repeat says once more what this node misses.
func (g *Gossip) repeat() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for k, p := range g.own {
		if len(p.missing) > 0 {
			g.sayLocked(p)
		} else if p.seq > 0 && len(g.own) > 1024 {
			delete(g.own, k) // its last word has expired everywhere long ago
		}
	}
}

// join looks for members that should be there and are not: at the start, and when
// a cluster that was parted is whole again.
func (g *Gossip) join(members *memberlist.Memberlist) {
	g.mu.Lock()
	var absent []string
	for name, at := range g.peers {
		if _, here := g.ledger.lives[name]; !here {
			absent = append(absent, net.JoinHostPort(at.Addr().String(), strconv.Itoa(int(at.Port()))))
		}
	}
	g.mu.Unlock()
	if len(absent) == 0 {
		return
	}
	slices.Sort(absent)
	rand.Shuffle(len(absent), func(i, j int) { absent[i], absent[j] = absent[j], absent[i] })
	if _, err := members.Join(absent[:min(joinAtOne, len(absent))]); err != nil {
		g.log.Debug("members that should be there do not answer", "absent", len(absent), "err", err)
	}
}

// leave says farewell: an agent that stops on purpose is not to be looked for.
func (g *Gossip) leave(members *memberlist.Memberlist) error {
	g.mu.Lock()
	g.leaving = true
	alone := len(g.ledger.lives) < 2
	g.mu.Unlock()
	if !alone {
		if err := errors.Join(members.UpdateNode(leaveTime), members.Leave(leaveTime)); err != nil {
			g.log.Debug("left without a farewell", "err", err)
		}
	}
	if err := members.Shutdown(); err != nil {
		g.log.Warn("gossip did not end in order", "err", err)
	}
	return nil
}
