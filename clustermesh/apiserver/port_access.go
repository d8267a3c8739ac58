package apiserver

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore/etcd"
)

// role is what a caller is to this cluster.
type role uint8

const (
	roleStranger   role = 1 << iota // no certificate, or one that does not verify
	roleExpired                     // an own node whose certificate ended less than 90 days ago
	roleNode                        // an own node
	roleServer                      // an own mesh API server
	rolePeerNode                    // a node of an admitted peer
	rolePeerServer                  // a mesh API server of an admitted peer

	roleReader = roleNode | roleServer | rolePeerNode | rolePeerServer
	roleAny    = roleStranger | roleExpired | roleReader
)

// access is who may call what. A method that is not in it is refused to all:
// the table names methods as the server registers them.
var access = map[string]role{
	"/etcdserverpb.KV/Range":           roleReader, // which keys: authorizeReader
	"/etcdserverpb.KV/RangeStream":     roleReader,
	"/etcdserverpb.Watch/Watch":        roleReader,
	"/etcdserverpb.Maintenance/Status": roleReader, // which store this is

	"/tombolo.v1.Mesh/Join":             roleAny, // by a token's secret
	"/tombolo.v1.Mesh/Hello":            roleAny, // strangers: only while they join; see Hello
	"/tombolo.v1.Mesh/Leave":            rolePeerServer,
	"/tombolo.v1.Mesh/Renew":            roleNode | roleExpired,
	"/tombolo.v1.Mesh/RegisterNode":     roleStranger | roleNode | roleExpired, // strangers: by a token's secret
	"/tombolo.v1.Mesh/RegisterEndpoint": roleNode,
}

// roleOf says what the caller is now. The certificate's time is looked at on
// every call, as connections outlive it.
func (p *Port) roleOf(c *caller) (role, error) {
	switch {
	case c.err != nil:
		return roleStranger, c.err
	case c.expired:
		return roleExpired, fmt.Errorf("the certificate of %s expired on %s; it is good for renewal only", c.name, timeText(c.ends))
	case p.cfg.Now().After(c.ends):
		return roleStranger, fmt.Errorf("the certificate of %s expired on %s; connect again with a new one", c.name, timeText(c.ends))
	case c.name.Cluster == p.own && c.name.Kind == certs.KindNode:
		return roleNode, nil
	case c.name.Cluster == p.own:
		return roleServer, nil
	case c.name.Kind == certs.KindNode:
		return rolePeerNode, nil
	}
	return rolePeerServer, nil
}

// authorize decides on a method; nil = go on.
func (p *Port) authorize(ctx context.Context, method string) error {
	c := callerOf(ctx)
	r, why := p.roleOf(c)
	allowed := access[method]
	if allowed&r != 0 {
		return nil
	}
	refusal := Refuse(codes.PermissionDenied, "call of "+method+" refused", "use a certificate that is meant for it", "%s may not call it", c.name)
	if allowed == 0 {
		refusal.Why, refusal.Fix = "the mesh port does not serve it", "the mesh port is read only; see which methods it has in mesh.proto"
	} else if why != nil {
		refusal.Code, refusal.Why = codes.Unauthenticated, why.Error()
		refusal.Fix = p.comeIn()
	}
	p.log.Warn("call refused", "method", method, "why", refusal.Why)
	return refusal
}

// comeIn is the way in for those who are not in.
func (p *Port) comeIn() string {
	return "a cluster comes in by `tombolo mesh invite` on " + p.own + " and `tombolo mesh join` on the other, a node by a node token"
}

func (p *Port) authorizeUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := p.authorize(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func (p *Port) authorizeStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := p.authorize(stream.Context(), info.FullMethod); err != nil {
		return err
	}
	return next(srv, stream)
}

// authorizeReader says what the caller may read through the etcd API.
func (p *Port) authorizeReader(ctx context.Context) (etcd.Access, error) {
	c := callerOf(ctx)
	r, why := p.roleOf(c)
	export := clustermesh.ScopePrefix(clustermesh.ScopeExport, p.own)
	switch r {
	case roleNode, roleServer:
		return etcd.Access{Name: c.name.String(), Prefixes: []string{
			export,
			clustermesh.ScopePrefix(clustermesh.ScopeLocal, p.own),
			clustermesh.Root + string(clustermesh.ScopeMirror) + "/",
		}}, nil
	case rolePeerNode, rolePeerServer:
		return etcd.Access{
			Name: c.name.String(), Prefixes: []string{export}, Budget: p.cfg.PeerBudget,
			Group: "cluster " + c.name.Cluster, GroupBudget: p.cfg.ClusterBudget,
		}, nil
	}
	return etcd.Access{}, Refuse(codes.Unauthenticated, "reading refused", p.comeIn(), "%v", why)
}
