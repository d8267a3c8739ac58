package apiserver

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

func massDelete(h kvstore.Held) string {
	return fmt.Sprintf("the source lacks %d of %d records it had (%s …)", h.Keys, h.Of, firstOf(h.Sample))
}

func firstOf(sample []string) string {
	if len(sample) == 0 {
		return ""
	}
	return sample[0]
}

// term is one term of leadership: what was found in the store, and a publisher
// until the lease is lost.
type term struct {
	core  *core
	store kvstore.Store
	fence *fence
	// bundle is the CA bundle to announce.
	bundle      func() []byte
	incarnation uint64 // to announce; 0 = the one that is there
	memory      *storeMemory
	copy        *lastGood
	held        func(storeID uint64) bool // by the gate: the cache will not show it before it is published to
}

// ownPrefixes are what the publisher keeps. Peers and drains are not among them:
// they are the operator's word.
func ownPrefixes(cluster string) []string {
	var prefixes []string
	for _, kind := range clustermesh.Kinds {
		if kind != clustermesh.KindDrain && kind != clustermesh.KindCluster { // the marker is no name below its kind
			prefixes = append(prefixes, clustermesh.KindPrefix(clustermesh.ScopeExport, cluster, kind))
		}
	}
	for _, kind := range []clustermesh.Kind{clustermesh.KindService, clustermesh.KindEndpointSlice, clustermesh.KindPolicy, clustermesh.KindClusterPolicy, clustermesh.KindWorkload} {
		prefixes = append(prefixes, clustermesh.KindPrefix(clustermesh.ScopeLocal, cluster, kind))
	}
	return prefixes
}

// run publishes until ctx ends or the fence falls.
func (t *term) run(ctx context.Context) error {
	c := t.core
	if err := t.open(ctx); err != nil {
		return err
	}
	pub := kvstore.NewPublisher(kvstore.PublishConfig{
		Store:       t.store,
		Prefixes:    ownPrefixes(c.cfg.Cluster),
		Marker:      clustermesh.ClusterKey(clustermesh.ScopeExport, c.cfg.Cluster),
		MarkerValue: t.marker,
		Fence:       t.fence.ops,
		Same:        clustermesh.Same,
		Kind:        clustermesh.KindOf,
		Guard:       kvstore.GuardConfig{Delay: c.cfg.Guard},
		Log:         c.log,
		Committed:   t.memory.saw,
	})
	c.lead(pub)
	defer c.lead(nil)
	return pub.Run(ctx)
}

// open looks at what the store holds before anything is published to it, and
// waits until the watch cache is as new: last good settings are read there.
func (t *term) open(ctx context.Context) error {
	c := t.core
	marker, err := getKey(ctx, t.store, clustermesh.ClusterKey(clustermesh.ScopeExport, c.cfg.Cluster))
	if err != nil {
		return err
	}
	at, err := t.store.List(ctx, t.fence.key, kvstore.Position{}, func([]kvstore.KV) error { return nil })
	if err != nil {
		return err
	}
	for c.cache.Position().StoreID != at.StoreID && !t.held(at.StoreID) || c.cache.Position().StoreID == at.StoreID && c.cache.Position().Revision < t.fence.rev {
		if pause(ctx, 2*time.Millisecond); ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if err := t.foreign(ctx, marker.Key != ""); err != nil {
		return err
	}
	fresh, problem := t.memory.judge(at, marker.Key != "")
	if fresh {
		if err := t.refill(ctx, at, problem); err != nil {
			return err
		}
	}
	if fresh && marker.Key != "" {
		// Numbers may mean other things than before. Until all is written anew
		// nobody may take the old marker for a whole publication.
		t.incarnation = newIncarnation()
		ops, err := t.fence.ops()
		if err != nil {
			return err
		}
		if _, err := t.store.Commit(ctx, append(ops, kvstore.Delete(marker.Key))...); err != nil {
			return err
		}
	}
	t.memory.accept(at)
	t.copy.accept(at)
	c.identities.accept()
	c.nodeNumbers.accept()
	return nil
}

// refill puts back what the store lacks and only it knew, and says so. The core
// hears of it before anything is derived, not when the watch brings it.
func (t *term) refill(ctx context.Context, at kvstore.Position, p *Problem) error {
	c := t.core
	if err := c.whenListed(ctx); err != nil {
		return err
	}
	got, err := t.copy.restore(ctx, t.store, t.fence)
	if err != nil {
		return fmt.Errorf("registrations and peers are not put back yet: %w", err)
	}
	c.do(func() {
		for _, kv := range got.kvs {
			c.claimEvent(kvstore.Event{KV: kv})
		}
	})
	switch {
	case !got.none() && got.registrations+got.peers == 0:
		p.What += fmt.Sprintf("; restored %d numbers and notes from %s, no registration and no peer was missing", got.others, t.copy.path)
	case !got.none():
		p.What += fmt.Sprintf("; restored %d registrations and %d peers from %s", got.registrations, got.peers, t.copy.path)
	case t.copy.position().StoreID == 0 && !t.memory.is(at):
		p.What += "; there is no copy of registrations and peers to restore"
		p.Fix += ". Clusters that are missing must join again; nodes register again by themselves within minutes"
	case t.memory.is(at):
		return nil // a first publication that was broken off: all that only the store knows is there
	default:
		p.What += "; it lacks no registration and no peer"
	}
	c.problems.Set("store", []Problem{*p})
	c.log.Warn(p.What, "why", p.Why, "fix", p.Fix)
	return nil
}

// foreign refuses a store that another cluster publishes to.
func (t *term) foreign(ctx context.Context, ours bool) error {
	if ours {
		return nil
	}
	prefix := clustermesh.Root + string(clustermesh.ScopeExport) + "/"
	other := ""
	_, err := t.store.List(ctx, prefix, kvstore.Position{}, func(kvs []kvstore.KV) error {
		for _, kv := range kvs {
			cluster, _, _ := strings.Cut(strings.TrimPrefix(kv.Key, prefix), "/")
			if cluster != t.core.cfg.Cluster {
				other = cluster
				return errEnough
			}
		}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return err
	}
	if other == "" {
		return nil
	}
	t.core.problems.Set("store", []Problem{{
		Object: "store", What: "nothing is published: it is the etcd of another cluster",
		Why: "it holds the records of cluster " + printable(other) + " and none of " + t.core.cfg.Cluster,
		Fix: "correct --etcd-endpoints: each cluster has an etcd of its own",
	}})
	return errForeignStore
}

var (
	errForeignStore = errors.New("the store belongs to another cluster")
	errEnough       = errors.New("enough was read")
)

// marker is the cluster record: written last, it says that everything of its
// incarnation is there.
func (t *term) marker(_ bool, old []byte) []byte {
	r := *t.core.own.Load()
	r.CABundle = t.bundle()
	r.Origin = clustermesh.OriginAt(time.Now())
	key := clustermesh.KeyOf(clustermesh.ScopeExport, r.Name, &r)
	if before, err := clustermesh.Decode(key, old); err == nil && old != nil && t.incarnation == 0 {
		r.Incarnation = before.(*clustermesh.Cluster).Incarnation
	} else {
		if t.incarnation == 0 {
			t.incarnation = newIncarnation()
		}
		r.Incarnation = t.incarnation
	}
	value, err := clustermesh.Encode(&r)
	if err != nil {
		t.core.problems.Set("marker", []Problem{{Object: "cluster record", What: "cannot be written", Why: err.Error(), Fix: "correct the settings of the mesh API server"}})
		return nil
	}
	if old != nil && bytes.Equal(old, value) {
		return nil
	}
	return value
}

func newIncarnation() uint64 {
	var b [8]byte
	for {
		// crypto/rand never fails on Linux.
		_, _ = rand.Read(b[:])
		if n := binary.BigEndian.Uint64(b[:]); n != 0 {
			return n
		}
	}
}
