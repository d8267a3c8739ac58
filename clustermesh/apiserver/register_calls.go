package apiserver

import (
	"context"
	"fmt"
	"math"
	"net/netip"

	"google.golang.org/grpc/codes"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

// NodeKnower is a Registrar that can say whether a node still exists. With it,
// the certificate of a node that was taken out of the cluster is not renewed.
type NodeKnower interface {
	// KnowsNode returns a *Refusal if the source has no such node (any more).
	KnowsNode(ctx context.Context, node string) error
}

// Renew signs a new certificate for the name in the caller's.
func (p *Port) Renew(ctx context.Context, req *pb.RenewRequest) (*pb.RenewResponse, error) {
	c := callerOf(ctx)
	if k, ok := p.cfg.Registrar.(NodeKnower); ok {
		if err := k.KnowsNode(ctx, c.name.Node); err != nil {
			return nil, err
		}
	}
	chain, err := p.sign(req.Csr, c.name)
	if err != nil {
		return nil, err
	}
	return &pb.RenewResponse{Chain: chain, Bundle: p.ca().Bundle()}, nil
}

func (p *Port) sign(csr []byte, name certs.Name) ([]byte, error) {
	chain, err := p.ca().Sign(csr, name, p.cfg.LeafTTL, p.cfg.Now())
	if err != nil {
		return nil, Refuse(codes.InvalidArgument, "no certificate for "+name.String(), "correct the request", "%v", err)
	}
	p.log.Info("certificate signed", "name", name.String())
	return chain, nil
}

const registerRefused = "registration refused"

// RegisterNode takes a node in: by its certificate, also one that expired less
// than 90 days ago, or the first time by a one-time token.
func (p *Port) RegisterNode(ctx context.Context, req *pb.RegisterNodeRequest) (*pb.RegisterNodeResponse, error) {
	r, err := nodeRegistration(req)
	if err != nil {
		return nil, err
	}
	if err := checkClock(registerRefused, "node "+r.Node, req.Clock, p.cfg.Now()); err != nil {
		return nil, err
	}
	if err := p.authorizeNode(ctx, req); err != nil {
		return nil, err
	}
	node, err := p.cfg.Registrar.RegisterNode(ctx, r)
	if err != nil {
		return nil, err
	}
	answer := &pb.RegisterNodeResponse{Cluster: clusterToPB(p.ownCluster()), Node: nodeToPB(node), Bundle: p.ca().Bundle()}
	if p.cfg.GossipKeys != nil {
		keys, again, err := p.cfg.GossipKeys(ctx)
		if err != nil {
			p.log.Warn("a node gets no gossip keys this time; it keeps those that it has", "node", r.Node, "err", err)
		}
		answer.GossipKeys, answer.Again = keys, int64(again)
	}
	if len(req.Csr) > 0 {
		if answer.Chain, err = p.sign(req.Csr, certs.Node(p.own, r.Node)); err != nil {
			return nil, err
		}
	}
	return answer, nil
}

// authorizeNode makes sure that the caller may speak for req.Node.
func (p *Port) authorizeNode(ctx context.Context, req *pb.RegisterNodeRequest) error {
	c := callerOf(ctx)
	r, why := p.roleOf(c)
	if r&(roleNode|roleExpired) != 0 {
		if c.name.Node != req.Node {
			return Refuse(codes.PermissionDenied, registerRefused, "register a node with its own certificate", "the certificate is for node %q, not for %q", c.name.Node, req.Node)
		}
		if r == roleExpired && len(req.Csr) == 0 {
			return Refuse(codes.Unauthenticated, registerRefused, "ask for a new certificate in the same call", "%v", why)
		}
		return nil
	}
	if req.ServiceAccountToken != "" {
		return p.authorizeAccount(ctx, req)
	}
	if req.TokenId == "" {
		return Refuse(codes.Unauthenticated, registerRefused, "start the agent once with a node token (--token-file), or on Kubernetes with a service-account token (--service-account-token)", "neither a token nor a certificate that counts: %v", why)
	}
	if len(req.Csr) == 0 {
		return Refuse(codes.InvalidArgument, registerRefused, "send a certificate request with the token", "a token is good for a first certificate only")
	}
	// The key stands for the bearer: whoever comes again with it after a crash
	// is the one that used the token.
	key, err := certs.KeyOfCSR(req.Csr)
	if err != nil {
		return Refuse(codes.InvalidArgument, registerRefused, "correct the request", "%v", err)
	}
	claim, err := p.tokens.check(ctx, certs.NodeToken, req.TokenId, req.Secret, req.Node, key)
	if err != nil {
		return err
	}
	return claim.commit(ctx)
}

// authorizeAccount makes sure that the service-account token was issued to a pod
// on req.Node.
func (p *Port) authorizeAccount(ctx context.Context, req *pb.RegisterNodeRequest) error {
	if p.cfg.ReviewNode == nil {
		return Refuse(codes.FailedPrecondition, registerRefused, "start the agent with a node token: --token-file", "this mesh API server takes no service-account tokens: it does not run with --kubernetes")
	}
	if len(req.Csr) == 0 {
		return Refuse(codes.InvalidArgument, registerRefused, "send a certificate request with the token", "a token is good for a certificate only")
	}
	node, err := p.cfg.ReviewNode(ctx, req.ServiceAccountToken)
	if err != nil {
		return err
	}
	if node != req.Node {
		return Refuse(codes.PermissionDenied, registerRefused, "start the agent with the name of the Node its pod runs on: --node", "the token was issued to a pod on node %q, not on %q", node, req.Node)
	}
	return nil
}

func nodeRegistration(req *pb.RegisterNodeRequest) (NodeRegistration, error) {
	r := NodeRegistration{Node: req.Node, WireGuardEndpoint: req.WireguardEndpoint, WireGuardPort: uint16(req.WireguardPort), GossipKeys: req.GossipKeys}
	bad := func(why string, args ...any) error {
		return Refuse(codes.InvalidArgument, registerRefused, "correct the agent's settings", why, args...)
	}
	if err := certs.CheckNode(req.Node); err != nil {
		return r, bad("%v", err)
	}
	if len(req.WireguardKey) != len(r.WireGuardKey) {
		return r, bad("WireGuard key of %d bytes, expected %d", len(req.WireguardKey), len(r.WireGuardKey))
	}
	copy(r.WireGuardKey[:], req.WireguardKey)
	if len(r.GossipKeys) > maxGossipKeys {
		return r, bad("%d gossip keys, at most %d are allowed", len(r.GossipKeys), maxGossipKeys)
	}
	if r.WireGuardKey == [32]byte{} {
		return r, bad("the WireGuard key is empty")
	}
	if req.WireguardEndpoint != "" {
		if ap, err := netip.ParseAddrPort(req.WireguardEndpoint); err != nil || ap.Port() == 0 {
			return r, bad("WireGuard endpoint %s is not address:port", quoted(req.WireguardEndpoint))
		}
	}
	if req.WireguardPort > math.MaxUint16 {
		return r, bad("WireGuard port %d is none", req.WireguardPort)
	}
	var err error
	if r.UnderlayAddresses, err = addresses(req.UnderlayAddresses); err != nil {
		return r, bad("underlay address: %v", err)
	}
	return r, nil
}

const (
	maxAddresses  = 16
	maxGossipKeys = 8
)

func addresses(raw [][]byte) ([]netip.Addr, error) {
	if len(raw) > maxAddresses {
		return nil, fmt.Errorf("%d addresses, at most %d are allowed", len(raw), maxAddresses)
	}
	out := make([]netip.Addr, len(raw))
	for i, b := range raw {
		a, ok := netip.AddrFromSlice(b)
		if a = a.Unmap(); !ok || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
			return nil, fmt.Errorf("%x is not an address that others can use", b)
		}
		out[i] = a
	}
	return out, nil
}

// RegisterEndpoint stores what a node says about a pod of its own.
func (p *Port) RegisterEndpoint(ctx context.Context, req *pb.RegisterEndpointRequest) (*pb.RegisterEndpointResponse, error) {
	r := EndpointRegistration{
		Node: callerOf(ctx).name.Node, Namespace: req.Namespace, Pod: req.Name, Owner: req.Owner, Ready: req.Ready, Remove: req.Remove,
	}
	bad := func(why string, args ...any) error {
		return Refuse(codes.InvalidArgument, registerRefused, "correct the request", why, args...)
	}
	for _, part := range []struct{ what, text string }{{"namespace", r.Namespace}, {"name", r.Pod}} {
		if err := certs.CheckNode(part.text); err != nil {
			return nil, bad("%s of the pod: %s is not a DNS name", part.what, quoted(part.text))
		}
	}
	if r.Owner == "" || len(r.Owner) > 100 {
		return nil, bad("the pod's UID has %d bytes, expected 1 to 100", len(r.Owner))
	}
	var err error
	if r.Addresses, err = addresses(req.Addresses); err != nil {
		return nil, bad("pod address: %v", err)
	}
	if len(r.Addresses) == 0 && !r.Remove {
		return nil, bad("the pod has no address")
	}
	identity, err := p.cfg.Registrar.RegisterEndpoint(ctx, r)
	if err != nil {
		return nil, err
	}
	return &pb.RegisterEndpointResponse{Identity: uint32(identity)}, nil
}
