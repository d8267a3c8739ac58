package linux

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/tombolo-mesh/tombolo/bpf"
)

func flowAddr(s string) bpf.Addr { return bpf.Addr{B: netip.MustParseAddr(s).As16()} }

// Which side is a depends on the bytes of addresses, then of ports.
func TestFlowKeyOrder(t *testing.T) {
	low, high := flowAddr("10.0.0.1"), flowAddr("10.0.0.2")
	for _, c := range []struct {
		src, dst     bpf.Addr
		sport, dport uint16
		aport        uint16
	}{
		{low, high, 9, 1, 9}, {high, low, 1, 9, 9},
		{low, low, 256, 255, 255}, {low, low, 255, 256, 255}, // as numbers, not as this machine has them
	} {
		k := flowKey(c.src, swap(c.sport), c.dst, swap(c.dport), 6)
		if k.A != low || k.Aport != swap(c.aport) {
			t.Errorf("%v: a is %v port %d", c, k.A, swap(k.Aport))
		}
	}
}

// The rows of a translated flow name each other.
func TestFlowPartner(t *testing.T) {
	client, vip, backend, node := flowAddr("10.1.1.9"), flowAddr("172.20.0.1"), flowAddr("10.1.1.3"), flowAddr("192.0.2.1")
	for name, c := range map[string]struct {
		toSrc   bpf.Addr // zero: the source stays
		srcPort uint16
	}{
		"backend alone": {}, "both ends": {node, swap(61000)},
	} {
		flags := bpf.FlowService | bpf.FlowToDst
		src, sport := client, swap(4000)
		if c.toSrc != (bpf.Addr{}) {
			flags |= bpf.FlowToSrc
			src, sport = c.toSrc, c.srcPort
		}
		before := flowKey(client, swap(4000), vip, swap(80), 6)
		after := flowKey(src, sport, backend, swap(8080), 6)
		opener := bpf.Flow{Flags: flags, ToSrc: c.toSrc, SrcPort: c.srcPort, ToDst: backend, DstPort: swap(8080)}
		if before.A == client {
			opener.Flags |= bpf.FlowFromA
		}
		answer := bpf.Flow{Flags: bpf.FlowReply | bpf.FlowToSrc, ToSrc: vip, SrcPort: swap(80)}
		if c.toSrc != (bpf.Addr{}) {
			answer.Flags |= bpf.FlowToDst
			answer.ToDst, answer.DstPort = client, swap(4000)
		}
		if after.A == src && after.Aport == sport {
			answer.Flags |= bpf.FlowFromA
		}
		if got, ok := partner(before, opener); !ok || got != after {
			t.Errorf("%s: the opener's row names %v, want %v", name, got, after)
		}
		if got, ok := partner(after, answer); !ok || got != before {
			t.Errorf("%s: the answers' row names %v, want %v", name, got, before)
		}
	}
	if _, ok := partner(flowKey(client, 1, vip, 2, 6), bpf.Flow{Flags: bpf.FlowFromA}); ok {
		t.Error("a plain flow has no partner")
	}
}

// newFlowsMap is an empty table of flows.
func newFlowsMap(t testing.TB) *ebpf.Map {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: a BPF map")
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.LRUHash, MaxEntries: 4096,
		KeySize: uint32(unsafe.Sizeof(bpf.FlowKey{})), ValueSize: uint32(unsafe.Sizeof(bpf.Flow{}))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func TestSweep(t *testing.T) {
	m := newFlowsMap(t)
	const udp = 17
	now := uint64(100 * time.Hour)
	row := func(last byte, proto uint8, flags uint32, idle time.Duration) bpf.FlowKey {
		k := flowKey(flowAddr("10.0.0.1"), swap(uint16(last)), flowAddr("10.0.0.2"), swap(80), proto)
		if err := m.Put(k, bpf.Flow{Flags: flags, Seen: now - uint64(idle)}); err != nil {
			t.Fatal(err)
		}
		return k
	}
	d := DefaultFlowTimeouts
	answered, closing, closed := bpf.FlowAnswered, bpf.FlowAnswered|bpf.FlowFinA, bpf.FlowAnswered|bpf.FlowFinA|bpf.FlowFinB
	want := map[bpf.FlowKey]bool{}
	for i, c := range []struct {
		proto   uint8
		flags   uint32
		timeout time.Duration
	}{
		{protoTCP, 0, d.Opening}, {protoTCP, answered, d.Open}, {protoTCP, closing, d.Closing}, {protoTCP, closed, d.Closed},
		{protoTCP, answered | bpf.FlowReset, d.Closed}, {protoSCTP, answered, d.Open}, {udp, 0, d.Asked}, {udp, answered, d.Talking}, {1, 0, d.Asked},
	} {
		want[row(byte(2*i+1), c.proto, c.flags, c.timeout-time.Second)] = true
		want[row(byte(2*i+2), c.proto, c.flags, c.timeout+time.Second)] = false
	}
	// The answers of a translated flow have stopped, what it sends has not.
	client, vip, backend := flowAddr("10.0.0.5"), flowAddr("172.20.0.1"), flowAddr("10.0.0.6")
	before, after := flowKey(client, 1, vip, 2, udp), flowKey(client, 1, backend, 3, udp)
	put := func(k bpf.FlowKey, f bpf.Flow, src bpf.Addr) {
		if k.A == src {
			f.Flags |= bpf.FlowFromA
		}
		if err := m.Put(k, f); err != nil {
			t.Fatal(err)
		}
	}
	put(before, bpf.Flow{Flags: bpf.FlowToDst | bpf.FlowService, ToDst: backend, DstPort: 3, Seen: now}, client)
	put(after, bpf.Flow{Flags: bpf.FlowToSrc | bpf.FlowReply, ToSrc: vip, SrcPort: 2, Seen: now - uint64(time.Hour)}, client)
	want[before], want[after] = true, true
	// A backend that it had before has stopped: its row goes.
	former := flowKey(client, 1, flowAddr("10.0.0.7"), 3, udp)
	put(former, bpf.Flow{Flags: bpf.FlowToSrc | bpf.FlowReply | bpf.FlowGone, ToSrc: vip, SrcPort: 2, Seen: now - uint64(d.Closed+time.Second)}, client)
	want[former] = false
	gone := flowKey(client, 7, vip, 2, protoTCP)
	put(gone, bpf.Flow{Flags: answered | bpf.FlowGone, Seen: now - uint64(d.Closing-time.Second)}, client)
	want[gone] = true

	s := &Sweeper{flows: m, timeouts: d}
	if err := s.sweep(now); err != nil {
		t.Fatal(err)
	}
	left := 0
	for k, stays := range want {
		var f bpf.Flow
		if there := m.Lookup(k, &f) == nil; there != stays {
			t.Errorf("%v flags %d idle %v: there %v, want %v", k, f.Flags, time.Duration(now-f.Seen), there, stays)
		}
		if stays {
			left++
		}
	}
	if c := s.Count(); c.Rows != left || int(c.Expired) != len(want)-left {
		t.Errorf("counted %+v, want %d left of %d", c, left, len(want))
	}
	// Both have stopped: both go, in one sweep.
	put(before, bpf.Flow{Flags: bpf.FlowToDst | bpf.FlowService, ToDst: backend, DstPort: 3, Seen: now - uint64(time.Hour)}, client)
	if err := s.sweep(now); err != nil {
		t.Fatal(err)
	}
	for _, k := range []bpf.FlowKey{before, after} {
		if m.Lookup(k, new(bpf.Flow)) == nil {
			t.Errorf("%v is still there", k)
		}
	}
}

func TestFlowsNearlyFull(t *testing.T) {
	if _, ok := (FlowCount{Rows: 89, Size: 100}).Problem(); !ok {
		t.Error("a problem at 89 %")
	}
	p, ok := (FlowCount{Rows: 90, Size: 100}).Problem()
	if ok || !strings.Contains(p.What, "90 of 100") || !strings.Contains(p.Fix, "flows=200") {
		t.Errorf("at 90 %%: %v %+v", ok, p)
	}
}
