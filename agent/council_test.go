package agent

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// cluster1 registers nodes node-1 … node-n of cluster 1.
func cluster1(n int) map[string]NodeKey {
	out := map[string]NodeKey{}
	for i := range n {
		out[fmt.Sprintf("node-%d", i+1)] = NodeKey{1, uint16(i + 1)}
	}
	return out
}

// seen is a view of the first n nodes, in which the named ones miss node.
func seen(n int, node NodeKey, misses map[string]uint8) GossipView {
	v := GossipView{Missing: map[string]map[NodeKey]uint8{}}
	for i := range n {
		v.Alive = append(v.Alive, fmt.Sprintf("node-%d", i+1))
	}
	for name, lost := range misses {
		v.Missing[name] = map[NodeKey]uint8{node: lost}
	}
	return v
}

func TestCouncil(t *testing.T) {
	far := NodeKey{2, 7}
	for _, c := range []struct {
		name        string
		nodes, live int
		misses      map[string]uint8
		own         int // misses of node-1, which asks
		down        bool
	}{
		{"nobody misses it", 5, 5, nil, 0, false},
		{"five of eight each", 5, 5, map[string]uint8{"node-2": 8, "node-3": 8, "node-4": 8, "node-5": 8}, 8, true},
		{"one too few in sum", 5, 5, map[string]uint8{"node-2": 10, "node-3": 10, "node-4": 10}, 9, false},
		{"a majority with enough", 5, 5, map[string]uint8{"node-2": 14, "node-3": 14, "node-4": 14}, 0, true},
		{"a minority, however many it lost", 5, 5, map[string]uint8{"node-2": 40, "node-3": 40}, 0, false},
		{"half is no majority", 4, 4, map[string]uint8{"node-2": 40, "node-3": 40}, 0, false},
		{"too few losses of one do not count", 5, 5, map[string]uint8{"node-2": 3, "node-3": 3, "node-4": 3, "node-5": 3}, 40, false},
		{"two agents", 2, 2, map[string]uint8{"node-2": 20}, 20, true},
		{"alone", 1, 1, nil, 100, false},
		{"half of the nodes seen", 6, 3, map[string]uint8{"node-2": 20, "node-3": 20}, 0, true},
		{"fewer than half", 7, 3, map[string]uint8{"node-2": 40, "node-3": 40}, 40, false},
		{"who is not there has no say", 5, 3, map[string]uint8{"node-4": 40, "node-5": 40}, 40, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, by := newCouncil("node-1", cluster1(c.nodes), seen(c.live, far, c.misses)).down(far, c.own)
			if got != c.down || got != (len(by) > 0) {
				t.Errorf("down: %v by %v, want %v", got, by, c.down)
			}
		})
	}
}

// Without gossip every agent probes everything and judges for itself.
func TestNoCouncil(t *testing.T) {
	var c *council
	if down, _ := c.down(NodeKey{2, 1}, 100); down || c.sits() || !c.chose(NodeKey{2, 1}) {
		t.Error("an agent on its own waits for others")
	}
}

func TestVerdict(t *testing.T) {
	down, up := Evidence{Down: true, Misses: 3}, Evidence{Good: 9}
	for _, c := range []struct {
		name          string
		own           Evidence
		council, full bool
		since         int
		want          bool
	}{
		{"both find it up", up, false, true, 0, false},
		{"own probes count for oneself", down, false, true, 0, true},
		{"also where this agent was not chosen", down, false, false, 0, true},
		{"it answers this agent, not the others", up, true, true, 0, false},
		{"one miss makes one believe the others", Evidence{Misses: 1}, true, true, 0, true},
		{"answers from before the others spoke are old", up, true, false, 0, true},
		{"two new ones are too few", up, true, false, 2, true},
		{"three new ones are this agent's own evidence", up, true, false, 3, false},
		{"new ones with a miss between", Evidence{Good: 1}, true, false, 9, true},
	} {
		if got := verdict(c.own, c.council, c.full, c.since, 3); got != c.want {
			t.Errorf("%s: down %v, want %v", c.name, got, c.want)
		}
	}
}

// TestCouncilProperties: all who see the same choose the same; nobody probes
// itself; one that leaves moves only what it probed; the verdict is that of a slow
// twin, and one more loss never takes it back.
func TestCouncilProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 40).Draw(t, "nodes")
		live := rapid.IntRange(1, n).Draw(t, "live")
		node := NodeKey{uint16(rapid.IntRange(1, 2).Draw(t, "cluster")), uint16(rapid.IntRange(1, 50).Draw(t, "node"))}
		misses := map[string]uint8{}
		for range rapid.IntRange(0, 8).Draw(t, "reports") {
			misses[fmt.Sprintf("node-%d", rapid.IntRange(1, n).Draw(t, "who"))] = rapid.SampledFrom(reportLevels).Draw(t, "lost")
		}
		view := seen(live, node, misses)
		mixed := view
		mixed.Alive = rapid.Permutation(view.Alive).Draw(t, "order")
		names := func(c *council) (out []string) {
			for _, p := range c.probers(node) {
				out = append(out, p.name)
			}
			return out
		}
		c := newCouncil("node-1", cluster1(n), view)
		chosen := names(c)
		if other := names(newCouncil("node-2", cluster1(n), mixed)); !slices.Equal(chosen, other) {
			t.Fatalf("%v and %v chosen of the same members", chosen, other)
		}
		others := live
		for _, name := range view.Alive {
			if cluster1(n)[name] == node {
				others--
			}
		}
		if len(chosen) != min(probersOf, others) {
			t.Fatalf("%d chosen of %d", len(chosen), others)
		}
		voters, sum := 0, 0
		for _, name := range chosen {
			if cluster1(n)[name] == node {
				t.Fatalf("%s is to probe itself", name)
			}
			lost := int(misses[name])
			if name == "node-1" {
				lost = 0
			}
			if lost >= 8 {
				voters, sum = voters+1, sum+lost
			}
		}
		want := live > 1 && 2*live >= n && 2*voters > len(chosen) && sum >= 40
		if got, _ := c.down(node, 0); got != want {
			t.Fatalf("down: %v, the twin says %v", got, want)
		}
		if down, _ := c.down(node, 40); want && !down {
			t.Fatal("more losses took the verdict back")
		}
		if live > 1 {
			gone := rapid.SampledFrom(view.Alive).Draw(t, "gone")
			v := view
			v.Alive = slices.DeleteFunc(slices.Clone(view.Alive), func(s string) bool { return s == gone })
			after := names(newCouncil("node-1", cluster1(n), v))
			for _, name := range chosen {
				if name != gone && !slices.Contains(after, name) {
					t.Fatalf("%s probes it no longer since %s is gone", name, gone)
				}
			}
		}
	})
}

// rig is the machine of node-1 in a cluster of n, with a target in cluster 2.
type councilRig struct {
	h   *health
	now time.Time
	n   int
	far NodeKey
}

func newCouncilRig(n int) *councilRig {
	r := &councilRig{h: newHealth(HealthConfig{}), now: time.Unix(1000, 0), n: n}
	t := targets("10.1.0.1", 100)
	t.Self, t.Members = "node-1", cluster1(n)
	r.h.setTargets(t, r.now)
	r.sees(n, nil)
	// One that node-1 is not chosen for.
	for k := range t.Nodes {
		if !r.h.nodes[k].full && (r.far == NodeKey{} || k.Node < r.far.Node) {
			r.far = k
		}
	}
	return r
}

func (r *councilRig) sees(live int, misses map[string]uint8) {
	r.h.setCouncil(newCouncil("node-1", r.h.targets.Members, seen(live, r.far, misses)), r.now)
}

// run answers probes at once for a while, and returns how many there were of far.
func (r *councilRig) run(d time.Duration, answers func(NodeKey) bool) (probes int) {
	for end := r.now.Add(d); ; {
		r.h.expire(r.now)
		r.h.judge(r.now)
		due, next := r.h.due(r.now)
		for _, p := range due {
			if p.node == r.far {
				probes++
			}
			if answers(p.node) {
				r.h.answered(p.node, p.number, p.to[0], time.Millisecond, r.now)
			}
		}
		if len(due) > 0 {
			continue // a result may have made more due
		}
		if next.After(end) {
			r.now = end
			return probes
		}
		r.now = next
	}
}

func (r *councilRig) down() bool { return r.h.nodes[r.far].down }

func all(NodeKey) bool { return true }

// The chosen probe at the full rate and the others at a tenth of it; who is cut
// off probes all, as if there were no gossip.
func TestCouncilSavesProbes(t *testing.T) {
	r := newCouncilRig(20)
	if n := r.run(time.Minute, all); n < 18 || n > 22 {
		t.Errorf("%d probes of a node that others are chosen for, want 20 a minute", n)
	}
	full, mine := len(r.h.targets.Nodes), 0
	for k := range r.h.targets.Nodes {
		if r.h.nodes[k].full {
			mine++
		}
	}
	if mine == 0 || mine > full/2 {
		t.Errorf("chosen for %d of %d nodes, want about a quarter", mine, full)
	}
	r.sees(9, nil)
	if n := r.run(time.Minute, all); n < 290 {
		t.Errorf("%d probes a minute by an agent that sees 9 of 20 nodes, want 300", n)
	}
	if len(r.h.said()) > 0 {
		t.Error("it speaks")
	}
}

// A node that dies is left as soon as the others agree, also by an agent that
// probes it seldom; and its own probes alone find it, too, within seconds.
func TestCouncilDown(t *testing.T) {
	r := newCouncilRig(20)
	r.run(10*time.Second, all)
	misses := map[string]uint8{}
	for _, p := range r.h.council.probers(r.far) {
		misses[p.name] = 8
	}
	r.sees(20, misses)
	if !r.down() {
		t.Fatal("five agents agree, and it is not down")
	}
	dead := func(k NodeKey) bool { return k != r.far }
	if n := r.run(time.Second, dead); n < 3 {
		t.Errorf("%d probes in the first second after the verdict, want the full rate", n)
	}
	r.run(time.Minute, dead)
	if n := r.run(time.Minute, dead); n > 22 {
		t.Errorf("%d probes a minute of a node that nobody doubts is down", n)
	}
	r.sees(20, nil)
	if !r.down() {
		t.Error("others take it back, its own probes find it dead: it is up")
	}
	r.run(2*time.Second, all)
	if r.down() {
		t.Error("it answers again and is down")
	}

	r = newCouncilRig(20)
	r.run(10*time.Second, all)
	if r.run(5*time.Second, dead); !r.down() {
		t.Error("its own probes do not find it dead within 5 s")
	}
}

// The others are wrong, from here: this agent's own answers bring the node back.
func TestCouncilOverruled(t *testing.T) {
	r := newCouncilRig(20)
	misses := map[string]uint8{}
	for _, p := range r.h.council.probers(r.far) {
		misses[p.name] = 40
	}
	r.sees(20, misses)
	if r.run(2*time.Second, all); r.down() {
		t.Error("it answers this agent, and is down for it")
	}
}

// A node that comes and goes returns at most once in ten seconds, and each time
// it goes that is believed at once.
func TestReturnsAreDamped(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := &councilRig{h: newHealth(HealthConfig{}), now: time.Unix(1000, 0), far: NodeKey{2, 1}}
		r.h.setTargets(targets("10.1.0.1", 1), r.now)
		var returns []time.Time
		n := r.h.nodes[r.far]
		for range rapid.IntRange(1, 40).Draw(t, "phases") {
			ok := rapid.Bool().Draw(t, "ok")
			for range rapid.IntRange(1, 100).Draw(t, "steps") {
				was := n.down
				r.run(30*time.Millisecond, func(NodeKey) bool { return ok })
				if n.evidence.Misses >= 24 && !n.down {
					t.Fatal("24 misses in a row did not count at once")
				}
				if was && !n.down {
					returns = append(returns, r.now)
				}
			}
		}
		for i := 1; i < len(returns); i++ {
			if d := returns[i].Sub(returns[i-1]); d < 10*time.Second-30*time.Millisecond {
				t.Fatalf("returns %v apart", d)
			}
		}
	})
}

// A member that went without a word is looked at; that it is gone makes no node
// down.
func TestCouncilDeadMember(t *testing.T) {
	r := newCouncilRig(20)
	r.run(10*time.Second, all)
	near := NodeKey{1, 20}
	tg := r.h.targets
	tg.Nodes[near] = targets("10.1.0.1", 1).Nodes[NodeKey{2, 1}]
	r.h.setTargets(tg, r.now)
	for name := range cluster1(20) { // ask as one that is not chosen for it
		c := newCouncil(name, cluster1(20), seen(19, r.far, nil))
		if !c.chose(near) && name != "node-20" {
			tg.Self = name
		}
	}
	v := seen(19, r.far, nil)
	v.Dead = []string{"node-20"}
	r.far = near
	r.h.setCouncil(newCouncil(tg.Self, cluster1(20), v), r.now)
	if n := r.run(time.Second, all); n < 3 || r.down() {
		t.Errorf("%d probes in a second of a node whose agent is gone, down: %v", n, r.down())
	}
}
