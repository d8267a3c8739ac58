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

	// Decide turns what this node's own probes say of a node into the verdict
	// that counts. nil = own evidence counts for oneself. Verdicts of others
	// (gossip, a quorum) and damping enter here; it must not block.
	Decide func(node NodeKey, own Evidence) (down bool)
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
	if c.Decide == nil {
		c.Decide = func(_ NodeKey, own Evidence) bool { return own.Down }
	}
	return c
}

// HealthTargets are the nodes to probe.
type HealthTargets struct {
	From  []netip.Addr             // this node's tunnel addresses
	Own   ClusterKey               // this node's cluster: it is never judged down as a whole
	Nodes map[NodeKey][]netip.Addr // tunnel addresses
	Known map[ClusterKey]bool      // clusters, and whether their nodes are known for sure
	Peers bool                     // Known names all clusters there are
}

// health is the state machine: what was heard of each node, and the verdicts.
// It does no I/O and reads no clock.
//
//	         Down misses in a row
//	up  ───────────────────────────►  down
//	    ◄───────────────────────────
//	         Up answers in a row
//
// A node that was never probed is up: not to know is not to be down.
type health struct {
	cfg     HealthConfig
	targets HealthTargets
	nodes   map[NodeKey]*nodeHealth
	shut    map[ClusterKey]time.Time // clusters down, since when
	every   time.Duration            // between two probes of one node
	queue   probeQueue               // one entry for each target, by when it is due
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
	queued   bool // in the queue
	busy     bool // a probe is under way
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
	h.targets, h.every = t, h.interval(t)
	for k := range t.Nodes {
		n := h.nodes[k]
		if n == nil {
			n = &nodeHealth{}
			h.nodes[k] = n
		}
		if !n.queued {
			n.queued = true
			heap.Push(&h.queue, probeAt{now.Add(h.phase(k)), k})
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

// interval is the time between two probes of one node: longer than configured
// when there are so many nodes that the total would exceed MaxProbes.
func (h *health) interval(t HealthTargets) time.Duration {
	addrs := 0
	for _, a := range t.Nodes {
		addrs += len(a)
	}
	return max(h.cfg.Interval, time.Duration(addrs)*time.Second/time.Duration(h.cfg.MaxProbes))
}

// due are the nodes to be probed now, in order, and when to ask again.
func (h *health) due(now time.Time) (probe []NodeKey, next time.Time) {
	if len(h.targets.From) == 0 {
		return nil, time.Time{} // this node is not registered: nobody could answer it
	}
	for len(h.queue) > 0 && !h.queue[0].at.After(now) {
		e := heap.Pop(&h.queue).(probeAt)
		n := h.nodes[e.node]
		if _, target := h.targets.Nodes[e.node]; !target || n == nil {
			if n != nil {
				n.queued = false
			}
			continue
		}
		if n.busy {
			n.queued = false // result queues it again
			continue
		}
		n.busy = true
		probe = append(probe, e.node)
		at := e.at.Add(h.every)
		if at.Before(now) {
			at = now.Add(h.every)
		}
		heap.Push(&h.queue, probeAt{at, e.node})
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
	if _, target := h.targets.Nodes[k]; target && !n.queued {
		n.queued = true
		heap.Push(&h.queue, probeAt{now, k})
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
	return h.decide(k, n, now) && h.judge(now)
}

// decide turns evidence into the verdict.
func (h *health) decide(k NodeKey, n *nodeHealth, now time.Time) (changed bool) {
	down := h.cfg.Decide(k, n.evidence)
	if down == n.down {
		return false
	}
	n.down, n.since = down, now
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
