package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// Config makes an Agent. Fields without a comment on their zero value are required.
type Config struct {
	Cluster   string         // this node's cluster
	ClusterID clustermesh.ID // its ID
	Node      string         // this node's name

	// OnLink are the prefixes of this node's underlay interfaces: a node of the
	// own cluster with an underlay address inside one is a neighbour on the same
	// L2 and is reached by a direct route. None = all nodes by WireGuard.
	OnLink []netip.Prefix
	// UnderlayMTU in bytes; 0 = 1500. Routes into the mesh get it less 80.
	UnderlayMTU uint16

	// NodePortAddresses are the prefixes in which this node's underlay addresses
	// answer to node ports and health check ports. None = all of them do.
	NodePortAddresses []netip.Prefix
	// MaglevRows is the size of the table of consistent tables; 0 = 65536.
	MaglevRows int

	// EncryptAll sends what goes to other nodes of the own cluster through
	// WireGuard, too, neighbours or not.
	EncryptAll bool
	// Chained: another CNI plugin connects the pods and carries what goes between
	// nodes of the own cluster; its routes and translations are its own business,
	// and node ports are kube-proxy's.
	Chained bool
	// Masquerade has pods reach the world by the node's address.
	Masquerade bool
	// NATPorts are the first and the last source port of connections that are
	// given an address of the node; zero = 61000–65535, which the kernel gives to
	// no socket by itself.
	NATPorts [2]uint16
	// PolicyAllClusters: selectors of policies that do not name a cluster select
	// the pods of all, not of the own one alone.
	PolicyAllClusters bool

	// SlowStart is how long what was down for a while takes to get all of its
	// share again; 0 = at once, and shares do not follow health at all.
	SlowStart time.Duration

	// SnapshotDir keeps what each cluster said last; "" = no snapshot.
	SnapshotDir string

	Connector Connector
	Prober    Prober       // nil = no health checks: nothing is ever judged down
	Health    HealthConfig // zero = defaults
	Gossip    Gossip       // nil = each agent judges by its own probes alone
	Pods      Pods         // nil = the pod endpoints of the API answer 501

	Resets      Resetter    // nil = sockets to backends that are gone are left to themselves
	HealthPorts HealthPorts // nil = nobody answers at health check ports

	// OwnNode is told what the own cluster's record of this node says whenever
	// it changes (the tunnel addresses this node must own, for one). It is
	// called from the owner goroutine and must not block. nil = nobody asks.
	OwnNode func(clustermesh.Node)

	// Resync is how often the kernel is read again to repair drift; 0 = 30 s,
	// negative = only at start and on Notify.
	Resync time.Duration

	// Counters are what the kernel's programs count, by reason, for the metric
	// tombolo_bpf_events_total. It is called from any goroutine. nil = none.
	Counters func() (map[string]uint64, error)

	// Conditions are what is wrong at edges that the agent does not see itself
	// (how full conntrack is, programs that could not be attached). It is called
	// from the owner goroutine and must not block. nil = none.
	Conditions func() []clustermesh.Problem

	// Details are lines of the status that only the caller knows (which kernel
	// features are on, who holds the WireGuard device). nil = none.
	Details func() map[string]string

	Log *slog.Logger // nil = discard
}

var defaultNATPorts = [2]uint16{61000, 65535}

// Connector reaches the stores of clusters. It is implemented by the binary,
// so that the agent itself knows neither etcd nor TLS.
type Connector interface {
	// Stores returns the replicas from which cluster can be followed: all of
	// one store, tried in turn. peer is what the own cluster says of it; nil
	// means the own cluster. It does not wait for a server to be up. The agent
	// calls close when it stops following. An error is retried.
	Stores(ctx context.Context, cluster string, peer *clustermesh.Peer) (stores []kvstore.Store, close func(), err error)
}

// Prober asks whether an address answers. Kernels answer, not agents: a dead
// agent is not a dead node. It is called from many goroutines at once.
type Prober interface {
	// Probe sends one echo request from one tunnel address to another and
	// returns how long the answer took; an error if none came within timeout.
	Probe(ctx context.Context, from, to netip.Addr, timeout time.Duration) (roundTrip time.Duration, err error)
}

// LocalPod is a pod on this node as its network was set up. It is JSON of the
// agent's API.
type LocalPod struct {
	UID       string               `json:"uid"`
	Namespace string               `json:"namespace"`
	Name      string               `json:"name"`
	Addresses []netip.Addr         `json:"addresses"`
	IfIndex   uint32               `json:"ifIndex"` // host side of the veth
	PodMAC    MAC                  `json:"podMAC"`
	HostMAC   MAC                  `json:"hostMAC"`
	Identity  clustermesh.Identity `json:"identity,omitempty"` // 0 = not known yet: number 0 of the own cluster is used until the cluster says more
}

// Pods sets up and takes down the network of pods on this node. The CNI plugin
// reaches it through the agent's socket. All methods are idempotent and safe
// for concurrent use.
type Pods interface {
	Add(ctx context.Context, r PodRequest) (PodResult, error)
	Del(ctx context.Context, r PodRequest) error
	Check(ctx context.Context, r PodRequest) error
	// Collect disconnects pods of a network that are not among those listed.
	Collect(ctx context.Context, r CollectRequest) error
	// Ready says why Add could not serve a pod now; nil = it could.
	Ready() error
	List(ctx context.Context) ([]LocalPod, error)
}

// PodRequest is one CNI call: JSON of POST /v1/pods/{add,del,check}.
type PodRequest struct {
	Network     string `json:"network,omitempty"` // the name in the network configuration
	ContainerID string `json:"containerID"`
	Netns       string `json:"netns,omitempty"` // path; may be empty on del
	IfName      string `json:"ifName"`
	Namespace   string `json:"namespace"`
	Name        string `json:"name"`
	UID         string `json:"uid"`

	// Chained: another plugin has connected the pod, with these addresses, by a veth
	// whose end on the host is among HostIfs; none of them named = not known.
	Chained   bool         `json:"chained,omitempty"`
	Addresses []netip.Addr `json:"addresses,omitempty"`
	HostIfs   []string     `json:"hostIfs,omitempty"`
}

// CollectRequest is CNI's GC: JSON of POST /v1/pods/gc. Whatever this node has of
// the network and is not listed here is gone for its runtime.
type CollectRequest struct {
	Network string       `json:"network"`
	Valid   []Attachment `json:"valid"`
}

// Attachment names a sandbox and one interface in it.
type Attachment struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
}

// PodResult is what a pod got: JSON of the answer to POST /v1/pods/add.
type PodResult struct {
	IfName     string         `json:"ifName"`
	HostIfName string         `json:"hostIfName"`
	MAC        string         `json:"mac"`
	HostMAC    string         `json:"hostMAC"`
	MTU        int            `json:"mtu"`
	IPs        []PodIP        `json:"ips"`
	Routes     []netip.Prefix `json:"routes,omitempty"`
}

// PodIP is one address of a pod.
type PodIP struct {
	Address netip.Prefix `json:"address"`
	Gateway netip.Addr   `json:"gateway"`
}

// MAC is an Ethernet address; text and JSON as usual ("02:00:…").
type MAC [6]byte

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// MarshalText is the usual text form.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads the usual text form.
func (m *MAC) UnmarshalText(text []byte) error {
	hw, err := net.ParseMAC(string(text))
	if err != nil || len(hw) != len(m) {
		return fmt.Errorf("MAC address %q: want six bytes like 02:00:00:00:00:01", text)
	}
	copy(m[:], hw)
	return nil
}
