package kvstore

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// list hands one complete list to the sink: the marker first, then everything
// at the marker's revision.
func (f *follower) list(ctx context.Context, s Store) error {
	at, marker, err := f.probe(ctx, s)
	if err != nil {
		return err
	}
	if err := f.admit(at); err != nil {
		return err
	}
	if f.Marker != "" {
		if marker == nil {
			return fmt.Errorf("the publication is not complete: key %q is absent", f.Marker)
		}
		if f.Complete != nil {
			if err := f.Complete(marker); err != nil {
				return fmt.Errorf("the publication is not complete: %w", err)
			}
		}
	}
	if err := f.Sink.Begin(at, marker); err != nil {
		return fmt.Errorf("refused: %w", err)
	}
	// From here on the sink expects a whole list, whatever happens.
	f.mustList = true
	if err := f.transfer(ctx, s, at); err != nil {
		return err
	}
	f.Sink.Synced(at)
	f.pos, f.mustList = at, false
	f.status.Synced = true
	f.status.Lists++
	f.heard()
	f.report()
	return nil
}

// probe reads the marker key and the position at which the list will be read.
// The value is nil if the key is absent.
func (f *follower) probe(ctx context.Context, s Store) (Position, []byte, error) {
	key := f.Marker
	if key == "" {
		key = f.Prefix + "\x00" // matches next to nothing: only the position is wanted
	}
	var marker []byte
	at, err := listWatched(ctx, s, key, Position{}, func(kvs []KV) error {
		if kvs[0].Key == f.Marker {
			marker = kvs[0].Value
			if marker == nil {
				marker = []byte{}
			}
		}
		return nil
	})
	return at, marker, err
}

// transfer reads everything under Prefix at one position into the sink.
func (f *follower) transfer(ctx context.Context, s Store, at Position) error {
	var refused error
	got, err := listWatched(ctx, s, f.Prefix, at, func(kvs []KV) error {
		events := make([]Event, len(kvs))
		for i, kv := range kvs {
			events[i].KV = kv
		}
		refused = f.Sink.Apply(at, events)
		return refused
	})
	switch {
	case refused != nil:
		return fmt.Errorf("refused: %w", refused)
	case err != nil:
		return err
	case got.StoreID != at.StoreID:
		return fmt.Errorf("%w: %016x instead of %016x", ErrOtherStore, got.StoreID, at.StoreID)
	case got.Revision != at.Revision:
		return fmt.Errorf("the store answered at revision %d instead of %d", got.Revision, at.Revision)
	}
	return nil
}

var errStalled = errors.New("the store has stopped answering")

// listWatched is List that fails when no chunk comes for listStall.
func listWatched(ctx context.Context, s Store, prefix string, at Position, visit func([]KV) error) (Position, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := time.AfterFunc(listStall, func() { cancel(errStalled) })
	defer stall.Stop()
	pos, err := s.List(ctx, prefix, at, func(kvs []KV) error {
		stall.Stop() // what visit takes is not the store's fault
		defer stall.Reset(listStall)
		if len(kvs) == 0 {
			return nil
		}
		return visit(kvs)
	})
	if err != nil && context.Cause(ctx) == errStalled {
		return pos, errStalled
	}
	return pos, err
}
