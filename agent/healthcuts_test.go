package agent

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// holds are the nodes that each agent holds down.
func (w *healthNet) holds() (out []string) {
	for _, a := range w.agents {
		for _, k := range w.sorted() {
			if n := a.h.nodes[k]; n != nil && n.down {
				out = append(out, fmt.Sprintf("%s: %d/%d", a.name, k.Cluster, k.Node))
			}
		}
	}
	return out
}

func (w *healthNet) expect(when string, want ...string) {
	w.t.Helper()
	if got := w.holds(); !slices.Equal(got, want) {
		w.t.Errorf("%s: down %q, want %q", when, got, want)
	}
}

func everyAgent(agents int, node string) (out []string) {
	for i := range agents {
		out = append(out, fmt.Sprintf("node-%d: %s", i+1, node))
	}
	return out
}

// A path of which one direction is dead carries no connection, whichever it is.
func TestOneWayPartition(t *testing.T) {
	for _, there := range []bool{true, false} {
		w := newHealthNet(t, 1, 5, 3)
		victim := NodeKey{2, 2}
		w.run(3 * time.Second)
		w.cut = func(from, to NodeKey, _ time.Time) bool { return there && to == victim || !there && from == victim }
		w.run(2 * time.Second)
		w.expect(fmt.Sprintf("way there dead: %v", there), everyAgent(5, "2/2")...)
		w.cut = func(_, _ NodeKey, _ time.Time) bool { return false }
		w.run(3 * time.Second)
		w.expect("healed")
	}
}

// Some miss it, others do not: those who do avoid it, for themselves, and the others
// go on, also the ones that were not chosen.
func TestPartialPartition(t *testing.T) {
	w := newHealthNet(t, 1, 12, 3)
	w.run(3 * time.Second)
	victim := NodeKey{2, 2}
	blind := map[NodeKey]bool{}
	for _, p := range w.agents[0].h.council.probers(victim)[:2] { // two of five
		blind[p.node] = true
	}
	for _, a := range w.agents { // and one that was not chosen
		if !a.h.nodes[victim].full {
			blind[a.node] = true
			break
		}
	}
	w.cut = func(from, to NodeKey, _ time.Time) bool { return blind[from] && to == victim }
	w.run(10 * time.Second)
	var want []string
	for _, a := range w.agents {
		if blind[a.node] {
			want = append(want, a.name+": 2/2")
		}
	}
	w.expect("three agents do not reach it", want...)

	// Their words do not keep the others busy.
	before := w.agents[0].h.probes
	fast := 0
	w.sent = func(from, to NodeKey, _ int, _ time.Time) {
		if !blind[from] && to == victim {
			fast++
		}
	}
	w.run(10 * time.Second)
	if most := 3*50 + 9*4 + 20; fast > most || w.agents[0].h.probes == before {
		t.Errorf("%d probes in 10 s of a node that answers, by agents that reach it; want at most %d", fast, most)
	}
}

// A few agents that are cut off from all others give no verdict to anybody, and those
// who are together find the nodes that fell silent.
func TestIsolatedMinority(t *testing.T) {
	w := newHealthNet(t, 1, 7, 3)
	w.run(3 * time.Second)
	minority := func(k NodeKey) bool { return k.Cluster == 1 && k.Node <= 2 }
	w.cut = func(from, to NodeKey, _ time.Time) bool { return minority(from) != minority(to) }
	w.hears = func(from, to NodeKey) bool { return minority(from) == minority(to) }
	for _, a := range w.agents {
		w.listen(a)
		w.step(a)
	}
	w.run(5 * time.Second)
	for _, a := range w.agents {
		for k, n := range a.h.nodes {
			if apart := minority(a.node) != minority(k); n.down != apart {
				t.Errorf("%s holds %v down: %v", a.name, k, n.down)
			}
		}
		if minority(a.node) && len(a.h.said()) > 0 {
			t.Errorf("%s speaks: %v", a.name, a.h.said())
		}
		if _, shut := a.h.shut[2]; shut != minority(a.node) {
			t.Errorf("%s holds cluster 2 down: %v", a.name, shut)
		}
	}
	w.cut = func(_, _ NodeKey, _ time.Time) bool { return false }
	w.hears = func(_, _ NodeKey) bool { return true }
	for _, a := range w.agents {
		w.listen(a)
		w.step(a)
	}
	w.run(5 * time.Second)
	w.expect("whole again")
}

// When everything is down at once, rows say so, the own cluster's alone never as a
// whole, and all return. (With every row down the first draw stands: see services.)
func TestEverythingDown(t *testing.T) {
	w := newHealthNet(t, 1, 4, 3, 12)
	w.run(3 * time.Second)
	w.cut = func(_, _ NodeKey, _ time.Time) bool { return true }
	w.run(3 * time.Second)
	for _, a := range w.agents {
		nodes, clusters := a.h.rows()
		if _, own := clusters[1]; len(nodes) != 3+3+12 || len(clusters) != 2 || own {
			t.Errorf("%s: %d nodes, clusters %v", a.name, len(nodes), clusters)
		}
	}
	w.cut = func(_, _ NodeKey, _ time.Time) bool { return false }
	w.run(5 * time.Second)
	w.expect("all back")
}

// A link that comes and goes: the first failure counts at once, returns at most once
// in ten seconds, and in the end it is up.
func TestFlappingLink(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newHealthNet(t, rapid.Uint64().Draw(rt, "seed"), 3, 2)
		victim := NodeKey{2, 1}
		w.run(3 * time.Second)
		period := time.Duration(rapid.IntRange(300, 6000).Draw(rt, "period")) * time.Millisecond
		began := w.now
		dark := func(at time.Time) bool { return at.Sub(began)/period%2 == 0 }
		w.cut = func(from, to NodeKey, at time.Time) bool { return (from == victim || to == victim) && dark(at) }
		returns := map[*netAgent][]time.Time{}
		first := map[*netAgent]time.Time{}
		w.onNews = func(a *netAgent, v HealthVerdict, at time.Time) {
			if v.Node != victim {
				rt.Fatalf("%+v", v)
			}
			if v.Down && first[a].IsZero() {
				first[a] = at
			}
			if !v.Down {
				if r := returns[a]; len(r) > 0 && at.Sub(r[len(r)-1]) < 10*time.Second {
					rt.Fatalf("%s: returns %v apart", a.name, at.Sub(r[len(r)-1]))
				}
				returns[a] = append(returns[a], at)
			}
		}
		w.run(40 * time.Second)
		for _, a := range w.agents {
			if period > time.Second && first[a].Sub(began) > time.Second {
				rt.Fatalf("%s: the first failure counted after %v", a.name, first[a].Sub(began))
			}
		}
		w.cut = func(_, _ NodeKey, _ time.Time) bool { return false }
		w.run(15 * time.Second)
		if down := w.holds(); len(down) > 0 {
			rt.Fatalf("the link is whole again, and %q", down)
		}
	})
}

// A cluster falls silent as a whole, small or large: it is down within two seconds,
// and no storm of probes arises of that.
func TestClusterDeath(t *testing.T) {
	for _, c := range []struct{ agents, nodes int }{{1, 2}, {5, 2}, {1, 60}, {5, 60}, {3, 300}} {
		t.Run(fmt.Sprintf("%d agents, %d nodes", c.agents, c.nodes), func(t *testing.T) {
			w := newHealthNet(t, 1, c.agents, c.nodes)
			w.run(8 * time.Second)
			w.noFalse()
			died := w.now
			w.onNews = func(*netAgent, HealthVerdict, time.Time) {}
			w.cut = func(from, to NodeKey, _ time.Time) bool { return from.Cluster == 2 || to.Cluster == 2 }
			left := map[string]time.Duration{}
			w.onShut = func(a *netAgent, c ClusterKey, down bool) {
				if !down || c != 2 || left[a.name] > 0 {
					t.Errorf("%s: cluster %d down: %v", a.name, c, down)
				}
				left[a.name] = w.now.Sub(died)
			}
			perSecond := map[NodeKey]map[int]int{}
			w.sent = func(from, _ NodeKey, addresses int, at time.Time) {
				if perSecond[from] == nil {
					perSecond[from] = map[int]int{}
				}
				perSecond[from][int(at.Sub(died)/time.Second)] += addresses
			}
			w.run(4 * time.Second)
			for _, a := range w.agents {
				if d := left[a.name]; d == 0 || d >= 2*time.Second {
					t.Errorf("%s left the dead cluster after %v", a.name, d)
				}
				for second, n := range perSecond[a.node] {
					if most := 3 * 500; n > most {
						t.Errorf("%s sent %d probes in second %d, want at most %d", a.name, n, second, most)
					}
				}
			}
			t.Logf("left after %v", left)

			// It returns by the first node that does.
			w.cut = func(from, to NodeKey, _ time.Time) bool {
				lives := func(k NodeKey) bool { return k.Cluster == 1 || k.Node == 2 }
				return !lives(from) || !lives(to)
			}
			back := map[string]bool{}
			w.onShut = func(a *netAgent, _ ClusterKey, down bool) { back[a.name] = !down }
			w.run(15 * time.Second)
			for _, a := range w.agents {
				if !back[a.name] {
					t.Errorf("%s: one node is back, and the cluster is not", a.name)
				}
			}
		})
	}
}

// Most of a large cluster is dead, and a few of its nodes live behind a link that loses a
// fifth each way: the cluster as a whole is never down.
func TestHalfAClusterIsNotACluster(t *testing.T) {
	w := newHealthNet(t, 3, 3, 40)
	w.loss = 0.2
	w.run(4 * time.Second)
	dead := func(k NodeKey) bool { return k.Cluster == 2 && k.Node > 3 } // 37 of 40
	w.cut = func(from, to NodeKey, _ time.Time) bool { return dead(from) || dead(to) }
	w.onShut = func(a *netAgent, c ClusterKey, down bool) { t.Errorf("%s: cluster %d down: %v", a.name, c, down) }
	w.onNews = func(a *netAgent, v HealthVerdict, _ time.Time) {
		if !dead(v.Node) {
			t.Errorf("%s: %+v", a.name, v)
		}
	}
	w.run(time.Minute)
	for _, a := range w.agents {
		if nodes, _ := a.h.rows(); len(nodes) != 37 {
			t.Errorf("%s holds %d nodes down", a.name, len(nodes))
		}
	}
}
