package apiserver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// restored is what a restore has put back.
type restored struct {
	registrations, peers, others int
	kvs                          []kvstore.KV // as they are in the store now
}

func (r restored) none() bool { return len(r.kvs) == 0 }

// restore puts into the store what the copy has and the store lacks; what the
// store has stays as it is. Every commit carries the fence and the condition
// that the keys are still absent. Peers come first: a promise to join whose peer
// is missing would be undone.
func (c *lastGood) restore(ctx context.Context, store kvstore.Store, fence *fence) (restored, error) {
	c.capture() // what the cache still shows of the store that was is the newest there is
	c.mu.Lock()
	last := c.last
	c.mu.Unlock()
	var out restored
	if last == nil {
		return out, nil
	}
	var lease int64
	for range attempts {
		missing, versions, err := c.missing(ctx, store, last.Records)
		if err != nil || len(missing) == 0 {
			return out, err
		}
		if lease == 0 && slices.ContainsFunc(missing, func(r copyRecord) bool { return r.Leased }) {
			l, err := store.Grant(ctx, maxTokenTTL+tokenMemory)
			if err != nil {
				return out, err
			}
			lease = l.ID()
		}
		if err = c.putBack(ctx, store, fence, missing, versions, lease, &out); !errors.Is(err, kvstore.ErrConflict) {
			return out, err
		}
	}
	return out, fmt.Errorf("registrations were not put back: others wrote them %d times: %w", attempts, kvstore.ErrConflict)
}

// missing are the records that the store lacks, and the revisions of the version
// keys of numbers, by prefix. A number whose text has another number by now is
// not missing: one text has one number.
func (c *lastGood) missing(ctx context.Context, store kvstore.Store, records []copyRecord) ([]copyRecord, map[string]int64, error) {
	present := make(map[string]bool)
	numbered := make(map[string]bool) // prefix + text
	versions := map[string]int64{identityPrefix(c.cluster): 0, nodeNumberPrefix(c.cluster): 0}
	for _, prefix := range c.prefixes() {
		_, err := store.List(ctx, prefix, kvstore.Position{}, func(kvs []kvstore.KV) error {
			for _, kv := range kvs {
				present[kv.Key] = true
				if space, ok := c.space(kv.Key); ok {
					if kv.Key == space+versionName {
						versions[space] = kv.ModRevision
					} else if text, ok := numberOf(kv.Value); ok {
						numbered[space+text] = true
					}
				}
			}
			return nil
		})
		if err != nil {
			return nil, nil, err
		}
	}
	var out []copyRecord
	for _, r := range records {
		space, isNumber := c.space(r.Key)
		text, _ := numberOf(r.Value)
		if present[r.Key] || isNumber && (r.Key == space+versionName || numbered[space+text]) {
			continue
		}
		out = append(out, r)
	}
	return out, versions, nil
}

// space is the prefix of the numbers a key belongs to.
func (c *lastGood) space(key string) (string, bool) {
	for _, prefix := range []string{identityPrefix(c.cluster), nodeNumberPrefix(c.cluster)} {
		if strings.HasPrefix(key, prefix) {
			return prefix, true
		}
	}
	return "", false
}

func numberOf(value []byte) (string, bool) {
	var m pb.NumberClaim
	if m.UnmarshalVT(value) != nil {
		return "", false
	}
	return m.Of, true
}

// putBack writes records. Numbers go with their version key, so that no replica
// gives one of them out meanwhile.
func (c *lastGood) putBack(ctx context.Context, store kvstore.Store, fence *fence, records []copyRecord, versions map[string]int64, lease int64, out *restored) error {
	for chunk := range slices.Chunk(records, (kvstore.MaxOps-8)/2) {
		ops, err := fence.ops()
		if err != nil {
			return err
		}
		spaces := make(map[string]bool)
		for _, r := range chunk {
			var on int64
			if r.Leased {
				on = lease
			}
			ops = append(ops, kvstore.IfModRevision(r.Key, 0), kvstore.Put(r.Key, r.Value, on))
			if space, ok := c.space(r.Key); ok {
				spaces[space] = true
			}
		}
		for space := range maps.Keys(spaces) {
			ops = append(ops, kvstore.IfModRevision(space+versionName, versions[space]), kvstore.Put(space+versionName, nil, 0))
		}
		at, err := store.Commit(ctx, ops...)
		if err != nil {
			return err
		}
		for space := range spaces {
			versions[space] = at.Revision
		}
		for _, r := range chunk {
			out.count(r.Key, c)
			out.kvs = append(out.kvs, kvstore.KV{Key: r.Key, Value: r.Value, CreateRevision: at.Revision, ModRevision: at.Revision})
		}
	}
	return nil
}

func (r *restored) count(key string, c *lastGood) {
	rest, private := strings.CutPrefix(key, privatePrefix(c.cluster))
	switch {
	case strings.HasPrefix(key, clustermesh.KindPrefix(clustermesh.ScopeLocal, c.cluster, clustermesh.KindPeer)):
		r.peers++
	case !private:
		r.others++
	case strings.HasPrefix(rest, "node/"), strings.HasPrefix(rest, "endpoint/"):
		r.registrations++
	default:
		r.others++
	}
}
