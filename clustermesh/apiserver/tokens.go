package apiserver

import (
	"bytes"
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// tokenStore keeps one-time tokens in the store, private/<own>/token/<id>, so
// that any replica can honour them. The secret itself is never stored.
type tokenStore struct {
	store   kvstore.Store
	cluster string
	now     func() time.Time
}

// tokenRecord is the value: JSON, private to the mesh API servers of a cluster.
type tokenRecord struct {
	Kind    certs.TokenKind `json:"kind"`
	Node    string          `json:"node,omitempty"`
	Hash    []byte          `json:"hash"` // SHA-256 of the secret
	Expires time.Time       `json:"expires"`
	// Who used it, with which key: the same one may come again after a crash.
	UsedBy  string    `json:"usedBy,omitempty"`
	UsedKey []byte    `json:"usedKey,omitempty"`
	UsedAt  time.Time `json:"usedAt,omitzero"`
}

const (
	defaultTokenTTL = 10 * time.Minute
	maxTokenTTL     = 24 * time.Hour
	// tokenMemory is how long an expired token is remembered, to name it.
	tokenMemory = 24 * time.Hour
)

func privateKey(cluster, kind, name string) string {
	return clustermesh.Root + "private/" + cluster + "/" + kind + "/" + name
}

func (s *tokenStore) key(id string) string { return privateKey(s.cluster, "token", id) }

// create stores a fresh token, on a lease that takes it away some time after
// its end.
func (s *tokenStore) create(ctx context.Context, kind certs.TokenKind, node string, ttl time.Duration, addresses []string, fingerprint string) (certs.Token, error) {
	if ttl == 0 {
		ttl = defaultTokenTTL
	}
	if ttl < time.Second || ttl > maxTokenTTL {
		return certs.Token{}, Refuse(codes.InvalidArgument, "token not made", "choose a time within them; a token is used within minutes",
			"a life of %s is not between 1s and %s", ttl, maxTokenTTL)
	}
	t, err := certs.NewToken(kind, s.cluster, node, addresses, fingerprint, s.now().Add(ttl))
	if err != nil {
		return certs.Token{}, fmt.Errorf("token not made: %w", err)
	}
	value, err := json.Marshal(tokenRecord{Kind: kind, Node: node, Hash: certs.HashSecret(t.Secret), Expires: t.Expires})
	if err != nil {
		return certs.Token{}, err
	}
	lease, err := s.store.Grant(ctx, ttl+tokenMemory)
	if err != nil {
		return certs.Token{}, fmt.Errorf("token not stored: %w", err)
	}
	if _, err := s.store.Commit(ctx, kvstore.IfModRevision(s.key(t.ID), 0), kvstore.Put(s.key(t.ID), value, lease.ID())); err != nil {
		return certs.Token{}, fmt.Errorf("token not stored: %w", err)
	}
	return t, nil
}

// claim is a use of a token that has been found good and not been written yet.
type claim struct {
	store *tokenStore
	id    string
	rec   tokenRecord
	kv    kvstore.KV
	again bool // the same user comes again with the same key
}

// check judges a token without using it up. by and key are who presents it: the
// cluster and the hash of its bundle, or the node and the hash of its key.
func (s *tokenStore) check(ctx context.Context, kind certs.TokenKind, id string, secret []byte, by string, key []byte) (*claim, error) {
	what := fmt.Sprintf("%s token refused", kind)
	newOne := "ask for a new one (on " + s.cluster + ": tombolo mesh invite)"
	if kind == certs.NodeToken {
		newOne = "ask for a new node token on " + s.cluster
	}
	rec, kv, err := s.get(ctx, id)
	if err != nil {
		return nil, err
	}
	// A wrong secret and an unknown ID look alike: only the bearer learns more.
	if rec == nil || subtle.ConstantTimeCompare(rec.Hash, certs.HashSecret(secret)) != 1 {
		return nil, Refuse(codes.Unauthenticated, what, newOne, "cluster %s knows no such token", s.cluster)
	}
	if rec.Kind != kind {
		return nil, Refuse(codes.PermissionDenied, what, newOne, "it is a %s token", rec.Kind)
	}
	if kind == certs.NodeToken && rec.Node != by {
		return nil, Refuse(codes.PermissionDenied, what, newOne, "it is for node %q, not for %q", rec.Node, by)
	}
	if now := s.now(); !now.Before(rec.Expires) {
		return nil, Refuse(codes.PermissionDenied, what, newOne, "it expired on %s, and it is %s here", timeText(rec.Expires), timeText(now))
	}
	again := rec.UsedBy == by && len(key) > 0 && bytes.Equal(rec.UsedKey, key)
	if rec.UsedBy != "" && !again {
		return nil, Refuse(codes.PermissionDenied, what, newOne, "it was used by %q on %s, and is good for once", rec.UsedBy, timeText(rec.UsedAt))
	}
	rec.UsedBy, rec.UsedKey, rec.UsedAt = by, key, s.now()
	return &claim{store: s, id: id, rec: *rec, kv: kv, again: again}, nil
}

func (s *tokenStore) get(ctx context.Context, id string) (*tokenRecord, kvstore.KV, error) {
	kv, err := getKey(ctx, s.store, s.key(id))
	if err != nil || kv.Key == "" {
		return nil, kv, err
	}
	rec := new(tokenRecord)
	if err := json.Unmarshal(kv.Value, rec); err != nil {
		return nil, kv, fmt.Errorf("record of token %s: %w", id, err)
	}
	return rec, kv, nil
}

// burn is the operations that use the token up; they fail with ErrConflict if
// somebody else was faster.
func (c *claim) burn() []kvstore.Op {
	value, _ := json.Marshal(c.rec) // plain data: cannot fail
	return []kvstore.Op{kvstore.IfModRevision(c.kv.Key, c.kv.ModRevision), kvstore.Put(c.kv.Key, value, c.kv.Lease)}
}

// commit uses the token up by itself.
func (c *claim) commit(ctx context.Context) error {
	_, err := c.store.store.Commit(ctx, c.burn()...)
	if errors.Is(err, kvstore.ErrConflict) {
		return usedJustNow(c.rec.Kind)
	}
	return err
}

// revoke takes away the join tokens that a cluster has used: until its end one
// still serves the same cluster with the same CA, which mends a join that broke
// in the middle, and would bring one back that was removed.
func (s *tokenStore) revoke(ctx context.Context, cluster string) error {
	var used []kvstore.Op
	_, err := s.store.List(ctx, s.key(""), kvstore.Position{}, func(kvs []kvstore.KV) error {
		for _, kv := range kvs {
			var rec tokenRecord
			if json.Unmarshal(kv.Value, &rec) == nil && rec.Kind == certs.JoinToken && rec.UsedBy == cluster {
				used = append(used, kvstore.Delete(kv.Key))
			}
		}
		return nil
	})
	for part := range slices.Chunk(used, kvstore.MaxOps) {
		if err == nil {
			_, err = s.store.Commit(ctx, part...)
		}
	}
	return err
}

// withdraw takes away a token that nobody has used. A used one stays: until its end
// it mends a join that broke in the middle.
func (s *tokenStore) withdraw(ctx context.Context, id string) error {
	rec, kv, err := s.get(ctx, id)
	if err != nil || rec == nil || rec.UsedBy != "" {
		return err
	}
	_, err = s.store.Commit(ctx, kvstore.IfModRevision(kv.Key, kv.ModRevision), kvstore.Delete(kv.Key))
	if errors.Is(err, kvstore.ErrConflict) {
		return nil // it was used at this moment, or is gone
	}
	return err
}

func usedJustNow(kind certs.TokenKind) *Refusal {
	return Refuse(codes.Aborted, fmt.Sprintf("%s token refused", kind), "try again", "somebody used it, or changed the same peer, at this moment")
}

// getKey reads one key; a KV without a Key if it is absent.
func getKey(ctx context.Context, store kvstore.Store, key string) (kvstore.KV, error) {
	var found kvstore.KV
	_, err := store.List(ctx, key, kvstore.Position{}, func(kvs []kvstore.KV) error {
		for _, kv := range kvs {
			if kv.Key == key {
				found = kv
			}
		}
		return nil
	})
	return found, err
}

func timeText(t time.Time) string { return t.UTC().Format(time.RFC3339) }
