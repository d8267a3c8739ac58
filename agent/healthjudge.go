package agent

import (
	"cmp"
	"slices"
	"time"
)

const (
	// sampleOf is how many nodes of a cluster must be down for it to be, if the rest
	// are silent: the verdict does not wait until each of a thousand was probed 24
	// times over.
	sampleOf = fastAtOnce
	// restSum is how many round trips in a row the rest must have lost together.
	restSum = 40
	// sweepAgain is how often the rest is asked for its sake.
	sweepAgain = 300 * time.Millisecond
)

// decide turns evidence into the verdict. A node that returns again and again does
// so at most once in Damp; it is probed meanwhile, and so decided about again.
func (h *health) decide(k NodeKey, n *nodeHealth, now time.Time) {
	others, by := h.council.down(k, n.evidence.Misses)
	if others && !n.others {
		n.probesAt = n.evidence.Probes
	}
	n.others, n.by = others, by
	down := verdict(n.evidence, others, n.full, n.evidence.Probes-n.probesAt, h.cfg.Up)
	if down == n.down || !down && now.Sub(n.lastUp) < h.cfg.Damp {
		return
	}
	n.down, n.since = down, now
	if !down {
		n.lastUp = now
	}
	v := HealthVerdict{Node: k, Down: down, Decided: now, By: by}
	if down {
		v.Accused = n.accused
		if n.evidence.Misses > 0 {
			v.Silent, v.Noticed = n.evidence.Silent, n.evidence.Noticed
		}
	}
	h.news, h.unjudged = append(h.news, v), true
}

// tally is what is known of a cluster's nodes.
type tally struct {
	nodes, down int
	alive       bool // one that is not down answered last
	silent      int  // not down, and lost the last round trips
	lost        int  // by these, in a row, together
	seen        bool // one of them is a target
}

func (t tally) is(down bool) bool {
	switch {
	case !t.seen || t.nodes == 0:
		return down
	case t.down == t.nodes:
		return true
	case down:
		return !t.alive // those that were never probed do not make it return
	default:
		return t.down >= sampleOf && t.down+t.silent == t.nodes && t.lost >= restSum
	}
}

// judge draws the conclusion for clusters: one is down when it has nodes and all
// are down, or enough of them and all others are silent; it is up as soon as one
// answers that is not down, though at most once in Damp. It reports whether a
// verdict changed.
func (h *health) judge(now time.Time) (changed bool) {
	if !h.unjudged {
		return false
	}
	h.unjudged = false
	tallies := map[ClusterKey]*tally{}
	for k, n := range h.nodes {
		t := tallies[ClusterKey(k.Cluster)]
		if t == nil {
			t = &tally{}
			tallies[ClusterKey(k.Cluster)] = t
		}
		_, target := h.targets.Nodes[k]
		t.count(n, target)
	}
	for c, t := range tallies {
		// Nodes known by their rows alone, after a restart, are not all of a
		// cluster: that they are down does not make it down.
		_, shut := h.shut[c]
		switch down := t.is(shut) && c != h.targets.Own; {
		case down && !shut:
			h.shut[c], changed = now, true
		case !down && shut && now.Sub(h.opened[c]) >= h.cfg.Damp:
			delete(h.shut, c)
			h.opened[c], changed = now, true
		case !down && t.down >= sampleOf:
			h.sweep(c, now)
		}
	}
	for c := range h.shut {
		known, listed := h.targets.Known[c]
		if tallies[c] == nil && (known || !listed && h.targets.Peers) || c == h.targets.Own && c != 0 {
			delete(h.shut, c)
			changed = true
		}
	}
	for c, at := range h.opened {
		if now.Sub(at) >= h.cfg.Damp {
			delete(h.opened, c)
		}
	}
	return changed
}

func (t *tally) count(n *nodeHealth, target bool) {
	t.nodes++
	t.seen = t.seen || target
	switch {
	case n.down:
		t.down++
	case n.evidence.Misses > 0:
		t.silent, t.lost = t.silent+1, t.lost+n.evidence.Misses
	case n.evidence.Good > 0:
		t.alive = true
	}
}

// sweep asks those nodes of a cluster that answered when they were last asked, out
// of turn and within the budget: so many others are down that it may be gone.
func (h *health) sweep(c ClusterKey, now time.Time) {
	var ask []NodeKey
	for k, n := range h.nodes {
		_, target := h.targets.Nodes[k]
		if ClusterKey(k.Cluster) == c && target && !n.down && n.evidence.Misses == 0 && now.Sub(n.swept) >= sweepAgain {
			ask = append(ask, k)
		}
	}
	slices.SortFunc(ask, func(a, b NodeKey) int {
		return cmp.Or(h.nodes[a].swept.Compare(h.nodes[b].swept), compareNodes(a, b))
	})
	h.budget.fill(h.cfg.MaxProbes, now)
	for _, k := range ask[:min(len(ask), int(max(h.budget.left, 0)))] {
		n := h.nodes[k]
		h.budget.left--
		n.swept = now
		h.schedule(k, n, now)
	}
}

// takeNews returns the verdicts that changed since it was last called.
func (h *health) takeNews() []HealthVerdict {
	news := h.news
	h.news = nil
	return news
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
