package apiserver

import (
	"context"
	"net/netip"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// NodeRegistration is what a node says about itself. Node is the name that its
// token or certificate proved, not one it merely claims.
type NodeRegistration struct {
	Node              string
	UnderlayAddresses []netip.Addr
	WireGuardKey      [32]byte // public half
	WireGuardEndpoint string   // host:port; "" = behind NAT
	WireGuardPort     uint16   // 0 = not said
	GossipKeys        []uint64 // IDs of those that its agent holds, the one it encrypts by first
}

// EndpointRegistration is what a node says about a pod that runs on it. Node is
// the name its certificate proved; whether the pod belongs to that node is the
// Registrar's to check.
type EndpointRegistration struct {
	Node           string
	Namespace, Pod string
	Owner          string // pod UID
	Addresses      []netip.Addr
	Ready          bool
	Remove         bool // deletes only what this owner wrote
}

// Registrar keeps registrations. It answers with a *Refusal where the caller is
// at fault: an unknown node, a pod that the source assigns to another node, an
// address outside the node's prefixes.
type Registrar interface {
	// RegisterNode gives the node its number, pod prefixes and tunnel addresses
	// and stores the rest. Calling it again with the same input changes nothing.
	RegisterNode(ctx context.Context, r NodeRegistration) (*clustermesh.Node, error)
	// RegisterEndpoint stores (or removes) a pod's addresses and answers with
	// its identity; number 0 of the cluster while that is not known.
	RegisterEndpoint(ctx context.Context, r EndpointRegistration) (clustermesh.Identity, error)
}
