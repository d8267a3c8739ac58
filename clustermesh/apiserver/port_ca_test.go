package apiserver

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

func TestReplicaWithAnotherCA(t *testing.T) {
	a := startRig(t, "aws", 1)
	other := func(options ...rigOption) *meshRig {
		return startRig(t, "aws", 1, append(options, withStore(func(kvstore.Store) kvstore.Store { return a.store }))...)
	}
	hasProblem := func(r *meshRig) bool {
		return slices.ContainsFunc(r.port.Problems(), func(p Problem) bool {
			return strings.Contains(p.What, "another CA") && strings.Contains(p.Why, a.ca.Fingerprint()) && strings.Contains(p.Fix, "--ca-cert")
		})
	}
	waitUntil(t, "the first one's note", func() bool {
		kv, err := getKey(t.Context(), a.store, a.port.caKey())
		return err == nil && kv.Key != ""
	})
	same, third := other(withCA(a.ca)), other()
	waitUntil(t, "a problem", func() bool { return hasProblem(third) })
	if q, err := same.port.compareCAOnce(t.Context()); q != nil || err != nil {
		t.Errorf("with the same CA: %v %v", q, err)
	}
	// A day after the last one of the old CA was seen, the new one is the cluster's.
	third.setClock(caMemory + time.Minute)
	if q, err := third.port.compareCAOnce(t.Context()); q != nil || err != nil {
		t.Errorf("a day later: %v %v", q, err)
	}
}

// A peer can be told by either replica, and a token that one made is honoured
// by the other, once.
func TestReplicasHonourOneToken(t *testing.T) {
	a := startRig(t, "aws", 1)
	twin := startRig(t, "aws", 1, withCA(a.ca), withStore(func(kvstore.Store) kvstore.Store { return a.store }))
	tok, err := certs.ParseToken(a.invite())
	if err != nil {
		t.Fatal(err)
	}
	tok.Addresses = []string{twin.addr}
	b := startRig(t, "gcp", 2)
	if err := b.join(tok.Text()); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "both replicas know gcp", func() bool {
		return a.port.Peers().Get("gcp") != nil && twin.port.Peers().Get("gcp") != nil
	})
	tok.Addresses = []string{a.addr}
	wantRefusal(t, startRig(t, "edge", 3).join(tok.Text()), "good for once")
	if _, _, err := a.port.RemovePeer(t.Context(), "gcp", false); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "both forget gcp", func() bool { return twin.bundles.Get("gcp") == nil && a.bundles.Get("gcp") == nil })
}
