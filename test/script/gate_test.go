package script

import (
	"context"
	"iter"
	"sync"
	"time"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

// gate is a store behind a network that can be shut: calls wait in front of it
// then, as when packets are dropped. An answer that is refused at once would be
// retried after longer and longer pauses, for which scripts have no time.
type gate struct {
	kvstore.Store
	door *door
}

type door struct {
	mu   sync.Mutex
	open chan struct{} // closed = open
}

func newDoor() *door {
	d := &door{open: make(chan struct{})}
	close(d.open)
	return d
}

func (d *door) set(open bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	select {
	case <-d.open:
		if !open {
			d.open = make(chan struct{})
		}
	default:
		if open {
			close(d.open)
		}
	}
}

func (d *door) wait(ctx context.Context) error {
	d.mu.Lock()
	open := d.open
	d.mu.Unlock()
	select {
	case <-open:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g gate) List(ctx context.Context, prefix string, at kvstore.Position, visit func([]kvstore.KV) error) (kvstore.Position, error) {
	if err := g.door.wait(ctx); err != nil {
		return kvstore.Position{}, err
	}
	return g.Store.List(ctx, prefix, at, visit)
}

func (g gate) Watch(ctx context.Context, prefix string, after kvstore.Position) iter.Seq2[kvstore.Batch, error] {
	return func(yield func(kvstore.Batch, error) bool) {
		if g.door.wait(ctx) != nil {
			return // ctx ended: the sequence ends without an error
		}
		g.Store.Watch(ctx, prefix, after)(yield)
	}
}

func (g gate) Commit(ctx context.Context, ops ...kvstore.Op) (kvstore.Position, error) {
	if err := g.door.wait(ctx); err != nil {
		return kvstore.Position{}, err
	}
	return g.Store.Commit(ctx, ops...)
}

func (g gate) Grant(ctx context.Context, ttl time.Duration) (kvstore.Lease, error) {
	if err := g.door.wait(ctx); err != nil {
		return nil, err
	}
	return g.Store.Grant(ctx, ttl)
}
