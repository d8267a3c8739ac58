package apiserver

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

// joinTimeout bounds a whole join.
const joinTimeout = time.Minute

// JoinResult is what a join did, or with a dry run would do.
type JoinResult struct {
	Cluster        string
	Fingerprint    string   // of the other cluster's CA
	OwnFingerprint string   // to compare with what the other side shows
	Checks         []string // what was found in order
	Existing       []string // further clusters of the mesh, not joined by this
}

// joining is one join as it goes on.
type joining struct {
	port  *Port
	token certs.Token
	own   *clustermesh.Cluster
	conn  *meshConn
	other *clustermesh.Cluster
	known map[string]peerEntry // own peers, before
	half  bool                 // an earlier try may have left half a join: its promise must outlive this one
	out   JoinResult
}

// JoinMesh joins the cluster that made the token. Both directions are dialled
// before either side stores anything; if the own side fails to store, the
// other side is told to forget.
func (p *Port) JoinMesh(ctx context.Context, text string, dryRun bool) (*JoinResult, error) {
	p.joinMu.Lock()
	defer p.joinMu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	j := &joining{port: p, own: p.ownCluster()}
	if err := j.readToken(text); err != nil {
		return nil, err
	}
	var err error
	if j.known, err = p.peers.read(ctx); err != nil {
		return nil, err
	}
	if err := j.dial(ctx); err != nil {
		return nil, err
	}
	defer j.conn.close()
	if err := j.joinedAlready(ctx); err != nil {
		return nil, err
	}
	if err := j.propose(ctx); err != nil {
		return nil, err
	}
	if err := j.dialAdvertised(ctx); err != nil {
		return nil, err
	}
	if dryRun {
		return &j.out, j.forgetNote(ctx)
	}
	return &j.out, j.commit(ctx)
}

func (j *joining) ok(format string, args ...any) {
	j.out.Checks = append(j.out.Checks, fmt.Sprintf(format, args...))
}

const joinRefused = "join refused"

func (j *joining) readToken(text string) error {
	t, err := certs.ParseToken(text)
	if err != nil {
		return Refuse(codes.InvalidArgument, joinRefused, "paste the token as `tombolo mesh invite` printed it", "%v", err)
	}
	if t.Kind != certs.JoinToken {
		return Refuse(codes.InvalidArgument, joinRefused, "ask for a join token: tombolo mesh invite", "this is a %s token, for one node of cluster %s", t.Kind, t.Cluster)
	}
	if t.Fingerprint == j.port.ca().Fingerprint() {
		return errItself(j.own.Name)
	}
	j.token = t
	j.out = JoinResult{Cluster: t.Cluster, Fingerprint: t.Fingerprint, OwnFingerprint: j.port.ca().Fingerprint()}
	return nil
}

// dial connects to the other side, known only by the token.
func (j *joining) dial(ctx context.Context) error {
	conf := certs.PinnedTLS(j.port.cfg.Leaf, j.token.Fingerprint, certs.APIServer(j.token.Cluster))
	conn, err := dialMesh(ctx, j.token.Addresses, conf)
	if err != nil {
		if now := j.port.cfg.Now(); j.token.Expired(now) {
			err = fmt.Errorf("%w (and by our clock, %s, the token expired on %s)", err, timeText(now), timeText(j.token.Expires))
		}
		return dialRefusal(joinRefused, fmt.Sprintf("cluster %s could not be reached", j.token.Cluster), err)
	}
	j.conn = conn
	j.ok("cluster %s answers at %s and has the CA that the token names", j.token.Cluster, conn.addr)
	return nil
}

// joinedAlready refuses when both sides have one another. If only one has, the
// join goes on and mends it.
func (j *joining) joinedAlready(ctx context.Context) error {
	before := j.known[j.token.Cluster].peer
	if before == nil || !strings.Contains(fingerprints(before.CABundle), j.token.Fingerprint) {
		return nil
	}
	if answer, err := j.conn.Hello(ctx, &pb.HelloRequest{}); err != nil || !answer.Joined {
		return nil
	}
	return Refuse(codes.AlreadyExists, joinRefused, "nothing is left to do; to begin anew: tombolo mesh remove "+j.token.Cluster+", and a new token",
		"clusters %s and %s are joined already, and a token is good for once", j.own.Name, j.token.Cluster)
}

func (j *joining) request(commit bool) *pb.JoinRequest {
	return &pb.JoinRequest{
		TokenId: j.token.ID, Secret: j.token.Secret, Commit: commit,
		Cluster: clusterToPB(j.own), Clock: j.port.cfg.Now().UnixNano(),
	}
}

// propose asks the other side for its judgement, and judges its answer.
func (j *joining) propose(ctx context.Context) error {
	p := j.port
	// From here until the end the other side may say hello to any replica of ours.
	note, _, err := p.introduction(ctx, j.token.Cluster)
	if err != nil {
		return err
	}
	if j.half = note != nil && note.Bundle != nil && note.Fingerprint == j.token.Fingerprint; !j.half {
		if err := p.introduce(ctx, j.token.Cluster, introduction{Fingerprint: j.token.Fingerprint}); err != nil {
			return err
		}
	}
	answer, err := j.conn.Join(ctx, j.request(false))
	if err != nil {
		return fromOther(j.token.Cluster, err)
	}
	other, err := clusterFromPB(answer.Cluster)
	if err != nil {
		return err
	}
	if err := j.judge(ctx, other, answer.Clock); err != nil {
		return err
	}
	j.other, j.out.Existing = other, answer.Existing
	j.ok("cluster %s dialled us back at %s", other.Name, strings.Join(j.own.MeshAddresses, " or "))
	return nil
}

// judge looks at what the other cluster says of itself.
func (j *joining) judge(ctx context.Context, other *clustermesh.Cluster, clock int64) error {
	p, now := j.port, j.port.cfg.Now()
	if other.Name != j.token.Cluster {
		return Refuse(codes.FailedPrecondition, joinRefused, "ask for a new token", "the token is of cluster %s, but %s answers", j.token.Cluster, other.Name)
	}
	if err := checkClock(joinRefused, "cluster "+other.Name, clock, now); err != nil {
		return err
	}
	j.ok("clocks differ by %s", time.Unix(0, clock).Sub(now).Abs().Round(time.Millisecond))
	if err := checkVersion(joinRefused, "cluster "+other.Name, other.Version, j.own.Version); err != nil {
		return err
	}
	j.ok("versions fit: %s here, %s there", versionText(j.own.Version), versionText(other.Version))
	if !strings.Contains(fingerprints(other.CABundle), j.token.Fingerprint) {
		return Refuse(codes.PermissionDenied, joinRefused, "ask for a new token", "cluster %s proposes a CA bundle without the CA that the token names", other.Name)
	}
	if _, err := certs.VerifyWith(other.CABundle, certs.RawChain(j.conn.state), now); err != nil {
		return Refuse(codes.PermissionDenied, joinRefused, "restart that cluster's mesh API server", "cluster %s does not prove the CA bundle it proposes: %v", other.Name, err)
	}
	nodes, err := p.ownNodes(ctx)
	if err != nil {
		return err
	}
	if err := checkFit(joinRefused, j.own, nodes, j.known, other); err != nil {
		return err
	}
	j.ok("name, ID %d, pod prefixes and CA conflict with none of ours (%d peers)", other.ID, len(p.peers.List()))
	return nil
}

// dialAdvertised makes sure that the addresses which readers will use work.
func (j *joining) dialAdvertised(ctx context.Context) error {
	addr, err := j.port.hello(ctx, j.other.MeshAddresses, j.other.CABundle, j.other.Name)
	if err != nil {
		return dialRefusal(joinRefused, fmt.Sprintf("cluster %s could not be reached where it says it is", j.other.Name), err)
	}
	j.ok("cluster %s answers at its advertised address %s", j.other.Name, addr)
	return nil
}

// commit makes the other side store us, then stores it. The promise between
// the two is what a restart finds after a crash.
func (j *joining) commit(ctx context.Context) error {
	p, other := j.port, j.other
	if err := p.introduce(ctx, other.Name, promiseOf(other, j.token.Fingerprint)); err != nil {
		return err
	}
	if _, err := j.conn.Join(ctx, j.request(true)); err != nil {
		if AsRefusal(err) != nil {
			// An answer of no: nothing was stored there.
			_ = j.forgetNote(ctx)
		}
		return fromOther(other.Name, err)
	}
	if err := j.store(ctx); err != nil {
		return j.takeBack(ctx, err)
	}
	j.ok("both sides have stored one another")
	p.log.Info("joined cluster", "cluster", other.Name, "id", other.ID, "fingerprint", j.token.Fingerprint)
	return nil
}

// forgetNote ends the introduction, unless it is an earlier try's promise.
func (j *joining) forgetNote(ctx context.Context) error {
	if j.half {
		return nil
	}
	return j.port.forgetIntroduction(ctx, j.token.Cluster)
}

func (j *joining) store(ctx context.Context) error {
	p, before := j.port, j.known[j.other.Name]
	if err := p.peers.set(ctx, asPeer(j.other, before, p.cfg.Now()), before.rev); err != nil {
		return err
	}
	return p.forgetIntroduction(ctx, j.other.Name)
}

// takeBack undoes the other side's half after ours failed.
func (j *joining) takeBack(ctx context.Context, cause error) error {
	p, other := j.port, j.other
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*dialTimeout)
	defer cancel()
	r := &Refusal{Code: codes.Unavailable, What: "join failed", Why: "peer " + other.Name + " could not be stored here: " + cause.Error()}
	if err := p.undo(ctx, other.Name, other.MeshAddresses, other.CABundle); err != nil {
		r.Fix = fmt.Sprintf("cluster %s still has us (%v); join again with the same token, or run there: tombolo mesh remove %s --force", other.Name, err, j.own.Name)
		return r
	}
	_ = p.forgetIntroduction(ctx, other.Name)
	r.Fix = "the other side forgot us again; repair the store, then join with the same token until it expires"
	return r
}

// fromOther says who refused.
func fromOther(cluster string, err error) error {
	if r := AsRefusal(err); r != nil {
		r.Why = "cluster " + cluster + " says: " + r.Why
		return r
	}
	return Refuse(codes.Unavailable, joinRefused, "try again; the same token works until it expires", "cluster %s did not answer: %s", cluster, printable(status.Convert(err).Message()))
}

// notKnownThere reports whether the other side refused because it does not
// know this cluster (any more).
func notKnownThere(err error) bool {
	r := AsRefusal(err)
	return r != nil && r.Code == codes.Unauthenticated && strings.Contains(r.Why, certs.ErrUnknownCluster.Error())
}
