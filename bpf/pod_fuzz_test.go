package bpf

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// fuzzed is a node on which nobody but c and the host may reach b, and b nobody.
type fuzzed struct {
	*podNode
	programs map[string]*ebpf.Program
	before   map[string]uint64
	ran      int
}

func newFuzzed(t testing.TB) *fuzzed {
	n := newPodNode(t)
	n.isolate(t, 1<<20|52)
	put(t, n.Subjects, uint64(subjectB), Subject{Flags: IsolatedIn | IsolatedOut})
	n.service(t, vip, 81, tcp, 3, podA, 8080) // a's own, too
	for i, proto := range []uint8{tcp, udp} {
		for j, front := range []string{vip, six(vip)} {
			n.program(t, netip.AddrPortFrom(netip.MustParseAddr(front), 90), proto, uint64(40+2*i+j), testTier{all, nil})
		}
	}
	n.service(t, vip, 36412, 132, 8, podC, 36412)
	f := &fuzzed{podNode: n, programs: map[string]*ebpf.Program{"from_pod": n.code.from, "to_pod": n.code.to, "tunnel": n.tunnel}}
	f.before, _ = n.Counters()
	return f
}

// good are packets of which most pass.
func good() (out [][]byte) {
	for _, v6 := range []bool{false, true} {
		add := func(s segment) {
			if v6 {
				s = s.six()
			}
			out = append(out, s.bytes())
		}
		for _, src := range []string{podA, podB, podC, "10.2.1.9", "10.1.1.1"} {
			for _, dst := range []string{podA, podB, podC, vip, "10.2.1.9", "10.1.1.1"} {
				for _, flags := range []byte{syn, syn | ack, ack, fin | ack, rst} {
					add(segment{src: src, dst: dst, proto: tcp, sport: 8080, dport: 80, flags: flags, data: "data"})
				}
				add(segment{src: src, dst: dst, proto: tcp, sport: 80, dport: 8080, flags: ack})
				add(segment{src: src, dst: dst, proto: tcp, sport: 99, dport: 81, flags: syn})
				add(segment{src: src, dst: dst, proto: tcp, sport: 99, dport: 90, flags: syn, data: "xyz"})
				add(segment{src: src, dst: dst, proto: udp, sport: 5353, dport: 53, data: "query"})
				add(segment{src: src, dst: dst, proto: udp, sport: 53, dport: 5353, data: "answer, which is longer"})
				add(segment{src: src, dst: dst, proto: udp, sport: 53, dport: 90, data: "nobody"})
				about := segment{src: dst, dst: src, proto: udp, sport: 53, dport: 5353, data: "query..."}
				from := src
				if v6 {
					about, from = about.six(), six(src)
				}
				out = append(out, unreachable(from, about))
			}
		}
	}
	for _, p := range [][]byte{
		neighbour("fe80::5", "ff02::1"), neighbour(six(podA), six(podB)),
		ip6(six(podA), six(podB), 0, append([]byte{60, 0, 1, 4, 0, 0, 0, 0, 44, 0, 1, 4, 0, 0, 0, 0, 17, 0, 0, 1, 0, 0, 0, 9}, make([]byte, 16)...)),
		ip4(podA, vip, 132, append([]byte{0x11, 0x11, 0x8e, 0x3c, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20}, make([]byte, 16)...)),
		ip4(podC, podB, 47, make([]byte, 20)),
	} {
		out = append(out, frame(p))
	}
	return append(out, append(append(make([]byte, 12), 8, 6), make([]byte, 46)...))
}

// mutate changes some of a packet, mostly of its headers, and makes most checksums
// right again.
func mutate(r *rand.Rand, f []byte) []byte {
	f = append([]byte(nil), f...)
	for range r.IntN(4) {
		at := 14 + r.IntN(min(len(f)-14, 100))
		switch r.IntN(4) {
		case 0:
			f[at] = byte(r.Uint32())
		case 1:
			f[at] ^= 1 << r.IntN(8)
		case 2:
			f[at] = []byte{0, 1, 4, 6, 17, 43, 44, 58, 60, 132, 0x40, 0x60, 0xff}[r.IntN(13)]
		case 3:
			f = append(f[:at:at], append([]byte{byte(r.Uint32()), 0, 0, byte(r.Uint32()), 0, 0, 0, 0}, f[at:]...)...)
		}
	}
	switch r.IntN(8) {
	case 0:
		f = f[:14+r.IntN(len(f)-13)]
	case 1:
		f = append(f, make([]byte, r.IntN(200))...)
	case 2, 3, 4:
		setSums(f)
	}
	return f
}

// body is the transport header and data of a whole packet of a protocol whose
// checksum we can check, and where that is.
func body(f []byte) (src, dst netip.Addr, proto byte, l4 []byte, at int, ok bool) {
	if len(f) < 34 {
		return
	}
	p := f[14:]
	switch binary.BigEndian.Uint16(f[12:]) {
	case 0x0800:
		ihl, size := int(p[0]&15)*4, int(binary.BigEndian.Uint16(p[2:]))
		if p[0]>>4 != 4 || ihl < 20 || size > len(p) || size < ihl || binary.BigEndian.Uint16(p[6:])&0x3fff != 0 {
			return
		}
		src, dst = netip.AddrFrom4([4]byte(p[12:])), netip.AddrFrom4([4]byte(p[16:]))
		proto, l4 = p[9], p[ihl:size]
	case 0x86dd:
		if len(p) < 40 || p[0]>>4 != 6 || 40+int(binary.BigEndian.Uint16(p[4:])) > len(p) {
			return
		}
		src, dst = netip.AddrFrom16([16]byte(p[8:])), netip.AddrFrom16([16]byte(p[24:]))
		proto, l4 = p[6], p[40:40+int(binary.BigEndian.Uint16(p[4:]))]
	default:
		return
	}
	at, ok = map[byte]int{tcp: 16, udp: 6, 58: 2, 1: 2}[proto]
	ok = ok && len(l4) >= 8 && at+2 <= len(l4) && (proto != 58 || src.Is6())
	return
}

func sum(src, dst netip.Addr, proto byte, l4 []byte) uint16 {
	if proto == 1 {
		return checksum(append(l4[:len(l4):len(l4)], make([]byte, len(l4)%2)...))
	}
	return transportSum(src, dst, proto, l4)
}

func setSums(f []byte) {
	if len(f) >= 34 && f[12] == 8 && f[13] == 0 {
		if ihl := int(f[14]&15) * 4; ihl >= 20 && 14+ihl <= len(f) {
			f[24], f[25] = 0, 0
			binary.BigEndian.PutUint16(f[24:], checksum(f[14:14+ihl]))
		}
	}
	if src, dst, proto, l4, at, ok := body(f); ok {
		l4[at], l4[at+1] = 0, 0
		binary.BigEndian.PutUint16(l4[at:], sum(src, dst, proto, l4))
	}
}

// right: could all checksums of the frame be checked, and are they right?
func right(f []byte) (right, known bool) {
	src, dst, proto, l4, at, ok := body(f)
	if !ok {
		return false, false
	}
	if src.Is4() && checksum(f[14:14+int(f[14]&15)*4]) != 0 {
		return false, true
	}
	if proto == udp && l4[at] == 0 && l4[at+1] == 0 {
		return true, true
	}
	return sum(src, dst, proto, l4) == 0, true
}

// try gives a packet to each program.
func (z *fuzzed) try(t testing.TB, f []byte) {
	t.Helper()
	for name, prog := range z.programs {
		opts := &ebpf.RunOptions{Data: f, DataOut: make([]byte, len(f)+128)}
		verdict, err := prog.Run(opts)
		if errors.Is(err, unix.EINVAL) {
			return // newer kernels run no cut-off IP header
		}
		if err != nil {
			t.Fatalf("%s: %v\n% x", name, err, f)
		}
		z.ran++
		z.check(t, name, verdict, f, opts.DataOut)
	}
}

func (z *fuzzed) check(t testing.TB, name string, verdict uint32, in, out []byte) {
	t.Helper()
	now, err := z.Counters()
	if err != nil {
		t.Fatal(err)
	}
	var counted []string
	for reason, n := range now {
		for range n - z.before[reason] {
			if verdictsCounted(map[string]uint64{reason: 1}) == 1 {
				counted = append(counted, reason)
			}
		}
	}
	z.before = now
	if len(counted) != 1 {
		t.Fatalf("%s: verdict %d, counted %v\n% x", name, int32(verdict), counted, in)
	}
	dropped := strings.HasPrefix(counted[0], "drop_")
	refused := counted[0] == "drop_no_backend" && verdict == verdictRedirect
	switch {
	case verdict == verdictShot && dropped, refused:
	case verdict == verdictRedirect && strings.HasSuffix(counted[0], "_delivered"):
	case verdict == verdictNext && strings.HasSuffix(counted[0], "stack"):
	default:
		t.Fatalf("%s: verdict %d, counted %v\n% x", name, int32(verdict), counted, in)
	}
	if verdict == verdictShot {
		return
	}
	ok, known := right(out)
	if was, _ := right(in); known && !ok && (was || refused) {
		t.Fatalf("%s: checksums were right, and are wrong (%s)\n% x\n% x", name, counted[0], in, out)
	}
	src, dst, _, _, _, _ := body(out)
	if dst.String() != podB && dst.String() != six(podB) || counted[0] == "pod_to_stack" || refused {
		return
	}
	about, isError := errorAbout(out)
	if isError {
		src = about // anybody may say so of a flow that may be
	}
	from, _, _, _, _, _ := body(in)
	if src.String() == "169.254.1.1" || src.String() == "fe80::1" { // itself, by a service
		if src = from; isError {
			src = dst
		}
	}
	switch src.String() {
	case podB, six(podB), podC, six(podC), "10.1.1.1", "fd00:1:1::1":
	default:
		if name != "to_pod" || !isNeighbour(in) {
			t.Fatalf("%s: %s reached b: %s\n% x", name, src, counted[0], in)
		}
	}
}

// errorAbout is where the packet was going that an ICMP error is about.
func errorAbout(f []byte) (to netip.Addr, ok bool) {
	src, _, proto, l4, _, ok := body(f)
	if !ok {
		return netip.Addr{}, false
	}
	l4 = f[len(f)-(cap(l4)-(cap(f)-len(f))):] // programs read what is there, whatever the IP header says
	switch {
	case proto == 1 && len(l4) >= 28 && (l4[0] == 3 || l4[0] == 4 || l4[0] == 5 || l4[0] == 11 || l4[0] == 12):
		return netip.AddrFrom4([4]byte(l4[24:])), true
	case proto == 58 && src.Is6() && len(l4) >= 48 && l4[0] >= 1 && l4[0] <= 4:
		return netip.AddrFrom16([16]byte(l4[32:])), true
	}
	return netip.Addr{}, false
}

func isNeighbour(f []byte) bool {
	_, _, proto, l4, _, ok := body(f)
	return ok && proto == 58 && f[14+7] == 255 && l4[0] >= 133 && l4[0] <= 136
}

// Packets made of good ones, through every program: each has a verdict, counted
// once; what passes has the right checksums if it had; what policy forbids does
// not pass.
func TestPodFuzz(t *testing.T) {
	z := newFuzzed(t)
	seed := rand.Uint64()
	t.Logf("seed %#x", seed)
	r := rand.New(rand.NewPCG(seed, 3))
	seeds := good()
	for _, f := range seeds {
		z.try(t, f)
	}
	for i := range 20_000 {
		z.try(t, mutate(r, seeds[r.IntN(len(seeds))]))
		if i%500 == 0 {
			z.nextEpoch(t)
		}
	}
	c, _ := z.Counters()
	t.Logf("%d runs: %v", z.ran, nonzero(c))
	for _, reason := range []string{"pod_delivered", "pod_to_stack", "pod_from_stack", "tunnel_delivered", "tunnel_to_stack", "flow_new", "flow_evicted",
		"drop_malformed", "drop_fragment", "drop_spoofed", "drop_policy_ingress", "drop_policy_egress", "drop_no_backend", "drop_multicast", "drop_no_endpoint"} {
		if c[reason] == 0 {
			t.Errorf("no packet was counted as %s: the packets are too tame", reason)
		}
	}
	if z.ran < 40_000 {
		t.Errorf("only %d runs", z.ran)
	}
}

func FuzzPod(f *testing.F) {
	z := newFuzzed(f)
	for _, p := range good() {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) >= 15 && len(p) < 4000 {
			z.try(t, p)
		}
	})
}
