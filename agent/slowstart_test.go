package agent

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// slowRig is a drainRig whose c2 has nodes 1 and 2 and four backends of service 0,
// two on each, and whose shares follow health.
func slowRig(t testing.TB, over time.Duration) *drainRig {
	r := newDrainRig(t, 2)
	r.s.slow = newSlowStart(over)
	slice := drainSlice(0, 1)
	for i := range byte(3) {
		slice.Endpoints = append(slice.Endpoints, clustermesh.Endpoint{Address: netip.AddrFrom4([4]byte{10, 9, 0, i + 1}), Node: uint16(i%2 + 1), Ready: true, Serving: true})
	}
	slice.Endpoints[0].Node = 2
	for _, rec := range []clustermesh.Record{&clustermesh.Node{Name: "n1", Number: 1, WireGuardKey: [32]byte{1}}, &clustermesh.Node{Name: "n2", Number: 2, WireGuardKey: [32]byte{2}}, slice} {
		if refused := r.s.Apply(clustermesh.Update{Cluster: "c2", Scope: clustermesh.ScopeExport, Changes: []clustermesh.Change{{Key: clustermesh.KeyOf(clustermesh.ScopeExport, "c2", rec), Record: rec}}}, true); len(refused) > 0 {
			t.Fatal(refused)
		}
	}
	finish(r.s)
	return r
}

// judge says which nodes of c2 are down from now on.
func (r *drainRig) judge(nodes ...uint16) {
	down := map[NodeKey]HealthRow{}
	for _, n := range nodes {
		since, known := r.s.down[NodeKey{2, n}]
		if !known {
			since = HealthRow{Since: uint64(r.now.Unix())}
		}
		down[NodeKey{2, n}] = since
	}
	r.s.SetDown(down)
}

// on is how many slots of service 0 lead to each node of c2.
func (r *drainRig) on() [3]int {
	var n [3]int
	for k, row := range r.s.t.slots.wanted {
		if k.Service == ServiceID(manyName(0), "web", clustermesh.TCP, false) && k.Cluster == 2 {
			n[row.Node]++
		}
	}
	return n
}

// A node that is down for long loses its slots to the others of its cluster; it
// gets them back one by one. The slots of the others never move.
func TestSlowStartOfANode(t *testing.T) {
	r := slowRig(t, 30*time.Second)
	r.pass(time.Second)
	all, mine := r.on(), map[SlotKey]SlotRow{}
	for k, row := range r.s.t.slots.wanted {
		if row.Node == 1 {
			mine[k] = row
		}
	}
	r.judge(2)
	if r.pass(outAfter - 2*time.Second); r.on() != all {
		t.Errorf("a blip: %v, were %v", r.on(), all)
	}
	if r.pass(4 * time.Second); r.on() != [3]int{0, all[1] + all[2], 0} {
		t.Errorf("it is out: %v, were %v", r.on(), all)
	}
	r.judge()
	last := 0
	for range 40 {
		r.pass(time.Second)
		now := r.on()
		if now[2] < last || now[1]+now[2] != all[1]+all[2] {
			t.Errorf("on the way back: %v after %d", now, last)
		}
		last = now[2]
		for k, row := range mine {
			if got, _ := r.s.t.slots.Wanted(k); got != row {
				t.Fatalf("slot %v moved from %v to %v", k, row, got)
			}
		}
	}
	if r.on() != all || !r.s.slow.nothings {
		t.Errorf("back: %v, were %v", r.on(), all)
	}
}

// A cluster that was down returns with a little of its weight, and gets all of it.
func TestSlowStartOfACluster(t *testing.T) {
	r := slowRig(t, 20*time.Second)
	before, slots := r.row(0), r.on()
	r.judge(1, 2)
	if r.pass(outAfter + 2*time.Second); r.row(0) != "tier0=65535[1*65535#1,2*6553#4]" || r.on() != slots {
		t.Errorf("down: %s, slots %v", r.row(0), r.on())
	}
	r.judge(2) // one node is enough
	if r.pass(time.Second); r.row(0) != "tier0=65535[1*65535#1,2*6553#4]" {
		t.Errorf("at first: %s", r.row(0))
	}
	if r.pass(9 * time.Second); !strings.Contains(r.row(0), "2*30145#4") && !strings.Contains(r.row(0), "2*36044#4") {
		t.Errorf("half way: %s", r.row(0))
	}
	r.judge()
	if r.pass(50 * time.Second); r.row(0) != before || r.on() != slots || !r.s.slow.nothings {
		t.Errorf("back: %s, before %s, slots %v", r.row(0), before, r.on())
	}
}

// With min-healthy, who is out does not count, and who returns counts bit by bit.
func TestSlowStartMinHealthy(t *testing.T) {
	r := slowRig(t, 20*time.Second)
	own := *r.s.clusters["c1"].export().Service(manyName(0))
	own.Affinity, own.MinHealthy = clustermesh.AffinityRemote, "100%"
	r.s.Apply(clustermesh.Update{Cluster: "c1", Scope: clustermesh.ScopeExport, Changes: []clustermesh.Change{{Key: clustermesh.KeyOf(clustermesh.ScopeExport, "c1", &own), Record: &own}}}, true)
	finish(r.s)
	if r.row(0) != "tier0=65535[2*1#4] tier1=65535[1*1#1]" {
		t.Fatal(r.row(0))
	}
	r.judge(2)
	if r.pass(outAfter + 2*time.Second); r.row(0) == "tier0=65535[2*1#4] tier1=65535[1*1#1]" {
		t.Errorf("half of it is out: %s", r.row(0))
	}
	r.judge()
	if r.pass(25 * time.Second); r.row(0) != "tier0=65535[2*1#4] tier1=65535[1*1#1]" {
		t.Errorf("back: %s", r.row(0))
	}
}

// A return rises from the floor to all, in steps that are foretold.
func TestRamp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		since, over := time.Unix(rapid.Int64Range(0, 1<<33).Draw(t, "since"), 0), time.Duration(rapid.Int64Range(1, int64(time.Hour)).Draw(t, "over"))
		level, next := ramp(since, over, since)
		for steps := 1; !next.IsZero(); steps++ {
			if early, _ := ramp(since, over, next.Add(-1)); early != level && over > rampSteps {
				t.Fatalf("%d a moment before it was foretold, not %d", early, level)
			}
			now, then := ramp(since, over, next)
			if now < level || steps > rampSteps || !then.IsZero() && !then.After(next) {
				t.Fatalf("step %d: from %d to %d", steps, level, now)
			}
			level, next = now, then
		}
		if level != clustermesh.ShareAll {
			t.Fatalf("ends with %d", level)
		}
	})
}

// fill against what it says: who takes part keeps its slot, the others' slots lead
// to such, evenly.
func TestFill(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h, now := newSlowStart(10*time.Second), time.Unix(1000, 0)
		var backends []clustermesh.Backend
		for i := range rapid.IntRange(0, 20).Draw(t, "backends") {
			backends = append(backends, clustermesh.Backend{Address: netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), Port: 80, Node: uint16(rapid.IntRange(1, 4).Draw(t, "node"))})
		}
		for n := range uint16(4) {
			switch rapid.IntRange(0, 2).Draw(t, "state") {
			case 0:
				h.out[NodeKey{1, n + 1}] = true
			case 1:
				h.back[NodeKey{1, n + 1}] = now.Add(-time.Duration(rapid.IntRange(0, 12).Draw(t, "ago")) * time.Second)
			}
		}
		got := h.fill(1, backends, now)
		used := slices.DeleteFunc(slices.Clone(backends), func(b clustermesh.Backend) bool { return !h.uses(1, b, now) })
		if len(used) == 0 {
			if !slices.Equal(got, backends) {
				t.Fatalf("nobody takes part: %v", got)
			}
			return
		}
		counts := map[clustermesh.Backend]int{}
		for i, b := range got {
			if h.uses(1, backends[i], now) && b != backends[i] || !h.uses(1, b, now) {
				t.Fatalf("slot %d: %v, was %v", i, b, backends[i])
			}
			counts[b]++
		}
		for _, b := range used {
			if n := counts[b]; n < len(backends)/len(used) || n > len(backends)/len(used)+1 {
				t.Fatalf("%v has %d of %d slots of %d", b, n, len(backends), len(used))
			}
		}
	})
}
