package apiserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// Join is the inviting side. A proposal is judged in full and dialled back, and
// changes nothing but a short-lived note; a commit is judged again, and stores
// the peer and uses up the token in one transaction.
func (p *Port) Join(ctx context.Context, req *pb.JoinRequest) (*pb.JoinResponse, error) {
	const what = "join refused"
	now := p.cfg.Now()
	candidate, err := clusterFromPB(req.Cluster)
	if err != nil {
		return nil, err
	}
	// The clock first: with a wrong one, certificates cannot be judged.
	if err := checkClock(what, "cluster "+candidate.Name, req.Clock, now); err != nil {
		return nil, err
	}
	claim, err := p.tokens.check(ctx, certs.JoinToken, req.TokenId, req.Secret, candidate.Name, certs.HashSecret(candidate.CABundle))
	if err != nil {
		return nil, err
	}
	own := p.ownCluster()
	if candidate.Name == own.Name && certs.SharedRoot(own.CABundle, candidate.CABundle) != nil {
		return nil, errItself(own.Name)
	}
	fingerprint, err := provesBundle(callerOf(ctx), candidate, now)
	if err != nil {
		return nil, err
	}
	if err := checkVersion(what, "cluster "+candidate.Name, candidate.Version, own.Version); err != nil {
		return nil, err
	}
	present, err := p.peers.read(ctx)
	if err != nil {
		return nil, err
	}
	nodes, err := p.ownNodes(ctx)
	if err != nil {
		return nil, err
	}
	if err := checkFit(what, own, nodes, present, candidate); err != nil {
		return nil, err
	}
	answer := &pb.JoinResponse{Cluster: clusterToPB(own), Clock: now.UnixNano()}
	for name := range present {
		if name != candidate.Name {
			answer.Existing = append(answer.Existing, name)
		}
	}
	slices.Sort(answer.Existing)
	if _, err := p.hello(ctx, candidate.MeshAddresses, candidate.CABundle, candidate.Name); err != nil {
		return nil, dialRefusal(what, fmt.Sprintf("cluster %s could not dial back cluster %s", own.Name, candidate.Name), err)
	}
	if !req.Commit {
		return answer, p.introduce(ctx, candidate.Name, introduction{Fingerprint: fingerprint})
	}
	callerOf(ctx).leaving.Store(true)
	peer := asPeer(candidate, present[candidate.Name], now)
	err = p.peers.set(ctx, peer, present[candidate.Name].rev, append(claim.burn(), kvstore.Delete(p.introductionKey(candidate.Name)))...)
	if errors.Is(err, kvstore.ErrConflict) {
		return nil, usedJustNow(certs.JoinToken)
	}
	if err != nil {
		return nil, fmt.Errorf("peer %s not stored: %w", candidate.Name, err)
	}
	p.log.Info("cluster joined", "cluster", candidate.Name, "id", candidate.ID, "fingerprint", fingerprint)
	return answer, nil
}

func errItself(cluster string) *Refusal {
	return Refuse(codes.FailedPrecondition, "join refused", "run `tombolo mesh join` on the other cluster", "this token is from cluster %s itself", cluster)
}

// provesBundle makes sure that the caller holds a certificate of the bundle it
// proposes, and returns the fingerprint of the root it chains to.
func provesBundle(c *caller, candidate *clustermesh.Cluster, now time.Time) (fingerprint string, err error) {
	const what, fix = "join refused", "restart that cluster's mesh API server so that it signs itself a new certificate"
	want := certs.APIServer(candidate.Name)
	name, err := certs.VerifyWith(candidate.CABundle, c.chain, now)
	if err != nil {
		return "", Refuse(codes.Unauthenticated, what, fix, "cluster %s does not prove the CA it proposes: %v", candidate.Name, err)
	}
	if name != want {
		return "", Refuse(codes.PermissionDenied, what, fix, "the caller is %s, expected %s", name, want)
	}
	roots, err := certs.ParseBundle(candidate.CABundle)
	if err != nil {
		return "", err
	}
	for _, root := range roots {
		if _, _, err := certs.VerifyPinned(certs.Fingerprint(root), c.chain, now); err == nil {
			return certs.Fingerprint(root), nil
		}
	}
	return "", Refuse(codes.Unauthenticated, what, fix, "cluster %s does not send the root of its CA", candidate.Name)
}

// asPeer is what a candidate is admitted for. One that joins again keeps its
// budgets and its date.
func asPeer(c *clustermesh.Cluster, before peerEntry, now time.Time) *clustermesh.Peer {
	peer := &clustermesh.Peer{
		Name: c.Name, ID: c.ID, CABundle: c.CABundle, MeshAddresses: c.MeshAddresses, PodPrefixes: c.PodPrefixes,
		Joined: now, Origin: clustermesh.OriginAt(now),
	}
	if old := before.peer; old != nil {
		peer.MaxKeys, peer.MaxBytes, peer.Joined = old.MaxKeys, old.MaxBytes, old.Joined
	}
	return peer
}

// Hello answers whoever is known, and a cluster that is just now being
// introduced.
func (p *Port) Hello(ctx context.Context, _ *pb.HelloRequest) (*pb.HelloResponse, error) {
	c := callerOf(ctx)
	r, why := p.roleOf(c)
	if r&(roleReader|roleExpired) == 0 {
		if err := p.introduced(ctx, c); err != nil {
			return nil, Refuse(codes.Unauthenticated, "hello refused", p.comeIn(), "%v", errors.Join(why, err))
		}
	}
	return &pb.HelloResponse{
		Cluster: p.own, Version: p.ownCluster().Version, Clock: p.cfg.Now().UnixNano(), Joined: r&(rolePeerNode|rolePeerServer) != 0,
	}, nil
}

// introduced reports whether the caller is the mesh API server of a cluster
// that is being introduced, proved by the CA it was introduced with.
func (p *Port) introduced(ctx context.Context, c *caller) error {
	name, err := certs.ChainName(c.chain)
	if err != nil {
		return err
	}
	note, _, err := p.introduction(ctx, name.Cluster)
	if err != nil {
		return err
	}
	if note == nil {
		return fmt.Errorf("cluster %s is not known here", name.Cluster)
	}
	got, _, err := certs.VerifyPinned(note.Fingerprint, c.chain, p.cfg.Now())
	if err == nil && got != certs.APIServer(name.Cluster) {
		err = fmt.Errorf("%s is not a mesh API server", got)
	}
	return err
}

// Leave takes the calling cluster out of this one. It is also how the other
// side undoes half a join.
func (p *Port) Leave(ctx context.Context, _ *pb.LeaveRequest) (*pb.LeaveResponse, error) {
	c := callerOf(ctx)
	c.leaving.Store(true)
	if err := p.peers.Delete(ctx, c.name.Cluster); err != nil {
		return nil, fmt.Errorf("cluster %s not taken out: %w", c.name.Cluster, err)
	}
	p.log.Info("cluster left", "cluster", c.name.Cluster)
	return &pb.LeaveResponse{}, nil
}

// fingerprints lists the roots of a bundle, for people to compare.
func fingerprints(bundle []byte) string {
	roots, err := certs.ParseBundle(bundle)
	if err != nil {
		return ""
	}
	var out bytes.Buffer
	for i, r := range roots {
		if i > 0 {
			out.WriteByte(' ')
		}
		out.WriteString(certs.Fingerprint(r))
	}
	return out.String()
}

func quoted(s string) string { return strconv.QuoteToASCII(s) }
