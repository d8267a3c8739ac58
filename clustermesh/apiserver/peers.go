package apiserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// Peers are the clusters the own one is joined with: the records
// local/<own>/peer/<name>, which joining and leaving alone write, by
// compare-and-put, so that any replica can. A watch keeps the bundles current.
type Peers struct {
	store   kvstore.Store // written, and read for decisions
	watched kvstore.Store // followed: the store, or a cache of it
	own     string
	bundles *certs.Bundles
	log     *slog.Logger

	mu       sync.Mutex
	present  map[string]peerEntry
	fill     map[string]peerEntry // list under way; nil outside of one
	problems []Problem
	changed  []func()
	synced   chan struct{}
}

type peerEntry struct {
	peer *clustermesh.Peer
	rev  int64 // ModRevision of the record
}

// NewPeers makes an empty set; Run fills it.
func NewPeers(store kvstore.Store, own string, bundles *certs.Bundles, log *slog.Logger) *Peers {
	return &Peers{store: store, watched: store, own: own, bundles: bundles, log: log, present: make(map[string]peerEntry), synced: make(chan struct{})}
}

func (p *Peers) prefix() string {
	return clustermesh.KindPrefix(clustermesh.ScopeLocal, p.own, clustermesh.KindPeer)
}

// Run follows the records until ctx ends.
func (p *Peers) Run(ctx context.Context) {
	if c, ok := p.watched.(interface{ Ready() <-chan struct{} }); ok {
		select {
		case <-c.Ready():
		case <-ctx.Done():
			return
		}
	}
	err := kvstore.Follow(ctx, kvstore.FollowConfig{Stores: []kvstore.Store{p.watched}, Prefix: p.prefix(), Sink: peersSink{p}, Log: p.log})
	if err != nil && ctx.Err() == nil {
		p.log.Error("peers are no longer followed", "err", err, "fix", "restart the mesh API server")
	}
}

// Synced is closed once the records have been read for the first time.
func (p *Peers) Synced() <-chan struct{} { return p.synced }

// OnChange calls f after each change. f must not block.
func (p *Peers) OnChange(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.changed = append(p.changed, f)
}

// List returns the peers by name. The records are shared: they must not be
// modified.
func (p *Peers) List() []*clustermesh.Peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]*clustermesh.Peer, 0, len(p.present))
	for _, name := range slices.Sorted(maps.Keys(p.present)) {
		out = append(out, p.present[name].peer)
	}
	return out
}

// Get returns one peer; nil if there is none of that name.
func (p *Peers) Get(name string) *clustermesh.Peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.present[name].peer
}

// Problems are the records that cannot be used.
func (p *Peers) Problems() []Problem {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.problems)
}

// read lists the peers from the store itself, newest state, for decisions that
// must not rest on a watch that lags.
func (p *Peers) read(ctx context.Context) (map[string]peerEntry, error) {
	out := make(map[string]peerEntry)
	_, err := p.store.List(ctx, p.prefix(), kvstore.Position{}, func(kvs []kvstore.KV) error {
		for _, kv := range kvs {
			rec, err := p.decode(kv)
			if err != nil {
				return err
			}
			out[rec.Name] = peerEntry{rec, kv.ModRevision}
		}
		return nil
	})
	return out, err
}

func (p *Peers) decode(kv kvstore.KV) (*clustermesh.Peer, error) {
	key, err := clustermesh.ParseKey(kv.Key)
	if err != nil {
		return nil, err
	}
	rec, err := clustermesh.Decode(key, kv.Value)
	if err != nil {
		return nil, err
	}
	peer, ok := rec.(*clustermesh.Peer)
	if !ok || peer.Name != key.Name || peer.Name == p.own {
		return nil, fmt.Errorf("record %s is not that of a peer", kv.Key)
	}
	return peer, nil
}

// put is the operations that store peer if its record is still as it was at
// rev (0 = absent).
func (p *Peers) put(peer *clustermesh.Peer, rev int64) ([]kvstore.Op, error) {
	value, err := clustermesh.Encode(peer)
	if err != nil {
		return nil, err
	}
	key := clustermesh.KeyOf(clustermesh.ScopeLocal, p.own, peer).String()
	return []kvstore.Op{kvstore.IfModRevision(key, rev), kvstore.Put(key, value, 0)}, nil
}

// Set stores a peer and puts its bundle to use here at once; other replicas
// learn of it by their watch. more goes into the same commit.
func (p *Peers) set(ctx context.Context, peer *clustermesh.Peer, rev int64, more ...kvstore.Op) error {
	ops, err := p.put(peer, rev)
	if err != nil {
		return err
	}
	if _, err := p.store.Commit(ctx, append(ops, more...)...); err != nil {
		return err
	}
	return p.bundles.Set(peer.Name, peer.CABundle)
}

// Delete takes a peer out and closes its connections, by way of its bundle.
// The peer's mirrored records and its drains go with it, the drains first: should
// this end midway, the peer is still there to be removed. None can be written once
// it is gone, so that a second look finds those written meanwhile. It is no error
// if there is none.
func (p *Peers) Delete(ctx context.Context, name string) error {
	if name == p.own {
		return errors.New("a cluster is not its own peer")
	}
	key := p.prefix() + name
	if err := clustermesh.ValidateClusterName(name); err != nil {
		return err
	}
	drains := clustermesh.KindPrefix(clustermesh.ScopeLocal, p.own, clustermesh.KindDrain) + name
	if err := p.deletePrefix(ctx, drains+"/"); err != nil {
		return err
	}
	if _, err := p.store.Commit(ctx, kvstore.Delete(key), kvstore.Delete(drains)); err != nil {
		return err
	}
	p.bundles.Delete(name)
	if err := p.deletePrefix(ctx, drains+"/"); err != nil {
		return err
	}
	return p.deletePrefix(ctx, clustermesh.ScopePrefix(clustermesh.ScopeMirror, name))
}

func (p *Peers) deletePrefix(ctx context.Context, prefix string) error {
	var keys []string
	_, err := p.store.List(ctx, prefix, kvstore.Position{}, func(kvs []kvstore.KV) error {
		for _, kv := range kvs {
			keys = append(keys, kv.Key)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for part := range slices.Chunk(keys, kvstore.MaxOps) {
		ops := make([]kvstore.Op, len(part))
		for i, key := range part {
			ops[i] = kvstore.Delete(key)
		}
		if _, err := p.store.Commit(ctx, ops...); err != nil {
			return err
		}
	}
	return nil
}

// peersSink feeds what Follow learns into Peers.
type peersSink struct{ p *Peers }

func (s peersSink) Begin(kvstore.Position, []byte) error {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	s.p.fill = make(map[string]peerEntry)
	return nil
}

func (s peersSink) Apply(_ kvstore.Position, events []kvstore.Event) error {
	p := s.p
	p.mu.Lock()
	listing := p.fill != nil
	into := p.fill
	if !listing {
		into = maps.Clone(p.present)
	}
	for _, e := range events {
		name := strings.TrimPrefix(e.KV.Key, p.prefix())
		if e.Delete {
			delete(into, name)
			p.setProblem(name, nil)
			continue
		}
		peer, err := p.decode(e.KV)
		p.setProblem(name, err)
		if err != nil {
			if old, ok := p.present[name]; ok {
				into[name] = old // the last good one stays in force
			}
			continue
		}
		into[name] = peerEntry{peer, e.KV.ModRevision}
	}
	p.mu.Unlock()
	if !listing {
		p.replace(into)
	}
	return nil
}

func (s peersSink) Synced(kvstore.Position) {
	s.p.mu.Lock()
	into := s.p.fill
	s.p.fill = nil
	s.p.mu.Unlock()
	s.p.replace(into)
	select {
	case <-s.p.synced:
	default:
		close(s.p.synced)
	}
}

// Lost changes nothing: silence is not deletion. An unfinished list is dropped.
func (s peersSink) Lost(error) {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	s.p.fill = nil
}

// replace puts a new set in place and brings the bundles after it.
func (p *Peers) replace(into map[string]peerEntry) {
	p.mu.Lock()
	old := p.present
	p.present = into
	changed := slices.Clone(p.changed)
	p.mu.Unlock()
	for name := range old {
		if _, ok := into[name]; !ok {
			p.bundles.Delete(name)
		}
	}
	for name, e := range into {
		if before, ok := old[name]; ok && bytes.Equal(before.peer.CABundle, e.peer.CABundle) {
			continue
		}
		if err := p.bundles.Set(name, e.peer.CABundle); err != nil {
			p.log.Error("CA bundle of a peer cannot be used; the last one stays in force", "peer", name, "err", err)
		}
	}
	for _, f := range changed {
		f()
	}
}

// setProblem is called with mu held.
func (p *Peers) setProblem(name string, err error) {
	object := "peer " + name
	p.problems = slices.DeleteFunc(p.problems, func(q Problem) bool { return q.Object == object })
	if err != nil {
		p.problems = append(p.problems, Problem{Object: object, What: "record cannot be read", Why: err.Error(),
			Fix: "tombolo mesh remove " + name + " and join again"})
	}
}
