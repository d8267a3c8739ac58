package bpf

import (
	"errors"
	"math"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	tcp = unix.IPPROTO_TCP
	udp = unix.IPPROTO_UDP
)

var (
	front4      = netip.MustParseAddrPort("172.20.0.1:80")
	front6      = netip.MustParseAddrPort("[fd00:20::1]:80")
	front4in6   = netip.MustParseAddrPort("[::ffff:172.20.0.1]:80")
	loopback    = map[bool]string{false: "127.0.0.1", true: "::1"}
	oneOf       = func(b ...testBackend) testTier { return testTier{all, []testGroup{{1, 1, b}}} }
	socketKinds = []struct {
		name    string
		front   netip.AddrPort // what is dialled
		v6, be6 bool           // the socket; the backend
	}{
		{"v4", front4, false, false},
		{"v6", front6, true, true},
		{"v4-mapped", front4in6, true, false},
	}
)

func TestTCP(t *testing.T) {
	o, opts := load(t)
	enter(t, opts.CgroupPath)
	for i, k := range socketKinds {
		t.Run(k.name, func(t *testing.T) {
			o.program(t, k.front, tcp, uint64(i+1), oneOf(testBackend{server(t, "tcp", loopback[k.be6], 'a'), 1}))
			c := newClient(t, k.v6, tcp)
			c.mustConnect(k.front)
			if name, _ := c.recv(); name != 'a' {
				t.Errorf("answer from %c", name)
			}
			if got := c.peer(); got != k.front {
				t.Errorf("getpeername says %s, dialled %s", got, k.front)
			}
			key := ReverseKey{Cookie: c.cookie()}
			var rev Reverse
			if err := o.SocketReverse.Lookup(key, &rev); err != nil {
				t.Errorf("no reverse row: %v", err)
			}
			c.close()
			if err := o.SocketReverse.Lookup(key, &rev); err == nil {
				t.Error("the reverse row outlived the socket")
			}
		})
	}
}

// A client outside the cgroup, and a port that is no service, are left alone.
func TestNotOurs(t *testing.T) {
	o, opts := load(t)
	direct := server(t, "tcp", "127.0.0.1", 'd')
	o.program(t, direct, tcp, 1, oneOf(testBackend{server(t, "tcp", "127.0.0.1", 'a'), 1}))
	if got := dial(t, direct); got != 'd' {
		t.Errorf("outside the cgroup: answer from %c", got)
	}
	enter(t, opts.CgroupPath)
	if got := dial(t, direct); got != 'a' {
		t.Errorf("inside the cgroup: answer from %c", got)
	}
	if got := dial(t, server(t, "tcp", "127.0.0.1", 'x')); got != 'x' {
		t.Errorf("no service: answer from %c", got)
	}
	o.program(t, netip.AddrPortFrom(front4.Addr(), 53), udp, 2, oneOf())
	c := newClient(t, false, tcp)
	n := o.counted(t, rowsTmbReasonTMB_SOCK_NO_BACKEND, func() {
		unix.SetNonblock(c.fd, true)
		c.connect(netip.AddrPortFrom(front4.Addr(), 53))
	})
	if n != 0 {
		t.Error("TCP was taken for UDP")
	}
}

func TestConnectedUDP(t *testing.T) {
	o, opts := load(t)
	enter(t, opts.CgroupPath)
	for i, k := range socketKinds {
		t.Run(k.name, func(t *testing.T) {
			o.program(t, k.front, udp, uint64(i+1), oneOf(testBackend{server(t, "udp", loopback[k.be6], 'a'), 1}))
			c := newClient(t, k.v6, udp)
			c.mustConnect(k.front)
			if _, err := unix.Write(c.fd, []byte("?")); err != nil {
				t.Fatal(err)
			}
			name, from := c.recv()
			if name != 'a' || from != k.front || c.peer() != k.front {
				t.Errorf("answer from %c, %s; peer %s", name, from, c.peer())
			}

			// Used anew for something that is no service: nothing of it may stay.
			direct := server(t, "udp", loopback[k.be6], 'd')
			if k.v6 {
				direct = netip.AddrPortFrom(netip.AddrFrom16(direct.Addr().As16()), direct.Port())
			}
			c.mustConnect(direct)
			if _, err := unix.Write(c.fd, []byte("?")); err != nil {
				t.Fatal(err)
			}
			name, from = c.recv()
			if name != 'd' || from != direct || c.peer() != direct {
				t.Errorf("reconnected to %s: answer from %c, %s; peer %s", direct, name, from, c.peer())
			}
		})
	}
}

func TestUnconnectedUDP(t *testing.T) {
	o, opts := load(t)
	enter(t, opts.CgroupPath)
	for i, k := range socketKinds {
		t.Run(k.name, func(t *testing.T) {
			a, b := server(t, "udp", loopback[k.be6], 'a'), server(t, "udp", loopback[k.be6], 'b')
			id := uint64(i + 1)
			o.program(t, k.front, udp, id, oneOf(testBackend{a, 1}, testBackend{b, 2}))
			c := newClient(t, k.v6, udp)
			ask := func() byte {
				t.Helper()
				if err := c.sendTo(k.front); err != nil {
					t.Fatalf("send: %v", err)
				}
				name, from := c.recv()
				if from != k.front {
					t.Errorf("answer seems to come from %s, asked %s", from, k.front)
				}
				return name
			}
			first := ask()
			drawn := o.counted(t, rowsTmbReasonTMB_SOCK_DATAGRAM, func() {
				for range 20 {
					if got := ask(); got != first {
						t.Fatalf("moved from %c to %c with no reason", first, got)
					}
				}
			})
			if drawn != 0 {
				t.Errorf("%d draws for a choice that stood", drawn)
			}

			// Its node goes down: the other takes over, and stays after the return.
			node := map[byte]uint16{'a': 1, 'b': 2}
			o.nodeDown(t, 1, node[first], true)
			second := ask()
			if second == first {
				t.Errorf("still at %c, whose node is down", first)
			}
			o.nodeDown(t, 1, node[first], false)
			if got := ask(); got != second {
				t.Errorf("moved back from %c", second)
			}
			// Everything down: it stays where it is.
			o.clusterDown(t, 1, true)
			for range 10 {
				if got := ask(); got != second {
					t.Errorf("nothing up: moved to %c", got)
				}
			}
			o.clusterDown(t, 1, false)
			// Its slot says something else now, or is gone: drawn again.
			if err := o.Slots.Delete(SlotKey{Service: id, Cluster: 1, Slot: 1}); err != nil {
				t.Fatal(err)
			}
			o.program(t, k.front, udp, id, oneOf(testBackend{server(t, "udp", loopback[k.be6], 'c'), 3}))
			if got := ask(); got != 'c' {
				t.Errorf("slots changed, answer from %c", got)
			}
		})
	}
}

// One socket, two services: each answer bears its own frontend.
func TestUnconnectedUDPTwoServices(t *testing.T) {
	o, opts := load(t)
	enter(t, opts.CgroupPath)
	other := netip.MustParseAddrPort("172.20.0.2:53")
	o.program(t, front4, udp, 1, oneOf(testBackend{server(t, "udp", "127.0.0.1", 'a'), 1}))
	o.program(t, other, udp, 2, oneOf(testBackend{server(t, "udp", "127.0.0.1", 'b'), 1}))
	direct := server(t, "udp", "127.0.0.1", 'd')
	c := newClient(t, false, udp)
	for range 3 {
		for _, want := range []struct {
			to   netip.AddrPort
			name byte
		}{{front4, 'a'}, {other, 'b'}, {direct, 'd'}} {
			if err := c.sendTo(want.to); err != nil {
				t.Fatal(err)
			}
			if name, from := c.recv(); name != want.name || from != want.to {
				t.Errorf("asked %s: answer from %c, %s", want.to, name, from)
			}
		}
	}
}

func TestNoBackend(t *testing.T) {
	for _, k := range []struct {
		noRetval bool
		want     error
	}{{false, unix.ECONNREFUSED}, {true, unix.EPERM}} {
		t.Run(k.want.Error(), func(t *testing.T) {
			o, opts := load(t, func(o *Options) { o.NoRetval = k.noRetval })
			if o.Features().Refusal == "EPERM" && !k.noRetval {
				t.Skip("kernel has no bpf_set_retval")
			}
			enter(t, opts.CgroupPath)
			o.program(t, front4, tcp, 1)                                          // no tiers
			o.program(t, front6, tcp, 2, testTier{all, []testGroup{{1, 1, nil}}}) // an empty group
			o.program(t, front4, udp, 3, testTier{all, nil})
			refused := o.counted(t, rowsTmbReasonTMB_SOCK_NO_BACKEND, func() {
				if err := newClient(t, false, tcp).connect(front4); !errors.Is(err, k.want) {
					t.Errorf("TCP v4: %v", err)
				}
				if err := newClient(t, true, tcp).connect(front6); !errors.Is(err, k.want) {
					t.Errorf("TCP v6: %v", err)
				}
				if err := newClient(t, false, udp).sendTo(front4); !errors.Is(err, k.want) {
					t.Errorf("UDP sendto: %v", err)
				}
				if err := newClient(t, false, udp).connect(front4); !errors.Is(err, k.want) {
					t.Errorf("UDP connect: %v", err)
				}
			})
			if refused != 4 {
				t.Errorf("counted %d refusals", refused)
			}
		})
	}
}

// An IPv6 backend is nothing an IPv4 socket can use.
func TestWrongFamily(t *testing.T) {
	o, opts := load(t)
	enter(t, opts.CgroupPath)
	v6 := testBackend{netip.MustParseAddrPort("[fd00::1]:1"), 1}
	v4 := testBackend{netip.MustParseAddrPort("127.0.0.1:1"), 1}
	o.program(t, front4, tcp, 1, oneOf(v6))
	o.program(t, front4, udp, 2, oneOf(v6))
	o.program(t, front6, udp, 3, oneOf(v4))
	n := o.counted(t, rowsTmbReasonTMB_SOCK_FAMILY, func() {
		if newClient(t, false, tcp).connect(front4) == nil {
			t.Error("connect succeeded")
		}
		if newClient(t, false, udp).sendTo(front4) == nil || newClient(t, true, udp).sendTo(front6) == nil {
			t.Error("sendto succeeded")
		}
	})
	if n != 3 {
		t.Errorf("counted %d", n)
	}
}

// An IPv6 frontend with an IPv4 backend: connect can, sendmsg cannot.
func TestIPv6FrontendIPv4Backend(t *testing.T) {
	o, opts := load(t)
	enter(t, opts.CgroupPath)
	o.program(t, front6, tcp, 1, oneOf(testBackend{server(t, "tcp", "127.0.0.1", 'a'), 1}))
	o.program(t, front6, udp, 2, oneOf(testBackend{server(t, "udp", "127.0.0.1", 'b'), 1}))
	for proto, want := range map[int]byte{tcp: 'a', udp: 'b'} {
		c := newClient(t, true, proto)
		c.mustConnect(front6)
		if proto == udp {
			unix.Write(c.fd, []byte("?"))
		}
		if got, _ := c.recv(); got != want || c.peer() != front6 {
			t.Errorf("answer from %c, peer %s", got, c.peer())
		}
	}
}

// Multipath TCP is TCP here, where the kernel has it.
func TestMPTCP(t *testing.T) {
	o, opts := load(t)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
	if err != nil {
		t.Skipf("kernel without MPTCP: %v", err)
	}
	unix.Close(fd)
	enter(t, opts.CgroupPath)
	o.program(t, front4, tcp, 1, oneOf(testBackend{server(t, "tcp", "127.0.0.1", 'a'), 1}))
	c := newClient(t, false, unix.IPPROTO_MPTCP)
	c.mustConnect(front4)
	if got, _ := c.recv(); got != 'a' {
		t.Errorf("answer from %c", got)
	}
	t.Logf("getpeername: %s", c.peer())
}

func TestHealth(t *testing.T) {
	o, opts := load(t)
	enter(t, opts.CgroupPath)
	var b []testBackend
	for i := range 4 {
		b = append(b, testBackend{server(t, "tcp", "127.0.0.1", byte('a'+i)), uint16(1 + i%2)})
	}
	// Tier 0 is cluster 1 (a: node 1, b: node 2), tier 1 is cluster 2 (c, d).
	o.program(t, front4, tcp, 1,
		testTier{all, []testGroup{{1, 1, b[:2]}}}, testTier{all, []testGroup{{2, 1, b[2:]}}})
	expect := func(what string, names string) {
		t.Helper()
		got := tally(t, 60, front4)
		for _, n := range []byte("abcd") {
			if want := contains(names, n); want != (got[n] > 0) {
				t.Errorf("%s: %c was given %d of 60, expected some of %q", what, n, got[n], names)
			}
		}
	}
	expect("all up", "ab")
	o.nodeDown(t, 1, 1, true)
	expect("a's node down", "b")
	o.nodeDown(t, 1, 2, true)
	expect("tier 0 down by nodes", "cd")
	o.nodeDown(t, 1, 1, false)
	expect("a's node back", "a")
	o.clusterDown(t, 1, true)
	expect("cluster 1 down", "cd")
	o.nodeDown(t, 2, 1, true)
	o.nodeDown(t, 2, 2, true)
	stood := o.counted(t, rowsTmbReasonTMB_SOCK_NONE_UP, func() { expect("nothing up: first draw stands", "cd") })
	if stood != 60 {
		t.Errorf("none_up counted %d of 60", stood)
	}
	o.clusterDown(t, 2, true)
	expect("no cluster up: drawn blind, from the first tier", "ab")
}

func contains(s string, b byte) bool {
	for i := range len(s) {
		if s[i] == b {
			return true
		}
	}
	return false
}

// within says whether k of n hits with chance p lie inside five standard
// deviations: one false alarm in some two million.
func within(t *testing.T, what string, k, n int, p float64) {
	t.Helper()
	sd := math.Sqrt(float64(n) * p * (1 - p))
	if math.Abs(float64(k)-float64(n)*p) > 5*sd {
		t.Errorf("%s: %d of %d, expected %.0f ± %.0f", what, k, n, float64(n)*p, 5*sd)
	}
	t.Logf("%s: %d of %d, expected %.0f ± %.0f", what, k, n, float64(n)*p, 5*sd)
}

func TestWeightsMeasured(t *testing.T) {
	o, opts := load(t)
	enter(t, opts.CgroupPath)
	a := testBackend{server(t, "tcp", "127.0.0.1", 'a'), 1}
	b := testBackend{server(t, "tcp", "127.0.0.1", 'b'), 1}
	z := testBackend{server(t, "tcp", "127.0.0.1", 'z'), 1}
	o.program(t, front4, tcp, 1, testTier{all, []testGroup{
		{1, 3, []testBackend{a}}, {2, 1, []testBackend{b}}, {3, 0, []testBackend{z}},
	}})
	const n = 4000
	got := tally(t, n, front4)
	within(t, "weight 3 of 4", got['a'], n, 0.75)
	if got['z'] != 0 {
		t.Errorf("weight 0 was drawn %d times", got['z'])
	}
	o.clusterDown(t, 1, true)
	o.clusterDown(t, 2, true)
	if got := tally(t, 20, front4); got['z'] != 20 {
		t.Errorf("weight 0 is all there is: %v", got)
	}
}

func TestShareMeasured(t *testing.T) {
	o, opts := load(t)
	enter(t, opts.CgroupPath)
	var b []testBackend
	for i := range 3 {
		b = append(b, testBackend{server(t, "tcp", "127.0.0.1", byte('a'+i)), 1})
	}
	tier := func(share uint16, i int) testTier {
		return testTier{share, []testGroup{{uint16(i + 1), 1, b[i : i+1]}}}
	}
	// 40 % stay in tier 0, half of the rest in tier 1, what is left in tier 2.
	o.program(t, front4, tcp, 1, tier(26214, 0), tier(32768, 1), tier(0, 2))
	const n = 2000
	got := tally(t, n, front4)
	within(t, "tier 0", got['a'], n, 0.4)
	within(t, "tier 1", got['b'], n, 0.3)
	o.clusterDown(t, 2, true)
	o.clusterDown(t, 3, true)
	if got := tally(t, 100, front4); got['a'] != 100 {
		t.Errorf("the next tiers are down, the share comes back: %v", got)
	}
}
