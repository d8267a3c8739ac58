package agent

import (
	"container/heap"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// healthNet is the agents of cluster 1 and the nodes of all clusters in virtual time:
// state machines, a network that loses and delays, and a gossip that takes its time.
// No clock, no goroutine.
type healthNet struct {
	t      testing.TB
	rng    *rand.Rand
	now    time.Time
	seq    int
	events netEvents
	agents []*netAgent
	nodes  map[NodeKey][]netip.Addr

	loss   float64                                             // of each direction
	spread time.Duration                                       // what a word takes to the others
	trip   func(from, to NodeKey) time.Duration                // there and back
	cut    func(from, to NodeKey, at time.Time) bool           // packets of this direction are lost
	hears  func(from, to NodeKey) bool                         // gossip passes
	onNews func(a *netAgent, v HealthVerdict, at time.Time)    // a verdict changed
	onShut func(a *netAgent, c ClusterKey, down bool)          // of a cluster
	sent   func(from, to NodeKey, addresses int, at time.Time) // a probe
}

type netAgent struct {
	name   string
	node   NodeKey
	h      *health
	wakeAt time.Time
	said   map[string]map[NodeKey]uint8 // heard, by who said so
	last   map[NodeKey]uint8            // said
	shut   map[ClusterKey]bool
	speak  pace
}

type netEvent struct {
	at  time.Time
	seq int
	do  func()
}

type netEvents []netEvent

func (q netEvents) Len() int { return len(q) }
func (q netEvents) Less(i, j int) bool {
	return q[i].at.Before(q[j].at) || q[i].at.Equal(q[j].at) && q[i].seq < q[j].seq
}
func (q netEvents) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *netEvents) Push(x any)   { *q = append(*q, x.(netEvent)) }
func (q *netEvents) Pop() any {
	old := *q
	last := old[len(old)-1]
	*q = old[:len(old)-1]
	return last
}

// newHealthNet has so many nodes in cluster 1, 2 and so on; those of cluster 1 have
// agents, which gossip if there are several.
func newHealthNet(t testing.TB, seed uint64, nodes ...int) *healthNet {
	w := &healthNet{t: t, rng: rand.New(rand.NewPCG(seed, 0)), now: time.Unix(1_000_000, 0), spread: 60 * time.Millisecond,
		trip:   func(_, _ NodeKey) time.Duration { return time.Millisecond },
		cut:    func(_, _ NodeKey, _ time.Time) bool { return false },
		hears:  func(_, _ NodeKey) bool { return true },
		onNews: func(*netAgent, HealthVerdict, time.Time) {}, onShut: func(*netAgent, ClusterKey, bool) {},
		sent: func(_, _ NodeKey, _ int, _ time.Time) {},
	}
	all := map[NodeKey][]netip.Addr{}
	w.nodes = all
	known := map[ClusterKey]bool{}
	for c, n := range nodes {
		known[ClusterKey(c+1)] = true
		for i := range n {
			all[NodeKey{uint16(c + 1), uint16(i + 1)}] = []netip.Addr{netip.AddrFrom4([4]byte{10, byte(c + 1), byte((i + 1) >> 8), byte(i + 1)})}
		}
	}
	members := cluster1(nodes[0])
	for i := range nodes[0] {
		self := NodeKey{1, uint16(i + 1)}
		a := &netAgent{name: fmt.Sprintf("node-%d", i+1), node: self, h: newHealth(HealthConfig{}), said: map[string]map[NodeKey]uint8{}, shut: map[ClusterKey]bool{}}
		w.agents = append(w.agents, a)
		others := maps.Clone(all)
		delete(others, self)
		w.after(time.Duration(w.rng.Int64N(int64(time.Second))), func() { // agents do not begin at once
			a.h.setTargets(HealthTargets{From: all[self], Own: 1, Nodes: others, Known: known, Peers: true, Self: a.name, Members: members}, w.now)
			w.listen(a)
			w.step(a)
		})
	}
	return w
}

func (w *healthNet) after(d time.Duration, do func()) {
	w.seq++
	heap.Push(&w.events, netEvent{w.now.Add(d), w.seq, do})
}

// run lets time pass.
func (w *healthNet) run(d time.Duration) {
	end := w.now.Add(d)
	for len(w.events) > 0 && !w.events[0].at.After(end) {
		e := heap.Pop(&w.events).(netEvent)
		w.now = e.at
		e.do()
	}
	w.now = end
}

// listen has an agent take over what it hears.
func (w *healthNet) listen(a *netAgent) {
	if len(w.agents) < 2 {
		return
	}
	v := GossipView{Missing: map[string]map[NodeKey]uint8{}}
	for _, o := range w.agents {
		if w.hears(o.node, a.node) || o == a {
			v.Alive = append(v.Alive, o.name)
			if m := a.said[o.name]; len(m) > 0 {
				v.Missing[o.name] = m
			}
		}
	}
	a.h.setCouncil(newCouncil(a.name, a.h.targets.Members, v), w.now)
}

// step is a turn of an agent's loop.
func (w *healthNet) step(a *netAgent) {
	a.h.expire(w.now)
	changed := a.h.judge(w.now)
	for _, v := range a.h.takeNews() {
		w.onNews(a, v, w.now)
	}
	if changed {
		w.tellShut(a)
	}
	probes, next := a.h.due(w.now)
	for _, p := range probes {
		w.send(a, p)
	}
	if next = sooner(next, w.talk(a)); !next.IsZero() && !next.Equal(a.wakeAt) {
		a.wakeAt = next
		w.after(next.Sub(w.now), func() {
			if a.wakeAt.Equal(w.now) {
				a.wakeAt = time.Time{}
				w.step(a)
			}
		})
	}
}

// talk has an agent say what is new, as often as its loop does.
func (w *healthNet) talk(a *netAgent) time.Time {
	a.speak.want = a.speak.want || a.h.unsaid
	a.h.unsaid = false
	do, again := a.speak.turn(w.now)
	if do {
		w.say(a)
	}
	return again
}

func (w *healthNet) tellShut(a *netAgent) {
	_, rows := a.h.rows()
	for c := range maps.Keys(a.h.targets.Known) {
		if _, down := rows[c]; down != a.shut[c] {
			a.shut[c] = down
			w.onShut(a, c, down)
		}
	}
}

func (w *healthNet) send(a *netAgent, p probeOf) {
	w.sent(a.node, p.node, len(p.to), w.now)
	trip := w.trip(a.node, p.node)
	if w.rng.Float64() < w.loss || w.cut(a.node, p.node, w.now) {
		return
	}
	w.after(trip/2, func() {
		if w.rng.Float64() < w.loss || w.cut(p.node, a.node, w.now) {
			return
		}
		w.after(trip-trip/2, func() {
			a.h.answered(p.node, p.number, p.to[0], trip, w.now)
			w.step(a)
		})
	})
}

func (w *healthNet) say(a *netAgent) {
	said := a.h.said()
	if maps.Equal(said, a.last) {
		return
	}
	a.last = said
	for _, o := range w.agents {
		if o == a || !w.hears(a.node, o.node) {
			continue
		}
		w.after(w.spread, func() {
			o.said[a.name] = said
			if len(o.h.targets.Nodes) > 0 {
				w.listen(o)
				w.step(o)
			}
		})
	}
}

// noFalse fails the test at the first verdict that a node is down.
func (w *healthNet) noFalse() {
	w.onNews = func(a *netAgent, v HealthVerdict, at time.Time) {
		if v.Down {
			w.t.Errorf("%v after the start, %s judges %v down, by %v; it misses %d", at.Sub(time.Unix(1_000_000, 0)), a.name, v.Node, v.By, a.h.nodes[v.Node].evidence.Misses)
		}
	}
}

// sorted are all nodes, in order.
func (w *healthNet) sorted() []NodeKey { return slices.SortedFunc(maps.Keys(w.nodes), compareNodes) }
