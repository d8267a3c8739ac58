package agent

import (
	"errors"
	"net/netip"
)

// ErrFull is returned (wrapped, naming the table and its size) by Put when the
// kernel has no room for a row.
var ErrFull = errors.New("table full")

// Addr is an address as all maps and rows hold it: 16 bytes, IPv4 v4-mapped
// (::ffff:a.b.c.d), network byte order.
type Addr [16]byte

// MakeAddr converts; the zone is dropped.
func MakeAddr(a netip.Addr) Addr { return a.As16() }

// IP is the address unmapped: IPv4 as IPv4.
func (a Addr) IP() netip.Addr { return netip.AddrFrom16(a).Unmap() }

func (a Addr) String() string { return a.IP().String() }

// Prefix is Addr with a length in terms of the 16 bytes (IPv4 /24 has 120 bits).
type Prefix struct {
	Addr Addr
	Bits uint8
}

// MakePrefix converts, masking host bits.
func MakePrefix(p netip.Prefix) Prefix {
	p = p.Masked()
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return Prefix{Addr: MakeAddr(p.Addr()), Bits: uint8(bits)}
}

// Limits of a service row; the same in bpf/src/lb.h, and a test compares them.
const (
	MaxTiers  = 4  // local, two named, the rest
	MaxGroups = 20 // over all tiers: each cluster is in one tier; at most 16 in one
)

// Scope says who asks for a frontend.
type Scope uint8

const (
	ScopeInside  Scope = iota // processes and pods of this node: all frontends
	ScopeOutside              // packets from outside: node ports and external addresses
)

// ServiceKey is a frontend: what a client dials. Port in host order.
type ServiceKey struct {
	Addr  Addr
	Port  uint16
	Proto uint8
	Scope Scope
}

// ServiceFlags of a row.
type ServiceFlags uint8

const (
	ServiceLocal      ServiceFlags = 1 << iota // traffic policy Local: without a backend here packets are dropped, not refused
	ServiceKeepSource                          // from outside: never masqueraded
	ServiceRanges                              // from outside: only sources of its rows in the table of source ranges
	ServiceDrained                             // clients with session affinity leave groups of weight 0
)

// Tier is a slice of a row's groups: [First, First+Groups).
// Share is how much of the traffic that reaches this tier stays in it, in
// 1/65535; the rest goes to the next tier (min-healthy). 65535 = all.
type Tier struct {
	First, Groups uint8
	Share         uint16
}

// Group is one cluster's backends of a service. Its slots are
// (service, cluster, 0…Count-1) in the slots table.
type Group struct {
	Cluster uint16
	Weight  uint16 // 0 = never drawn, except when it is all there is
	Count   uint32
}

// ServiceRow says where connections to a frontend go. ID is derived from
// namespace, name, port name, protocol and address family (ServiceID), so that
// a process with no memory derives the same.
type ServiceRow struct {
	ID       uint64
	Flags    ServiceFlags
	NumTiers uint8
	Maglev   uint16 // size of its consistent table; 0 = none
	Affinity uint32 // sessionAffinity ClientIP: timeout in seconds; 0 = none
	Tiers    [MaxTiers]Tier
	Groups   [MaxGroups]Group
}

// SlotKey is one backend slot of a group.
type SlotKey struct {
	Service uint64
	Cluster uint16
	Slot    uint32
}

// SlotRow is a backend, inline. Port in host order.
type SlotRow struct {
	Addr    Addr
	Port    uint16
	Cluster uint16
	Node    uint16 // node number in Cluster
}

// NodeKey names a node of any cluster.
type NodeKey struct{ Cluster, Node uint16 }

// ClusterKey names a cluster.
type ClusterKey uint16

// HealthRow present = down. Since is Unix seconds, for people only.
type HealthRow struct{ Since uint64 }

// IPFlags of an ipcache row.
type IPFlags uint16

const (
	IPTunnelAddress IPFlags = 1 << iota // a tunnel address of this node: peers may reach it
	IPEncrypted                         // travels through the tunnel, never in clear
	IPHere                              // a pod prefix of this node
	IPAcross                            // of another cluster; said at gateways alone
)

// IPCacheRow says who an address belongs to.
type IPCacheRow struct {
	Identity uint32
	Node     uint16 // node number in the identity's cluster
	Flags    IPFlags
}

// EndpointRow is a pod on this node, by address: where tunnel.c delivers.
type EndpointRow struct {
	IfIndex  uint32  // host side of the pod's veth
	PodMAC   [6]byte // inside
	HostMAC  [6]byte
	Identity uint32
	Subject  uint64 // of its policy; 0 = no policy selects it
	Closed   bool   // nothing passes but what its own host sends
}

// RangeKey is a range of sources that may reach a service from outside. It
// counts for services with ServiceRanges; the longest match decides.
type RangeKey struct {
	Service uint64
	Prefix  Prefix
}

// RangeRow says whether they may.
type RangeRow struct{ Allow bool }

// PeerKey is a WireGuard public key.
type PeerKey [32]byte

// PeerRow is a WireGuard peer. Allowed holds its prefixes as canonical text,
// sorted, joined by commas, so that rows compare.
type PeerRow struct {
	Endpoint netip.AddrPort
	Allowed  string
}

// RouteKind tells routes to one prefix apart.
type RouteKind uint8

const (
	RouteBlackhole   RouteKind = iota + 1 // worst metric; enters first, leaves last
	RouteTunnel                           // through the WireGuard device
	RouteDirect                           // by a node address on the same L2
	RoutePod                              // a local pod's veth
	RouteUnreachable                      // a pod prefix of this node: what no pod has is answered at once
)

// RouteKey is one route of ours (ownership mark: our route protocol number).
type RouteKey struct {
	Prefix Prefix
	Kind   RouteKind
}

// RouteRow is where it leads.
type RouteRow struct {
	Via     Addr   // RouteDirect: next hop; zero otherwise
	Source  Addr   // preferred source (tunnel address); zero = none
	IfIndex uint32 // RoutePod; 0 = the table knows (tunnel device)
	MTU     uint16 // 0 = device's
}

// Tables are all edges of an agent. References enter first and leave last, in
// the order of the fields.
type Tables struct {
	Config        Table[ConfigKey, ConfigRow]
	Peers         Table[PeerKey, PeerRow]
	Routes        Table[RouteKey, RouteRow]
	Policy        Table[PolicyKey, PolicyRow]
	IPPrefixes    Table[Prefix, IPCacheRow] // real prefixes (LPM)
	IPs           Table[Addr, IPCacheRow]   // single addresses (hash)
	ClassPrefixes Table[Prefix, ClassRow]   // as IPPrefixes
	Classes       Table[Addr, ClassRow]
	Subjects      Table[SubjectKey, SubjectRow]
	Endpoints     Table[Addr, EndpointRow]
	SourceRanges  Table[RangeKey, RangeRow]
	Maglev        Table[MaglevKey, MaglevRow]
	Slots         Table[SlotKey, SlotRow]
	Services      Table[ServiceKey, ServiceRow]

	// Epoch is counted up after rows that verdicts depend on have changed.
	Epoch Epoch

	// Health rows do not queue behind merges: the health loop writes them.
	NodeHealth    Table[NodeKey, HealthRow]
	ClusterHealth Table[ClusterKey, HealthRow]
}
