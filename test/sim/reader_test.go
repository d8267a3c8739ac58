package sim

import (
	"context"
	"iter"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// connector is how one agent reaches the mesh ports.
type connector struct {
	s    *sim
	from *node
}

// Stores implements agent.Connector.
func (k connector) Stores(_ context.Context, cluster string, peer *clustermesh.Peer) ([]kvstore.Store, func(), error) {
	c := k.s.named(cluster)
	var out []kvstore.Store
	for _, s := range c.servers {
		out = append(out, (&conn{s: k.s, from: k.from, to: s, peer: peer != nil}).planted())
	}
	return out, nil, nil
}

// conn is one server's mesh port as one agent sees it.
type conn struct {
	s    *sim
	from *node
	to   *server
	peer bool // of another cluster
}

func (c *conn) sites() (from, to site) { return c.from.site(), site{int(c.to.c.ID), 0} }

// open is the watch cache behind the port.
func (c *conn) open(ctx context.Context) (context.Context, *kvstore.Memory, func(), error) {
	from, to := c.sites()
	pub := c.to.running()
	if pub == nil {
		return nil, nil, nil, errDark
	}
	ctx, end, err := c.s.net.connect(ctx, from, to, c.to.n)
	if err != nil {
		return nil, nil, nil, err
	}
	return ctx, pub.Cache(), end, nil
}

func (c *conn) late(ctx context.Context) {
	from, to := c.sites()
	if d := c.s.net.way(to, from).delay; d > 0 {
		wait(ctx, d)
	}
}

// List implements kvstore.Store.
func (c *conn) List(ctx context.Context, prefix string, at kvstore.Position, visit func([]kvstore.KV) error) (kvstore.Position, error) {
	if c.s.plant == plantSilence {
		if pos, ok := c.silence(ctx, prefix, visit); ok {
			return pos, nil
		}
	}
	inner, cache, end, err := c.open(ctx)
	if err != nil {
		return kvstore.Position{}, err
	}
	defer end()
	from, to := c.sites()
	pos, err := cache.List(inner, prefix, at, func(kvs []kvstore.KV) error {
		c.late(inner)
		if inner.Err() == nil && c.s.net.chance(c.s.net.way(to, from).flaky) {
			return errCut
		}
		return visit(kvs)
	})
	if err == nil {
		err = visit(c.forged(prefix, pos))
	}
	if cause := context.Cause(inner); err != nil && ctx.Err() == nil && cause != nil {
		err = cause
	}
	return pos, err
}

// Watch implements kvstore.Store.
func (c *conn) Watch(ctx context.Context, prefix string, after kvstore.Position) iter.Seq2[kvstore.Batch, error] {
	return func(yield func(kvstore.Batch, error) bool) {
		inner, cache, end, err := c.open(ctx)
		if err != nil {
			if c.s.plant == plantSilence {
				err = kvstore.ErrCompacted
			}
			yield(kvstore.Batch{}, err)
			return
		}
		defer end()
		from, to := c.sites()
		for batch, err := range cache.Watch(inner, prefix, after) {
			if err != nil {
				yield(batch, err)
				return
			}
			c.late(inner)
			if inner.Err() != nil {
				break
			}
			if len(batch.Events) > 0 && c.s.net.chance(c.s.net.way(to, from).flaky) {
				if part, ok := firstPart(batch); ok && !yield(part, nil) {
					return
				}
				yield(kvstore.Batch{}, errCut)
				return
			}
			if c.s.plant == plantWakeup && c.swallow(batch) {
				continue
			}
			batch.Events = append(batch.Events[:len(batch.Events):len(batch.Events)], c.forgedEvents(prefix, batch.Position)...)
			if !yield(batch, nil) {
				return
			}
		}
		if ctx.Err() == nil {
			yield(kvstore.Batch{}, errCut)
		}
	}
}

// firstPart is what of a batch had come when the connection broke: whole
// revisions, never part of one.
func firstPart(b kvstore.Batch) (kvstore.Batch, bool) {
	half := b.Events[:len(b.Events)/2]
	if len(half) == 0 {
		return b, false
	}
	last := half[len(half)-1].KV.ModRevision
	for i := len(half); i < len(b.Events) && b.Events[i].KV.ModRevision == last; i++ {
		half = b.Events[:i+1]
	}
	return kvstore.Batch{Position: kvstore.Position{StoreID: b.Position.StoreID, Revision: last}, Events: half}, true
}

// Commit implements kvstore.Store.
func (*conn) Commit(context.Context, ...kvstore.Op) (kvstore.Position, error) {
	return kvstore.Position{}, kvstore.ErrReadOnly
}

// Grant implements kvstore.Store.
func (*conn) Grant(context.Context, time.Duration) (kvstore.Lease, error) {
	return nil, kvstore.ErrReadOnly
}
