package agent

import (
	"hash/fnv"
	"maps"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// What is judged down is left at once, by its row of health, and what is up again
// is reached at once. Shares follow in the background pass:
//
//	down for outAfter   the slots of a node's backends lead to others of its group,
//	                    so that these share its load evenly; a cluster of which no
//	                    node is left has rampFloor of its weight: it returns with that
//	up again            its backends get their slots back one by one, its weight rises
//
// A blip is no reason for either. An agent that starts anew amid a return forgets it.
const (
	outAfter  = 10 * time.Second // more than resetDown: until then slots say whose sockets to reset
	rampFloor = clustermesh.ShareAll / 10
	rampSteps = 10
)

// slowStart is who is out, and who is on the way back since when.
type slowStart struct {
	over     time.Duration // of a return; 0 = shares do not follow health
	out      map[NodeKey]bool
	back     map[NodeKey]time.Time
	shut     map[clustermesh.ID]bool // clusters of which all nodes are out
	open     map[clustermesh.ID]time.Time
	stepped  time.Time
	nothings bool // nobody is out or on the way back
}

func newSlowStart(over time.Duration) slowStart {
	return slowStart{over: over, out: map[NodeKey]bool{}, back: map[NodeKey]time.Time{}, shut: map[clustermesh.ID]bool{}, open: map[clustermesh.ID]time.Time{}, nothings: true}
}

// ramp is how much of all there is some time after a return, and when that changes;
// zero = it is complete.
func ramp(since time.Time, over time.Duration, now time.Time) (level uint16, next time.Time) {
	step := min(int64(max(now.Sub(since), 0))*rampSteps/int64(max(over, 1)), rampSteps)
	if step == rampSteps {
		return clustermesh.ShareAll, time.Time{}
	}
	return rampFloor + uint16((clustermesh.ShareAll-rampFloor)*step/rampSteps), since.Add(time.Duration((int64(over)*(step+1) + rampSteps - 1) / rampSteps))
}

// weight is how much of its weight a cluster has for the sake of its health.
func (h *slowStart) weight(id clustermesh.ID, now time.Time) uint16 {
	if h.shut[id] {
		return rampFloor
	}
	if since, is := h.open[id]; is {
		level, _ := ramp(since, h.over, now)
		return level
	}
	return clustermesh.ShareAll
}

// uses reports whether a backend takes its part: its node is not out, or has been
// back for long enough, which differs from backend to backend.
func (h *slowStart) uses(id clustermesh.ID, b clustermesh.Backend, now time.Time) bool {
	k := NodeKey{uint16(id), b.Node}
	if h.out[k] {
		return false
	}
	since, is := h.back[k]
	if !is {
		return true
	}
	level, _ := ramp(since, h.over, now)
	sum := fnv.New32a()
	addr := b.Address.As16()
	sum.Write(addr[:])
	sum.Write([]byte{byte(b.Port >> 8), byte(b.Port)})
	return uint16(sum.Sum32()^sum.Sum32()>>16) < level || level == clustermesh.ShareAll
}

// fill gives the slots of backends that take no part to others, in turn. The slots
// of those that do stay as they are, and with them clients with session affinity.
// Where nobody does, nothing is changed.
func (h *slowStart) fill(id clustermesh.ID, backends []clustermesh.Backend, now time.Time) []clustermesh.Backend {
	var used []clustermesh.Backend
	for _, b := range backends {
		if h.uses(id, b, now) {
			used = append(used, b)
		}
	}
	if len(used) == 0 || len(used) == len(backends) {
		return backends
	}
	out := make([]clustermesh.Backend, len(backends))
	next := 0
	for i, b := range backends {
		if h.uses(id, b, now) {
			out[i] = b
			continue
		}
		out[i] = used[next%len(used)]
		next++
	}
	return out
}

// stepSlowStart notes who is out and who is back, has the services merged again for
// which that changes something, and returns when to come again.
func (s *State) stepSlowStart(now time.Time) (next time.Time) {
	h := &s.slow
	if h.over <= 0 || h.nothings && len(s.down) == 0 {
		return time.Time{}
	}
	last := h.stepped
	h.stepped = now
	touched := map[NodeKey]bool{} // a whole cluster may go at once: one look for all its nodes
	for k, row := range s.down {
		at := time.Unix(int64(row.Since), 0).Add(outAfter)
		if h.out[k] || at.After(now) {
			if !h.out[k] {
				next = sooner(next, at)
			}
			continue
		}
		h.out[k] = true
		delete(h.back, k)
		touched[k] = true
	}
	s.stepShut(now)
	for k := range h.out {
		if _, still := s.down[k]; still {
			continue
		}
		delete(h.out, k)
		if _, opens := h.open[clustermesh.ID(k.Cluster)]; !opens { // else its cluster's weight rises as a whole
			h.back[k] = now
		}
		touched[k] = true
	}
	next = sooner(next, s.stepRamps(last, now, touched))
	s.touchNodes(touched)
	h.nothings = len(h.out)+len(h.back)+len(h.shut)+len(h.open) == 0
	return next
}

// stepShut notes which clusters have no node left, or one again.
func (s *State) stepShut(now time.Time) {
	h := &s.slow
	for _, c := range s.clusters {
		nodes, out := 0, 0
		for _, n := range c.nodes {
			k := NodeKey{uint16(c.id), n.Number}
			if nodes++; h.out[k] {
				if _, down := s.down[k]; down {
					out++
				}
			}
		}
		shut := c.peer != nil && nodes > 0 && out == nodes
		switch {
		case shut == h.shut[c.id]:
			continue
		case shut:
			h.shut[c.id] = true
			delete(h.open, c.id)
		default:
			delete(h.shut, c.id)
			h.open[c.id] = now
		}
		s.touchShares(c, true)
	}
	for id := range s.removed {
		delete(h.shut, id)
		delete(h.open, id)
	}
}

// stepRamps has merged again what is on the way back and has come a step further;
// nodes are added to touched.
func (s *State) stepRamps(last, now time.Time, touched map[NodeKey]bool) (next time.Time) {
	h := &s.slow
	step := func(since time.Time) (changed, done bool) {
		was, _ := ramp(since, h.over, last)
		is, at := ramp(since, h.over, now)
		next = sooner(next, at)
		return was != is, at.IsZero()
	}
	for k, since := range maps.Clone(h.back) {
		changed, done := step(since)
		if done {
			delete(h.back, k)
		}
		if changed || done {
			touched[k] = true
		}
	}
	for id, since := range maps.Clone(h.open) {
		changed, done := step(since)
		if done {
			delete(h.open, id)
		}
		if changed || done {
			s.touchShares(s.byID(id), true)
		}
	}
	return next
}

// touchNodes has the services merged again, in the background, that have a backend
// on one of the nodes.
func (s *State) touchNodes(nodes map[NodeKey]bool) {
	clusters := map[uint16]bool{}
	for k := range nodes {
		clusters[k.Cluster] = true
	}
	for id := range clusters {
		if c := s.byID(clustermesh.ID(id)); c != nil {
			s.touchBackendsOn(c, nodes)
		}
	}
}

func (s *State) touchBackendsOn(c *clusterState, nodes map[NodeKey]bool) {
	for _, v := range c.views {
		for slice := range v.AllSlices() {
			for i := range slice.Endpoints {
				if nodes[NodeKey{uint16(c.id), slice.Endpoints[i].Node}] {
					s.pass.add(slice.Name.Service, true)
					for importer := range s.imports.by[slice.Name.Service] {
						s.pass.add(importer, true)
					}
					break
				}
			}
		}
	}
}
