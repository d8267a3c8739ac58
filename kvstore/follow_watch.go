package kvstore

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// watch hands over what follows pos until the watch ends, and says why it did.
func (f *follower) watch(ctx context.Context, s Store) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	began := time.Now()
	for batch, err := range s.Watch(ctx, f.Prefix, f.pos) {
		if err != nil {
			if f.status.Connected && time.Since(began) >= watchProven {
				f.failures = 0
			}
			return err
		}
		if err := f.check(batch); err != nil {
			return err
		}
		if err := f.Sink.Apply(batch.Position, batch.Events); err != nil {
			f.mustList = true // it may have taken a part
			return fmt.Errorf("refused: %w", err)
		}
		f.take(batch)
	}
	return ctx.Err()
}

// take notes a batch that the sink has. What counts as success is that it says
// something new: a store that accepts watches and cuts them is backed off from.
func (f *follower) take(batch Batch) {
	f.heard()
	if batch.Position.Revision > f.pos.Revision {
		f.failures = 0
	}
	f.connected(true)
	f.status.LastError = nil
	f.pos = batch.Position
	f.report()
}

// check refuses a batch that breaks a watch promise.
func (f *follower) check(b Batch) error {
	if b.Position.StoreID != f.pos.StoreID {
		return fmt.Errorf("%w: %016x instead of %016x", ErrOtherStore, b.Position.StoreID, f.pos.StoreID)
	}
	last := f.pos.Revision + 1
	for i := range b.Events {
		rev := b.Events[i].KV.ModRevision
		if rev < last || rev > b.Position.Revision {
			f.mustList = true
			return fmt.Errorf("the store broke the order of its watch: revision %d after %d in a batch up to %d",
				rev, last-1, b.Position.Revision)
		}
		last = rev
	}
	if b.Position.Revision < f.pos.Revision {
		return errors.New("the store's watch went back in time")
	}
	return nil
}
