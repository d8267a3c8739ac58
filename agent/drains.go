package agent

import (
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// drains are what the operators of this cluster and of others say about clusters
// that shall get fewer new connections or none. How much of a cluster's weight is
// left comes of the records and the time alone: an agent that starts anew finds
// the same, from a snapshot as from the store.
//
// A peer may say much and change it often: what it says is found by its name, and
// a change costs what changed.
type drains struct {
	now     time.Time // of the turn
	dirty   bool      // all may have changed: whole views, clusters
	changed map[drainID]struct{}
	in      map[drainID]drain
	looked  time.Time // when all were last looked at
	next    time.Time // when the next step of any is due; zero = never
}

// drainID is who says of what that it drains.
type drainID struct {
	itself  bool // that cluster says so of itself; else the own cluster's operator
	cluster string
	service clustermesh.ServiceName // zero: all
}

type drain struct {
	*clustermesh.Drain
	level uint16 // what was left of the weight when services were last touched for it
}

// drainPause is how soon all drains are looked at again, however close their steps.
const drainPause = 10 * time.Millisecond

// left is how much of a cluster's weight is left in a service, which may lead to
// another one: the least that anybody says.
func (d *drains) left(cluster string, name, imported clustermesh.ServiceName) uint16 {
	least := uint16(clustermesh.ShareAll)
	if len(d.in) == 0 {
		return least
	}
	for _, itself := range []bool{false, true} {
		for _, service := range [...]clustermesh.ServiceName{{}, name, imported} {
			if r, is := d.in[drainID{itself, cluster, service}]; is {
				least = min(least, r.Left(d.now))
			}
		}
	}
	return least
}

// note remembers that a record changed.
func (d *drains) note(k clustermesh.Key) {
	cluster, service, err := clustermesh.ParseDrainName(k.Name)
	if err != nil {
		return // no such record was believed
	}
	d.noteID(drainID{k.Scope != clustermesh.ScopeLocal, cluster, service})
}

func (d *drains) noteID(id drainID) {
	if d.changed == nil {
		d.changed = map[drainID]struct{}{}
	}
	d.changed[id] = struct{}{}
}

// drainRecord is what is said now; nil = nothing.
func (s *State) drainRecord(id drainID) *clustermesh.Drain {
	var v *clustermesh.View
	if !id.itself {
		v = s.clusters[s.own].views[clustermesh.ScopeLocal]
	} else if c := s.clusters[id.cluster]; c != nil {
		v = c.export()
	}
	if v == nil {
		return nil
	}
	return v.Drain(id.cluster, id.service)
}

// takeDrains finds out what is in force, and has the services merged again for
// which that changes something.
func (s *State) takeDrains() {
	d := &s.drains
	if d.dirty {
		s.noteAllDrains()
	}
	for id := range d.changed {
		s.takeDrain(id)
	}
	d.dirty, d.changed = false, nil
}

func (s *State) noteAllDrains() {
	for id := range s.drains.in {
		s.drains.noteID(id)
	}
	if v := s.clusters[s.own].views[clustermesh.ScopeLocal]; v != nil {
		for r := range v.Drains() {
			s.drains.noteID(drainID{false, r.Cluster, r.Service})
		}
	}
	for _, c := range s.clusters {
		if v := c.export(); v != nil {
			for r := range v.Drains() {
				s.drains.noteID(drainID{true, r.Cluster, r.Service})
			}
		}
	}
}

func (s *State) takeDrain(id drainID) {
	d := &s.drains
	was := uint16(clustermesh.ShareAll)
	if old, had := d.in[id]; had {
		was = old.level
	}
	now := uint16(clustermesh.ShareAll)
	if r := s.drainRecord(id); r == nil {
		delete(d.in, id)
	} else {
		if d.in == nil {
			d.in = map[drainID]drain{}
		}
		now = r.Left(d.now)
		d.in[id] = drain{r, now}
		d.next = sooner(d.next, r.Next(d.now))
	}
	if now != was {
		s.touchDrained(id)
	}
}

// stepDrains has those merged again for which another step is due, and returns
// when the next one is.
func (s *State) stepDrains() (next time.Time) {
	s.takeDrains()
	d := &s.drains
	back := d.now.Before(d.looked) // the clock was set back: steps may be undone
	if !back && (d.next.IsZero() || d.now.Before(d.next)) {
		return d.next
	}
	if !back && d.now.Sub(d.looked) < drainPause {
		return d.looked.Add(drainPause)
	}
	d.looked, d.next = d.now, time.Time{}
	for id, r := range d.in {
		if level := r.Left(d.now); level != r.level {
			r.level = level
			d.in[id] = r
			s.touchDrained(id)
		}
		d.next = sooner(d.next, r.Next(d.now))
	}
	return d.next
}

// touchDrained has the services merged again in which a drained cluster takes part,
// those that this cluster has: what its own operator says comes first.
func (s *State) touchDrained(id drainID) {
	first := !id.itself || id.cluster == s.own
	if id.service == (clustermesh.ServiceName{}) {
		s.touchShares(s.clusters[id.cluster], first)
		return
	}
	if s.clusters[s.own].has(id.service) {
		s.pass.add(id.service, first)
	}
	for importer := range s.imports.by[id.service] {
		s.pass.add(importer, first)
	}
}

// touchShares has the services looked at by the background pass in which c takes
// part, ahead of others' work or after it; nil, a cluster that is not known, takes
// part in none.
func (s *State) touchShares(c *clusterState, first bool) {
	if c == nil {
		return
	}
	for _, v := range s.clusters[s.own].views {
		for svc := range v.Services() {
			exported := svc.Name
			if svc.Import != "" {
				exported.Name = svc.Import
			} else if !svc.Global {
				continue
			}
			if c.has(exported) {
				s.pass.add(svc.Name, first)
			}
		}
	}
}

// sooner is the earlier of two times; zero is never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
