package clustermesh

import "strconv"

// Record is what a key holds: one of *Cluster, *Node, *Service, *EndpointSlice,
// *IdentityRecord, *Address, *Policy, *ClusterPolicy, *Workload, *Peer, *Drain.
type Record interface {
	Kind() Kind
	// KeyName is the name part of the record's key; "" for a Cluster.
	KeyName() string
	// Since is when the fact came to be.
	Since() Origin
}

func (r *Cluster) Kind() Kind        { return KindCluster }
func (r *Node) Kind() Kind           { return KindNode }
func (r *Service) Kind() Kind        { return KindService }
func (r *EndpointSlice) Kind() Kind  { return KindEndpointSlice }
func (r *IdentityRecord) Kind() Kind { return KindIdentity }
func (r *Address) Kind() Kind        { return KindAddress }
func (r *Policy) Kind() Kind         { return KindPolicy }
func (r *ClusterPolicy) Kind() Kind  { return KindClusterPolicy }
func (r *Workload) Kind() Kind       { return KindWorkload }
func (r *Peer) Kind() Kind           { return KindPeer }
func (r *Drain) Kind() Kind          { return KindDrain }

func (r *Cluster) KeyName() string        { return "" }
func (r *Node) KeyName() string           { return r.Name }
func (r *Service) KeyName() string        { return r.Name.String() }
func (r *EndpointSlice) KeyName() string  { return r.Name.String() }
func (r *IdentityRecord) KeyName() string { return strconv.FormatUint(uint64(r.ID), 10) }
func (r *Address) KeyName() string        { return r.Name.String() }
func (r *Policy) KeyName() string         { return r.Namespace + "/" + r.Name }
func (r *ClusterPolicy) KeyName() string  { return r.Name }
func (r *Workload) KeyName() string       { return r.Namespace + "/" + r.Name }
func (r *Peer) KeyName() string           { return r.Name }
func (r *Drain) KeyName() string          { return drainName(r.Cluster, r.Service) }

func (r *Cluster) Since() Origin        { return r.Origin }
func (r *Node) Since() Origin           { return r.Origin }
func (r *Service) Since() Origin        { return r.Origin }
func (r *EndpointSlice) Since() Origin  { return r.Origin }
func (r *IdentityRecord) Since() Origin { return r.Origin }
func (r *Address) Since() Origin        { return r.Origin }
func (r *Policy) Since() Origin         { return r.Origin }
func (r *ClusterPolicy) Since() Origin  { return r.Origin }
func (r *Workload) Since() Origin       { return r.Origin }
func (r *Peer) Since() Origin           { return r.Origin }
func (r *Drain) Since() Origin          { return r.Origin }

// String is <namespace>/<service>/<slice>, as keys spell it.
func (n SliceName) String() string { return n.Service.String() + "/" + n.Slice }

// String is <node>/<prefix>, as keys spell it.
func (n AddressName) String() string { return n.Node + "/" + FormatKeyPrefix(n.Prefix) }

// String is the protocol's name, or its number.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	}
	return strconv.Itoa(int(p))
}
