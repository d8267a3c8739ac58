package apiserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// AdminConfig is what the admin socket needs.
type AdminConfig struct {
	Port *Port
	// Store is read for Dump.
	Store kvstore.Store
	// Status fills in what the port does not know: leader, position, keys,
	// text of the store, records, nodes, version, problems. May be nil.
	Status func(ctx context.Context, s *pb.StatusResponse) error
	// Problems are those of the rest of the server. May be nil.
	Problems func() []Problem
	// Confirm lets held deletes of a kind ("" = all) go ahead and says how many.
	Confirm func(kind string) int
	Log     *slog.Logger // nil = discard
}

// Admin serves the admin calls. Whoever reaches the socket may do everything:
// the file system guards it.
type Admin struct {
	pb.UnimplementedAdminServer
	cfg AdminConfig
	log *slog.Logger
}

// NewAdmin makes an Admin.
func NewAdmin(cfg AdminConfig) *Admin {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Admin{cfg: cfg, log: cfg.Log}
}

// Run serves on l (see ListenAdmin) until ctx ends.
func (a *Admin) Run(ctx context.Context, l net.Listener) error {
	s := grpc.NewServer(grpc.MaxRecvMsgSize(64<<10), grpc.ConnectionTimeout(5*time.Second))
	pb.RegisterAdminServer(s, a)
	stop := context.AfterFunc(ctx, func() {
		limit := time.AfterFunc(500*time.Millisecond, s.Stop)
		s.GracefulStop()
		limit.Stop()
	})
	defer stop()
	err := s.Serve(l)
	if ctx.Err() != nil || errors.Is(err, grpc.ErrServerStopped) {
		s.Stop()
		return nil
	}
	return fmt.Errorf("admin socket: %w", err)
}

func (a *Admin) Status(ctx context.Context, _ *pb.StatusRequest) (*pb.StatusResponse, error) {
	p := a.cfg.Port
	out := &pb.StatusResponse{
		Cluster: clusterToPB(p.ownCluster()), Fingerprint: p.ca().Fingerprint(),
		CertificateExpires: unixNano(p.cfg.Leaf.Expires()), Peers: p.PeerStatus(),
	}
	// Where nothing has been read yet a problem says so.
	drains, _ := p.drains(ctx, a.cfg.Store)
	for _, r := range drains {
		out.Drains = append(out.Drains, p.drainStatus(r))
	}
	if a.cfg.Status != nil {
		if err := a.cfg.Status(ctx, out); err != nil {
			return nil, err
		}
	}
	problems := p.Problems()
	if a.cfg.Problems != nil {
		problems = append(problems, a.cfg.Problems()...)
	}
	sortProblems(problems)
	for _, q := range problems {
		out.Problems = append(out.Problems, &pb.Problem{What: q.What, Why: q.Why, Fix: q.Fix, Object: q.Object, Since: unixNano(q.Since)})
	}
	return out, nil
}

func (a *Admin) Invite(ctx context.Context, req *pb.InviteRequest) (*pb.InviteResponse, error) {
	t, err := a.cfg.Port.Invite(ctx, time.Duration(req.TtlSeconds)*time.Second)
	if err != nil {
		return nil, err
	}
	return &pb.InviteResponse{Token: t.Text(), Fingerprint: t.Fingerprint, Expires: unixNano(t.Expires), Cluster: t.Cluster, Address: strings.Join(t.Addresses, ",")}, nil
}

// Invite makes a one-time join token; ttl 0 = ten minutes.
func (p *Port) Invite(ctx context.Context, ttl time.Duration) (certs.Token, error) {
	own := p.ownCluster()
	if err := checkMeshAddresses(own.MeshAddresses); err != nil {
		return certs.Token{}, Refuse(codes.FailedPrecondition, "token not made", "restart the mesh API server with --advertise HOST:PORT", "%v", err)
	}
	return p.tokens.create(ctx, certs.JoinToken, "", ttl, own.MeshAddresses, p.ca().Fingerprint())
}

// Withdraw takes back a join token that nobody has used.
func (a *Admin) Withdraw(ctx context.Context, id string) error {
	return a.cfg.Port.tokens.withdraw(ctx, id)
}

// NodeToken makes a one-time token for one node; ttl 0 = ten minutes.
func (p *Port) NodeToken(ctx context.Context, node string, ttl time.Duration) (certs.Token, error) {
	if err := certs.CheckNode(node); err != nil {
		return certs.Token{}, Refuse(codes.InvalidArgument, "token not made", "give the node's name as Kubernetes has it", "%v", err)
	}
	return p.tokens.create(ctx, certs.NodeToken, node, ttl, p.ownCluster().MeshAddresses, p.ca().Fingerprint())
}

func (a *Admin) NodeToken(ctx context.Context, req *pb.NodeTokenRequest) (*pb.NodeTokenResponse, error) {
	t, err := a.cfg.Port.NodeToken(ctx, req.Node, time.Duration(req.TtlSeconds)*time.Second)
	if err != nil {
		return nil, err
	}
	return &pb.NodeTokenResponse{Token: t.Text(), Expires: unixNano(t.Expires)}, nil
}

func (a *Admin) JoinMesh(ctx context.Context, req *pb.JoinMeshRequest) (*pb.JoinMeshResponse, error) {
	r, err := a.cfg.Port.JoinMesh(ctx, req.Token, req.DryRun)
	if err != nil {
		return nil, err
	}
	return &pb.JoinMeshResponse{Cluster: r.Cluster, Fingerprint: r.Fingerprint, OwnFingerprint: r.OwnFingerprint, Checks: r.Checks, Existing: r.Existing}, nil
}

func (a *Admin) LeaveMesh(ctx context.Context, req *pb.LeaveMeshRequest) (*pb.LeaveMeshResponse, error) {
	left, unreachable, err := a.cfg.Port.LeaveMesh(ctx, req.Force)
	if err != nil {
		return nil, err
	}
	return &pb.LeaveMeshResponse{Left: left, Unreachable: unreachable}, nil
}

func (a *Admin) RemovePeer(ctx context.Context, req *pb.RemovePeerRequest) (*pb.RemovePeerResponse, error) {
	told, warning, err := a.cfg.Port.RemovePeer(ctx, req.Cluster, req.Force)
	if err != nil {
		return nil, err
	}
	return &pb.RemovePeerResponse{Told: told, Warning: warning}, nil
}

func (a *Admin) ListPeers(context.Context, *pb.ListPeersRequest) (*pb.ListPeersResponse, error) {
	return &pb.ListPeersResponse{Peers: a.cfg.Port.PeerStatus()}, nil
}

func (a *Admin) ConfirmDeletes(_ context.Context, req *pb.ConfirmDeletesRequest) (*pb.ConfirmDeletesResponse, error) {
	if a.cfg.Confirm == nil {
		return &pb.ConfirmDeletesResponse{}, nil
	}
	return &pb.ConfirmDeletesResponse{Released: int64(a.cfg.Confirm(req.Kind))}, nil
}

const maxDump = 64 << 20

// Dump prints the records under a prefix, one line each. What is private to
// the mesh API servers is named, not shown.
func (a *Admin) Dump(ctx context.Context, req *pb.DumpRequest) (*pb.DumpResponse, error) {
	var out strings.Builder
	prefix := req.Prefix
	if !strings.HasPrefix(prefix, "/") {
		prefix = clustermesh.Root + prefix
	}
	_, err := a.cfg.Store.List(ctx, prefix, kvstore.Position{}, func(kvs []kvstore.KV) error {
		for _, kv := range kvs {
			dumpLine(&out, kv)
		}
		if out.Len() > maxDump {
			return Refuse(codes.ResourceExhausted, "dump refused", "give a narrower prefix, such as export/"+a.cfg.Port.own+"/service/", "it would be larger than %d MiB", maxDump>>20)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &pb.DumpResponse{Text: out.String()}, nil
}

func dumpLine(out *strings.Builder, kv kvstore.KV) {
	key, err := clustermesh.ParseKey(kv.Key)
	if err != nil {
		fmt.Fprintf(out, "%s (private, %d bytes)\n", strings.Trim(quoted(kv.Key), `"`), len(kv.Value))
		return
	}
	rec, err := clustermesh.Decode(key, kv.Value)
	if err != nil {
		fmt.Fprintf(out, "%s unreadable: %v\n", kv.Key, err)
		return
	}
	fmt.Fprintf(out, "%s %s\n", kv.Key, clustermesh.Describe(rec))
}
