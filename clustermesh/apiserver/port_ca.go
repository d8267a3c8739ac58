package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// caNote says by which CA the cluster goes: private/<own>/ca/bundle. Every
// replica that has that CA refreshes it. One that has another (each made its
// own at first start, or a CA was lost and made anew) says so in its status, as
// nodes and peers that know the one refuse the certificates of the other.
type caNote struct {
	Bundle []byte    `json:"bundle"`
	Seen   time.Time `json:"seen"`
}

const (
	caRefresh = time.Hour
	// caMemory is how long a CA that nobody has any more is missed.
	caMemory = 24 * time.Hour
)

// ca is the CA that signs at present.
func (p *Port) ca() *certs.CA { return p.caNow.Load() }

// errNotAnnounced: nodes and peers have not been told of a CA's root.
var errNotAnnounced = errors.New("not announced yet")

// ReplaceCA has another CA sign from now on, or other roots be announced, while
// everything runs. What others trust decides: a CA whose root they have not been
// told of, and one that drops the root that they still use, are refused.
func (p *Port) ReplaceCA(ctx context.Context, next *certs.CA) error {
	old := p.ca()
	if old.Same(next) {
		return nil
	}
	if certs.SharedRoot(old.Bundle(), next.RootPEM()) == nil {
		return fmt.Errorf("%w: its root (fingerprint %s) has not been announced to nodes and peers, so they would refuse what it signs; "+
			"add that root to --ca-roots first, and switch when they have learned of it, some minutes later", errNotAnnounced, next.Fingerprint())
	}
	if certs.SharedRoot(next.Bundle(), old.RootPEM()) == nil {
		return fmt.Errorf("the former root (fingerprint %s) is not among the new roots, so all certificates in use would be refused; "+
			"keep it in --ca-roots for another %s", old.Fingerprint(), p.cfg.LeafTTL)
	}
	if err := p.cfg.Bundles.Set(p.own, next.Bundle()); err != nil {
		return err
	}
	p.caNow.Store(next)
	p.log.Info("CA files taken over", "fingerprint", next.Fingerprint(), "roots", fingerprints(next.Bundle()))
	if !old.SameSigner(next) {
		if err := p.cfg.Leaf.Renew(ctx, p.signOwn); err != nil {
			p.log.Error("certificate of the mesh port is still by the former CA; it is renewed at half of its life", "err", err)
		}
	}
	if problem, err := p.compareCAOnce(ctx); err == nil {
		p.caProblem.Store(problem)
	}
	return nil
}

func (p *Port) caKey() string { return privateKey(p.own, "ca", "bundle") }

// compareCA keeps the note and the problem current until ctx ends.
func (p *Port) compareCA(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		problem, err := p.compareCAOnce(ctx)
		if err != nil {
			timer.Reset(10 * time.Second) // the store's own problem is told of elsewhere
			continue
		}
		p.caProblem.Store(problem)
		timer.Reset(caRefresh)
	}
}

func (p *Port) compareCAOnce(ctx context.Context) (*Problem, error) {
	kv, err := getKey(ctx, p.cfg.Store, p.caKey())
	if err != nil {
		return nil, err
	}
	ours, now := p.ca().Bundle(), p.cfg.Now()
	var note caNote
	if kv.Key != "" && json.Unmarshal(kv.Value, &note) == nil && certs.SharedRoot(note.Bundle, ours) == nil && now.Sub(note.Seen) < caMemory {
		return &Problem{
			Object: "CA of cluster " + p.own, What: "this mesh API server has another CA than the cluster",
			Why: fmt.Sprintf("the cluster goes by the CA with fingerprint %s (seen last on %s), this one has %s; who knows the one refuses certificates of the other",
				fingerprints(note.Bundle), timeText(note.Seen), p.ca().Fingerprint()),
			Fix: "give all replicas the same --ca-cert and --ca-key, or copy the file ca/ca.pem of the state directory from the replica that has that CA to this one's; " +
				"if that CA is lost for good, start this one a day after it was seen last: every node and peer must then join again",
			Since: now,
		}, nil
	}
	value, err := json.Marshal(caNote{Bundle: ours, Seen: now})
	if err != nil {
		return nil, err
	}
	_, err = p.cfg.Store.Commit(ctx, kvstore.IfModRevision(p.caKey(), kv.ModRevision), kvstore.Put(p.caKey(), value, 0))
	if errors.Is(err, kvstore.ErrConflict) {
		return p.compareCAOnce(ctx) // another replica wrote at this moment
	}
	return nil, err
}

// refuseOtherCA keeps a replica from starting with another CA than the cluster's.
// A store that does not answer now is asked again while the server runs.
func (p *Port) refuseOtherCA(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	problem, err := p.compareCAOnce(ctx)
	if err != nil {
		p.log.Info("whether the other replicas have the same CA is not known yet", "err", err)
		return nil
	}
	if problem != nil {
		return errors.New(problem.Text())
	}
	return nil
}
