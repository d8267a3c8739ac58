package bpf

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
)

// unreachable is an ICMP error from somebody about a segment that was sent.
func unreachable(from string, about segment) []byte {
	quoted := about.bytes()[14:]
	to := about.src
	if netip.MustParseAddr(from).Is4() {
		l4 := append([]byte{3, 3, 0, 0, 0, 0, 0, 0}, quoted[:28]...)
		binary.BigEndian.PutUint16(l4[2:], checksum(l4))
		return frame(ip4(from, to, 1, l4))
	}
	l4 := append([]byte{1, 4, 0, 0, 0, 0, 0, 0}, quoted...)
	binary.BigEndian.PutUint16(l4[2:], transportSum(netip.MustParseAddr(from), netip.MustParseAddr(to), 58, l4))
	return frame(ip6(from, to, 58, l4))
}

// readError is who an ICMP error comes from and goes to, and what it is about.
func readError(t testing.TB, f []byte) (from, to string, about segment) {
	t.Helper()
	s := readSegment(t, f)
	p := f[14:]
	var src, dst netip.Addr
	l4 := p[28+20:]
	if p[0]>>4 == 4 {
		q := p[28:]
		if checksum(q[:20]) != 0 {
			t.Errorf("IP checksum inside is wrong: % x", q[:20])
		}
		src, dst, about.proto = netip.AddrFrom4([4]byte(q[12:])), netip.AddrFrom4([4]byte(q[16:])), q[9]
	} else {
		q := p[48:]
		src, dst, about.proto = netip.AddrFrom16([16]byte(q[8:])), netip.AddrFrom16([16]byte(q[24:])), q[6]
		l4 = q[40:]
	}
	about.src, about.dst = src.String(), dst.String()
	about.sport, about.dport = int(binary.BigEndian.Uint16(l4)), int(binary.BigEndian.Uint16(l4[2:]))
	return s.src, s.dst, about
}

// errorPasses checks what an ICMP error becomes.
func (n *podNode) errorPasses(t testing.TB, prog *ebpf.Program, f []byte, from, to string, about segment) {
	t.Helper()
	verdict, out := n.run(t, prog, f)
	if verdict == verdictShot {
		all, _ := n.Counters()
		t.Fatalf("dropped: %v", nonzero(all))
	}
	gotFrom, gotTo, gotAbout := readError(t, out)
	about.flags, about.data = 0, ""
	if gotFrom != from || gotTo != to || gotAbout != about {
		t.Errorf("from %s to %s about %+v\nexpected from %s to %s about %+v", gotFrom, gotTo, gotAbout, from, to, about)
	}
}

// ICMP errors about a service's packets, from the backend, from a router, and from
// the client about answers, name what their receiver sent.
func TestPodErrors(t *testing.T) {
	both(t, func(t *testing.T, n *podNode, at func(segment) segment) {
		name := func(a string) string { return at(segment{src: a, dst: a}).src }
		front := at(segment{src: podA, dst: vip, proto: udp, sport: 40000, dport: 53, data: "query..."})
		behind := at(segment{src: podA, dst: podB, proto: udp, sport: 40000, dport: 5353, data: "query..."})
		n.passes(t, n.code.from, front, behind)
		n.errorPasses(t, n.code.from, unreachable(name(podB), behind), name(vip), name(podA), front)
		n.errorPasses(t, n.tunnel, unreachable(name("10.2.1.9"), behind), name("10.2.1.9"), name(podA), front)
		n.passes(t, n.code.from, behind.back(0), front.back(0))
		n.errorPasses(t, n.code.from, unreachable(name(podA), front.back(0)), name(podA), name(podB), behind.back(0))

		// Of no flow: by what policy says of such a one.
		n.isolate(t, 1<<20|52)
		n.change(t, podA, func(e *Endpoint) { e.Subject = subjectB + 1 })
		put(t, n.Subjects, uint64(subjectB+1), Subject{Flags: IsolatedIn | IsolatedOut})
		n.nextEpoch(t)
		none := at(segment{src: podA, dst: podB, proto: udp, sport: 1, dport: 2, data: "query..."})
		n.dropped(t, n.code.from, unreachable(name(podB), none), rowsTmbReasonTMB_DROP_POLICY_EGRESS)
		// A pod complains of what was not sent to it, or to whom did not send it.
		n.dropped(t, n.code.from, unreachable(name(podC), behind), rowsTmbReasonTMB_DROP_SPOOFED)
		forged := unreachable(name(podB), at(segment{src: podC, dst: podB, proto: udp, sport: 1, dport: 2, data: "query..."}))
		to := netip.MustParseAddr(name(podA)).AsSlice()
		copy(forged[map[int]int{4: 14 + 16, 16: 14 + 24}[len(to)]:], to)
		n.dropped(t, n.code.from, forged, rowsTmbReasonTMB_DROP_MALFORMED)
		// What it is about lies behind its end, as padding does: no checksum covers it.
		n.dropped(t, n.code.from, shortened(unreachable(name(podB), behind), 10), rowsTmbReasonTMB_DROP_MALFORMED)
	})
}

// shortened: by its IP header the ICMP error f ends n bytes before the eighth byte
// of the transport header that it quotes.
func shortened(f []byte, n int) []byte {
	ip := f[14:]
	if ip[0]>>4 == 4 {
		binary.BigEndian.PutUint16(ip[2:], uint16(20+8+28-n))
		binary.BigEndian.PutUint16(ip[10:], 0)
		binary.BigEndian.PutUint16(ip[10:], checksum(ip[:20]))
		l4 := ip[20 : 20+8+28-n]
		binary.BigEndian.PutUint16(l4[2:], 0)
		binary.BigEndian.PutUint16(l4[2:], checksum(l4))
		return f
	}
	binary.BigEndian.PutUint16(ip[4:], uint16(8+48-n))
	return f
}

// Echo is a flow: an answer passes although it could not have begun.
func TestPodEcho(t *testing.T) {
	both(t, func(t *testing.T, n *podNode, at func(segment) segment) {
		echo := func(s segment, reply bool) []byte {
			s = at(s)
			l4 := []byte{8, 0, 0, 0, 0x12, 0x34, 0, 1, 'h', 'i'}
			proto := byte(1)
			if netip.MustParseAddr(s.src).Is6() {
				l4[0], proto = 128, 58
			}
			if reply {
				l4[0] = map[byte]byte{8: 0, 128: 129}[l4[0]]
			}
			if proto == 58 {
				binary.BigEndian.PutUint16(l4[2:], transportSum(netip.MustParseAddr(s.src), netip.MustParseAddr(s.dst), 58, l4))
				return frame(ip6(s.src, s.dst, proto, l4))
			}
			binary.BigEndian.PutUint16(l4[2:], checksum(l4))
			return frame(ip4(s.src, s.dst, proto, l4))
		}
		n.isolate(t)
		there, back := segment{src: podB, dst: podA}, segment{src: podA, dst: podB}
		n.dropped(t, n.code.from, echo(back, false), rowsTmbReasonTMB_DROP_POLICY_INGRESS)
		for _, f := range [][]byte{echo(there, false), echo(back, true), echo(there, false)} {
			if v, out := n.run(t, n.code.from, f); v != verdictRedirect {
				t.Errorf("verdict %d", int32(v))
			} else {
				readSegment(t, out)
			}
		}
	})
}

// A datagram in pieces goes to one backend; pieces of which the first was not seen
// go nowhere.
func TestPodFragments(t *testing.T) {
	both(t, func(t *testing.T, n *podNode, at func(segment) segment) {
		s := at(segment{src: podA, dst: vip, proto: udp, sport: 40000, dport: 53, data: "0123456789abcdef01234567"})
		whole := s.bytes()
		var l4 []byte
		cut := func(id byte, from, to int, more bool) []byte {
			if netip.MustParseAddr(s.src).Is4() {
				l4 = whole[34:]
				p := ip4(s.src, s.dst, udp, l4[from:to])
				p[5] = id
				binary.BigEndian.PutUint16(p[6:], uint16(from/8))
				if more {
					p[6] |= 0x20
				}
				p[10], p[11] = 0, 0
				binary.BigEndian.PutUint16(p[10:], checksum(p[:20]))
				return frame(p)
			}
			l4 = whole[54:]
			x := []byte{udp, 0, byte(from >> 8), byte(from), 0, 0, 0, id}
			if more {
				x[3] |= 1
			}
			return frame(ip6(s.src, s.dst, 44, append(x, l4[from:to]...)))
		}
		n.dropped(t, n.code.from, cut(1, 16, 32, false), rowsTmbReasonTMB_DROP_FRAGMENT)
		var got []byte
		for i, f := range [][]byte{cut(2, 0, 16, true), cut(2, 24, 32, false), cut(2, 16, 24, true)} {
			v, out := n.run(t, n.code.from, f)
			if v != verdictRedirect {
				t.Fatalf("piece %d: verdict %d", i, int32(v))
			}
			p := out[14:]
			src, dst, body := netip.Addr{}, netip.Addr{}, []byte(nil)
			if p[0]>>4 == 4 {
				if checksum(p[:20]) != 0 {
					t.Errorf("piece %d: IP checksum is wrong", i)
				}
				src, dst, body = netip.AddrFrom4([4]byte(p[12:])), netip.AddrFrom4([4]byte(p[16:])), p[20:]
			} else {
				src, dst, body = netip.AddrFrom16([16]byte(p[8:])), netip.AddrFrom16([16]byte(p[24:])), p[48:]
			}
			if want := at(segment{src: podA, dst: podB}); src.String() != want.src || dst.String() != want.dst {
				t.Errorf("piece %d: from %s to %s", i, src, dst)
			}
			if i == 0 {
				got = append(got, body...)
			} else if i == 2 {
				got = append(append(got, body...), l4[24:32]...)
			}
		}
		want := at(segment{src: podA, dst: podB})
		if sum := transportSum(netip.MustParseAddr(want.src), netip.MustParseAddr(want.dst), udp, got); sum != 0 {
			t.Errorf("put together again, the checksum is off by %#x", sum)
		}
	})
	n := newPodNode(t)
	tiny := ip4(podA, podB, tcp, make([]byte, 20))
	tiny[7] = 1 // offset 8: into the header that was judged
	n.dropped(t, n.code.from, frame(tiny), rowsTmbReasonTMB_DROP_MALFORMED)
}

// IPv6 headers before the transport header; IPv4 options.
func TestPodExtensions(t *testing.T) {
	n := newPodNode(t)
	s := segment{src: six(podA), dst: six(vip), proto: tcp, sport: 40000, dport: 80, flags: syn}
	l4 := s.bytes()[54:]
	chain := append([]byte{60, 0, 1, 4, 0, 0, 0, 0, 44, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 43, 0, 0, 0, 0, 0, 0, 9}, 6, 0, 0, 0, 0, 0, 0, 0)
	v, out := n.run(t, n.code.from, frame(ip6(s.src, s.dst, 0, append(chain, l4...))))
	if v != verdictRedirect {
		all, _ := n.Counters()
		t.Fatalf("verdict %d: %v", int32(v), nonzero(all))
	}
	if dst := netip.AddrFrom16([16]byte(out[14+24:])); dst.String() != six(podB) {
		t.Errorf("to %s", dst)
	}
	got := out[54+len(chain):]
	if sum := transportSum(netip.MustParseAddr(six(podA)), netip.MustParseAddr(six(podB)), tcp, got); sum != 0 || binary.BigEndian.Uint16(got[2:]) != 8080 {
		t.Errorf("checksum off by %#x, port %d", sum, binary.BigEndian.Uint16(got[2:]))
	}
	routed := append([]byte{6, 0, 0, 1, 0, 0, 0, 0}, l4...)
	n.dropped(t, n.code.from, frame(ip6(s.src, s.dst, 43, routed)), rowsTmbReasonTMB_DROP_MALFORMED)
	var long []byte
	for range 9 {
		long = append(long, 60, 0, 1, 4, 0, 0, 0, 0)
	}
	n.dropped(t, n.code.from, frame(ip6(s.src, s.dst, 60, append(long, l4...))), rowsTmbReasonTMB_DROP_MALFORMED)

	o := segment{src: podA, dst: vip, proto: tcp, sport: 40001, dport: 80, flags: syn}.bytes()
	o = append(append(o[:34:34], 1, 1, 1, 0), o[34:]...)
	o[14], o[14+3], o[14+10], o[14+11] = 0x46, o[14+3]+4, 0, 0
	binary.BigEndian.PutUint16(o[14+10:], checksum(o[14:38]))
	if v, out = n.run(t, n.code.from, o); v != verdictRedirect {
		t.Fatalf("verdict %d", int32(v))
	}
	if got := readSegment(t, out); got.dst != podB || got.dport != 8080 {
		t.Errorf("became %+v", got)
	}
}

// A pod reaches itself by its service: the other end is the gateway, and answers
// come back by it; two such flows do not mix.
func TestPodHairpin(t *testing.T) {
	both(t, func(t *testing.T, n *podNode, at func(segment) segment) {
		n.service(t, vip, 81, tcp, 3, podA, 8080)
		n.service(t, vip, 82, tcp, 4, podA, 8080)
		n.change(t, podA, func(e *Endpoint) { e.Subject = subjectB })
		put(t, n.Subjects, uint64(subjectB), Subject{Flags: IsolatedIn | IsolatedOut}) // may still reach itself
		s := at(segment{src: podA, dst: vip, proto: tcp, sport: 40000, dport: 81, flags: syn})
		b := at(segment{src: "169.254.1.1", dst: podA, proto: tcp, sport: 40000, dport: 8080, flags: syn})
		n.passes(t, n.code.from, s, b)
		n.passes(t, n.code.from, b.back(syn|ack), s.back(syn|ack))
		second := s
		second.dport = 82
		v, out := n.run(t, n.code.from, second.bytes())
		if v != verdictRedirect {
			t.Fatalf("verdict %d", int32(v))
		}
		other := readSegment(t, out)
		if other.src != b.src || other.dst != b.dst || other.sport == b.sport {
			t.Errorf("the second flow became %+v", other)
		}
		n.passes(t, n.code.from, other.back(syn|ack), second.back(syn|ack))
		n.passes(t, n.code.from, b.back(ack), s.back(ack))
	})
}

// Nobody behind a service: refused, or silently dropped if it is one of this node
// only.
func TestPodNoBackend(t *testing.T) {
	both(t, func(t *testing.T, n *podNode, at func(segment) segment) {
		for _, proto := range []byte{tcp, udp} {
			s := at(segment{src: podA, dst: vip, proto: proto, sport: 40000, dport: 99, data: "hello"})
			if proto == tcp {
				s.flags = syn
			}
			front := netip.AddrPortFrom(netip.MustParseAddr(s.dst), 99)
			n.program(t, front, proto, 70, testTier{all, nil})
			f := s.bytes()
			copy(f, "\x02\x01\x00\x00\x00\x05\x02\x00\x00\x00\x00\x05")
			var v uint32
			var out []byte
			if c := n.counted(t, rowsTmbReasonTMB_DROP_NO_BACKEND, func() { v, out = n.run(t, n.code.from, f) }); c != 1 || v != verdictRedirect {
				t.Fatalf("verdict %d, counted %d", int32(v), c)
			}
			if string(out[:12]) != "\x02\x00\x00\x00\x00\x05\x02\x01\x00\x00\x00\x05" {
				t.Errorf("MACs % x", out[:12])
			}
			if proto == tcp {
				if got, want := readSegment(t, out), s.back(rst|ack); got.src != want.src || got.dst != want.dst || got.sport != want.sport ||
					got.dport != want.dport || got.flags != want.flags || got.data != "" {
					t.Errorf("answer %+v", got)
				}
				l4 := out[len(out)-20:]
				if a := binary.BigEndian.Uint32(l4[8:]); a != 6 { // SYN and five bytes
					t.Errorf("acknowledges %d", a)
				}
				s.flags = rst
				n.dropped(t, n.code.from, s.bytes(), rowsTmbReasonTMB_DROP_NO_BACKEND)
				s.flags = syn
			} else {
				from, to, about := readError(t, out)
				if from != s.dst || to != s.src || about.sport != 40000 || about.dport != 99 || about.src != s.src || about.dst != s.dst {
					t.Errorf("from %s to %s about %+v", from, to, about)
				}
			}
			var svc Service
			if err := n.Services.Lookup(frontendKey(front, proto), &svc); err != nil {
				t.Fatal(err)
			}
			svc.Flags |= ServiceLocal
			put(t, n.Services, frontendKey(front, proto), svc)
			n.dropped(t, n.code.from, s.bytes(), rowsTmbReasonTMB_DROP_NO_BACKEND)
		}
	})
}

// SCTP goes to a backend of the same port; another port it cannot have.
func TestPodSCTP(t *testing.T) {
	both(t, func(t *testing.T, n *podNode, at func(segment) segment) {
		n.service(t, vip, 36412, 132, 8, podB, 36412)
		n.service(t, vip, 36413, 132, 9, podB, 1)
		chunk := func(s segment, kind byte) []byte {
			l4 := make([]byte, 32)
			binary.BigEndian.PutUint16(l4, uint16(s.sport))
			binary.BigEndian.PutUint16(l4[2:], uint16(s.dport))
			l4[8], l4[12] = 0xab, kind // a checksum that must not change
			if netip.MustParseAddr(s.src).Is4() {
				return frame(ip4(s.src, s.dst, 132, l4))
			}
			return frame(ip6(s.src, s.dst, 132, l4))
		}
		s := at(segment{src: podA, dst: vip, sport: 5000, dport: 36412})
		b := at(segment{src: podA, dst: podB, sport: 5000, dport: 36412})
		for _, c := range []struct{ in, want []byte }{
			{chunk(s, 1), chunk(b, 1)}, {chunk(b.back(0), 2), chunk(s.back(0), 2)}, {chunk(s, 0), chunk(b, 0)},
		} {
			v, out := n.run(t, n.code.from, c.in)
			if v != verdictRedirect || string(out[14:]) != string(c.want[14:]) {
				t.Errorf("verdict %d\n% x\nexpected\n% x", int32(v), out, c.want)
			}
		}
		s.dport = 36413
		n.dropped(t, n.code.from, chunk(s, 1), rowsTmbReasonTMB_DROP_PROTOCOL)
	})
}

// A client keeps its backend as long as that is up and the time has not run out;
// a UDP flow leaves a backend that goes away.
func TestPodAffinity(t *testing.T) {
	both(t, func(t *testing.T, n *podNode, at func(segment) segment) {
		front := netip.AddrPortFrom(netip.MustParseAddr(at(segment{src: vip, dst: vip}).src), 700)
		var backends []testBackend
		for i := range 8 {
			backends = append(backends, testBackend{netip.AddrPortFrom(netip.MustParseAddr(at(segment{src: podB, dst: podB}).src), uint16(9000+i)), uint16(i + 1)})
		}
		n.program(t, front, udp, 700, oneOf(backends...))
		var svc Service
		if err := n.Services.Lookup(frontendKey(front, udp), &svc); err != nil {
			t.Fatal(err)
		}
		to := func(sport int) int {
			v, out := n.run(t, n.code.from, at(segment{src: podA, dst: vip, proto: udp, sport: sport, dport: 700}).bytes())
			if v != verdictRedirect {
				t.Fatalf("verdict %d", int32(v))
			}
			return readSegment(t, out).dport
		}
		seen := make(map[int]bool)
		for i := range 64 {
			seen[to(1000+i)] = true
		}
		if len(seen) < 4 {
			t.Errorf("without affinity: %v", seen)
		}
		svc.Affinity = 3600
		put(t, n.Services, frontendKey(front, udp), svc)
		kept := to(2000)
		for i := range 64 {
			if got := to(2000 + i); got != kept {
				t.Fatalf("with affinity: %d, then %d", kept, got)
			}
		}
		n.nodeDown(t, 1, uint16(kept-9000+1), true)
		next := to(2000) // the flow itself moves, too
		if next == kept || to(2001) != next || to(3000) != next {
			t.Errorf("its node is down: %d, before %d", next, kept)
		}
		// Time runs out.
		key := AffinityKey{Service: 700, Client: addr(at(segment{src: podA, dst: podA}).src)}
		var row Affinity
		if err := n.Affinity.Lookup(key, &row); err != nil {
			t.Fatal(err)
		}
		moved := false
		for i := range 64 {
			row.Seen -= min(row.Seen, 3600*1e9+1)
			put(t, n.Affinity, key, row)
			moved = moved || to(4000+i) != next
		}
		if row.Seen != 0 && !moved {
			t.Error("the time ran out, and the client stayed")
		}
	})
}

// Clients with session affinity leave a drained group for a cluster that is up;
// where there is none, and where a group only has weight 0, they stay.
func TestPodAffinityDrained(t *testing.T) {
	both(t, func(t *testing.T, n *podNode, at func(segment) segment) {
		front := netip.AddrPortFrom(netip.MustParseAddr(at(segment{src: vip, dst: vip}).src), 701)
		backend := func(port uint16, node uint16) testBackend {
			return testBackend{netip.AddrPortFrom(netip.MustParseAddr(at(segment{src: podB, dst: podB}).src), port), node}
		}
		n.program(t, front, udp, 701, testTier{groups: []testGroup{{cluster: 1, weight: 1, backends: []testBackend{backend(9001, 1), backend(9002, 2), backend(9003, 3)}},
			{cluster: 2, weight: 0, backends: []testBackend{backend(9004, 1)}}}})
		var svc Service
		if err := n.Services.Lookup(frontendKey(front, udp), &svc); err != nil {
			t.Fatal(err)
		}
		change := func(flags uint8, weights ...uint16) {
			svc.Affinity, svc.Flags = 3600, flags
			for i, w := range weights {
				svc.Groups[i].Weight = w
			}
			put(t, n.Services, frontendKey(front, udp), svc)
		}
		sport := 5000
		to := func() int {
			sport++ // a new flow each
			v, out := n.run(t, n.code.from, at(segment{src: podA, dst: vip, proto: udp, sport: sport, dport: 701}).bytes())
			if v != verdictRedirect {
				t.Fatalf("verdict %d", int32(v))
			}
			return readSegment(t, out).dport
		}
		change(0, 1, 0)
		kept := to()
		stays := func(why string) {
			t.Helper()
			for range 32 {
				if got := to(); got != kept {
					t.Fatalf("%s: from %d to %d", why, kept, got)
				}
			}
		}
		stays("at first")
		change(ServiceDrained, 1, 0)
		stays("another group is drained")
		change(0, 0, 1)
		stays("its weight is 0, nothing is drained")
		n.clusterDown(t, 2, true)
		change(ServiceDrained, 0, 1)
		stays("it is drained, but nothing else is up")
		n.clusterDown(t, 2, false)
		if kept = to(); kept != 9004 {
			t.Fatalf("it is drained: still to %d", kept)
		}
		change(0, 1, 1)
		stays("the drained one is back")
	})
}
