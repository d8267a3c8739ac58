package apiserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// CAText is a CA as PEM.
type CAText struct {
	Chain []byte `json:"chain"` // the certificate that signs, and what is above it
	Key   []byte `json:"key"`
	Roots []byte `json:"roots,omitempty"` // further trust anchors
}

func (t CAText) equal(o CAText) bool {
	return bytes.Equal(t.Chain, o.Chain) && bytes.Equal(t.Key, o.Key) && bytes.Equal(t.Roots, o.Roots)
}

// CAKeeper keeps the one CA of all replicas outside of them.
type CAKeeper interface {
	// Get returns the CA as it is kept now; ErrNoCA if there is none.
	Get(ctx context.Context) (CAText, error)
	// Make keeps text if there is none yet, and returns the one that is kept, which
	// may be another replica's. Not called if Supplied.
	Make(ctx context.Context, text CAText) (CAText, error)
	// Supplied: somebody else makes it; where it is missing, it is waited for.
	Supplied() bool
	// Follow calls changed when the CA may be another than before, until ctx ends.
	Follow(ctx context.Context, changed func())
	String() string
}

// ErrNoCA is a keeper's answer while it keeps none.
var ErrNoCA = errors.New("there is no CA there")

// UnusableCA is a keeper's answer while it keeps something that cannot be the
// cluster's CA.
type UnusableCA struct {
	Err error
	Fix string // what to do about it
}

func (e *UnusableCA) Error() string { return e.Err.Error() }
func (e *UnusableCA) Unwrap() error { return e.Err }

// keptCA brings the CA of a keeper into force.
//
//	other signer, root known to all ──────────────► it signs
//	other signer, root unknown ► root is announced ─┘ after CAAnnounce
//
// The state directory holds a copy of what is in force: with it a server starts
// while the keeper does not answer, a CA that was deleted is put back, and a
// restart does not cut a rollover short.
type keptCA struct {
	server *server
	keeper CAKeeper
	// What was looked at last, and what is in force; owned by open, then by follow.
	seen, force CAText
	since       time.Time // when the root of seen was announced; zero = no rollover
	failed      bool      // seen could not be brought into force: it is tried again, and stays a problem
}

const (
	caAgain     = time.Second
	caAgainMost = 15 * time.Second
	caRelook    = time.Minute
)

func (k *keptCA) copyFile() string { return filepath.Join(k.server.cfg.StateDir, "ca", "kept.json") }

// open returns the CA to begin with. It waits for one that is to be supplied.
func (k *keptCA) open(ctx context.Context) (*certs.CA, error) {
	dir := filepath.Dir(k.copyFile())
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("directory of the CA: %w", err)
	}
	last, err := k.readCopy()
	if err != nil {
		return nil, err
	}
	text, err := k.wait(ctx, last)
	if err != nil {
		return nil, err
	}
	k.seen = text
	announced := k.announced(ctx, last)
	now := time.Now()
	ca, err := certs.ParseCA(k.server.cfg.Cluster, now, text.Chain, text.Key, text.Roots)
	known := err == nil && (len(announced) == 0 || certs.SharedRoot(announced, ca.RootPEM()) != nil)
	switch {
	case known:
		if ca, err = ca.WithRoots(now, announced); err != nil {
			return nil, err
		}
		return ca, k.keep(text, ca)
	case last == nil && err == nil:
		// Another replica may be announcing it. refuseOtherCA says what to do if not.
		return ca, nil
	case last == nil:
		return nil, fmt.Errorf("CA in %s: %w", k.keeper, err)
	}
	// The one from before, until the other has been brought in.
	k.seen, k.force = CAText{}, *last
	return certs.ParseCA(k.server.cfg.Cluster, now, last.Chain, last.Key, last.Roots, announced)
}

// wait gets the CA. last is the copy; nil if there is none.
func (k *keptCA) wait(ctx context.Context, last *CAText) (CAText, error) {
	log := k.server.log
	room := waitingRoom{server: k.server}
	defer room.leave()
	for pauseFor, said := caAgain, ""; ; pauseFor = min(2*pauseFor, caAgainMost) {
		text, err := k.getOrMake(ctx, last)
		if err == nil {
			return text, nil
		}
		if ctx.Err() != nil {
			return CAText{}, ctx.Err()
		}
		if last != nil {
			log.Warn("the CA could not be read; the copy in the state directory serves", "ca", k.keeper.String(), "err", err)
			return *last, nil
		}
		if said != err.Error() {
			said = err.Error()
			log.Info("waiting for the CA", "ca", k.keeper.String(), "why", said)
			room.say(k.awaited(err))
		}
		pause(ctx, pauseFor)
	}
}

// getOrMake gets the CA, and has one made where that is allowed: that of the copy,
// that which this server made before it had a keeper, or a new one.
func (k *keptCA) getOrMake(ctx context.Context, last *CAText) (CAText, error) {
	text, err := k.keeper.Get(ctx)
	if !errors.Is(err, ErrNoCA) || k.keeper.Supplied() {
		return text, err
	}
	fresh := CAText{}
	own := filepath.Join(k.server.cfg.StateDir, "ca", "ca.pem")
	switch both, err := os.ReadFile(own); {
	case last != nil:
		fresh = *last
	case err == nil:
		if fresh.Chain, fresh.Key, err = certs.SplitCA(both); err != nil {
			return text, fmt.Errorf("%s: %w", own, err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return text, err
	default:
		if fresh.Chain, fresh.Key, err = certs.MakeCA(k.server.cfg.Cluster, time.Now()); err != nil {
			return text, err
		}
	}
	return k.keeper.Make(ctx, fresh)
}

// announced are the roots that nodes and peers know, as far as the cluster's store
// and the copy remember.
func (k *keptCA) announced(ctx context.Context, last *CAText) []byte {
	var roots []byte
	if last != nil {
		roots = append(roots, last.Roots...)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	kv, err := getKey(ctx, k.server.handle.Store, privateKey(k.server.cfg.Cluster, "ca", "bundle"))
	var note caNote
	if err == nil && kv.Key != "" && json.Unmarshal(kv.Value, &note) == nil && time.Since(note.Seen) < caMemory {
		roots = append(roots, note.Bundle...)
	}
	return roots
}

// keep notes what is in force: text, and all roots that ca announces.
func (k *keptCA) keep(text CAText, ca *certs.CA) error {
	text.Roots = ca.Bundle()
	if k.force.equal(text) {
		return nil
	}
	data, err := json.Marshal(text)
	if err == nil {
		err = certs.WriteFile(k.copyFile(), data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("copy of the CA: %w", err)
	}
	k.force = text
	return nil
}

func (k *keptCA) readCopy() (*CAText, error) {
	data, err := os.ReadFile(k.copyFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("copy of the CA: %w", err)
	}
	text := new(CAText)
	if err := json.Unmarshal(data, text); err != nil {
		// It was written in one step, so somebody else did this.
		return nil, fmt.Errorf("copy of the CA, %s: %w; move it away", k.copyFile(), err)
	}
	return text, nil
}

// follow brings changes into force until ctx ends.
func (k *keptCA) follow(ctx context.Context) {
	changed := make(chan struct{}, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		k.keeper.Follow(ctx, func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		})
	}()
	defer func() { <-done }()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-k.server.cfg.Reload:
		case <-timer.C:
		}
		timer.Reset(k.look(ctx))
	}
}

// look takes one step towards what is kept, and says when to look again.
func (k *keptCA) look(ctx context.Context) time.Duration {
	s := k.server
	var last *CAText
	if len(k.force.Chain) > 0 {
		last = &k.force
	}
	text, err := k.getOrMake(ctx, last)
	if err != nil {
		if ctx.Err() == nil {
			k.problem(err)
		}
		return caAgainMost
	}
	if text.equal(k.seen) && k.since.IsZero() && !k.failed {
		k.problem(nil)
		return caRelook
	}
	if !text.equal(k.seen) {
		k.since = time.Time{}
	}
	k.seen = text
	again, err := k.take(ctx, text)
	k.failed = err != nil
	k.problem(err)
	if err == nil {
		s.core.announceAnew()
	}
	return again
}

// take has the CA sign, or its root announced first.
func (k *keptCA) take(ctx context.Context, text CAText) (again time.Duration, err error) {
	s, now := k.server, time.Now()
	old := s.port.ca()
	next, err := certs.ParseCA(s.cfg.Cluster, now, text.Chain, text.Key, text.Roots, old.Bundle())
	if err != nil {
		return caRelook, err
	}
	first := certs.SharedRoot(old.Bundle(), next.RootPEM()) == nil
	if first || !k.since.IsZero() && now.Sub(k.since) < s.cfg.CAAnnounce || !k.since.IsZero() && !k.published(ctx, next) {
		both, err := old.WithRoots(now, next.Bundle())
		if err != nil {
			return caRelook, err
		}
		if err := s.port.ReplaceCA(ctx, both); err != nil {
			return caRelook, err
		}
		if first || k.since.IsZero() {
			k.since = now
			s.log.Info("the root of a new CA is announced; it signs later", "fingerprint", next.Fingerprint(), "after", s.cfg.CAAnnounce.String())
		}
		k.force.Roots = nil // whatever it was, the copy is written
		return min(max(s.cfg.CAAnnounce-now.Sub(k.since), 10*time.Millisecond), caAgainMost), k.keep(k.force, both)
	}
	if err := s.port.ReplaceCA(ctx, next); err != nil {
		return caRelook, err
	}
	k.since = time.Time{}
	return caRelook, k.keep(text, next)
}

// published reports whether readers have been told of the root of ca.
func (k *keptCA) published(ctx context.Context, ca *certs.CA) bool {
	key := clustermesh.Key{Scope: clustermesh.ScopeExport, Cluster: k.server.cfg.Cluster, Kind: clustermesh.KindCluster}
	kv, err := getKey(ctx, k.server.cache, key.String())
	if err != nil || kv.Key == "" {
		return false
	}
	rec, err := clustermesh.Decode(key, kv.Value)
	if err != nil {
		return false
	}
	c, is := rec.(*clustermesh.Cluster)
	return is && certs.SharedRoot(c.CABundle, ca.RootPEM()) != nil
}

func (k *keptCA) problem(err error) {
	if err == nil {
		k.server.problems.Set("ca", nil)
		return
	}
	fix := "correct it; it is read again when it changes"
	var unusable *UnusableCA
	switch {
	case errors.Is(err, ErrNoCA):
		fix = "have its issuer make it again (cert-manager: kubectl describe certificate)"
	case errors.As(err, &unusable):
		fix = unusable.Fix + "; it is read again when it changes"
	}
	k.server.problems.Set("ca", []Problem{{
		Object: "CA of cluster " + k.server.cfg.Cluster, What: "the one in " + k.keeper.String() + " is not used; the CA from before stays in force", Why: printable(err.Error()), Fix: fix,
	}})
}

// awaited is the problem of a server that has no CA yet.
func (k *keptCA) awaited(err error) Problem {
	fix := "see that the Kubernetes API answers and lets this server read and make it"
	var unusable *UnusableCA
	switch {
	case errors.As(err, &unusable):
		fix = unusable.Fix + "; this server goes on by itself then"
	case k.keeper.Supplied() && errors.Is(err, ErrNoCA):
		fix = "have its issuer make it (cert-manager: kubectl describe certificate); this server goes on by itself once it is there"
	}
	return Problem{
		Object: "CA of cluster " + k.server.cfg.Cluster, What: "this server waits for its CA in " + k.keeper.String() + ", and serves nobody until then",
		Why: printable(err.Error()), Fix: fix,
	}
}
