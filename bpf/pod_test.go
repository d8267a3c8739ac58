package bpf

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// The kernel gives test runs the loopback device of the caller's namespace: all
// pods of these tests sit behind it.
const testIfindex = 1

// podNode is a node with three pods, a service, and pod.c for test runs.
//
//	10.1.1.5 a  10.1.1.6 b  10.1.1.7 c (and fd00:1:1::5 …)
//	172.20.0.1:80, fd00:172::1:80 → b:8080
type podNode struct {
	*Objects
	code   podCode
	tunnel *ebpf.Program
}

var (
	podA, podB, podC = "10.1.1.5", "10.1.1.6", "10.1.1.7"
	vip              = "172.20.0.1"
)

// six is the IPv6 twin of an address of these tests.
func six(a string) string {
	return map[string]string{
		podA: "fd00:1:1::5", podB: "fd00:1:1::6", podC: "fd00:1:1::7", vip: "fd00:172::1",
		"10.2.1.9": "fd00:2:1::9", "192.0.2.7": "2001:db8::7", "10.1.1.1": "fd00:1:1::1", "169.254.1.1": "fe80::1",
	}[a]
}

func newPodNode(t testing.TB) *podNode {
	t.Helper()
	o, _ := load(t, func(o *Options) { o.Sizes.Flows, o.Sizes.Fragments, o.Sizes.Affinity = 4096, 512, 512 })
	n := &podNode{Objects: o}
	for i, v4 := range []string{podA, podB, podC} {
		for _, a := range []string{v4, six(v4)} {
			put(t, o.Endpoints, addr(a), Endpoint{
				Ifindex: testIfindex, Identity: uint32(1<<20 | 50 + i),
				PodMac: [6]byte{2, 0, 0, 0, 0, byte(5 + i)}, HostMac: [6]byte{2, 1, 0, 0, 0, byte(5 + i)},
			})
			put(t, o.IPCache, addr(a), IPCache{Identity: uint32(1<<20 | 50 + i), Node: 1})
		}
	}
	for _, a := range []string{"10.1.1.1", "fd00:1:1::1"} {
		put(t, o.IPCache, addr(a), IPCache{Identity: 1, Node: 1, Flags: IPTunnelAddress})
	}
	for _, a := range []string{"10.2.1.9", "fd00:2:1::9"} {
		put(t, o.IPCache, addr(a), IPCache{Identity: identityRemote, Node: 1, Flags: IPEncrypted})
	}
	n.service(t, vip, 80, tcp, 1, podB, 8080)
	n.service(t, vip, 53, udp, 2, podB, 5353)
	var err error
	if n.code, err = loadPodCode(o.Maps, ethLen); err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() { n.code.Close() })
	if n.tunnel, err = loadTunnelProgram(o.Maps, ethLen); err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() { n.tunnel.Close() })
	return n
}

// service, in both families, of one backend.
func (n *podNode) service(t testing.TB, front string, frontPort int, proto uint8, id uint64, backend string, backendPort int) {
	t.Helper()
	for i, f := range []func(string) string{func(s string) string { return s }, six} {
		at := netip.AddrPortFrom(netip.MustParseAddr(f(front)), uint16(frontPort))
		to := netip.AddrPortFrom(netip.MustParseAddr(f(backend)), uint16(backendPort))
		n.program(t, at, proto, id*2+uint64(i), oneOf(testBackend{to, 1}))
	}
}

// run gives a packet to a program: what comes out of it, and the one counter that
// is its verdict's.
func (n *podNode) run(t testing.TB, prog *ebpf.Program, f []byte) (verdict uint32, out []byte) {
	t.Helper()
	out = make([]byte, len(f)+128)
	opts := &ebpf.RunOptions{Data: f, DataOut: out}
	verdict, err := prog.Run(opts)
	if errors.Is(err, unix.EINVAL) {
		t.Fatalf("the kernel does not run % x", f)
	}
	if err != nil {
		t.Fatal(err)
	}
	return verdict, opts.DataOut
}

// A packet of these tests, written as text would say it.
type segment struct {
	src, dst     string
	proto        byte
	sport, dport int
	flags        byte // TCP
	data         string
}

const (
	fin, syn, rst, ack = 1, 2, 4, 16
)

// six of both addresses.
func (s segment) six() segment { s.src, s.dst = six(s.src), six(s.dst); return s }

func (s segment) back(flags byte) segment {
	s.src, s.dst, s.sport, s.dport, s.flags = s.dst, s.src, s.dport, s.sport, flags
	return s
}

// bytes is the frame, with right checksums.
func (s segment) bytes() []byte {
	var l4 []byte
	switch s.proto {
	case tcp:
		l4 = make([]byte, 20)
		l4[12], l4[13] = 0x50, s.flags
		binary.BigEndian.PutUint16(l4[14:], 65535)
	case udp:
		l4 = make([]byte, 8)
		binary.BigEndian.PutUint16(l4[4:], uint16(8+len(s.data)))
	}
	binary.BigEndian.PutUint16(l4, uint16(s.sport))
	binary.BigEndian.PutUint16(l4[2:], uint16(s.dport))
	l4 = append(l4, s.data...)
	src, dst := netip.MustParseAddr(s.src), netip.MustParseAddr(s.dst)
	at := map[byte]int{tcp: 16, udp: 6}[s.proto]
	binary.BigEndian.PutUint16(l4[at:], transportSum(src, dst, s.proto, l4))
	if src.Is4() {
		return frame(ip4(s.src, s.dst, s.proto, l4))
	}
	return frame(ip6(s.src, s.dst, s.proto, l4))
}

// transportSum is the checksum with the pseudo header; 0 if the packet's own is right.
func transportSum(src, dst netip.Addr, proto byte, l4 []byte) uint16 {
	b := append(src.AsSlice(), dst.AsSlice()...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(l4)))
	b = append(b, 0, 0, 0, proto)
	b = append(b, l4...)
	if len(b)%2 == 1 {
		b = append(b, 0)
	}
	return checksum(b)
}

// readSegment is the segment of a frame that went out, whose checksums are right.
func readSegment(t testing.TB, f []byte) (s segment) {
	t.Helper()
	p := f[14:]
	var src, dst netip.Addr
	var l4 []byte
	if p[0]>>4 == 4 {
		ihl := int(p[0]&15) * 4
		if checksum(p[:ihl]) != 0 {
			t.Errorf("IP checksum is wrong: % x", p[:ihl])
		}
		src, dst = netip.AddrFrom4([4]byte(p[12:])), netip.AddrFrom4([4]byte(p[16:]))
		s.proto, l4 = p[9], p[ihl:binary.BigEndian.Uint16(p[2:])]
	} else {
		src, dst = netip.AddrFrom16([16]byte(p[8:])), netip.AddrFrom16([16]byte(p[24:]))
		s.proto, l4 = p[6], p[40:40+binary.BigEndian.Uint16(p[4:])]
	}
	s.src, s.dst = src.String(), dst.String()
	if s.proto != 1 {
		if sum := transportSum(src, dst, s.proto, l4); sum != 0 && !(s.proto == udp && l4[6] == 0 && l4[7] == 0) {
			t.Errorf("checksum of protocol %d is wrong by %#x: % x", s.proto, sum, p)
		}
	} else if checksum(append(l4[:len(l4):len(l4)], make([]byte, len(l4)%2)...)) != 0 {
		t.Errorf("ICMP checksum is wrong: % x", l4)
	}
	s.sport, s.dport = int(binary.BigEndian.Uint16(l4)), int(binary.BigEndian.Uint16(l4[2:]))
	switch s.proto {
	case tcp:
		s.flags, s.data = l4[13], string(l4[l4[12]>>4*4:])
	case udp:
		s.data = string(l4[8:])
	}
	return s
}

// passes checks that a segment passes, and what it has become.
func (n *podNode) passes(t testing.TB, prog *ebpf.Program, in, want segment) {
	t.Helper()
	wantVerdict := uint32(verdictRedirect)
	verdict, out := n.run(t, prog, in.bytes())
	var to Endpoint
	if n.Endpoints.Lookup(addr(want.dst), &to) != nil || prog == n.code.to {
		wantVerdict = verdictNext
	}
	if verdict != wantVerdict {
		all, _ := n.Counters()
		t.Fatalf("%+v: verdict %d, expected %d; %v", in, int32(verdict), int32(wantVerdict), nonzero(all))
	}
	if got := readSegment(t, out); got != want {
		t.Fatalf("%+v\nbecame   %+v\nexpected %+v", in, got, want)
	}
	if verdict == verdictRedirect && ([6]byte(out) != to.PodMac || [6]byte(out[6:]) != to.HostMac) {
		t.Errorf("%+v: MACs % x", in, out[:12])
	}
}

// dropped checks that it is dropped for one reason.
func (n *podNode) dropped(t testing.TB, prog *ebpf.Program, f []byte, reason Reason) {
	t.Helper()
	var verdict uint32
	if counted := n.counted(t, reason, func() { verdict, _ = n.run(t, prog, f) }); verdict != verdictShot || counted != 1 {
		all, _ := n.Counters()
		t.Fatalf("verdict %d, %s counted %d; %v\n% x", int32(verdict), reason, counted, nonzero(all), f)
	}
}

func nonzero(m map[string]uint64) map[string]uint64 {
	out := make(map[string]uint64)
	for k, v := range m {
		if v > 0 {
			out[k] = v
		}
	}
	return out
}

// A connection to a service, its answers, its end, and another of the same ports.
func TestPodService(t *testing.T) {
	n := newPodNode(t)
	for _, proto := range []byte{tcp, udp} {
		for _, v6 := range []bool{false, true} {
			front, back := 80, 8080
			if proto == udp {
				front, back = 53, 5353
			}
			c := segment{src: podA, dst: vip, proto: proto, sport: 40000, dport: front, flags: syn}
			b := segment{src: podA, dst: podB, proto: proto, sport: 40000, dport: back, flags: syn}
			if v6 {
				c, b = c.six(), b.six()
			}
			if proto == udp {
				c.flags, b.flags = 0, 0
			}
			with := func(s segment, flags byte, data string) segment {
				s.data = data
				if proto == tcp {
					s.flags = flags
				}
				return s
			}
			flows := n.counted(t, rowsTmbReasonTMB_FLOW_NEW, func() {
				for range 2 {
					n.passes(t, n.code.from, with(c, syn, ""), with(b, syn, ""))
					n.passes(t, n.code.from, with(b.back(0), syn|ack, ""), with(c.back(0), syn|ack, ""))
					for range 3 {
						n.passes(t, n.code.from, with(c, ack, "hello"), with(b, ack, "hello"))
						n.passes(t, n.code.from, with(b.back(0), ack, "odd"), with(c.back(0), ack, "odd"))
					}
					n.passes(t, n.code.from, with(c, fin|ack, ""), with(b, fin|ack, ""))
					n.passes(t, n.code.from, with(b.back(0), fin|ack, ""), with(c.back(0), fin|ack, ""))
					n.passes(t, n.code.from, with(c, ack, ""), with(b, ack, ""))
				}
			})
			if want := map[byte]uint64{tcp: 2, udp: 1}[proto]; flows != want {
				t.Errorf("protocol %d: %d flows, expected %d", proto, flows, want)
			}
		}
	}
}
