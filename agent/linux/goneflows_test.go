package linux

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/bpf"
)

// Which flows are marked once 10.0.0.6:8080 is gone: those of a service by TCP, both
// rows; and what sockets were translated to, if they could not be ended.
func TestMarkGoneFlows(t *testing.T) {
	const udp, sctp = unix.IPPROTO_UDP, unix.IPPROTO_SCTP
	client, vip, node := flowAddr("10.0.0.9"), flowAddr("172.20.0.1"), flowAddr("192.0.2.1")
	gone, stays := flowAddr("10.0.0.6"), flowAddr("10.0.0.3")
	for _, sockets := range []bool{false, true} {
		m := newFlowsMap(t)
		want := map[bpf.FlowKey]bool{}
		put := func(k bpf.FlowKey, f bpf.Flow, opener bpf.Addr, marked bool) {
			if k.A == opener {
				f.Flags |= bpf.FlowFromA
			}
			if err := m.Put(k, f); err != nil {
				t.Fatal(err)
			}
			want[k] = marked
		}
		flags := bpf.FlowService | bpf.FlowToDst | bpf.FlowAnswered
		service := func(port uint16, proto uint8, backend bpf.Addr, at uint16, marked bool) {
			put(flowKey(client, swap(port), vip, swap(80), proto), bpf.Flow{Flags: flags, ToDst: backend, DstPort: swap(at)}, client, marked)
			put(flowKey(client, swap(port), backend, swap(at), proto), bpf.Flow{Flags: bpf.FlowReply | bpf.FlowToSrc, ToSrc: vip, SrcPort: swap(80)}, client, marked)
		}
		service(1, protoTCP, gone, 8080, true)
		service(2, protoTCP, gone, 8081, false)
		service(3, protoTCP, stays, 8080, false)
		service(4, udp, gone, 8080, false)
		service(5, sctp, gone, 8080, false)
		// Not yet open, or no longer: the next SYN opens it anew, maybe while we look.
		for i, state := range []uint32{0, bpf.FlowAnswered | bpf.FlowReset, bpf.FlowAnswered | bpf.FlowFinA | bpf.FlowFinB} {
			put(flowKey(client, swap(uint16(20+i)), vip, swap(80), protoTCP), bpf.Flow{
				Flags: bpf.FlowService | bpf.FlowToDst | state, ToDst: gone, DstPort: swap(8080)}, client, false)
		}
		put(flowKey(client, swap(23), vip, swap(80), protoTCP), bpf.Flow{ // one end alone has closed
			Flags: flags | bpf.FlowFinA, ToDst: gone, DstPort: swap(8080)}, client, true)
		// From outside, by this node's address.
		put(flowKey(node, swap(6), vip, swap(80), protoTCP), bpf.Flow{
			Flags: flags | bpf.FlowToSrc | bpf.FlowOutside, ToSrc: node, SrcPort: swap(61000), ToDst: gone, DstPort: swap(8080)}, node, true)
		put(flowKey(node, swap(61000), gone, swap(8080), protoTCP), bpf.Flow{
			Flags: bpf.FlowReply | bpf.FlowToSrc | bpf.FlowToDst | bpf.FlowOutside, ToSrc: vip, SrcPort: swap(80), ToDst: node, DstPort: swap(6)}, node, true)
		// By a socket, or without any service.
		for proto, marked := range map[uint8]bool{protoTCP: sockets, udp: sockets, sctp: false} {
			put(flowKey(client, swap(70), gone, swap(8080), proto), bpf.Flow{Flags: bpf.FlowAnswered}, client, marked)
			put(flowKey(client, swap(71), gone, swap(8081), proto), bpf.Flow{Flags: bpf.FlowAnswered}, client, false)
			put(flowKey(gone, swap(8080), client, swap(72), proto), bpf.Flow{Flags: bpf.FlowAnswered}, gone, false) // that the backend opened
		}

		backends := []agent.BackendKey{
			{Addr: gone.B, Port: 8080, Proto: protoTCP}, {Addr: gone.B, Port: 8080, Proto: udp}, {Addr: gone.B, Port: 8080, Proto: sctp},
		}
		for range 2 { // doing it again changes nothing
			if _, err := newGoneFlows(backends, sockets).mark(m); err != nil {
				t.Fatal(err)
			}
		}
		for k, marked := range want {
			var f bpf.Flow
			if err := m.Lookup(k, &f); err != nil {
				t.Fatal(err)
			}
			if got := f.Flags&bpf.FlowGone != 0; got != marked {
				t.Errorf("sockets %v: %s port %d to %s port %d, protocol %d: marked %v, want %v", sockets, netip.AddrFrom16(k.A.B).Unmap(), swap(k.Aport),
					netip.AddrFrom16(k.B.B).Unmap(), swap(k.Bport), k.Proto, got, marked)
			}
		}
	}
}

func BenchmarkMarkGoneFlows(b *testing.B) {
	m := newFlowsMap(b)
	client, vip, backend := flowAddr("10.0.0.9"), flowAddr("172.20.0.1"), flowAddr("10.0.0.6")
	for i := range 4000 {
		k := flowKey(client, uint16(i), vip, swap(80), protoTCP)
		if err := m.Put(k, bpf.Flow{Flags: bpf.FlowService | bpf.FlowToDst | bpf.FlowAnswered, ToDst: backend, DstPort: swap(8080)}); err != nil {
			b.Fatal(err)
		}
	}
	g := newGoneFlows([]agent.BackendKey{{Addr: backend.B, Port: 1, Proto: protoTCP}}, false)
	for b.Loop() {
		if _, err := g.mark(m); err != nil {
			b.Fatal(err)
		}
	}
}
