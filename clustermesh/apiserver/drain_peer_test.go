package apiserver

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// drainStore does something before a commit, and can fail what is read after it.
type drainStore struct {
	kvstore.Store
	before func()
	broken bool // from the next commit on
	failed bool
}

func (s *drainStore) Commit(ctx context.Context, ops ...kvstore.Op) (kvstore.Position, error) {
	if do := s.before; do != nil {
		s.before = nil
		do()
	}
	s.failed = s.broken
	return s.Store.Commit(ctx, ops...)
}

func (s *drainStore) List(ctx context.Context, prefix string, at kvstore.Position, each func([]kvstore.KV) error) (kvstore.Position, error) {
	if s.failed {
		return kvstore.Position{}, errors.New("the store is gone")
	}
	return s.Store.List(ctx, prefix, at, each)
}

func drainOf(cluster string) *clustermesh.Drain {
	return &clustermesh.Drain{Cluster: cluster, Start: time.Now().Add(-time.Minute), From: clustermesh.ShareAll}
}

// A peer that is removed while it is being drained leaves no drain behind.
func TestDrainWhileItsPeerIsRemoved(t *testing.T) {
	a, _ := joinedRigs(t)
	s := &drainStore{Store: a.store}
	port := &Port{cfg: a.port.cfg, own: a.port.own, log: a.port.log, peers: a.port.peers}
	port.cfg.Store = s
	s.before = func() {
		if err := a.port.peers.Delete(t.Context(), "gcp"); err != nil {
			t.Fatal(err)
		}
	}
	_, _, err := port.Drain(t.Context(), drainCall{cluster: "gcp"})
	wantRefusal(t, err, "neither aws nor a peer of it")
	if got := a.drainKeys(); got != "" {
		t.Error(got)
	}
}

// What is there can be lifted: of a peer that is gone, and what cannot be read.
func TestUndrainWhateverIsThere(t *testing.T) {
	a, _ := joinedRigs(t)
	admin, ctx := a.admin(), t.Context()
	for _, over := range []time.Duration{0, time.Minute} {
		a.putRecords(clustermesh.ScopeLocal, drainOf("gone"))
		res, err := admin.Drain(ctx, &pb.DrainRequest{Cluster: "gone", Back: true, Over: int64(over)})
		if err != nil || res.Drain.Left != clustermesh.ShareAll || a.drainKeys() != "" {
			t.Fatalf("over %v: %v %v %s", over, res, err, a.drainKeys())
		}
	}
	_, err := admin.Drain(ctx, &pb.DrainRequest{Cluster: "gone", Back: true})
	wantRefusal(t, err, "neither aws nor a peer of it")
	a.putRecords(clustermesh.ScopeLocal, drainOf("gone"))
	_, err = admin.Drain(ctx, &pb.DrainRequest{Cluster: "gone"})
	wantRefusal(t, err, "neither aws nor a peer of it")

	key := clustermesh.KeyOf(clustermesh.ScopeLocal, "aws", drainOf("gcp")).String()
	if _, err := a.store.Commit(ctx, kvstore.Put(key, []byte("no record"), 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.Drain(ctx, &pb.DrainRequest{Cluster: "gcp"}); err == nil {
		t.Error("it was overwritten")
	}
	if _, err := admin.Drain(ctx, &pb.DrainRequest{Cluster: "gcp", Back: true}); err != nil {
		t.Error(err)
	}
	if kv, err := getKey(ctx, a.store, key); err != nil || kv.Key != "" {
		t.Errorf("%v %v", kv, err)
	}
}

// What took effect is not called failed for want of an answer to whom is left.
func TestDrainThatTookEffectIsNoError(t *testing.T) {
	a, _ := joinedRigs(t)
	port := &Port{cfg: a.port.cfg, own: a.port.own, log: a.port.log, peers: a.port.peers}
	port.cfg.Store = &drainStore{Store: a.store, broken: true}
	r, warning, err := port.Drain(t.Context(), drainCall{cluster: "gcp"})
	if err != nil || r == nil || !strings.Contains(warning, "it is in force") || !strings.Contains(warning, "the store is gone") {
		t.Fatalf("%v %q %v", r, warning, err)
	}
	if got := a.drainKeys(); got != "local/aws/drain/gcp" {
		t.Error(got)
	}
}

// The publisher sweeps what it keeps; drains are not it, in any scope.
func TestPublisherLeavesDrains(t *testing.T) {
	for _, d := range []*clustermesh.Drain{drainOf("aws"), drainOf("gcp"), {Cluster: "aws", Service: clustermesh.ServiceName{Namespace: "shop", Name: "cart"}}} {
		for _, scope := range []clustermesh.Scope{clustermesh.ScopeExport, clustermesh.ScopeLocal} {
			key := clustermesh.KeyOf(scope, "aws", d).String()
			for _, prefix := range ownPrefixes("aws") {
				if strings.HasPrefix(key, prefix) {
					t.Errorf("%s would be swept with %s", key, prefix)
				}
			}
		}
	}
}
