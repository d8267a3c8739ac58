package agent

import (
	"cmp"
	"net/netip"
	"time"
)

// HealthConfig are the thresholds of the health checks; zero fields mean the
// defaults in brackets.
//
// Down is chosen for the loss of 20 % in each direction under which nothing is to be
// judged down, which loses p = 1 - 0.8² = 36 % of the round trips. A run of 24 losses
// begins with a probe at the ordinary rate, 3,000 of them in ten minutes: 3,000 p²⁴ =
// 7·10⁻⁸ false verdicts for a prober and a node, 3·10⁻⁴ for five probers of each of
// 1,000 nodes. (With 15 it would be two or three.) That is without the probes that are
// under way while the others' time runs out, and that were answered meanwhile: where
// the round trip is short these are six more, a factor of 10³.
//
// A dead node is found, at worst, after an interval, the time of its first probe, 23
// fast ones and the time of the last: 200 + 100 + 345 + 100 ms.
type HealthConfig struct {
	Interval  time.Duration // between two probes of a node that nothing speaks against (200 ms)
	Fast      time.Duration // between two probes of one that is suspected (15 ms, at most Interval)
	Timeout   time.Duration // the least time for an answer; more where the round trip is long (100 ms)
	Down      int           // losses in a row that make a node down for this agent alone (24)
	Up        int           // answers that make it up again (3),
	Settle    time.Duration // once it has been answering for so long (2 s): a node that boots answers before its pods do
	MaxProbes int           // per second, of each kind: of nodes it is chosen for, of others, fast ones (500)
	Damp      time.Duration // least time between two returns of one node (10 s)
}

// Evidence is what this node's own probes say of a node.
type Evidence struct {
	Down   bool // by the thresholds
	Since  time.Time
	Misses int // in a row: lost since the last answer
	Good   int // in a row
	Probes int // whose outcome is known
	// Silent is when the first of the Misses was sent: the node answered until then.
	Silent  time.Time
	Noticed time.Time // when it counted as lost
	// Answered is when the last answer came, Back since when a node that is down
	// answers again, and Returned how many answers came since.
	Answered, Back time.Time
	Returned       int
	// RoundTrip is the smoothed round trip of the answers, and Deviation how much they
	// vary; 0 = none came yet.
	RoundTrip, Deviation time.Duration
}

func (c HealthConfig) withDefaults() HealthConfig {
	c.Interval = cmp.Or(c.Interval, 200*time.Millisecond)
	c.Fast = min(cmp.Or(c.Fast, 15*time.Millisecond), c.Interval)
	c.Timeout = cmp.Or(c.Timeout, 100*time.Millisecond)
	c.Down = cmp.Or(c.Down, 24)
	c.Up = cmp.Or(c.Up, 3)
	c.Settle = cmp.Or(c.Settle, 2*time.Second)
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
//	     a loss, or another's word       Down losses in a row
//	up  ──────────────────────────► suspected ───────────────► down
//	 ▲  ◄──────────────────────────  probed fast                │
//	 │           an answer                                      │
//	 └──────────────────────────────────────────────────────────┘
//	           Up answers, the first of them Settle ago
//
// A node that was never probed is up: not to know is not to be down. Where agents
// gossip, the council has a say, and not every agent probes every node at the
// full rate; see period.
type health struct {
	cfg     HealthConfig
	targets HealthTargets
	nodes   map[NodeKey]*nodeHealth
	shut    map[ClusterKey]time.Time // clusters down, since when
	opened  map[ClusterKey]time.Time // those that returned within Damp
	every   time.Duration            // between two probes of a node that this one is chosen for
	urgent  time.Duration            // the same if all nodes were: never more often
	council *council

	queue   timeQueue // by when a target is due; an entry counts if its node says the same time
	flights timeQueue // by when the time of a probe is over; an entry counts if there is such a probe
	budget  budget    // of fast probes
	fast    map[ClusterKey]int
	waiting map[ClusterKey]map[NodeKey]struct{} // suspected, and not probed fast: others have their turn

	unsaid   bool            // what others are to be told changed
	unjudged bool            // what clusters are judged by changed
	news     []HealthVerdict // that nobody took yet

	probes, misses uint64 // sent, and lost, in all
}

// HealthVerdict is a change of what this agent holds of a node, and how it came about.
type HealthVerdict struct {
	Node    NodeKey
	Down    bool
	Silent  time.Time // when the first probe that was not answered was sent; zero = this agent has lost none
	Noticed time.Time // when it counted as lost
	Accused time.Time // when another agent's word against it was first heard; zero = there was none
	Decided time.Time
	Written time.Time // into the kernel
	By      []string  // who agreed; none = this agent's own probes
}

type nodeHealth struct {
	evidence Evidence
	recent   recentProbes
	down     bool // the verdict
	since    time.Time
	at       time.Time // when it is due; zero = not in the queue

	sent     uint32     // number of the last probe
	flights  []flight   // without an answer, and their time is not over; by number
	favorite netip.Addr // answered last: as long as it does, no other address of the node is asked

	full     bool      // this agent is chosen to probe it at the full rate
	suspect  bool      // somebody speaks against it, and it has not answered since
	fast     bool      // it is probed fast
	level    uint8     // what others are told of it
	others   bool      // what the council says: down
	by       []string  // who made it say so
	accused  time.Time // since when others have spoken against it; zero = they do not
	probesAt int       // how many probes there were when the council began to say so
	lastUp   time.Time // the last return
	swept    time.Time // when it was last probed because its cluster seemed gone
}

func newHealth(cfg HealthConfig) *health {
	return &health{cfg: cfg.withDefaults(), nodes: map[NodeKey]*nodeHealth{}, shut: map[ClusterKey]time.Time{},
		opened: map[ClusterKey]time.Time{}, fast: map[ClusterKey]int{}, waiting: map[ClusterKey]map[NodeKey]struct{}{}}
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
	for k, n := range h.nodes {
		if _, still := t.Nodes[k]; still {
			continue
		}
		n.flights = nil
		h.calm(k, n)
		known, listed := t.Known[ClusterKey(k.Cluster)]
		if known || !listed && t.Peers {
			delete(h.nodes, k)
		}
	}
	h.unjudged = true
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
	mine, all := 0, len(h.targets.Nodes)
	for k := range h.targets.Nodes {
		n := h.nodes[k]
		if n.full = h.council.chose(k); n.full {
			mine++
		}
	}
	stretched := func(nodes int) time.Duration {
		return max(h.cfg.Interval, time.Duration(nodes)*time.Second/time.Duration(h.cfg.MaxProbes))
	}
	h.every, h.urgent = stretched(mine), stretched(all)
}

// period is the time between two probes of a node.
func (h *health) period(k NodeKey, n *nodeHealth) time.Duration {
	slow := max(slowProbes*h.cfg.Interval, h.urgent)
	switch {
	case n.fast:
		return h.cfg.Fast
	case n.full:
		return h.every
	case n.others && n.evidence.Down:
		return slow // nobody doubts it
	case n.evidence.Misses > 0, n.down, h.council.lost(k):
		return h.urgent
	default:
		return slow
	}
}

// setCouncil takes over what the agents of the cluster find together.
func (h *health) setCouncil(c *council, now time.Time) {
	old := h.council
	h.council = c
	if !c.keepChosen(old) {
		h.choose()
	}
	for k, n := range h.nodes {
		h.hear(k, n, old, now)
		h.decide(k, n, now)
		h.regard(k, n, now)
	}
	h.unjudged, h.unsaid = true, true
}

// hear notes what others newly say against a node. It makes one look, not judge: the
// chosen ones at the first word, another when the node's own agent is gone.
func (h *health) hear(k NodeKey, n *nodeHealth, old *council, now time.Time) {
	if !h.council.accuse(k) {
		n.accused = time.Time{}
	} else {
		if n.accused.IsZero() {
			n.accused = now
		}
		n.suspect = n.suspect || n.full && h.council.newWord(k, old)
	}
	if h.council.lost(k) && !old.lost(k) {
		n.suspect = true
	}
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
