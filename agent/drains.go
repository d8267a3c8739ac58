package agent

import (
	"slices"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// drains are what the operators of this cluster and of others say about clusters
// that shall get fewer new connections or none. How much of a cluster's weight is
// left comes of the records and the time alone: an agent that starts anew finds
// the same, from a snapshot as from the store.
type drains struct {
	now   time.Time // of the turn
	dirty bool      // records of drains changed
	list  []drain   // in force, sorted
}

type drain struct {
	*clustermesh.Drain
	itself bool   // that cluster says so of itself; else the own cluster's operator
	level  uint16 // what was left of the weight when services were last touched for it
}

func compareDrains(a, b drain) int {
	if a.itself != b.itself {
		if a.itself {
			return 1
		}
		return -1
	}
	return compareStrings(a.KeyName(), b.KeyName())
}

// left is how much of a cluster's weight is left in a service, which may lead to
// another one: the least that anybody says.
func (d *drains) left(cluster string, name, imported clustermesh.ServiceName) uint16 {
	least := uint16(clustermesh.ShareAll)
	for _, r := range d.list {
		if r.Cluster == cluster && (r.Service == (clustermesh.ServiceName{}) || r.Service == name || r.Service == imported) {
			least = min(least, r.Left(d.now))
		}
	}
	return least
}

// takeDrains finds out what is in force, and has the services merged again for
// which that changes something.
func (s *State) takeDrains() {
	if !s.drains.dirty {
		return
	}
	s.drains.dirty = false
	old := s.drains.list
	s.drains.list = s.presentDrains()
	for i := range s.drains.list {
		d := &s.drains.list[i]
		was := uint16(clustermesh.ShareAll)
		if j, had := slices.BinarySearchFunc(old, *d, compareDrains); had {
			was = old[j].level
		}
		if d.level = d.Left(s.drains.now); d.level != was {
			s.touchDrained(d.Drain)
		}
	}
	for _, d := range old {
		if _, still := slices.BinarySearchFunc(s.drains.list, d, compareDrains); !still && d.level != clustermesh.ShareAll {
			s.touchDrained(d.Drain)
		}
	}
}

// presentDrains are those that the records name, sorted.
func (s *State) presentDrains() (out []drain) {
	if v := s.clusters[s.own].views[clustermesh.ScopeLocal]; v != nil {
		for d := range v.Drains() {
			out = append(out, drain{Drain: d})
		}
	}
	for _, c := range s.clusters {
		if v := c.export(); v != nil {
			for d := range v.Drains() {
				out = append(out, drain{Drain: d, itself: true})
			}
		}
	}
	slices.SortFunc(out, compareDrains)
	return out
}

// stepDrains has those merged again for which another step is due, and returns
// when the next one is.
func (s *State) stepDrains() (next time.Time) {
	s.takeDrains()
	for i := range s.drains.list {
		d := &s.drains.list[i]
		if level := d.Left(s.drains.now); level != d.level {
			d.level = level
			s.touchDrained(d.Drain)
		}
		next = sooner(next, d.Next(s.drains.now))
	}
	return next
}

// touchDrained has the services merged again in which a drained cluster takes part.
func (s *State) touchDrained(d *clustermesh.Drain) {
	if d.Service != (clustermesh.ServiceName{}) {
		s.pass.add(d.Service)
		for importer := range s.imports.by[d.Service] {
			s.pass.add(importer)
		}
		return
	}
	s.touchShares(s.clusters[d.Cluster])
}

// touchShares has the services looked at by the background pass in which c takes
// part; nil, a cluster that is not known, takes part in none.
func (s *State) touchShares(c *clusterState) {
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
				s.pass.add(svc.Name)
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
