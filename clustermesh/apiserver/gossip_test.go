package apiserver

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

func idsOf(keys *pb.GossipKeys) (ids []uint64) {
	for _, k := range keys.Keys {
		ids = append(ids, gossipKeyID(k.Secret))
	}
	return ids
}

// TestGossipRotation turns keys over with nodes that take each step when they hear
// of it, sooner or later. At any time each of them understands all others; the
// rotation ends; and a node that is away holds each step up for no longer than the
// patience.
func TestGossipRotation(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(1000, 0)
		nodes := rapid.IntRange(1, 6).Draw(t, "nodes")
		keys, changed := turnGossipKeys(&pb.GossipKeys{}, nil, time.Hour, now, freshGossipKey)
		if !changed || len(keys.Keys) != 1 {
			t.Fatalf("no first key: %v", keys)
		}
		first := idsOf(keys)[0]
		held, heardAt := map[string][]uint64{"does not gossip": nil}, map[string]time.Time{}
		for i := range nodes {
			held[fmt.Sprint("n", i)] = idsOf(keys)
		}
		if rapid.Bool().Draw(t, "one is away") {
			held["away"] = idsOf(keys)
		}
		began := now
		for idsOf(keys)[0] == first || len(keys.Keys) > 1 {
			now = now.Add(time.Duration(rapid.IntRange(1, 600).Draw(t, "seconds")) * time.Second)
			keys, _ = turnGossipKeys(keys, held, time.Hour, now, freshGossipKey)
			for i := range nodes {
				name := fmt.Sprint("n", i)
				if rapid.Bool().Draw(t, "hears") || now.Sub(heardAt[name]) > gossipPatience/4 {
					held[name], heardAt[name] = idsOf(keys), now
				}
			}
			for a, x := range held {
				for b, y := range held {
					if a != "away" && b != "away" && len(x) > 0 && len(y) > 0 && !slices.Contains(y, x[0]) {
						t.Fatalf("%s encrypts by a key that %s does not have: %v, %v", a, b, x, y)
					}
				}
			}
			if now.Sub(began) > time.Hour+3*gossipPatience {
				t.Fatal("the rotation does not end")
			}
		}
		if next, changed := turnGossipKeys(keys, held, 0, now.Add(1000*time.Hour), freshGossipKey); changed {
			t.Fatalf("period 0, and yet turned to %v", next)
		}
	})
}

// The leader makes a key, and a restart keeps it. It turns it over in steps, each
// when the nodes have said that they took the one before.
func TestGossipKeysAreKept(t *testing.T) {
	store := kvstore.NewMemory(kvstore.MemoryOptions{})
	defer store.Close()
	dir := t.TempDir()
	run := func(period time.Duration) *publishing {
		return startPublishing(t, Config{Source: shop(), StateDir: dir, GossipRotation: period}, store)
	}
	handed := func(p *publishing) (ids []uint64) {
		keys, _, err := p.gossip.hand(context.Background())
		if err != nil {
			return nil // the cache is still being filled
		}
		for _, k := range keys {
			ids = append(ids, gossipKeyID(k))
		}
		return ids
	}
	p := run(0)
	eventually(t, "a key", func() bool { return len(handed(p)) == 1 })
	first := handed(p)
	says := func(p *publishing, ids []uint64) {
		t.Helper()
		eventually(t, "node registered", func() bool {
			_, err := p.registry.RegisterNode(t.Context(), NodeRegistration{Node: "n1", WireGuardKey: [32]byte{1}, GossipKeys: ids})
			return err == nil
		})
	}
	says(p, first)
	p.stop()
	p = run(200 * time.Millisecond)
	eventually(t, "the key after a restart, and a new one behind it", func() bool {
		ids := handed(p)
		if len(ids) > 0 && ids[0] != first[0] {
			t.Fatal("another key to encrypt by, which nobody has taken yet")
		}
		return len(ids) == 2
	})
	both := handed(p)
	says(p, both)
	eventually(t, "the new key is used", func() bool { ids := handed(p); return len(ids) == 2 && ids[0] == both[1] && ids[1] == first[0] })
	says(p, []uint64{both[1], both[0]})
	eventually(t, "the old key is gone", func() bool { return !slices.Contains(handed(p), first[0]) })
	p.stop()
}
