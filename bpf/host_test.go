package bpf

import (
	"errors"
	"golang.org/x/sys/unix"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
)

// hostOnFrames are host.c's programs for test runs, with the rows of node1 and no
// devices.
func hostOnFrames(t *testing.T, c Config) (o *Objects, from, to *ebpf.Program) {
	t.Helper()
	o, _ = load(t)
	tunnelRows(t, o.Maps, podIfIndex, podMAC, hostMAC)
	put(t, o.Config, uint32(0), c)
	for a, row := range map[string]IPCache{
		"192.0.2.1": {Identity: 1, Node: 1}, "192.0.2.2": {Identity: 3, Node: 2},
		"10.1.2.7": {Identity: identityOwn, Node: 2},
	} {
		put(t, o.IPCache, addr(a), row)
	}
	put(t, o.IPPrefixes, Prefix{Bits: 96 + 24, Addr: addr("10.1.1.0")}, IPCache{Identity: 1 << 20, Node: 1, Flags: IPHere})
	for a, bits := range map[string]uint32{"10.2.0.0": 96 + 16, "fd00:2::": 32} {
		put(t, o.IPPrefixes, Prefix{Bits: bits, Addr: addr(a)}, IPCache{Identity: 2 << 20, Flags: IPEncrypted})
	}
	put(t, o.IPCache, addr("10.2.1.9"), IPCache{Identity: identityRemote, Node: 1, Flags: IPEncrypted})
	put(t, o.IPCache, addr("fd00:2:1::9"), IPCache{Identity: identityRemote, Node: 1, Flags: IPEncrypted})
	coll, err := loadTC(loadHost, o.Maps, 14)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(coll.Close)
	return o, coll.Programs[hostProgTmbFromWorld], coll.Programs[hostProgTmbToWorld]
}

// What passes an uplink and what does not, both ways.
func TestUplinkGuard(t *testing.T) {
	syn := append([]byte{0x80, 0, 0, 80}, make([]byte, 16)...)
	syn[12], syn[13] = 0x50, 2
	quoted := append([]byte{3, 3, 0, 0, 0, 0, 0, 0}, ip4("192.0.2.1", "198.51.100.7", 6, syn)...)
	wg := append([]byte{0xca, 0x6c, 0xca, 0x6c, 0, 12, 0, 0}, 1, 0, 0, 0)
	arp := append(append(make([]byte, 12), 8, 6), make([]byte, 28)...)
	short := frame(ip4("198.51.100.7", "192.0.2.1", 6, syn))
	short[14] = 0x44
	config := Config{Node4: addr("192.0.2.1"), Node6: addr("2001:db8::1"), Cluster: 1, Node: 1, Flags: Masquerade, PortMin: 40000, PortMax: 40999}
	o, in, out := hostOnFrames(t, config)
	for _, c := range []struct {
		name    string
		out     bool
		all     bool // TMB_ENCRYPT_ALL
		chained bool // TMB_CHAINED
		frame   []byte
		verdict uint32
		reason  Reason // counted if it is dropped
	}{
		{name: "somebody to the host", frame: frame(ip4("198.51.100.7", "192.0.2.1", 6, syn)), verdict: verdictNext},
		{name: "ARP in", frame: arp, verdict: verdictNext},
		{name: "ARP out", out: true, frame: arp, verdict: verdictNext},
		{name: "an error about the host's own", frame: frame(ip4("198.51.100.7", "192.0.2.1", 1, quoted)), verdict: verdictNext},
		{name: "WireGuard in", frame: frame(ip4("192.0.2.2", "192.0.2.1", 17, wg)), verdict: verdictNext},
		{name: "WireGuard out", out: true, frame: frame(ip4("192.0.2.1", "192.0.2.2", 17, wg)), verdict: verdictNext},
		{name: "WireGuard in, all encrypted", all: true, frame: frame(ip4("192.0.2.2", "192.0.2.1", 17, wg)), verdict: verdictNext},
		{name: "WireGuard out, all encrypted", all: true, out: true, frame: frame(ip4("192.0.2.1", "192.0.2.2", 17, wg)), verdict: verdictNext},
		{name: "a neighbour's pod to ours", frame: frame(ip4("10.1.2.7", "10.1.1.5", 6, syn)), verdict: verdictRedirect},
		{name: "the host to a neighbour's pod", out: true, frame: frame(ip4("192.0.2.1", "10.1.2.7", 6, syn)), verdict: verdictNext},
		{name: "a neighbour's pod to ours, chained", chained: true, frame: frame(ip4("10.1.2.7", "10.1.1.5", 6, syn)), verdict: verdictNext},
		{name: "our pod to the world, chained", chained: true, out: true, frame: frame(ip4("10.1.1.5", "198.51.100.7", 6, syn)), verdict: verdictNext},
		{name: "a remote pod in clear, chained", chained: true, frame: frame(ip4("10.2.1.9", "10.1.1.5", 6, syn)), verdict: verdictShot, reason: rowsTmbReasonTMB_DROP_CLEARTEXT},
		{name: "to a remote pod in clear, chained", chained: true, out: true, frame: frame(ip4("192.0.2.1", "10.2.1.9", 6, syn)), verdict: verdictShot, reason: rowsTmbReasonTMB_DROP_CLEARTEXT},
		{name: "our pod as source, chained", chained: true, frame: frame(ip4("10.1.1.5", "192.0.2.1", 6, syn)), verdict: verdictShot, reason: rowsTmbReasonTMB_DROP_HOST_SOURCE},
		{name: "multicast", frame: frame(ip4("198.51.100.7", "224.0.0.5", 6, syn)), verdict: verdictNext},

		{name: "our address as source", frame: frame(ip4("192.0.2.1", "192.0.2.1", 6, syn)), verdict: verdictShot, reason: rowsTmbReasonTMB_DROP_HOST_SOURCE},
		{name: "our tunnel address as source", frame: frame(ip4("10.1.1.1", "192.0.2.1", 6, syn)), verdict: verdictShot, reason: rowsTmbReasonTMB_DROP_HOST_SOURCE},
		{name: "our pod as source", frame: frame(ip4("10.1.1.5", "192.0.2.1", 6, syn)), verdict: verdictShot, reason: rowsTmbReasonTMB_DROP_HOST_SOURCE},
		{name: "our pod as source, v6", frame: frame(ip6("fd00:1:1::5", "2001:db8::1", 6, syn)), verdict: verdictShot, reason: rowsTmbReasonTMB_DROP_HOST_SOURCE},
		{name: "no pod of ours yet as source", frame: frame(ip4("10.1.1.200", "192.0.2.1", 6, syn)), verdict: verdictShot, reason: rowsTmbReasonTMB_DROP_HOST_SOURCE},
		{name: "a remote pod in clear", frame: frame(ip4("10.2.1.9", "10.1.1.5", 6, syn)), verdict: verdictShot, reason: rowsTmbReasonTMB_DROP_CLEARTEXT},
		{name: "a remote prefix in clear", frame: frame(ip4("10.2.77.1", "192.0.2.1", 6, syn)), verdict: verdictShot, reason: rowsTmbReasonTMB_DROP_CLEARTEXT},
		{name: "a remote prefix in clear, v6", frame: frame(ip6("fd00:2:8::1", "2001:db8::1", 6, syn)), verdict: verdictShot, reason: rowsTmbReasonTMB_DROP_CLEARTEXT},
		{name: "to a remote pod in clear", out: true, frame: frame(ip4("192.0.2.1", "10.2.1.9", 6, syn)), verdict: verdictShot, reason: rowsTmbReasonTMB_DROP_CLEARTEXT},
		{name: "to a remote prefix in clear", out: true, frame: frame(ip4("192.0.2.1", "10.2.77.1", 17, wg)), verdict: verdictShot, reason: rowsTmbReasonTMB_DROP_CLEARTEXT},
		{name: "to a remote prefix in clear, v6", out: true, frame: frame(ip6("2001:db8::1", "fd00:2:9::1", 6, syn)), verdict: verdictShot, reason: rowsTmbReasonTMB_DROP_CLEARTEXT},
		{name: "a neighbour's pod in, all encrypted", all: true, frame: frame(ip4("10.1.2.7", "10.1.1.5", 6, syn)), verdict: verdictShot, reason: rowsTmbReasonTMB_DROP_CLEARTEXT},
		{name: "to a neighbour's pod, all encrypted", all: true, out: true, frame: frame(ip4("192.0.2.1", "10.1.2.7", 6, syn)), verdict: verdictShot, reason: rowsTmbReasonTMB_DROP_CLEARTEXT},
		{name: "no IPv4 header", frame: short, verdict: verdictShot, reason: rowsTmbReasonTMB_DROP_MALFORMED},
		{name: "v4-mapped", frame: frame(ip6("::ffff:10.1.1.5", "2001:db8::1", 6, syn)), verdict: verdictShot, reason: rowsTmbReasonTMB_DROP_MAPPED},
		{name: "a truncated header of a remote prefix", frame: frame(ip4("10.2.77.1", "192.0.2.1", 6, syn[:12])), verdict: verdictShot, reason: rowsTmbReasonTMB_DROP_CLEARTEXT},
		{name: "a truncated header, to a remote prefix", out: true, frame: frame(ip4("192.0.2.1", "10.2.77.1", 6, syn[:12])), verdict: verdictShot, reason: rowsTmbReasonTMB_DROP_CLEARTEXT},
	} {
		t.Run(c.name, func(t *testing.T) {
			prog := in
			if c.out {
				prog = out
			}
			config.Flags &^= EncryptAll | Chained
			if c.chained {
				config.Flags |= Chained
			}
			if c.all {
				config.Flags |= EncryptAll
			}
			put(t, o.Config, uint32(0), config)
			var verdict uint32
			did := grown(t, o.Maps, func() {
				var err error
				if verdict, _, err = prog.Test(c.frame); err != nil {
					t.Fatal(err)
				}
			})
			dropped := uint64(0)
			for name, n := range did {
				if strings.HasPrefix(name, "drop_") {
					dropped += n
				}
			}
			want := uint64(0)
			if c.verdict == verdictShot {
				want = 1
			}
			if verdict != c.verdict || dropped != want || did[c.reason.String()] != want {
				t.Errorf("verdict %d, expected %d; %s expected %d times, counted %v", int32(verdict), int32(c.verdict), c.reason, want, did)
			}
		})
	}
}

// loadBalancerSourceRanges, traffic policy Local without a backend here, and
// services without any: who may not, or cannot be served, is told as it should be.
func TestNodePortRefusals(t *testing.T) {
	u := newUplink(t)
	o, _ := load(t)
	u.node1(o, nil)
	u.attach(o)
	u.client.route("eth0", nil, map[string]string{"203.0.113.0/24": "192.0.2.1", "2001:db8:cafe::/64": "2001:db8::1"})
	var who seen
	for _, c := range []struct{ name, front, pod, allowed, forbidden, prefix string }{
		{"v4", "203.0.113.80", "10.1.1.5", "192.0.2.9", "198.51.100.9", "192.0.2.0/24"},
		{"v6", "2001:db8:cafe::80", "fd00:1:1::5", "2001:db8::9", "2001:db8:9::9", "2001:db8::/64"},
	} {
		t.Run(c.name, func(t *testing.T) {
			port := u.pod.listen(c.pod, who.serve)
			front := net.JoinHostPort(c.front, "80")
			id := uint64(7)<<40 | uint64(len(c.front))
			o.outside(t, front, tcp, id, ServiceRanges, net.JoinHostPort(c.pod, port))
			p := netip.MustParsePrefix(c.prefix)
			bits := uint32(p.Bits()) + 64
			if p.Addr().Is4() {
				bits += 96
			}
			put(t, o.SourceRanges, RangeKey{Bits: bits, Service: [2]uint32{uint32(id), uint32(id >> 32)}, Addr: Addr{B: p.Addr().As16()}}, Range{Allow: 1})
			conn, err := u.client.connect("tcp", net.JoinHostPort(c.allowed, "0"), front)
			if err != nil {
				t.Fatalf("from inside the range: %v", err)
			}
			if _, err := transfer(conn, 1<<16); err != nil {
				t.Error(err)
			}
			if n := o.counted(t, rowsTmbReasonTMB_DROP_SOURCE_RANGE, func() { timesOut(t, u.client, c.forbidden, front) }); n == 0 {
				t.Error("a drop for the source range was not counted")
			}
			local := net.JoinHostPort(c.front, "81")
			o.outside(t, local, tcp, id+1, ServiceLocal|ServiceKeepSource)
			if n := o.counted(t, rowsTmbReasonTMB_DROP_NO_BACKEND, func() { timesOut(t, u.client, c.allowed, local) }); n == 0 {
				t.Error("a drop without a local backend was not counted")
			}
			none := net.JoinHostPort(c.front, "82")
			o.outside(t, none, tcp, id+2, 0)
			o.outside(t, none, udp, id+3, 0)
			if _, err := u.client.connect("tcp", "", none); err == nil || !strings.Contains(err.Error(), "refused") {
				t.Errorf("a service without backends: %v", err)
			}
			asks, err := u.client.connect("udp", "", none)
			if err != nil {
				t.Fatal(err)
			}
			defer asks.Close()
			refused(t, "a client of a service without backends", asks)
		})
	}
}

func timesOut(t *testing.T, s *space, from, to string) {
	t.Helper()
	s.in(func() error {
		d := net.Dialer{Timeout: 300 * time.Millisecond, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c, err := d.Dial("tcp", to)
		if err == nil {
			c.Close()
			t.Errorf("%s reached %s", from, to)
		} else if ne, ok := err.(net.Error); !ok || !ne.Timeout() {
			t.Errorf("from %s to %s: %v, expected no answer at all", from, to, err)
		}
		return nil
	})
}

// A client outside reaches a pod of another cluster through this node's port and
// the tunnel, an L3 device: it sees this node's tunnel address, and its answers come
// back through both programs.
func TestNodePortThroughTunnel(t *testing.T) {
	for _, noTCX := range []bool{false, true} {
		u := newUplink(t)
		o, _ := load(t, func(o *Options) { o.NoTCX = noTCX })
		u.node1(o, func(c *Config) { c.Tunnel4, c.Tunnel6 = addr("10.1.1.1"), addr("fd00:1:1::1") })
		for _, a := range []string{"10.1.1.1", "fd00:1:1::1"} {
			put(t, o.IPCache, addr(a), IPCache{Identity: 1, Node: 1, Flags: IPTunnelAddress})
		}
		for _, a := range []string{"10.2.1.9", "fd00:2:1::9"} {
			put(t, o.IPCache, addr(a), IPCache{Identity: identityRemote, Node: 1, Flags: IPEncrypted})
		}
		u.node.addr("lo", "10.1.1.1/32", "fd00:1:1::1/128")
		remote := newSpace(t)
		near, far := u.node.tun("tun0"), remote.tun("tun1")
		go splice(near, far, nil)
		go splice(far, near, nil)
		tunnel := u.node.up("tun0")
		u.node.route("tun0", nil, map[string]string{"10.2.0.0/16": "", "fd00:2::/32": ""})
		remote.up("tun1")
		remote.addr("tun1", "10.2.1.9/32", "fd00:2:1::9/128")
		remote.route("tun1", nil, map[string]string{"10.1.0.0/16": "", "fd00:1::/32": ""})
		u.attach(o)
		u.node.in(func() error { return o.AttachTunnel(tunnel.Attrs().Index) })
		var who seen
		for _, c := range []struct{ front, backend, sees string }{
			{"192.0.2.1:30070", "10.2.1.9", "10.1.1.1"},
			{"[2001:db8::1]:30070", "fd00:2:1::9", "fd00:1:1::1"},
		} {
			o.outside(t, c.front, tcp, 70, 0, net.JoinHostPort(c.backend, remote.listen(c.backend, who.serve)))
			o.outside(t, c.front, udp, 71, 0, net.JoinHostPort(c.backend, who.echo(t, remote, c.backend)))
			conn, err := u.client.connect("tcp", u.clientAt(c.front), c.front)
			if err != nil {
				all, _ := o.Counters()
				t.Fatalf("%v; %v", err, all)
			}
			if took, err := transfer(conn, 16<<20); err != nil {
				t.Error(err)
			} else {
				t.Logf("16 MiB in %v", took)
			}
			asks, err := u.client.connect("udp", u.clientAt(c.front), c.front)
			if err != nil {
				t.Fatal(err)
			}
			if err := exchange(asks, "through the tunnel"); err != nil {
				t.Error(err)
			}
			asks.Close()
			for _, from := range who.take() {
				if from.Addr().Unmap() != netip.MustParseAddr(c.sees) {
					t.Errorf("reached from %v, expected %s", from, c.sees)
				}
			}
		}
		near.Close()
		far.Close()
	}
}

// A process with no memory finds the uplinks by their pins (or filters), replaces
// the programs without a gap, and drops links whose device is gone.
func TestAttachHostAgain(t *testing.T) {
	for _, noTCX := range []bool{false, true} {
		s := newSpace(t)
		for _, name := range []string{"up0", "up1"} {
			if err := s.nl.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "p"}); err != nil {
				t.Fatal(err)
			}
		}
		first, second := s.up("up0").Attrs().Index, s.up("up1").Attrs().Index
		o, opts := load(t, func(o *Options) { o.NoTCX = noTCX })
		attached := func(want ...int) {
			t.Helper()
			s.in(func() error {
				got, err := o.AttachedHosts()
				if err == nil && !slices.Equal(got, want) {
					t.Errorf("attached to %v, expected %v", got, want)
				}
				return err
			})
		}
		attached()
		for _, ifindex := range []int{first, second, first} {
			s.in(func() error { return o.AttachHost(ifindex) })
		}
		attached(first, second)
		o.Close()
		s.in(func() (err error) {
			o, err = Load(opts)
			return err
		})
		t.Cleanup(func() { o.Close() })
		attached(first, second)
		if err := s.nl.LinkDel(s.link("up1")); err != nil {
			t.Fatal(err)
		}
		attached(first)
		entries, err := os.ReadDir(opts.PinDir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if _, ok := hostHooks[0].ifindex(e.Name()); ok && (noTCX || e.Name() != hostHooks[0].pin(first)) {
				t.Errorf("pin %s is left", e.Name())
			}
		}
		for range 2 {
			s.in(func() error { return o.DetachHost(first) })
		}
		attached()
		s.in(func() error {
			if err := o.AttachHost(1 << 20); err == nil {
				t.Error("attached to a device that is not there")
			}
			return nil
		})
	}
}

// aim makes a packet, if it is long enough, one of a client outside at a port that
// is served.
func aim(r *rand.Rand, p []byte) {
	switch {
	case len(p) > 40 && p[0] == 0x45:
		copy(p[12:], []byte{198, 51, 100, byte(r.Uint32())})
		p[9], p[22], p[23] = []byte{6, 17}[r.IntN(2)], 0, 80
	case len(p) > 60 && p[0] == 0x60:
		from := addr("2001:db8:9::7").B
		copy(p[8:], from[:])
		p[6], p[42], p[43] = []byte{6, 17}[r.IntN(2)], 0, 80
	}
}

// Hostile packets, both ways, with services and pods for them to hit: each gets a
// verdict that is one of ours, what is dropped is counted exactly once, nothing else
// is counted as dropped.
func TestUplinkFuzz(t *testing.T) {
	config := Config{Node4: addr("192.0.2.1"), Node6: addr("2001:db8::1"), Cluster: 1, Node: 1, Flags: Masquerade, PortMin: 40000, PortMax: 40999}
	o, in, out := hostOnFrames(t, config)
	for i, front := range []string{"10.2.1.9:80", "10.3.0.1:80", "[fd00:2:8::1]:80", "[fd00:2:1::9]:80"} {
		o.outside(t, front, tcp, uint64(2*i+1), uint8(i), "10.1.1.5:80", "10.3.0.1:80", "[fd00:1:1::5]:80")
		o.outside(t, front, udp, uint64(2*i+2), uint8(i), "10.1.2.7:80", "[fd00:1:1::5]:80")
	}
	seed := rand.Uint64()
	t.Logf("seed %#x", seed)
	r := rand.New(rand.NewPCG(seed, 5))
	for _, direction := range []struct {
		name string
		prog *ebpf.Program
	}{{"in", in}, {"out", out}} {
		verdicts := make(map[uint32]uint64)
		did := grown(t, o.Maps, func() {
			for range 60_000 {
				p := hostile(r)
				if r.IntN(2) == 0 {
					aim(r, p)
				}
				f := frame(p)
				verdict, err := direction.prog.Run(&ebpf.RunOptions{Data: f})
				if errors.Is(err, unix.EINVAL) && len(f) < 14+40 {
					continue // newer kernels run no cut-off IP header
				}
				if err != nil {
					t.Fatalf("% x: %v", f, err)
				}
				verdicts[verdict]++
			}
		})
		var drops uint64
		for name, n := range did {
			if strings.HasPrefix(name, "drop_") {
				drops += n
			}
		}
		refused := did["drop_no_backend"] // some are answered
		if drops < verdicts[verdictShot] || drops > verdicts[verdictShot]+refused {
			t.Errorf("%s: %d dropped, %d counted: %v", direction.name, verdicts[verdictShot], drops, did)
		}
		for v := range verdicts {
			if v != verdictNext && v != verdictShot && v != verdictRedirect {
				t.Errorf("%s: verdict %d", direction.name, int32(v))
			}
		}
		if direction.name == "in" && (did["nodeport"] < 100 || verdicts[verdictRedirect] == 0) {
			t.Errorf("%v, %v: no service was hit", verdicts, did)
		}
		t.Log(direction.name, verdicts, did)
	}
}
