package clustermesh

import (
	"encoding/binary"
	"fmt"
	"iter"
	"maps"
	"slices"
)

// Default budgets of a cluster, where its admission names none: five times the
// largest mesh that is tested.
const (
	DefaultMaxKeys  = 500_000
	DefaultMaxBytes = 512 << 20
)

// maxSymbols bounds the distinct names that a view's tables hold on to.
const maxSymbols = 1 << 20

// MaxServiceDrains bounds the services that another cluster may say it drains:
// each costs the readers work for a while. That it drains itself is always heard.
const MaxServiceDrains = 1000

// RefusalClass sorts refusals for counters.
type RefusalClass string

const (
	RefusedKey       RefusalClass = "key"       // no key of ours, or of another cluster or scope
	RefusedValue     RefusalClass = "value"     // does not decode
	RefusedName      RefusalClass = "name"      // names another cluster or ID than was admitted
	RefusedIdentity  RefusalClass = "identity"  // outside the cluster's range, or of another cluster
	RefusedPrefix    RefusalClass = "prefix"    // an address outside the admitted pod prefixes
	RefusedNumber    RefusalClass = "number"    // a node number of another node
	RefusedWireGuard RefusalClass = "wireguard" // a WireGuard key of another node
	RefusedBudget    RefusalClass = "budget"    // more keys or bytes than were admitted
	RefusedDrains    RefusalClass = "drains"    // more drained services than are heard of
)

// RefusedError says why a record was not believed.
type RefusedError struct {
	Class  RefusalClass
	Reason string
}

func (e *RefusedError) Error() string { return e.Reason }

func refuse(class RefusalClass, format string, args ...any) *RefusedError {
	return &RefusedError{Class: class, Reason: fmt.Sprintf(format, args...)}
}

// Apply carries out one change of the view's cluster. An error is a
// *RefusedError: the record conflicts with others of the view (node number,
// WireGuard key) or exceeds a budget, and what the view held under the key
// stays. The record becomes the view's. Deleting what is absent is not an error.
func (v *View) Apply(c Change) error {
	if c.Record == nil {
		v.remove(c.Key)
		return nil
	}
	return v.put(c.Record)
}

// put adds or replaces one record; an Address or IdentityRecord is copied.
func (v *View) put(r Record) error {
	if err := v.room(r); err != nil {
		return err
	}
	if n, ok := r.(*Node); ok {
		if err := v.nodes.conflict(n); err != nil {
			v.nodes.waiting[n.Name] = n
			return err
		}
	}
	old, now, had := v.set(r)
	v.bytes += now - old
	if !had {
		v.keys++
	}
	return nil
}

// room reports that a budget does not allow r. What is there stays even when a
// budget has shrunk, and may be replaced by what is no larger.
func (v *View) room(r Record) error {
	if _, ok := r.(*Address); ok && len(v.addresses.symbols.list) > maxSymbols {
		return refuse(RefusedBudget, "more than %d distinct names in address records", maxSymbols)
	}
	if err := v.roomForDrain(r); err != nil {
		return err
	}
	maxKeys, maxBytes := v.admission.budgets()
	size := footprint(r)
	if v.keys < maxKeys && v.bytes+size <= maxBytes {
		return nil // the usual case needs no look at what is there
	}
	old, had := v.sizeOf(r)
	if !had && v.keys+1 > maxKeys {
		return refuse(RefusedBudget, "more than %d keys: the cluster was admitted for no more; raise its budget or publish less", maxKeys)
	}
	if size > old && v.bytes+size-old > maxBytes {
		return refuse(RefusedBudget, "more than %d bytes: the cluster was admitted for no more; raise its budget or publish less", maxBytes)
	}
	return nil
}

func (v *View) roomForDrain(r Record) error {
	d, is := r.(*Drain)
	if !is || v.scope == ScopeLocal || v.admission.Local || d.Service == (ServiceName{}) || len(v.drains) < MaxServiceDrains {
		return nil
	}
	if v.drains[d.KeyName()] != nil {
		return nil
	}
	return refuse(RefusedDrains, "it drains more than %d services: drain the whole cluster, or fewer at a time", MaxServiceDrains)
}

// set returns the footprints of what was under the key of r and of what is now.
func (v *View) set(r Record) (old, now uint64, had bool) {
	switch r := r.(type) {
	case *Address:
		return v.addresses.put(r)
	case *IdentityRecord:
		return v.identities.put(r)
	}
	old, had = v.sizeOf(r)
	switch r := r.(type) {
	case *Cluster:
		v.self = r
	case *Node:
		v.nodes.set(r)
	case *Service:
		v.services[r.Name] = r
	case *EndpointSlice:
		list := v.slices[r.Name.Service]
		if i, ok := findSlice(list, r.Name.Slice); ok {
			list[i] = r
		} else {
			v.slices[r.Name.Service] = slices.Concat(list[:i], []*EndpointSlice{r}, list[i:])
		}
	case *Workload:
		v.workloads[ServiceName{r.Namespace, r.Name}] = r
	case *Policy:
		v.policies[ServiceName{r.Namespace, r.Name}] = r
	case *ClusterPolicy:
		v.clusterPolicies[r.Name] = r
	case *Peer:
		v.peers[r.Name] = r
	case *Drain:
		v.drains[r.KeyName()] = r
	}
	return old, footprint(r), had
}

// sizeOf is the footprint of what the view holds under the key of r.
func (v *View) sizeOf(r Record) (uint64, bool) {
	var old Record
	switch r := r.(type) {
	case *Cluster:
		old = some(v.self)
	case *Node:
		old = some(v.nodes.byName[r.Name])
	case *Service:
		old = some(v.services[r.Name])
	case *EndpointSlice:
		list := v.slices[r.Name.Service]
		if i, ok := findSlice(list, r.Name.Slice); ok {
			old = list[i]
		}
	case *Address:
		return v.addresses.size(r.Name)
	case *IdentityRecord:
		return v.identities.size(r.ID)
	case *Workload:
		old = some(v.workloads[ServiceName{r.Namespace, r.Name}])
	case *Policy:
		old = some(v.policies[ServiceName{r.Namespace, r.Name}])
	case *ClusterPolicy:
		old = some(v.clusterPolicies[r.Name])
	case *Peer:
		old = some(v.peers[r.Name])
	case *Drain:
		old = some(v.drains[r.KeyName()])
	}
	if old == nil {
		return 0, false
	}
	return footprint(old), true
}

// remove deletes what is under k. Nodes that waited for a number or key of the
// removed one are admitted by settle.
func (v *View) remove(k Key) {
	if k.Kind == KindNode {
		delete(v.nodes.waiting, k.Name)
	}
	old := v.Get(k)
	if old == nil {
		return
	}
	size, _ := v.sizeOf(old)
	v.keys--
	v.bytes -= size
	switch r := old.(type) {
	case *Cluster:
		v.self = nil
	case *Node:
		v.nodes.remove(r)
	case *Service:
		delete(v.services, r.Name)
	case *EndpointSlice:
		list := v.slices[r.Name.Service]
		i, _ := findSlice(list, r.Name.Slice)
		if len(list) == 1 {
			delete(v.slices, r.Name.Service)
		} else {
			// A new list: somebody may be ranging over the old one.
			v.slices[r.Name.Service] = slices.Concat(list[:i], list[i+1:])
		}
	case *Address:
		v.addresses.remove(r.Name)
	case *IdentityRecord:
		v.identities.remove(r.ID)
	case *Workload:
		delete(v.workloads, ServiceName{r.Namespace, r.Name})
	case *Policy:
		delete(v.policies, ServiceName{r.Namespace, r.Name})
	case *ClusterPolicy:
		delete(v.clusterPolicies, r.Name)
	case *Peer:
		delete(v.peers, r.Name)
	case *Drain:
		delete(v.drains, r.KeyName())
	}
}

// settle admits the nodes that were refused for a number or key that is free by
// now, in order of their names, and returns them.
func (v *View) settle() []*Node {
	var admitted []*Node
	for again := true; again && len(v.nodes.waiting) > 0; {
		again = false
		for _, name := range slices.Sorted(maps.Keys(v.nodes.waiting)) {
			n := v.nodes.waiting[name]
			delete(v.nodes.waiting, name)
			if v.put(n) == nil { // a refused one waits again
				admitted = append(admitted, n)
				again = true
			}
		}
	}
	return admitted
}

// footprint is the size of a record for budgets: what it roughly takes in
// memory. Of packed kinds it is an upper bound; their tables know exactly.
func footprint(r Record) uint64 {
	n := 64
	switch r := r.(type) {
	case *Cluster:
		n += len(r.CABundle) + 32*len(r.PodPrefixes) + textSize(r.MeshAddresses) + textSize(r.Capabilities)
	case *Node:
		n += 256 + 24*(len(r.UnderlayAddresses)+len(r.TunnelAddresses)) + 32*len(r.PodPrefixes) + len(r.Name)
	case *Service:
		n += 232 + 24*len(r.Frontends) + 24*len(r.Ports) + textSize(r.Failover) + len(r.Name.Name)
		if r.Outside != nil {
			n += 48 + 32*(len(r.Outside.Addresses)+len(r.Outside.SourceRanges))
		}
		n += r.Export.footprint() + len(r.Import)
	case *EndpointSlice:
		n += 128 + 64*len(r.Endpoints) + 24*len(r.Ports) + len(r.Name.Slice)
	case *Address: // at most: a row packs it
		return addressFootprint(len(r.Pod)+len(r.Owner), len(r.NamedPorts))
	case *IdentityRecord: // at most
		packed := 0
		for _, l := range r.Labels {
			packed += 2*binary.MaxVarintLen32 + len(l.Value)
		}
		return identityFootprint(packed)
	case *Workload:
		n += 192 + len(r.Name) + len(r.Owner) + 32*len(r.HostPorts)
	case *Policy:
		n += len(r.JSON) + len(r.Name)
	case *ClusterPolicy:
		n += len(r.JSON) + len(r.Name)
	case *Drain:
		n += 128 + len(r.KeyName()) + len(r.By)
	case *Peer:
		n += len(r.CABundle) + 32*len(r.PodPrefixes) + textSize(r.MeshAddresses)
	}
	return uint64(n)
}

func (e *Export) footprint() int {
	if e == nil {
		return 0
	}
	n := 128 + textSize(e.AppProtocols)
	for _, list := range [][]Label{e.Labels, e.Annotations} {
		for _, l := range list {
			n += 32 + len(l.Key) + len(l.Value)
		}
	}
	return n
}

func textSize(list []string) int {
	n := 0
	for _, s := range list {
		n += 16 + len(s)
	}
	return n
}

// nodeSet is the nodes of a cluster, by everything that must be unique.
type nodeSet struct {
	byName      map[string]*Node
	byNumber    map[uint16]*Node
	byWireGuard map[[32]byte]*Node
	waiting     map[string]*Node // refused for a conflict that may end
}

func newNodeSet() nodeSet {
	return nodeSet{
		byName: map[string]*Node{}, byNumber: map[uint16]*Node{},
		byWireGuard: map[[32]byte]*Node{}, waiting: map[string]*Node{},
	}
}

// conflict reports that another node has n's number or WireGuard key.
func (s *nodeSet) conflict(n *Node) error {
	if o := s.byNumber[n.Number]; o != nil && o.Name != n.Name {
		return refuse(RefusedNumber, "node number %d is node %s's", n.Number, quote(o.Name))
	}
	if n.WireGuardKey == [32]byte{} {
		return nil
	}
	if o := s.byWireGuard[n.WireGuardKey]; o != nil && o.Name != n.Name {
		return refuse(RefusedWireGuard, "its WireGuard key is node %s's", quote(o.Name))
	}
	return nil
}

func (s *nodeSet) set(n *Node) {
	delete(s.waiting, n.Name)
	if old := s.byName[n.Name]; old != nil {
		s.remove(old)
	}
	s.byName[n.Name] = n
	s.byNumber[n.Number] = n
	if n.WireGuardKey != [32]byte{} {
		s.byWireGuard[n.WireGuardKey] = n
	}
}

func (s *nodeSet) remove(n *Node) {
	delete(s.byName, n.Name)
	delete(s.byNumber, n.Number)
	delete(s.byWireGuard, n.WireGuardKey)
}

// records are all records of the view; Addresses and IdentityRecords are made
// for the occasion. A view of scope local knows its cluster record from elsewhere.
func (v *View) records() iter.Seq[Record] {
	return func(yield func(Record) bool) {
		_ = (v.self == nil || v.scope == ScopeLocal || yield(v.self)) &&
			each(v.Nodes(), yield) && each(v.Services(), yield) && each(v.AllSlices(), yield) &&
			eachCopy(v.Identities(), yield) && eachCopy(v.Addresses(), yield) &&
			each(v.Workloads(), yield) && each(v.Policies(), yield) &&
			each(v.ClusterPolicies(), yield) && each(v.Peers(), yield) && each(v.Drains(), yield)
	}
}

func each[R Record](seq iter.Seq[R], yield func(Record) bool) bool {
	for r := range seq {
		if !yield(r) {
			return false
		}
	}
	return true
}

func eachCopy[T any, P interface {
	*T
	Record
}](seq iter.Seq[T], yield func(Record) bool) bool {
	for r := range seq {
		if !yield(P(&r)) {
			return false
		}
	}
	return true
}
