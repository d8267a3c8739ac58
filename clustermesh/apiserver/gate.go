package apiserver

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// gate stands between the store and the watch cache. While the store is another
// one than the cache shows, or an earlier state of it, readers and this server
// itself go on with what is there, until the store holds a complete publication
// made since: an empty or old store must not take away what works.
type gate struct {
	kvstore.Sink
	ctx      context.Context // of the server
	cluster  string
	cache    *kvstore.Memory
	store    kvstore.Store
	problems *Problems
	changed  func(kvstore.Position) // the store was replaced under us, by what is at that position

	held atomic.Uint64 // ID of the store that is held back; 0 = none
	pass uint64        // ID of a store that is let through, of Follow's goroutine
}

const (
	gateLook = 250 * time.Millisecond
	// gateMost is how long a publication that is there, but not newer than what
	// the cache shows, is held back: who leads would have renewed it by then.
	gateMost = 2 * time.Minute
)

var errGate = errors.New("the store changed while it was looked at")

// Begin implements kvstore.Sink. It waits while the store is not to be shown.
func (g *gate) Begin(at kvstore.Position, marker []byte) error {
	have := g.cache.Position()
	if have.StoreID == 0 || have.StoreID == at.StoreID && have.Revision <= at.Revision || g.pass == at.StoreID {
		g.pass = 0
		g.open()
		return g.Sink.Begin(at, marker)
	}
	old, err := g.record(g.cache)
	if err != nil || old == nil {
		g.open()
		return g.Sink.Begin(at, marker) // nothing was published: nothing is taken away
	}
	now, err := g.record(g.store)
	if err == nil && newer(now, old) {
		g.open()
		return g.Sink.Begin(at, marker)
	}
	return g.wait(at, old)
}

// wait returns when the store is worth another look.
func (g *gate) wait(at kvstore.Position, old *clustermesh.Cluster) error {
	why := fmt.Sprintf("store %016x at revision %d holds no complete publication that is newer than the one readers have", at.StoreID, at.Revision)
	if g.held.Swap(at.StoreID) == 0 {
		g.problems.Set("gate", []Problem{{
			Object: "store", What: "the etcd was replaced or restored while it was in use; readers keep what they have", Why: why,
			Fix: "it is published to again from the source; if the etcd is not the one you meant, correct it or --etcd-endpoints",
		}})
		g.changed(at)
	}
	since := time.Now()
	for g.ctx.Err() == nil {
		pause(g.ctx, gateLook)
		now, err := g.recordOf(g.store, at.StoreID)
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", why, err)
		case newer(now, old):
			return errors.New("the store is complete again: it is read now")
		case now != nil && time.Since(since) > gateMost:
			g.pass = at.StoreID
			return errors.New("the store is taken as it is: nobody published to it anew")
		}
	}
	return g.ctx.Err()
}

// newer says whether the publication that now announces was made since old was.
func newer(now, old *clustermesh.Cluster) bool {
	return now != nil && now.Incarnation != old.Incarnation && now.Origin > old.Origin
}

func (g *gate) open() {
	if g.held.Swap(0) != 0 {
		g.problems.Set("gate", nil)
	}
}

// holds says whether the store of that ID is kept from the cache.
func (g *gate) holds(id uint64) bool { return id != 0 && g.held.Load() == id }

// record is the own cluster's record in a store; nil if there is none.
func (g *gate) record(s kvstore.Store) (*clustermesh.Cluster, error) { return g.recordOf(s, 0) }

// recordOf is record from a store that must have that ID; 0 = any.
func (g *gate) recordOf(s kvstore.Store, id uint64) (*clustermesh.Cluster, error) {
	ctx, cancel := context.WithTimeout(g.ctx, 10*time.Second)
	defer cancel()
	text := clustermesh.ClusterKey(clustermesh.ScopeExport, g.cluster)
	var value []byte
	at, err := s.List(ctx, text, kvstore.Position{}, func(kvs []kvstore.KV) error {
		for _, kv := range kvs {
			if kv.Key == text {
				value = kv.Value
			}
		}
		return nil
	})
	if err != nil || id != 0 && at.StoreID != id {
		return nil, errors.Join(err, errGate)
	}
	if value == nil {
		return nil, nil
	}
	key, err := clustermesh.ParseKey(text)
	if err != nil {
		return nil, err
	}
	r, err := clustermesh.Decode(key, value)
	if err != nil {
		return nil, nil // not a publication this version can read
	}
	return r.(*clustermesh.Cluster), nil
}
