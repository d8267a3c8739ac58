package bpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
)

const subjectB = 7

// isolate gives pod b a subject that lets nobody in, but whom it is told of.
func (n *podNode) isolate(t testing.TB, allowed ...uint32) {
	t.Helper()
	for _, id := range allowed {
		put(t, n.Policy, PolicyKey{Bits: PolicyBitsAny, Subject: [2]uint32{subjectB}, Peer: [2]uint32{id}}, Policy{Allow: 3})
	}
	put(t, n.Subjects, uint64(subjectB), Subject{Flags: IsolatedIn})
	n.change(t, podB, func(e *Endpoint) { e.Subject = subjectB })
	n.nextEpoch(t)
}

// change changes a pod's row, of both families.
func (n *podNode) change(t testing.TB, pod string, f func(*Endpoint)) {
	t.Helper()
	for _, a := range []string{pod, six(pod)} {
		var e Endpoint
		if err := n.Endpoints.Lookup(addr(a), &e); err != nil {
			t.Fatal(err)
		}
		f(&e)
		put(t, n.Endpoints, addr(a), e)
	}
}

func (n *podNode) nextEpoch(t testing.TB) {
	t.Helper()
	var epoch uint32
	if err := n.Epoch.Lookup(uint32(0), &epoch); err != nil {
		t.Fatal(err)
	}
	put(t, n.Epoch, uint32(0), epoch+1)
}

// both runs f for IPv4 and IPv6.
func both(t *testing.T, f func(t *testing.T, n *podNode, at func(segment) segment)) {
	t.Run("IPv4", func(t *testing.T) { f(t, newPodNode(t), func(s segment) segment { return s }) })
	t.Run("IPv6", func(t *testing.T) { f(t, newPodNode(t), segment.six) })
}

// A connection of another pod of this node, and one through a service, is cut by a
// policy that forbids it, in whichever direction the next packet goes; one that
// stays allowed is not.
func TestPodEpoch(t *testing.T) {
	both(t, func(t *testing.T, n *podNode, at func(segment) segment) {
		direct := func(from string, port int) segment {
			return at(segment{src: from, dst: podB, proto: tcp, sport: port, dport: 8080, flags: syn})
		}
		front := at(segment{src: podA, dst: vip, proto: tcp, sport: 41000, dport: 80, flags: syn})
		behind := at(segment{src: podA, dst: podB, proto: tcp, sport: 41000, dport: 8080, flags: syn})
		with := func(s segment, flags byte) segment { s.flags = flags; return s }
		n.isolate(t, 1<<20|50, 1<<20|52)
		for _, s := range []segment{direct(podA, 40000), direct(podA, 40001), direct(podC, 40002)} {
			n.passes(t, n.code.from, s, s)
			n.passes(t, n.code.from, s.back(syn|ack), s.back(syn|ack))
		}
		n.passes(t, n.code.from, front, behind)
		n.passes(t, n.code.from, behind.back(syn|ack), front.back(syn|ack))

		// a is not allowed any more.
		if err := n.Policy.Delete(PolicyKey{Bits: PolicyBitsAny, Subject: [2]uint32{subjectB}, Peer: [2]uint32{1<<20 | 50}}); err != nil {
			t.Fatal(err)
		}
		n.nextEpoch(t)
		s := direct(podC, 40002)
		n.passes(t, n.code.from, with(s, ack), with(s, ack))
		n.passes(t, n.code.from, s.back(ack), s.back(ack))
		cut := n.counted(t, rowsTmbReasonTMB_FLOW_CUT, func() {
			n.dropped(t, n.code.from, with(direct(podA, 40000), ack).bytes(), rowsTmbReasonTMB_DROP_POLICY_INGRESS)
			n.dropped(t, n.code.from, direct(podA, 40001).back(ack).bytes(), rowsTmbReasonTMB_DROP_POLICY_INGRESS)
			n.dropped(t, n.code.from, behind.back(ack).bytes(), rowsTmbReasonTMB_DROP_POLICY_INGRESS)
		})
		if cut != 3 {
			t.Errorf("%d flows were cut, expected 3", cut)
		}
		// Nor do they come back, with no rows to go by.
		n.dropped(t, n.code.from, with(front, ack).bytes(), rowsTmbReasonTMB_DROP_POLICY_INGRESS)
		n.dropped(t, n.code.from, with(direct(podA, 40000), ack).bytes(), rowsTmbReasonTMB_DROP_POLICY_INGRESS)
		n.dropped(t, n.code.from, direct(podA, 40001).bytes(), rowsTmbReasonTMB_DROP_POLICY_INGRESS)
	})
}

// Rows that were pushed out: a packet amid a connection passes if the connection
// could be, in either direction; a new connection only in its own.
func TestPodEvicted(t *testing.T) {
	both(t, func(t *testing.T, n *podNode, at func(segment) segment) {
		n.isolate(t, 1<<20|52) // b lets c in, not a
		s := at(segment{src: podC, dst: podB, proto: tcp, sport: 40000, dport: 8080, flags: ack, data: "x"})
		evicted := n.counted(t, rowsTmbReasonTMB_FLOW_EVICTED, func() {
			n.passes(t, n.code.from, s, s)
			other := at(segment{src: podB, dst: podA, proto: tcp, sport: 40001, dport: 80, flags: ack, data: "x"})
			n.passes(t, n.code.from, other.back(ack), other.back(ack)) // an answer to b, which may open
			n.passes(t, n.code.from, other, other)
		})
		if evicted != 2 {
			t.Errorf("%d packets were counted as amid a connection, expected 2", evicted)
		}
		// The row of an answer does not let its sender open.
		other := at(segment{src: podA, dst: podB, proto: tcp, sport: 80, dport: 40001, flags: syn})
		n.dropped(t, n.code.from, other.bytes(), rowsTmbReasonTMB_DROP_POLICY_INGRESS)
		// UDP has no middle.
		dgram := at(segment{src: podA, dst: podB, proto: udp, sport: 5000, dport: 5001})
		n.dropped(t, n.code.from, dgram.bytes(), rowsTmbReasonTMB_DROP_POLICY_INGRESS)
		n.passes(t, n.code.from, dgram.back(0), dgram.back(0))
		n.passes(t, n.code.from, dgram, dgram) // now an answer
	})
}

// The node reaches its pods and they it, whatever policy says; a pod whose labels
// are not known reaches nobody, but what its host asked is answered.
func TestPodHost(t *testing.T) {
	both(t, func(t *testing.T, n *podNode, at func(segment) segment) {
		n.isolate(t)
		probe := at(segment{src: "10.1.1.1", dst: podB, proto: tcp, sport: 50000, dport: 8080, flags: syn})
		n.passes(t, n.code.to, probe, probe)
		n.passes(t, n.code.from, probe.back(syn|ack), probe.back(syn|ack))
		remote := at(segment{src: "10.2.1.9", dst: podB, proto: tcp, sport: 50000, dport: 8080, flags: syn})
		n.dropped(t, n.code.to, remote.bytes(), rowsTmbReasonTMB_DROP_POLICY_INGRESS)
		n.dropped(t, n.tunnel, remote.bytes(), rowsTmbReasonTMB_DROP_POLICY_INGRESS)
		out := at(segment{src: podB, dst: "10.2.1.9", proto: tcp, sport: 50001, dport: 443, flags: syn})
		n.passes(t, n.code.from, out, out)
		back := out.back(syn | ack)
		n.passes(t, n.tunnel, back, back)

		n.change(t, podB, func(e *Endpoint) { e.Flags = EndpointClosed; e.Subject = 0 })
		n.nextEpoch(t)
		n.passes(t, n.code.to, probe, probe)
		n.passes(t, n.code.from, probe.back(syn|ack), probe.back(syn|ack))
		n.dropped(t, n.code.from, at(segment{src: podB, dst: podA, proto: udp, sport: 1, dport: 2}).bytes(), rowsTmbReasonTMB_DROP_POLICY_NOT_READY)
		n.dropped(t, n.code.from, at(segment{src: podA, dst: podB, proto: udp, sport: 1, dport: 2}).bytes(), rowsTmbReasonTMB_DROP_POLICY_NOT_READY)
		n.dropped(t, n.code.from, out.bytes(), rowsTmbReasonTMB_DROP_POLICY_NOT_READY)
		n.change(t, podB, func(e *Endpoint) { e.Flags = 0; e.Subject = 99 }) // a subject without a row
		n.nextEpoch(t)
		n.dropped(t, n.code.from, at(segment{src: podA, dst: podB, proto: udp, sport: 1, dport: 2}).bytes(), rowsTmbReasonTMB_DROP_POLICY_NOT_READY)
	})
}

// A pod sends by its own link with its own addresses, to single hosts.
func TestPodSource(t *testing.T) {
	both(t, func(t *testing.T, n *podNode, at func(segment) segment) {
		n.change(t, podB, func(e *Endpoint) { e.Ifindex = 77 })
		to := at(segment{src: podA, dst: podC, proto: udp, sport: 1, dport: 2})
		n.passes(t, n.code.from, to, to)
		for _, from := range []string{podB, "10.2.1.9", "192.0.2.7", "10.1.1.1"} {
			s := at(segment{src: from, dst: podC, proto: udp, sport: 1, dport: 2})
			n.dropped(t, n.code.from, s.bytes(), rowsTmbReasonTMB_DROP_SPOOFED)
		}
		n.dropped(t, n.code.to, at(segment{src: "10.2.1.9", dst: podB, proto: udp, sport: 1, dport: 2}).bytes(), rowsTmbReasonTMB_DROP_NO_ENDPOINT)
		tagged := append(append(make([]byte, 12), 0x81, 0, 0, 1), to.bytes()[12:]...)
		n.dropped(t, n.code.from, tagged, rowsTmbReasonTMB_DROP_VLAN)
	})
	n := newPodNode(t)
	tcpSyn := segment{proto: tcp, src: podA, dst: podB}.bytes()[34:]
	for _, c := range []struct {
		name  string
		frame []byte
		want  Reason // 0: to the stack
	}{
		{"group", frame(ip4(podA, "224.0.0.251", 17, make([]byte, 12))), rowsTmbReasonTMB_DROP_MULTICAST},
		{"broadcast", frame(ip4(podA, "255.255.255.255", 17, make([]byte, 12))), rowsTmbReasonTMB_DROP_MULTICAST},
		{"group 6", frame(ip6(six(podA), "ff02::16", 17, make([]byte, 12))), rowsTmbReasonTMB_DROP_MULTICAST},
		{"ARP", append(append(make([]byte, 12), 8, 6), make([]byte, 28)...), 0},
		{"neighbour discovery", frame(neighbour("fe80::5", "ff02::1:ff00:1")), 0},
		{"neighbour discovery, routed", frame(neighbour(six(podC), "fd00:1:1::99")), 0}, // a flow like any other
		{"neighbour discovery of another", frame(neighbour("fd00:2::99", six(podB))), rowsTmbReasonTMB_DROP_SPOOFED},
		{"v4-mapped", frame(ip6("::ffff:"+podA, "::ffff:"+podB, 6, tcpSyn)), rowsTmbReasonTMB_DROP_MAPPED},
		{"LLDP", append(append(make([]byte, 12), 0x88, 0xcc), make([]byte, 28)...), rowsTmbReasonTMB_DROP_NOT_IP},
		{"IGMP length lies", frame(append([]byte{0x45, 0, 1, 0}, ip4(podA, podB, 17, make([]byte, 12))[4:]...)), rowsTmbReasonTMB_DROP_MALFORMED},
		{"GRE", frame(ip4(podA, "192.0.2.7", 47, make([]byte, 12))), 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.want != 0 {
				n.dropped(t, n.code.from, c.frame, c.want)
			} else if v, _ := n.run(t, n.code.from, c.frame); v != verdictNext {
				t.Errorf("verdict %d", int32(v))
			}
		})
	}
}

// Every verdict leaves its trace in the ring.
func TestPodEvents(t *testing.T) {
	n := newPodNode(t)
	n.isolate(t, 1<<20|50)
	s := segment{src: podA, dst: vip, proto: tcp, sport: 41000, dport: 80, flags: syn}
	b := segment{src: podA, dst: podB, proto: tcp, sport: 41000, dport: 8080, flags: syn}
	n.passes(t, n.code.from, s, b)
	n.dropped(t, n.code.from, segment{src: podC, dst: podB, proto: udp, sport: 9, dport: 10}.bytes(), rowsTmbReasonTMB_DROP_POLICY_INGRESS)
	got := n.events(t)
	want := []Event{
		{Src: addr(podA), Dst: addr(vip), Backend: addr(podB), Sport: port(41000), Dport: port(80), BackendPort: port(8080), Proto: tcp,
			Kind: uint8(rowsTmbEventKindTMB_EVENT_NEW), SrcIdentity: 1<<20 | 50, DstIdentity: 1<<20 | 51, Rule: 3, Ifindex: testIfindex},
		{Src: addr(podC), Dst: addr(podB), Sport: port(9), Dport: port(10), Proto: udp, Reason: uint32(rowsTmbReasonTMB_DROP_POLICY_INGRESS),
			SrcIdentity: 1<<20 | 52, DstIdentity: 1<<20 | 51, Ifindex: testIfindex},
	}
	if len(got) != len(want) {
		t.Fatalf("%d events, expected %d: %+v", len(got), len(want), got)
	}
	for i := range got {
		if got[i].Time == 0 {
			t.Error("an event without a time")
		}
		got[i].Time = 0
		if got[i] != want[i] {
			t.Errorf("event %d: %+v\nexpected %+v", i, got[i], want[i])
		}
	}
	// A ring that nobody empties: what does not fit is counted.
	lost := n.counted(t, rowsTmbReasonTMB_EVENT_LOST, func() {
		if _, err := n.code.from.Run(&ebpf.RunOptions{Data: segment{src: podC, dst: podB, proto: udp, sport: 9, dport: 10}.bytes(), Repeat: 60_000}); err != nil {
			t.Fatal(err)
		}
	})
	if lost == 0 {
		t.Error("none was lost")
	}
}

// events empties the ring.
func (n *podNode) events(t testing.TB) (out []Event) {
	t.Helper()
	r, err := ringbuf.NewReader(n.Events)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	r.SetDeadline(time.Now())
	for {
		rec, err := r.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		var e Event
		if err := binary.Read(bytes.NewReader(rec.RawSample), binary.NativeEndian, &e); err != nil {
			t.Fatal(err)
		}
		out = append(out, e)
	}
}
