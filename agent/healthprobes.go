package agent

import (
	"container/heap"
	"net/netip"
	"slices"
	"time"
)

const (
	// fastAtOnce is how many nodes of a cluster are probed fast at a time. When a
	// large one falls silent these few find out for the rest; see judge.
	fastAtOnce = 8
	// patience is how long a probe waits for an answer in all. One that comes after
	// its time is over proves life like any other, and teaches how long to wait.
	patience = 3 * time.Second
	// longest is the longest time that a probe is given before it counts as lost, and
	// the one of a node that never answered.
	longest = time.Second
	// slack is the least that an answer may take more than usual.
	slack = 10 * time.Millisecond
)

// flight is a probe that is under way.
type flight struct {
	number uint32
	sent   time.Time
	until  time.Time // when it counts as lost
}

// timeQueue is a heap.
type timeQueue []timeOf

type timeOf struct {
	at   time.Time
	node NodeKey
}

func (q timeQueue) Len() int           { return len(q) }
func (q timeQueue) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q timeQueue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *timeQueue) Push(x any)        { *q = append(*q, x.(timeOf)) }
func (q *timeQueue) Pop() any {
	old := *q
	last := old[len(old)-1]
	*q = old[:len(old)-1]
	return last
}

// budget bounds the fast probes, to MaxProbes a second, and as many at once. A whole
// cluster that falls silent makes no storm.
type budget struct {
	left float64
	at   time.Time
}

func (b *budget) fill(perSecond int, now time.Time) {
	if b.at.IsZero() {
		b.left = float64(perSecond)
	} else {
		b.left = min(b.left+now.Sub(b.at).Seconds()*float64(perSecond), float64(perSecond))
	}
	b.at = now
}

// probeOf is a probe to be sent now.
type probeOf struct {
	node   NodeKey
	number uint32
	from   []netip.Addr // this node's own; the one of the same family
	to     []netip.Addr // all at once; one answer is enough
}

// schedule has a node probed at a time, and not when it was to be before.
func (h *health) schedule(k NodeKey, n *nodeHealth, at time.Time) {
	n.at = at
	heap.Push(&h.queue, timeOf{at, k})
}

// regard has a node probed as often as what is known of it asks for.
func (h *health) regard(k NodeKey, n *nodeHealth, now time.Time) {
	_, target := h.targets.Nodes[k]
	if !target || n.evidence.Down || n.evidence.Misses == 0 && !n.suspect {
		if next, is := h.calm(k, n); is {
			h.regard(next, h.nodes[next], now)
		}
	} else if c := ClusterKey(k.Cluster); !n.fast {
		if h.fast[c] < fastAtOnce {
			delete(h.waiting[c], k)
			h.fast[c]++
			n.fast = true
		} else {
			if h.waiting[c] == nil {
				h.waiting[c] = map[NodeKey]struct{}{}
			}
			h.waiting[c][k] = struct{}{}
		}
	}
	if target && n.at.After(now.Add(h.period(k, n))) {
		h.schedule(k, n, now) // its period was longer when it was scheduled
	}
}

// calm ends the fast probes of a node. It returns another that waited for its turn.
func (h *health) calm(k NodeKey, n *nodeHealth) (next NodeKey, is bool) {
	c := ClusterKey(k.Cluster)
	delete(h.waiting[c], k)
	if !n.fast {
		return next, false
	}
	n.fast = false
	h.fast[c]--
	for w := range h.waiting[c] {
		if !is || compareNodes(w, next) < 0 {
			next, is = w, true
		}
	}
	return next, is
}

// due are the probes to be sent now, in order, and when to ask again.
func (h *health) due(now time.Time) (probes []probeOf, next time.Time) {
	if len(h.targets.From) == 0 {
		return nil, time.Time{} // this node is not registered: nobody could answer it
	}
	h.budget.fill(h.cfg.MaxProbes, now)
	for len(h.queue) > 0 && !h.queue[0].at.After(now) {
		e := heap.Pop(&h.queue).(timeOf)
		n := h.nodes[e.node]
		if n == nil || !n.at.Equal(e.at) {
			continue
		}
		n.at = time.Time{}
		addrs, target := h.targets.Nodes[e.node]
		if !target {
			continue
		}
		if at := e.at.Add(h.period(e.node, n)); at.After(now) {
			h.schedule(e.node, n, at)
		} else {
			h.schedule(e.node, n, now.Add(h.period(e.node, n)))
		}
		if n.fast && h.budget.left < 1 {
			continue
		}
		probes = append(probes, h.send(e.node, n, addrs, now))
	}
	slices.SortFunc(probes, func(a, b probeOf) int { return compareNodes(a.node, b.node) })
	return probes, h.next()
}

func (h *health) send(k NodeKey, n *nodeHealth, addrs []netip.Addr, now time.Time) probeOf {
	if n.evidence.Misses == 0 && !n.suspect && slices.Contains(addrs, n.favorite) {
		addrs = []netip.Addr{n.favorite}
	}
	if n.fast {
		h.budget.left -= float64(len(addrs))
	}
	n.sent++
	h.probes++
	f := flight{number: n.sent, sent: now, until: now.Add(h.timeout(n.evidence))}
	n.flights = append(n.flights, f)
	heap.Push(&h.flights, timeOf{f.until, k})
	return probeOf{k, f.number, h.targets.From, addrs}
}

// next is when something is to be done.
func (h *health) next() (next time.Time) {
	if len(h.queue) > 0 {
		next = h.queue[0].at
	}
	for len(h.flights) > 0 {
		at := h.flights[0].at
		n := h.nodes[h.flights[0].node]
		if n != nil && slices.ContainsFunc(n.flights, func(f flight) bool { return !f.until.After(at) }) {
			if next.IsZero() || at.Before(next) {
				next = at
			}
			break
		}
		heap.Pop(&h.flights) // it was answered
	}
	return next
}

// timeout is how long to wait for an answer before it counts as lost: as TCP has
// it, four times the deviation more than the smoothed round trip.
func (h *health) timeout(e Evidence) time.Duration {
	if e.RoundTrip == 0 {
		return max(h.cfg.Timeout, longest)
	}
	return max(h.cfg.Timeout, min(e.RoundTrip+max(4*e.Deviation, slack), longest))
}

// expire takes in which probes' time is over.
func (h *health) expire(now time.Time) {
	for len(h.flights) > 0 && !h.flights[0].at.After(now) {
		e := heap.Pop(&h.flights).(timeOf)
		n := h.nodes[e.node]
		if n == nil {
			continue
		}
		before := len(n.flights)
		n.flights = slices.DeleteFunc(n.flights, func(f flight) bool {
			if f.until.After(now) {
				return false
			}
			h.lost(n, f, now)
			return true
		})
		if len(n.flights) < before {
			h.weigh(e.node, n, now)
		}
	}
}

// straySilence is how long after an answer another one no longer goes with it: more
// than between two probes of a node that nobody doubts is down.
const straySilence = 5 * time.Second

// lost counts a probe whose time is over.
func (h *health) lost(n *nodeHealth, f flight, now time.Time) {
	e := &n.evidence
	if e.Misses == 0 {
		e.Silent, e.Noticed = f.sent, now
	}
	e.Probes, e.Misses, e.Good = e.Probes+1, e.Misses+1, 0
	n.recent.note(false, now)
	h.misses++
	if !e.Down && e.Misses >= h.cfg.Down {
		e.Down, e.Since, e.Back = true, now, time.Time{}
	}
}

// answered takes in that a probe was answered, in time or late: the node is alive.
// Those sent before it that were not are lost; those sent after it may yet be
// answered, as late as this one.
func (h *health) answered(k NodeKey, number uint32, from netip.Addr, roundTrip time.Duration, now time.Time) {
	n := h.nodes[k]
	if n == nil {
		return
	}
	e := &n.evidence
	n.flights = slices.DeleteFunc(n.flights, func(f flight) bool {
		if f.number < number { // a loss, but none in a row
			e.Probes, e.Good = e.Probes+1, 0
			n.recent.note(false, now)
			h.misses++
		}
		return f.number <= number
	})
	roundTrip = max(roundTrip, 1) // 0 stands for none
	e.Deviation = deviate(e.Deviation, e.RoundTrip, roundTrip)
	e.RoundTrip = smooth(e.RoundTrip, roundTrip)
	e.Probes, e.Good, e.Misses = e.Probes+1, e.Good+1, 0
	n.recent.note(true, now)
	n.suspect, n.favorite = false, from
	if e.Back.IsZero() || now.Sub(e.Answered) > straySilence {
		e.Back, e.Returned = now, 0
	}
	e.Answered, e.Returned = now, e.Returned+1
	if e.Down && e.Returned >= h.cfg.Up && now.Sub(e.Back) >= h.cfg.Settle {
		e.Down, e.Since = false, now
	}
	h.weigh(k, n, now)
}

// weigh draws the conclusions from evidence that changed.
func (h *health) weigh(k NodeKey, n *nodeHealth, now time.Time) {
	if level := reportLevel(n.evidence.Misses); level != n.level {
		n.level, h.unsaid = level, true
	}
	h.decide(k, n, now)
	if _, shut := h.shut[ClusterKey(k.Cluster)]; !n.down && shut == (n.evidence.Misses == 0) {
		h.unjudged = true // it may speak for its cluster, or against it
	}
	h.regard(k, n, now)
}
