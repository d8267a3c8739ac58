// Package clustermesh is the vocabulary of the mesh: the records that clusters
// publish, their keys and encoding, the view a reader has of each cluster, what
// is believed of a peer, and the pure merging of same-named services.
package clustermesh

import (
	"fmt"
	"net/netip"
	"strconv"
	"time"
	"unique"
)

// ID is a cluster ID: 1–4095, unique in the mesh. 0 holds reserved identities.
type ID uint16

// MaxID is the largest cluster ID: 12 bits of an identity.
const MaxID ID = 4095

// Identity stands for a set of security labels: cluster ID in the upper 12
// bits, a number in the lower 20. Number 0 of a cluster means "some workload of
// that cluster, not yet known".
type Identity uint32

// IdentityBits is the width of the number within an Identity.
const IdentityBits = 20

// Reserved identities (cluster 0).
const (
	IdentityUnknown    Identity = 0
	IdentityHost       Identity = 1
	IdentityWorld      Identity = 2
	IdentityRemoteNode Identity = 3
	IdentityUnmanaged  Identity = 4
	IdentityHealth     Identity = 5
)

// MakeIdentity puts cluster and number together.
func MakeIdentity(cluster ID, number uint32) Identity {
	return Identity(uint32(cluster)<<IdentityBits | number&(1<<IdentityBits-1))
}

// Cluster is the cluster an identity belongs to; 0 for reserved ones.
func (i Identity) Cluster() ID { return ID(i >> IdentityBits) }

// Number is the identity's number within its cluster.
func (i Identity) Number() uint32 { return uint32(i) & (1<<IdentityBits - 1) }

// Origin is when the fact in a record came to be, in Unix nanoseconds; 0 =
// unknown. Writing a record again does not renew it, and comparison ignores it.
type Origin int64

// OriginAt is the Origin of a moment; the zero time is the zero Origin.
func OriginAt(t time.Time) Origin {
	if t.IsZero() {
		return 0
	}
	return Origin(t.UnixNano())
}

// Time is o as a time in UTC; the zero Origin is the zero time.
func (o Origin) Time() time.Time {
	if o == 0 {
		return time.Time{}
	}
	return time.Unix(0, int64(o)).UTC()
}

// IsZero reports whether the moment is unknown.
func (o Origin) IsZero() bool { return o == 0 }

// Protocol is an IP protocol number: TCP 6, UDP 17, SCTP 132.
type Protocol uint8

const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// Cluster is what a cluster announces before anything else is read. The
// record is also its synced marker: it is written last.
type Cluster struct {
	Name          string
	ID            ID
	Incarnation   uint64 // random, drawn when the store was first filled
	CABundle      []byte // PEM
	MeshAddresses []string
	PodPrefixes   []netip.Prefix
	Capabilities  []string
	Version       string
	Topology      Topology
	Origin        Origin
}

// Topology says which nodes of a cluster are WireGuard peers of other clusters'.
// One that is not known is read as TopologyMesh.
type Topology string

const (
	TopologyMesh    Topology = ""        // every node, of every node
	TopologyGateway Topology = "gateway" // its gateways alone, which carry its prefixes
)

// ParseTopology reads what users write.
func ParseTopology(text string) (Topology, error) {
	switch text {
	case "", "mesh":
		return TopologyMesh, nil
	case "gateway":
		return TopologyGateway, nil
	}
	return "", fmt.Errorf("topology %q: allowed are mesh, gateway", text)
}

func (t Topology) String() string {
	if t == TopologyMesh {
		return "mesh"
	}
	return string(t)
}

// Node is one node of a cluster.
type Node struct {
	Name              string
	Number            uint16 // 1–65535, unique in the cluster while the node lives
	UnderlayAddresses []netip.Addr
	TunnelAddresses   []netip.Addr // one per pod prefix, inside it
	PodPrefixes       []netip.Prefix
	WireGuardKey      [32]byte // public; zero = not registered yet
	WireGuardEndpoint string   // host:port; "" = behind NAT
	WireGuardPort     uint16   // at the underlay addresses; 0 = not said
	Gateway           bool     // in TopologyGateway it may carry the cluster's prefixes
	Zone              string
	Origin            Origin
}

// ServiceName names a Service in any cluster.
type ServiceName struct{ Namespace, Name string }

func (n ServiceName) String() string { return n.Namespace + "/" + n.Name }

// Port of a Service (what clients dial) or of a slice (what backends answer on).
type Port struct {
	Name     string
	Protocol Protocol
	Port     uint16
	NodePort uint16
}

// Affinity of a service: which side is preferred.
type Affinity string

const (
	AffinityUnset  Affinity = ""
	AffinityLocal  Affinity = "local"
	AffinityRemote Affinity = "remote"
	AffinityNone   Affinity = "none"
)

// Service is one cluster's view of a Service.
type Service struct {
	Name            ServiceName
	Ports           []Port
	Frontends       []netip.Addr // a reader uses its own cluster's only
	Global          bool
	Shared          bool // exported: only shared services are in scope export
	HasWeight       bool // Weight was set, also to 0 (takes no traffic); unset reads as 1
	Headless        bool
	PublishNotReady bool
	ExternalLocal   bool // externalTrafficPolicy: Local
	InternalLocal   bool // internalTrafficPolicy: Local
	Distribution    Distribution
	Weight          uint16
	HealthCheckPort uint16 // on every node, with ExternalLocal; 0 = none
	Affinity        Affinity
	Failover        []string // cluster names, in order
	MinHealthy      string   // "", "3" or "30%"
	SessionAffinity time.Duration
	Outside         *Outside // nil = no external addresses, which is most services
	Export          *Export  // nil = no ServiceExport names it
	// Import is the name of the exported service, in the same namespace, whose
	// backends the Frontends lead to; "" = the service's own. It is what the
	// Multi-Cluster Services API calls a ClusterSetIP, and its own cluster's alone.
	Import string
	Origin Origin
}

// Export is what a ServiceExport of the Multi-Cluster Services API adds to its
// service, for the clusters that put an import together. It does not make the
// service global: under its own addresses it stays its cluster's.
type Export struct {
	Created             Origin   // of the ServiceExport: where clusters disagree, the oldest decides
	IPv4, IPv6          bool     // address families of the service
	AppProtocols        []string // by position of the service's Ports; nil = no port has one
	TrafficDistribution string   // as the Service spells it
	Labels, Annotations []Label  // to be shown by imports; sorted by key
}

// Outside is how clients outside the cluster reach a service, beside its node ports.
type Outside struct {
	Addresses    []External
	SourceRanges []netip.Prefix // who may dial the load balancer addresses; none = everybody
}

// ExternalKind says where an external address comes from.
type ExternalKind uint8

const (
	ExternalIP           ExternalKind = 1 // spec.externalIPs
	ExternalLoadBalancer ExternalKind = 2 // of the status, that nodes answer for; SourceRanges apply
)

// External is an address that clients outside the cluster dial.
type External struct {
	Address netip.Addr
	Kind    ExternalKind
}

// Distribution says which endpoints a client prefers. The source puts it into
// hints; the word itself is for people, and for sources that give no hints.
type Distribution uint8

const (
	DistributionUnset    Distribution = 0
	DistributionSameZone Distribution = 1 // PreferSameZone, PreferClose
	DistributionSameNode Distribution = 2 // PreferSameNode
)

// String is the distribution in words, "" if none was asked for.
func (d Distribution) String() string {
	switch d {
	case DistributionUnset:
		return ""
	case DistributionSameZone:
		return "same-zone"
	case DistributionSameNode:
		return "same-node"
	}
	return strconv.Itoa(int(d))
}

// Endpoint is one backend address of a slice.
type Endpoint struct {
	Address     netip.Addr
	Zone        string
	Hints       Hints
	Hostname    Hostname
	Node        uint16 // node number
	Ready       bool
	Serving     bool
	Terminating bool
}

// Hostname is the name of an endpoint in DNS, of exported headless services
// alone. It is comparable and takes one word: most endpoints have none.
type Hostname struct{ h unique.Handle[string] }

// MakeHostname is the Hostname of a name; "" is none.
func MakeHostname(name string) Hostname {
	if name == "" {
		return Hostname{}
	}
	return Hostname{unique.Make(name)}
}

// String is the name, "" if there is none.
func (h Hostname) String() string {
	if h == (Hostname{}) {
		return ""
	}
	return h.h.Value()
}

// SliceName names an endpoint slice.
type SliceName struct {
	Service ServiceName
	Slice   string
}

// EndpointSlice holds at most 100 endpoints of one address family.
type EndpointSlice struct {
	Name      SliceName
	Ports     []Port
	Endpoints []Endpoint
	Origin    Origin
}

// Label is one security label.
type Label struct{ Key, Value string }

// IdentityRecord says which labels an identity stands for.
type IdentityRecord struct {
	ID     Identity
	Labels []Label // sorted by key
	Origin Origin
}

// NamedPort is a container port with a name.
type NamedPort struct {
	Name     string
	Protocol Protocol
	Port     uint16
}

// AddressName names an address record: whose node says so, and what.
type AddressName struct {
	Node   string
	Prefix netip.Prefix
}

// Address binds a prefix to an identity.
type Address struct {
	Name       AddressName
	Identity   Identity
	Owner      string // pod UID; a delete removes only what its owner wrote
	NamedPorts []NamedPort
	Namespace  string
	Pod        string
	Origin     Origin
}

// Workload is a pod, for the agent of its node. Local only.
type Workload struct {
	Namespace, Name string
	Node            string
	Owner           string // pod UID
	Readiness       *Probe
	HostNetwork     bool // it has its node's addresses and none of its own
	HostPorts       []HostPort
	Origin          Origin
}

// HostPort is a port of the node that leads to a container.
type HostPort struct {
	Protocol      Protocol
	Port          uint16     // of the node
	Address       netip.Addr // of the node; invalid = all, unspecified = all of its family
	ContainerPort uint16
}

// Probe is a readiness probe that an agent runs where no kubelet does.
type Probe struct {
	Kind             string // tcp or http
	Port             uint16
	Path             string
	Period, Timeout  time.Duration
	InitialDelay     time.Duration
	SuccessThreshold int
	FailureThreshold int
}

// Policy is a NetworkPolicy as JSON. Local only.
type Policy struct {
	Namespace, Name string
	JSON            []byte
	Origin          Origin
}

// ClusterPolicy is a ClusterNetworkPolicy as JSON. Local only.
type ClusterPolicy struct {
	Name   string
	JSON   []byte
	Origin Origin
}

// Drain says that a cluster shall get no new connections, of all services or of
// one, or that it gets them again; see DrainLeft. In scope local it is the
// operator's word about another cluster, in scope export a cluster's about itself.
type Drain struct {
	Cluster string
	Service ServiceName // zero = all
	Start   time.Time
	Over    time.Duration
	From    uint16 // what of its weight was left at Start, in 1/65535
	Back    bool   // its weight rises again
	By      string // who asked for it
	Origin  Origin
}

// Peer is what another cluster was admitted for at join. Local only: it is the
// operator's word, and bounds everything the peer may say.
type Peer struct {
	Name          string
	ID            ID
	CABundle      []byte // PEM
	MeshAddresses []string
	PodPrefixes   []netip.Prefix
	MaxKeys       uint64 // 0 = default
	MaxBytes      uint64 // 0 = default
	Joined        time.Time
	Origin        Origin
}
