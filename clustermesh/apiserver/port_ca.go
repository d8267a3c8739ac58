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
	ours, now := p.cfg.CA.Bundle(), p.cfg.Now()
	var note caNote
	if kv.Key != "" && json.Unmarshal(kv.Value, &note) == nil && certs.SharedRoot(note.Bundle, ours) == nil && now.Sub(note.Seen) < caMemory {
		return &Problem{
			Object: "CA of cluster " + p.own, What: "this mesh API server has another CA than the cluster",
			Why: fmt.Sprintf("the cluster goes by the CA with fingerprint %s (seen last on %s), this one has %s; who knows the one refuses certificates of the other",
				fingerprints(note.Bundle), timeText(note.Seen), p.cfg.CA.Fingerprint()),
			Fix:   "give all replicas the same --ca-cert and --ca-key, or copy the directory ca of the state directory from the one that has it",
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
