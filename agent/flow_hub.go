package agent

import (
	"context"
	"strings"
	"sync"
)

const (
	flowsKept   = 4096 // of the last ones, for who asks later
	flowsQueued = 1024 // for one who follows, before he loses some
	flowsNamed  = 512  // in one turn of the owner goroutine
)

// Observe takes what happened, in order, gives it names and tells whoever
// follows. It waits for the owner goroutine, never for a follower.
func (a *Agent) Observe(ctx context.Context, events []FlowEvent) error {
	for len(events) > 0 {
		n := min(len(events), flowsNamed)
		flows := make([]Flow, n)
		if err := a.call(ctx, func() {
			for i, e := range events[:n] {
				flows[i] = a.state.flowOf(e)
			}
		}); err != nil {
			return err
		}
		a.flows.add(flows)
		events = events[n:]
	}
	return nil
}

// flowHub keeps the last flows and hands new ones to followers. A slow follower
// loses flows, and is told how many.
type flowHub struct {
	mu        sync.Mutex
	kept      []Flow // a ring once it is full; next is then the oldest
	next      int
	seen      uint64
	lost      uint64 // by followers, all together
	followers map[*flowFollower]struct{}
}

// flowFollower gets what passes its filter from now on.
type flowFollower struct {
	filter FlowFilter
	queue  []Flow
	lost   uint64        // since the last take
	ready  chan struct{} // there is something
}

func (h *flowHub) add(flows []Flow) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range flows {
		h.keep(flows[i])
	}
	for f := range h.followers {
		for i := range flows {
			if !f.filter.Match(&flows[i]) {
				continue
			}
			if len(f.queue) >= flowsQueued {
				f.lost++
				h.lost++
				continue
			}
			f.queue = append(f.queue, flows[i])
		}
		if len(f.queue) > 0 {
			select {
			case f.ready <- struct{}{}:
			default:
			}
		}
	}
}

func (h *flowHub) keep(f Flow) {
	h.seen++
	if len(h.kept) < flowsKept {
		h.kept = append(h.kept, f)
		return
	}
	h.kept[h.next] = f
	h.next = (h.next + 1) % flowsKept
}

// last are the newest n that pass the filter, the oldest first. With follow, what
// comes after them goes to the follower, which the caller leaves.
func (h *flowHub) last(n int, filter FlowFilter, follow bool) ([]Flow, *flowFollower) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []Flow
	for i := len(h.kept) - 1; i >= 0 && len(out) < n; i-- {
		if f := &h.kept[(h.next+i)%len(h.kept)]; filter.Match(f) {
			out = append(out, *f)
		}
	}
	for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 {
		out[i], out[j] = out[j], out[i]
	}
	if !follow {
		return out, nil
	}
	f := &flowFollower{filter: filter, ready: make(chan struct{}, 1)}
	if h.followers == nil {
		h.followers = map[*flowFollower]struct{}{}
	}
	h.followers[f] = struct{}{}
	return out, f
}

func (h *flowHub) leave(f *flowFollower) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.followers, f)
}

// take is what waits for a follower, and how many it lost after that.
func (h *flowHub) take(f *flowFollower) (flows []Flow, lost uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	flows, lost = f.queue, f.lost
	f.queue, f.lost = nil, 0
	return flows, lost
}

func (h *flowHub) counts() (seen, lost uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.seen, h.lost
}

// FlowFilter chooses flows; the zero value takes all.
type FlowFilter struct {
	Verdict FlowVerdict
	Pod     string // namespace/name or cluster/namespace/name, at either end
	Policy  string // namespace/name, or the name of a ClusterNetworkPolicy
}

// Match reports whether a flow passes.
func (f FlowFilter) Match(flow *Flow) bool {
	return (f.Verdict == "" || flow.Verdict == f.Verdict) &&
		(f.Pod == "" || flow.Source.isPod(f.Pod) || flow.Destination.isPod(f.Pod)) &&
		(f.Policy == "" || flow.by(f.Policy))
}

func (e *FlowEnd) isPod(name string) bool {
	if e.Pod == "" {
		return false
	}
	own := e.Namespace + "/" + e.Pod
	return name == own || name == e.Cluster+"/"+own
}

func (f *Flow) by(policy string) bool {
	kind := "NetworkPolicy "
	if !strings.Contains(policy, "/") {
		kind = "ClusterNetworkPolicy "
	}
	if strings.HasPrefix(f.Rule, kind+policy+" ") {
		return true
	}
	for _, p := range f.Policies {
		if p == kind+policy {
			return true
		}
	}
	return false
}
