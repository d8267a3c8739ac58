package bpf

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// The twin of src/lb.h: the same choice in slow, obvious Go, with the same
// sequence of random numbers, so that the two can be compared exactly.

// random is lb.h's xorshift64, below n.
type random uint64

func (r *random) below(n uint32) uint32 {
	x := uint64(*r)
	x ^= x << 13
	x ^= x >> 7
	x ^= x << 17
	*r = random(x)
	return uint32((x >> 32) * uint64(n) >> 32)
}

// tablesTwin is what the choice reads.
type tablesTwin struct {
	slots       map[SlotKey]Slot
	nodeDown    map[NodeKey]bool
	clusterDown map[uint16]bool
}

func (t *tablesTwin) up(s Slot) bool {
	return !t.clusterDown[s.Cluster] && !t.nodeDown[NodeKey{Cluster: s.Cluster, Node: s.Node}]
}

type pickTwin struct {
	slot      Slot
	at        SlotKey
	found, up bool
}

func (t *tablesTwin) choose(svc Service, r *random) pickTwin {
	tiers := svc.Tiers[:svc.NumTiers]
	start := 0
	for start < len(tiers)-1 && r.below(65535) >= uint32(tiers[start].Share) {
		start++
	}
	var order []Tier
	if len(tiers) > 0 {
		order = append(order, tiers[start:]...)
		for i := start - 1; i >= 0; i-- {
			order = append(order, tiers[i])
		}
	}
	var first pickTwin
	for _, blind := range []bool{false, true} {
		for _, zero := range []bool{false, true} {
			for _, tier := range order {
				if p := t.tier(svc, tier, blind, zero, r, &first); p.found {
					return p
				}
			}
		}
		if first.found {
			return first
		}
	}
	return pickTwin{}
}

func (t *tablesTwin) tier(svc Service, tier Tier, blind, zero bool, r *random, first *pickTwin) pickTwin {
	groups := map[int]uint32{} // index to weight
	for i := int(tier.First); i < int(tier.First)+int(tier.Groups); i++ {
		g := svc.Groups[i]
		if g.Count == 0 || (g.Weight == 0) != zero || !blind && t.clusterDown[g.Cluster] {
			continue
		}
		groups[i] = max(1, uint32(g.Weight))
	}
	for len(groups) > 0 {
		var sum uint32
		for _, w := range groups {
			sum += w
		}
		at := r.below(sum)
		drawn := -1
		for i := 0; drawn < 0; i++ {
			if at < groups[i] {
				drawn = i
			}
			at -= groups[i]
		}
		delete(groups, drawn)
		g := svc.Groups[drawn]
		from := r.below(g.Count)
		for n := uint32(0); n < MaxWalk && n < g.Count; n++ {
			key := SlotKey{Service: svc.Id, Cluster: g.Cluster, Slot: (from + n) % g.Count}
			slot, ok := t.slots[key]
			if !ok {
				continue
			}
			p := pickTwin{slot, key, true, !blind}
			if blind || !t.nodeDown[NodeKey{Cluster: slot.Cluster, Node: slot.Node}] {
				return p
			}
			if !first.found {
				*first = p
				first.up = false
			}
		}
	}
	return pickTwin{}
}

// randomTables are a service and its surroundings: from all well to all down.
func randomTables(r *rand.Rand, id uint64) (Service, *tablesTwin) {
	t := &tablesTwin{map[SlotKey]Slot{}, map[NodeKey]bool{}, map[uint16]bool{}}
	svc := Service{Id: id, NumTiers: uint8(r.IntN(MaxTiers + 1))}
	badNode, badCluster, missing := r.Float64()*r.Float64(), r.Float64()*r.Float64(), r.Float64()/4
	if r.IntN(4) == 0 {
		badNode = 1
	}
	if r.IntN(6) == 0 {
		badCluster = 1
	}
	next := uint8(0)
	for i := range int(svc.NumTiers) {
		n := uint8(r.IntN(6))
		svc.Tiers[i] = Tier{First: next, Groups: n, Share: []uint16{0, all, uint16(r.Uint32())}[r.IntN(3)]}
		for range n {
			cluster := uint16(next) + 1
			count := uint32([]int{0, 1, 2, r.IntN(9), r.IntN(150)}[r.IntN(5)])
			svc.Groups[next] = Group{Cluster: cluster, Weight: []uint16{0, 1, 1, uint16(r.Uint32())}[r.IntN(4)], Count: count}
			if r.Float64() < badCluster {
				t.clusterDown[cluster] = true
			}
			for s := range count {
				node := uint16(r.IntN(20))
				if r.Float64() < missing {
					continue
				}
				key := SlotKey{Service: id, Cluster: cluster, Slot: s}
				t.slots[key] = Slot{Addr: Addr{B: [16]byte{15: byte(s), 14: byte(cluster)}}, Port: uint16(s), Cluster: cluster, Node: node}
			}
			for node := range uint16(20) {
				if r.Float64() < badNode {
					t.nodeDown[NodeKey{Cluster: cluster, Node: node}] = true
				}
			}
			next++
		}
	}
	return svc, t
}

// pickRequest is struct request of src/pick_test.c.
type pickRequest struct {
	Seed uint64
	Key  struct {
		Addr  [16]byte
		Port  uint16
		Proto uint8
		Pad   uint8
	}
	Chosen uint32
	At     struct {
		Service uint64
		Slot    uint32
		Cluster uint16
		Pad     uint16
	}
	Slot struct {
		Addr                     [16]byte
		Port, Cluster, Node, Pad uint16
	}
	RNG                    uint64
	Found, Up, Blind, Zero uint32
}

// The C and the Go choose alike, number by number, on random tables; and what
// they choose is up whenever anything is that the walk must find.
func TestChooseDifferential(t *testing.T) {
	o, _ := load(t)
	spec, err := loadPick()
	if err != nil {
		t.Fatal(err)
	}
	coll, err := loadCollection(spec, o.Maps)
	if err != nil {
		t.Fatal(err)
	}
	defer coll.Close()
	prog := coll.Programs[pickProgTmbPick]

	seed := rand.Uint64()
	t.Logf("seed %#x", seed)
	r := rand.New(rand.NewPCG(seed, 3))
	runs, kinds := 0, map[string]int{}
	for id := uint64(1); id <= 400; id++ {
		svc, twin := randomTables(r, id)
		writeTables(t, o.Maps, svc, twin)
		for range 50 {
			s := r.Uint64() | 1
			req := pickRequest{Seed: s}
			req.Key.Addr, req.Key.Port, req.Key.Proto = front4.Addr().As16(), port(80), tcp
			buf := bytes.NewBuffer(make([]byte, 14))
			binary.Write(buf, binary.LittleEndian, req)
			verdict, out, err := prog.Test(buf.Bytes())
			if err != nil || verdict != verdictNext {
				t.Fatalf("verdict %d, %v", verdict, err)
			}
			var got pickRequest
			if err := binary.Read(bytes.NewReader(out[14:]), binary.LittleEndian, &got); err != nil {
				t.Fatal(err)
			}
			rng := random(s)
			want := twin.choose(svc, &rng)
			same := (got.Chosen == 1) == want.found && uint64(rng) == got.RNG
			if want.found {
				same = same && Addr{B: got.Slot.Addr} == want.slot.Addr && got.Slot.Node == want.slot.Node &&
					(got.Up == 1) == want.up && got.At.Slot == want.at.Slot && got.At.Cluster == want.at.Cluster &&
					got.At.Service == id && got.Slot.Port == want.slot.Port && got.Slot.Cluster == want.slot.Cluster
			}
			if !same {
				t.Fatalf("service %+v\nC:  %+v\nGo: %+v, rng %d", svc, got, want, rng)
			}
			checkChoice(t, svc, twin, want)
			runs++
			switch {
			case !want.found:
				kinds["none"]++
			case want.up:
				kinds["up"]++
			default:
				kinds["first draw"]++
			}
		}
		clearTables(t, o.Maps, twin)
	}
	t.Logf("%d choices: %v", runs, kinds)
	for _, k := range []string{"none", "up", "first draw"} {
		if kinds[k] < runs/100 {
			t.Errorf("too few of kind %q: the tables test little", k)
		}
	}
}

// checkChoice knows nothing of draws, only what must be true of their outcome.
func checkChoice(t *testing.T, svc Service, twin *tablesTwin, p pickTwin) {
	t.Helper()
	mustFind, mustFindUp := false, false
	for _, tier := range svc.Tiers[:svc.NumTiers] {
		for i := tier.First; i < tier.First+tier.Groups; i++ {
			g := svc.Groups[i]
			for s := range g.Count {
				slot, ok := twin.slots[SlotKey{Service: svc.Id, Cluster: g.Cluster, Slot: s}]
				if ok && g.Count <= MaxWalk {
					mustFind = true
					mustFindUp = mustFindUp || twin.up(slot)
				}
			}
		}
	}
	if mustFind && !p.found {
		t.Fatalf("nothing chosen from %+v", svc)
	}
	if mustFindUp && !p.up {
		t.Fatalf("%+v chosen, which is down, from %+v", p, svc)
	}
	if p.up && !twin.up(p.slot) {
		t.Fatalf("%+v is said to be up", p)
	}
}

func writeTables(t *testing.T, m *Maps, svc Service, twin *tablesTwin) {
	t.Helper()
	put(t, m.Services, frontendKey(front4, tcp), svc)
	for k, v := range twin.slots {
		put(t, m.Slots, k, v)
	}
	for k := range twin.nodeDown {
		put(t, m.NodeHealth, k, Health{})
	}
	for k := range twin.clusterDown {
		put(t, m.ClusterHealth, k, Health{})
	}
}

func clearTables(t *testing.T, m *Maps, twin *tablesTwin) {
	t.Helper()
	for k := range twin.slots {
		if err := m.Slots.Delete(k); err != nil {
			t.Fatal(err)
		}
	}
	for k := range twin.nodeDown {
		if err := m.NodeHealth.Delete(k); err != nil {
			t.Fatal(err)
		}
	}
	for k := range twin.clusterDown {
		if err := m.ClusterHealth.Delete(k); err != nil {
			t.Fatal(err)
		}
	}
}
