package sim

import (
	"context"
	"errors"
	"iter"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
	"github.com/tombolo-mesh/tombolo/kvstore/kvtest"
)

// door is the way from one mesh API server to its cluster's store. What goes wrong
// on that way goes wrong here, and what may never happen is looked for.
type door struct {
	*kvtest.Faulty
	c      *cluster
	server *server

	mu     sync.Mutex
	stall  time.Time // until then nothing gets through: a process that is stopped, a disk that is slow
	broken error
	after  time.Duration // every call takes that long
	ahead  time.Duration // that the server's clock is, by what it writes
}

var errDark = errors.New("out of reach")

func newDoor(c *cluster, s *server, seed uint64) *door {
	d := &door{c: c, server: s}
	d.Faulty = kvtest.NewFaulty(ledger{c.store(), d}, seed, kvtest.Faults{})
	return d
}

// shut makes everything fail; nil opens it again.
func (d *door) shut(err error) {
	d.mu.Lock()
	d.broken = err
	d.mu.Unlock()
	d.Break(err)
}

// hold lets nothing through for a while. What was begun goes on afterwards, as it
// does in a process that was stopped just after it had looked at the clock.
func (d *door) hold(t time.Duration) {
	d.mu.Lock()
	d.stall = time.Now().Add(t)
	d.mu.Unlock()
}

func (d *door) slow(t time.Duration) {
	d.mu.Lock()
	d.after = t
	d.mu.Unlock()
}

// fail has calls fail by chance, also after they took effect.
func (d *door) fail(share float64) {
	d.Set(kvtest.Faults{List: share, ListChunk: share, Cut: share, Commit: share, Lost: share, Delay: share, MaxDelay: time.Second})
}

func (d *door) wait() error {
	for {
		d.mu.Lock()
		left, after, broken := time.Until(d.stall), d.after, d.broken
		d.mu.Unlock()
		switch {
		case broken != nil:
			return broken
		case left > 0:
			time.Sleep(left)
		default:
			if after > 0 {
				time.Sleep(after)
			}
			return nil
		}
	}
}

func (d *door) List(ctx context.Context, prefix string, at kvstore.Position, visit func([]kvstore.KV) error) (kvstore.Position, error) {
	if err := d.wait(); err != nil {
		return kvstore.Position{}, err
	}
	return d.Faulty.List(ctx, prefix, at, visit)
}

func (d *door) Watch(ctx context.Context, prefix string, after kvstore.Position) iter.Seq2[kvstore.Batch, error] {
	return func(yield func(kvstore.Batch, error) bool) {
		for batch, err := range d.Faulty.Watch(ctx, prefix, after) {
			if err == nil {
				if err = d.wait(); err != nil {
					batch = kvstore.Batch{}
				}
			}
			if !yield(batch, err) || err != nil {
				return
			}
		}
	}
}

func (d *door) Commit(ctx context.Context, ops ...kvstore.Op) (kvstore.Position, error) {
	if err := d.wait(); err != nil {
		return kvstore.Position{}, err
	}
	return d.Faulty.Commit(context.WithoutCancel(ctx), d.stamped(ops)...)
}

// clock sets a server's clock: all that it writes says another time.
func (d *door) clock(ahead time.Duration) {
	d.mu.Lock()
	d.ahead = ahead
	d.mu.Unlock()
}

// stamped are operations as a server writes them whose clock is wrong.
func (d *door) stamped(ops []kvstore.Op) []kvstore.Op {
	d.mu.Lock()
	ahead := d.ahead
	d.mu.Unlock()
	if ahead == 0 {
		return ops
	}
	out := slices.Clone(ops)
	for i, op := range ops {
		op.Decode(func(text string, value []byte, lease int64) {
			if key, err := clustermesh.ParseKey(text); err == nil {
				out[i] = kvstore.Put(text, shifted(key, value, ahead), lease)
			}
		}, func(string) {}, func(string, int64) {}, func(string, int64) {})
	}
	return out
}

// shifted is a record whose origin is another time.
func shifted(key clustermesh.Key, value []byte, by time.Duration) []byte {
	r, err := clustermesh.Decode(key, value)
	if err != nil {
		return value
	}
	origin := reflect.ValueOf(r).Elem().FieldByName("Origin")
	origin.SetInt(origin.Int() + int64(by))
	if again, err := clustermesh.Encode(r); err == nil {
		return again
	}
	return value
}

func (d *door) Grant(ctx context.Context, ttl time.Duration) (kvstore.Lease, error) {
	if err := d.wait(); err != nil {
		return nil, err
	}
	l, err := d.Faulty.Grant(context.WithoutCancel(ctx), ttl)
	if err != nil {
		return nil, err
	}
	return heldLease{l, d}, nil
}

type heldLease struct {
	kvstore.Lease
	door *door
}

func (l heldLease) KeepAlive(ctx context.Context) (time.Duration, error) {
	if err := l.door.wait(); err != nil {
		return 0, err
	}
	return l.Lease.KeepAlive(ctx)
}

func (l heldLease) Revoke(ctx context.Context) error {
	if err := l.door.wait(); err != nil {
		return err
	}
	return l.Lease.Revoke(ctx)
}

// ledger is the store itself. It sees every commit that is accepted, and who made
// it: what is published is written by the holder of the leader key alone.
type ledger struct {
	kvstore.Store
	door *door
}

func (l ledger) Commit(ctx context.Context, ops ...kvstore.Op) (kvstore.Position, error) {
	c := l.door.c
	if c.s.tired(c.Name) {
		time.Sleep(time.Second) // or virtual time would stand still for ever
	}
	c.commits.Lock()
	defer c.commits.Unlock()
	if c.s.plant == plantUnfenced {
		ops = unfenced(ops)
	}
	at, err := l.Store.Commit(ctx, ops...)
	if err == nil && c.publishes(ops) {
		if holder := holderOf(l.Store, l.door.server.leaderKey); holder != l.door.server.replica {
			c.s.fail("leader", "%s: replica %d published at revision %d, but the leader key is %q's", c.Name, l.door.server.n, at.Revision, holder)
		}
	}
	return at, err
}

// mostAtOnce is how many commits one cluster may make at one moment: more is two
// that undo each other's work without end.
const mostAtOnce = 5000

// tired counts a commit. It says whether there are too many of them at one moment,
// which is a failure, or the run has failed already.
func (s *sim) tired(cluster string) bool {
	s.mu.Lock()
	now := time.Now()
	if !s.countedAt.Equal(now) {
		s.countedAt, s.counted = now, 0
	}
	s.counted++
	many, failed := s.counted > mostAtOnce, s.failure != nil
	s.mu.Unlock()
	if many && !failed {
		s.fail("endless", "%s: %d commits at one moment", cluster, mostAtOnce)
	}
	return many || failed
}

// publishes says whether a commit writes what only a leader may write.
func (c *cluster) publishes(ops []kvstore.Op) (is bool) {
	look := func(key string) {
		ours := strings.HasPrefix(key, clustermesh.ScopePrefix(export, c.Name)) || strings.HasPrefix(key, clustermesh.ScopePrefix(local, c.Name))
		is = is || ours && !strings.HasPrefix(key, clustermesh.KindPrefix(local, c.Name, clustermesh.KindPeer))
	}
	for _, op := range ops {
		op.Decode(func(key string, _ []byte, _ int64) { look(key) }, look, func(string, int64) {}, func(string, int64) {})
	}
	return is
}

func holderOf(s kvstore.Store, key string) (holder string) {
	for k, v := range contentOf(s, key) {
		if k == key {
			holder = string(v)
		}
	}
	return holder
}

// contentOf is what a store holds under a prefix.
func contentOf(s kvstore.Store, prefix string) map[string][]byte {
	out := map[string][]byte{}
	// A store that was closed has nothing.
	_, _ = s.List(context.Background(), prefix, kvstore.Position{}, func(kvs []kvstore.KV) error {
		for _, kv := range kvs {
			out[kv.Key] = kv.Value
		}
		return nil
	})
	return out
}

func unfenced(ops []kvstore.Op) (out []kvstore.Op) {
	for _, op := range ops {
		op.Decode(func(string, []byte, int64) { out = append(out, op) }, func(string) { out = append(out, op) },
			func(string, int64) { out = append(out, op) }, func(string, int64) {})
	}
	return out
}
