package clustermesh

import (
	"errors"
	"iter"
	"slices"
)

// finish ends the building of a list: nodes that waited are settled, and later
// strings stand alone.
func (v *View) finish() {
	v.settle()
	v.addresses.in.slab.seal()
	v.identities.in.slab.seal()
}

// Into brings the owner's view of the Update's cluster and scope up to date: it
// returns the view to keep, what changed (lazily, for at most one pass before
// either view changes again), and what was refused because of the other records
// of the view. old is nil before the first list. After Into with a whole new
// view, old is unchanged and may be dropped once changes has been read.
//
// Records refused in a whole list keep their last good state from old.
func (u Update) Into(old *View) (view *View, changes iter.Seq[Change], refused []Refusal) {
	switch {
	case u.View != nil:
		u.View.carry(old)
		return u.View, Diff(old, u.View), nil
	case old == nil || len(u.Changes) == 0:
		return old, func(func(Change) bool) {}, nil
	}
	applied := make([]Change, 0, len(u.Changes))
	for _, c := range u.Changes {
		if c.Record == nil && c.Key.Kind == KindCluster {
			continue // the owner removes a cluster, not its store
		}
		had := c.Record != nil || old.Get(c.Key) != nil
		if err := old.Apply(c); err != nil {
			refused = append(refused, refusalOf(c.Key, err))
			continue
		}
		if had { // the delete of a record that was refused must not reach what another cluster says of its key
			applied = append(applied, c)
		}
	}
	for _, n := range old.settle() {
		k := KeyOf(old.scope, old.Name(), n)
		applied = append(applied, Change{Key: k, Record: n})
		refused = slices.DeleteFunc(refused, func(r Refusal) bool { return r.Key == quote(k.String()) })
	}
	return old, func(yield func(Change) bool) {
		for _, c := range applied {
			if !yield(c) {
				return
			}
		}
	}, refused
}

func refusalOf(k Key, err error) Refusal {
	r := Refusal{Key: quote(k.String()), Class: RefusedValue, Reason: err.Error()}
	if refused := (*RefusedError)(nil); errors.As(err, &refused) {
		r.Class = refused.Class
	}
	return r
}

// carry keeps the last good record of every key that was refused in the list v
// was built from. Where only the budget was in the way, a record that old does
// not have makes room: what is there is kept, what is new is the excess.
func (v *View) carry(old *View) {
	if old == nil {
		v.refused = nil
		return
	}
	newcomers, stop := iter.Pull(v.newcomers(old))
	defer stop()
	for _, r := range v.refused {
		rec := old.Get(r.key)
		if rec == nil || v.Get(r.key) != nil {
			continue
		}
		for v.put(rec) != nil {
			k, more := newcomers()
			if r.class != RefusedBudget || !more {
				break
			}
			v.remove(k)
		}
	}
	v.settle()
	v.refused = nil
}

// newcomers are keys that v has and old has not. v may lose them meanwhile.
func (v *View) newcomers(old *View) iter.Seq[Key] {
	return func(yield func(Key) bool) {
		for r := range v.records() {
			k := KeyOf(v.scope, v.Name(), r)
			if k.Kind != KindCluster && old.Get(k) == nil && !yield(k) {
				return
			}
		}
	}
}

// Diff are the changes that turn old into fresh, in no particular order,
// upserts before deletes; a nil view is an empty one. Origins do not count.
// Neither view may change while the sequence is read.
func Diff(old, fresh *View) iter.Seq[Change] {
	return func(yield func(Change) bool) {
		if fresh != nil {
			for r := range fresh.records() {
				if old != nil {
					if had := old.find(r); had != nil && Equal(had, r) {
						continue
					}
				}
				if !yield(Change{Key: KeyOf(fresh.scope, fresh.Name(), r), Record: r}) {
					return
				}
			}
		}
		if old == nil {
			return
		}
		for r := range old.records() {
			if fresh != nil && fresh.find(r) != nil {
				continue
			}
			if !yield(Change{Key: KeyOf(old.scope, old.Name(), r)}) {
				return
			}
		}
	}
}

// find is the record under the key of r, or nil.
func (v *View) find(r Record) Record {
	switch r := r.(type) {
	case *Cluster:
		return some(v.self)
	case *Node:
		return some(v.nodes.byName[r.Name])
	case *Service:
		return some(v.services[r.Name])
	case *EndpointSlice:
		list := v.slices[r.Name.Service]
		if i, ok := findSlice(list, r.Name.Slice); ok {
			return list[i]
		}
	case *Address:
		if a, ok := v.addresses.get(r.Name); ok {
			return &a
		}
	case *IdentityRecord:
		if i, ok := v.identities.get(r.ID); ok {
			return &i
		}
	case *Workload:
		return some(v.workloads[ServiceName{r.Namespace, r.Name}])
	case *Policy:
		return some(v.policies[ServiceName{r.Namespace, r.Name}])
	case *ClusterPolicy:
		return some(v.clusterPolicies[r.Name])
	case *Drain:
		return some(v.drains[r.KeyName()])
	case *Peer:
		return some(v.peers[r.Name])
	}
	return nil
}
