package agent

import (
	"cmp"
	"container/heap"
	"net/netip"
	"slices"
	"time"
)

// HealthConfig are the thresholds of the health checks; zero fields mean the
// defaults in brackets.
type HealthConfig struct {
	Interval  time.Duration // between two probes of one node (300 ms)
	Timeout   time.Duration // of one probe (the interval)
	Down      int           // misses in a row that make a node down (3)
	Up        int           // answers in a row that make it up again (3)
	MaxProbes int           // per second in total; the interval stretches to keep it (500)
	Damp      time.Duration // least time between two returns of one node (10 s)
}

// Evidence is what this node's own probes say of a node.
type Evidence struct {
	Down   bool // by the thresholds
	Since  time.Time
	Misses int // in a row
	Good   int // in a row
	Probes int // so far
	// RoundTrip is the smoothed round trip of the answers; 0 = none came yet.
	RoundTrip time.Duration
}

func (c HealthConfig) withDefaults() HealthConfig {
	c.Interval = cmp.Or(c.Interval, 300*time.Millisecond)
	c.Timeout = cmp.Or(c.Timeout, c.Interval)
	c.Down = cmp.Or(c.Down, 3)
	c.Up = cmp.Or(c.Up, 3)
	c.MaxProbes = cmp.Or(c.MaxProbes, 500)
	c.Damp = cmp.Or(c.Damp, 10*time.Second)
	return c
}

// HealthTargets are the nodes to probe.
type HealthTargets struct {
	From  []netip.Addr             // this node's tunnel addresses
	Own   ClusterKey               // this node's cluster: it is never judged down as a whole
	Nodes map[NodeKey][]netip.Addr // tunnel addresses
	Known map[ClusterKey]bool      // clusters, and whether their nodes are known for sure
	Peers bool                     // Known names all clusters there are

	Self    string             // this node's name
	Members map[string]NodeKey // the own cluster's registered nodes by name, this one included
}

// health is the state machine: what was heard of each node, and the verdicts.
// It does no I/O and reads no clock.
//
//	         Down misses in a row
//	up  ───────────────────────────►  down
//	    ◄───────────────────────────
//	         Up answers in a row
//
// A node that was never probed is up: not to know is not to be down. Where agents
// gossip, the council has a say, and not every agent probes every node at the
// full rate; see period.
type health struct {
	cfg     HealthConfig
	targets HealthTargets
	nodes   map[NodeKey]*nodeHealth
	shut    map[ClusterKey]time.Time // clusters down, since when
	every   time.Duration            // between two probes of a node that this one is chosen for
	urgent  time.Duration            // the same if all nodes were: never more often
	queue   probeQueue               // by when a target is due; an entry counts if its node says the same time
	council *council

	unsaid bool // what others are to be told changed
}

// probeQueue is a heap.
type probeQueue []probeAt

type probeAt struct {
	at   time.Time
	node NodeKey
}

func (q probeQueue) Len() int           { return len(q) }
func (q probeQueue) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q probeQueue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *probeQueue) Push(x any)        { *q = append(*q, x.(probeAt)) }
func (q *probeQueue) Pop() any {
	old := *q
	last := old[len(old)-1]
	*q = old[:len(old)-1]
	return last
}

type nodeHealth struct {
	evidence Evidence
	recent   recentProbes
	down     bool // the verdict
	since    time.Time
	at       time.Time // when it is due; zero = not in the queue
	busy     bool      // a probe is under way

	full     bool      // this agent is chosen to probe it at the full rate
	level    uint8     // what others are told of it
	others   bool      // what the council says: down
	by       []string  // who made it say so
	probesAt int       // how many probes there were when it began to
	lastUp   time.Time // the last return
}

func newHealth(cfg HealthConfig) *health {
	return &health{cfg: cfg.withDefaults(), nodes: map[NodeKey]*nodeHealth{}, shut: map[ClusterKey]time.Time{}}
}

// restore takes over verdicts found in the kernel: they outlive a restart.
func (h *health) restore(nodes map[NodeKey]HealthRow, clusters map[ClusterKey]HealthRow) {
	for k, row := range nodes {
		since := time.Unix(int64(row.Since), 0)
		h.nodes[k] = &nodeHealth{down: true, since: since, evidence: Evidence{Down: true, Since: since, Misses: h.cfg.Down}}
	}
	for k, row := range clusters {
		h.shut[k] = time.Unix(int64(row.Since), 0)
	}
}

// setTargets says whom to probe. Nodes that are gone lose their verdict, unless
// their cluster is not known for sure: silence is not deletion.
func (h *health) setTargets(t HealthTargets, now time.Time) {
	h.targets = t
	for k := range t.Nodes {
		if h.nodes[k] == nil {
			h.nodes[k] = &nodeHealth{}
		}
	}
	h.choose()
	for k := range t.Nodes {
		if n := h.nodes[k]; n.at.IsZero() {
			h.schedule(k, n, now.Add(h.phase(k)))
		}
	}
	for k := range h.nodes {
		if _, still := t.Nodes[k]; still {
			continue
		}
		known, listed := t.Known[ClusterKey(k.Cluster)]
		if known || !listed && t.Peers {
			delete(h.nodes, k)
		}
	}
	h.judge(now)
}

// phase spreads the first probes over an interval, the same way every time.
func (h *health) phase(k NodeKey) time.Duration {
	hash := (uint64(k.Cluster)<<16 | uint64(k.Node)) * 0x9e3779b97f4a7c15
	return time.Duration(float64(hash>>11) / (1 << 53) * float64(h.every))
}

// choose finds out which nodes this agent is chosen for, and how often it probes
// them: less often than configured when there are so many that the total would
// exceed MaxProbes.
func (h *health) choose() {
	mine, all := 0, 0
	for k, addrs := range h.targets.Nodes {
		n := h.nodes[k]
		n.full = h.council.chose(k)
		if all += len(addrs); n.full {
			mine += len(addrs)
		}
	}
	stretched := func(addrs int) time.Duration {
		return max(h.cfg.Interval, time.Duration(addrs)*time.Second/time.Duration(h.cfg.MaxProbes))
	}
	h.every, h.urgent = stretched(mine), stretched(all)
}

// period is the time between two probes of a node.
func (h *health) period(k NodeKey, n *nodeHealth) time.Duration {
	slow := max(slowProbes*h.cfg.Interval, h.urgent)
	switch {
	case n.full:
		return h.every
	case n.others && n.evidence.Down:
		return slow // nobody doubts it
	case n.evidence.Misses > 0, n.down, h.council.dead[k]:
		return h.urgent
	default:
		return slow
	}
}

// schedule has a node probed at a time, and not when it was to be before.
func (h *health) schedule(k NodeKey, n *nodeHealth, at time.Time) {
	n.at = at
	heap.Push(&h.queue, probeAt{at, k})
}

// hasten has a node probed sooner if its period is shorter than it was when it was
// scheduled.
func (h *health) hasten(k NodeKey, n *nodeHealth, now time.Time) {
	if _, target := h.targets.Nodes[k]; target && n.at.After(now.Add(h.period(k, n))) {
		h.schedule(k, n, now)
	}
}

// setCouncil takes over what the agents of the cluster find together. It reports
// how many verdicts changed.
func (h *health) setCouncil(c *council, now time.Time) (down, up int) {
	h.council = c
	h.choose()
	for k, n := range h.nodes {
		if h.decide(k, n, now) {
			if n.down {
				down++
			} else {
				up++
			}
		}
		h.hasten(k, n, now)
	}
	h.judge(now)
	h.unsaid = true
	return down, up
}

// said are the words for others: the nodes that this one is chosen for and misses.
func (h *health) said() map[NodeKey]uint8 {
	out := map[NodeKey]uint8{}
	if !h.council.sits() {
		return out // who may be cut off keeps silent
	}
	for k, n := range h.nodes {
		if n.full && n.level > 0 {
			out[k] = n.level
		}
	}
	return out
}

// due are the nodes to be probed now, in order, and when to ask again.
func (h *health) due(now time.Time) (probe []NodeKey, next time.Time) {
	if len(h.targets.From) == 0 {
		return nil, time.Time{} // this node is not registered: nobody could answer it
	}
	for len(h.queue) > 0 && !h.queue[0].at.After(now) {
		e := heap.Pop(&h.queue).(probeAt)
		n := h.nodes[e.node]
		if n == nil || !n.at.Equal(e.at) {
			continue
		}
		n.at = time.Time{}
		if _, target := h.targets.Nodes[e.node]; !target || n.busy {
			continue // result queues it again
		}
		n.busy = true
		probe = append(probe, e.node)
		period := h.period(e.node, n)
		at := e.at.Add(period)
		if at.Before(now) {
			at = now.Add(period)
		}
		h.schedule(e.node, n, at)
	}
	if len(h.queue) > 0 {
		next = h.queue[0].at
	}
	slices.SortFunc(probe, compareNodes)
	return probe, next
}

// result takes the outcome of a probe in: the round trip counts if it was
// answered. It reports whether a verdict changed.
func (h *health) result(k NodeKey, ok bool, roundTrip time.Duration, now time.Time) bool {
	n := h.nodes[k]
	if n == nil {
		return false
	}
	n.busy = false
	if _, target := h.targets.Nodes[k]; target && n.at.IsZero() {
		h.schedule(k, n, now)
	}
	e := &n.evidence
	e.Probes++
	n.recent.note(ok, now)
	if ok {
		e.RoundTrip = smooth(e.RoundTrip, roundTrip)
		e.Good, e.Misses = e.Good+1, 0
		if e.Down && e.Good >= h.cfg.Up {
			e.Down, e.Since = false, now
		}
	} else {
		e.Misses, e.Good = e.Misses+1, 0
		if !e.Down && e.Misses >= h.cfg.Down {
			e.Down, e.Since = true, now
		}
	}
	if level := reportLevel(e.Misses); level != n.level {
		n.level, h.unsaid = level, true
	}
	changed := h.decide(k, n, now) && h.judge(now)
	h.hasten(k, n, now)
	return changed
}

// decide turns evidence into the verdict. A node that returns again and again does
// so at most once in Damp; it is probed meanwhile, and so decided about again.
func (h *health) decide(k NodeKey, n *nodeHealth, now time.Time) (changed bool) {
	others, by := h.council.down(k, n.evidence.Misses)
	if others && !n.others {
		n.probesAt = n.evidence.Probes
	}
	n.others, n.by = others, by
	down := verdict(n.evidence, others, n.full, n.evidence.Probes-n.probesAt, h.cfg.Up)
	if down == n.down || !down && now.Sub(n.lastUp) < h.cfg.Damp {
		return false
	}
	n.down, n.since = down, now
	if !down {
		n.lastUp = now
	}
	return true
}

// judge draws the conclusion for clusters: one is down when it has nodes and all
// that are known are down, and up as soon as one is up. It always returns true.
func (h *health) judge(now time.Time) bool {
	nodes, down, seen := map[ClusterKey]int{}, map[ClusterKey]int{}, map[ClusterKey]bool{}
	for k, n := range h.nodes {
		c := ClusterKey(k.Cluster)
		nodes[c]++
		if n.down {
			down[c]++
		}
		if _, is := h.targets.Nodes[k]; is {
			seen[c] = true
		}
	}
	for c, total := range nodes {
		// Nodes known by their rows alone, after a restart, are not all of a
		// cluster: that they are down does not make it down.
		if _, is := h.shut[c]; !is && seen[c] && down[c] == total && c != h.targets.Own {
			h.shut[c] = now
		}
	}
	for c := range h.shut {
		known, listed := h.targets.Known[c]
		switch {
		case nodes[c] > 0 && down[c] < nodes[c], c == h.targets.Own && c != 0:
			delete(h.shut, c)
		case nodes[c] == 0 && (known || !listed && h.targets.Peers):
			delete(h.shut, c)
		}
	}
	return true
}

// rows are the verdicts as the kernel should hold them.
func (h *health) rows() (map[NodeKey]HealthRow, map[ClusterKey]HealthRow) {
	nodes, clusters := map[NodeKey]HealthRow{}, map[ClusterKey]HealthRow{}
	for k, n := range h.nodes {
		if n.down {
			nodes[k] = HealthRow{Since: uint64(n.since.Unix())}
		}
	}
	for c, since := range h.shut {
		clusters[c] = HealthRow{Since: uint64(since.Unix())}
	}
	return nodes, clusters
}
