package clustermesh

import (
	"cmp"
	"iter"
	"slices"
)

// View is what one cluster says in one scope: decoded, admitted and packed
// tightly, because an agent holds one for every cluster of the mesh. It belongs
// to one goroutine at a time. Records it returns by pointer are its own and must
// not be modified; they stay valid, unchanged, when the view changes.
//
// Sequences come in no particular order unless they say so; Dump sorts.
type View struct {
	admission Admission
	scope     Scope

	self            *Cluster
	nodes           nodeSet
	services        map[ServiceName]*Service
	slices          map[ServiceName][]*EndpointSlice // sorted by slice name
	addresses       addressTable
	identities      identityTable
	workloads       map[ServiceName]*Workload
	policies        map[ServiceName]*Policy
	clusterPolicies map[string]*ClusterPolicy
	peers           map[string]*Peer
	drains          map[string]*Drain // by the name of their keys

	keys, bytes uint64
	// refused are keys whose value in the list was not believed: Into keeps
	// what the former view had under them.
	refused []refusedKey
}

type refusedKey struct {
	key   Key
	class RefusalClass
}

// NewView makes an empty view of the cluster and with the budgets of admission.
func NewView(a Admission, scope Scope) *View {
	return &View{
		admission: a, scope: scope,
		nodes:    newNodeSet(),
		services: map[ServiceName]*Service{}, slices: map[ServiceName][]*EndpointSlice{},
		addresses: newAddressTable(), identities: newIdentityTable(),
		workloads: map[ServiceName]*Workload{}, policies: map[ServiceName]*Policy{},
		clusterPolicies: map[string]*ClusterPolicy{}, peers: map[string]*Peer{}, drains: map[string]*Drain{},
	}
}

// Name is the name of the cluster.
func (v *View) Name() string { return v.admission.Cluster }

// ID is the ID of the cluster.
func (v *View) ID() ID { return v.admission.ID }

// Scope is the scope that was read.
func (v *View) Scope() Scope { return v.scope }

// Len is the number of records.
func (v *View) Len() int { return int(v.keys) }

// Cluster is what the cluster says of itself. In a view that a Reader made it
// is never nil: in scope local, too, it is the one of scope export.
func (v *View) Cluster() *Cluster { return v.self }

// Node is the node of that name, or nil.
func (v *View) Node(name string) *Node { return v.nodes.byName[name] }

// NodeByNumber is the node with that number, or nil.
func (v *View) NodeByNumber(n uint16) *Node { return v.nodes.byNumber[n] }

// Nodes are all nodes.
func (v *View) Nodes() iter.Seq[*Node] { return values(v.nodes.byName) }

// Service is the service of that name, or nil.
func (v *View) Service(n ServiceName) *Service { return v.services[n] }

// Services are all services.
func (v *View) Services() iter.Seq[*Service] { return values(v.services) }

// Slices are the endpoint slices of a service, sorted by name.
func (v *View) Slices(n ServiceName) iter.Seq[*EndpointSlice] { return slices.Values(v.slices[n]) }

// AllSlices are the endpoint slices of all services.
func (v *View) AllSlices() iter.Seq[*EndpointSlice] {
	return func(yield func(*EndpointSlice) bool) {
		for _, list := range v.slices {
			for _, s := range list {
				if !yield(s) {
					return
				}
			}
		}
	}
}

// Address is the address record of that name. Its NamedPorts are shared.
func (v *View) Address(n AddressName) (Address, bool) { return v.addresses.get(n) }

// Addresses are all address records.
func (v *View) Addresses() iter.Seq[Address] { return v.addresses.all }

// Identity says which labels an identity of this cluster stands for. The
// record is the caller's; its strings are shared.
func (v *View) Identity(id Identity) (IdentityRecord, bool) { return v.identities.get(id) }

// Identities are all identities, each as by Identity.
func (v *View) Identities() iter.Seq[IdentityRecord] { return v.identities.all }

// Peer is what a peer was admitted for, or nil.
func (v *View) Peer(name string) *Peer { return v.peers[name] }

// Peers are all admitted peers.
func (v *View) Peers() iter.Seq[*Peer] { return values(v.peers) }

// Drains are all drains: in scope local of other clusters, in scope export of the
// view's own.
func (v *View) Drains() iter.Seq[*Drain] { return values(v.drains) }

// Drain is one of them, of a cluster or of a service in it; nil = there is none.
func (v *View) Drain(cluster string, service ServiceName) *Drain {
	return v.drains[drainName(cluster, service)]
}

// Workload is the workload of that namespace and name, or nil.
func (v *View) Workload(n ServiceName) *Workload { return v.workloads[n] }

// Workloads are all workloads.
func (v *View) Workloads() iter.Seq[*Workload] { return values(v.workloads) }

// Policies are all policies of namespaces.
func (v *View) Policies() iter.Seq[*Policy] { return values(v.policies) }

// ClusterPolicies are all policies of the whole cluster.
func (v *View) ClusterPolicies() iter.Seq[*ClusterPolicy] { return values(v.clusterPolicies) }

func values[K comparable, V any](m map[K]V) iter.Seq[V] {
	return func(yield func(V) bool) {
		for _, v := range m {
			if !yield(v) {
				return
			}
		}
	}
}

// Get is the record of a key, or nil. The scope and cluster of k are the view's.
func (v *View) Get(k Key) Record {
	switch k.Kind {
	case KindCluster:
		return some(v.self)
	case KindNode:
		return some(v.nodes.byName[k.Name])
	case KindService:
		return some(v.services[serviceName(k.Name)])
	case KindEndpointSlice:
		n := sliceName(k.Name)
		list := v.slices[n.Service]
		if i, ok := findSlice(list, n.Slice); ok {
			return list[i]
		}
	case KindAddress:
		n, err := parseAddressName(k.Name)
		if a, ok := v.addresses.get(n); ok && err == nil {
			return &a
		}
	case KindIdentity:
		id, err := parseIdentityName(k.Name)
		if r, ok := v.identities.get(id); ok && err == nil {
			return &r
		}
	case KindWorkload:
		return some(v.workloads[serviceName(k.Name)])
	case KindPolicy:
		return some(v.policies[serviceName(k.Name)])
	case KindClusterPolicy:
		return some(v.clusterPolicies[k.Name])
	case KindPeer:
		return some(v.peers[k.Name])
	case KindDrain:
		return some(v.drains[k.Name])
	}
	return nil
}

// some keeps a nil pointer from becoming a non-nil Record.
func some[T any, P interface {
	*T
	Record
}](p P) Record {
	if p == nil {
		return nil
	}
	return p
}

func serviceName(name string) ServiceName {
	ns, rest := cutName(name)
	return ServiceName{ns, rest}
}

func sliceName(name string) SliceName {
	ns, rest := cutName(name)
	service, slice := cutName(rest)
	return SliceName{Service: ServiceName{ns, service}, Slice: slice}
}

func findSlice(list []*EndpointSlice, name string) (int, bool) {
	return slices.BinarySearchFunc(list, name, func(s *EndpointSlice, name string) int {
		return cmp.Compare(s.Name.Slice, name)
	})
}
