package kvtest

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

// Without faults the wrapper is a Store like any other.
func TestFaultlessFaulty(t *testing.T) {
	Run(t, func(t *testing.T) kvstore.Store {
		return NewFaulty(kvstore.NewMemory(kvstore.MemoryOptions{}), 1, Faults{})
	}, NoLeases())
}

// What a faulty store does deliver keeps the watch promises.
func TestFaultyKeepsPromises(t *testing.T) {
	RunPair(t, func(t *testing.T) (writer, reader kvstore.Store) {
		m := kvstore.NewMemory(kvstore.MemoryOptions{})
		return m, NewFaulty(m, 2, Faults{Delay: 0.2, MaxDelay: time.Millisecond})
	}, NoLeases())
}

// Watches that are cut again and again lose nothing when they resume.
func TestCutWatchesKeepPromises(t *testing.T) {
	s := &suite{lagging: true, open: func(t *testing.T) (writer, reader kvstore.Store) {
		m := kvstore.NewMemory(kvstore.MemoryOptions{})
		return m, NewFaulty(m, 3, Faults{Cut: 0.2, Delay: 0.2, MaxDelay: time.Millisecond})
	}}
	churn(t, s.bench(t))
}

func TestFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := kvstore.NewMemory(kvstore.MemoryOptions{})
		f := NewFaulty(m, 1, Faults{})
		ctx := t.Context()
		list := func() (int, error) {
			n := 0
			_, err := f.List(ctx, "", kvstore.Position{}, func(kvs []kvstore.KV) error { n += len(kvs); return nil })
			return n, err
		}
		f.Set(Faults{Commit: 1})
		if _, err := f.Commit(ctx, kvstore.Put("a", nil, 0)); !errors.Is(err, ErrInjected) || m.Len() != 0 {
			t.Errorf("failed commit: %v, %d keys", err, m.Len())
		}
		f.Set(Faults{Lost: 1})
		if _, err := f.Commit(ctx, kvstore.Put("a", nil, 0)); !errors.Is(err, ErrInjected) || m.Len() != 1 {
			t.Errorf("lost answer: %v, %d keys", err, m.Len())
		}
		f.Set(Faults{List: 1})
		if _, err := list(); !errors.Is(err, ErrInjected) {
			t.Errorf("list: %v", err)
		}
		f.Set(Faults{ListChunk: 1})
		if n, err := list(); !errors.Is(err, ErrInjected) || n != 0 {
			t.Errorf("list: %v", err)
		}
		f.Set(Faults{})

		old := m.Position()
		f.Freeze(old)
		now, _ := m.Commit(ctx, kvstore.Put("b", nil, 0))
		if n, err := list(); err != nil || n != 1 {
			t.Errorf("frozen list: %d keys, %v", n, err)
		}
		for _, err := range f.Watch(ctx, "", now) {
			if !errors.Is(err, kvstore.ErrFutureRevision) {
				t.Errorf("frozen watch: %v", err)
			}
		}
		wctx, cancel := context.WithCancel(ctx)
		defer cancel()
		var seen int
		end := make(chan error, 1)
		go func() {
			for b, err := range f.Watch(wctx, "", old) {
				if err != nil {
					end <- err
					return
				}
				seen += len(b.Events)
			}
		}()
		synctest.Wait()
		if seen != 0 {
			t.Error("a frozen replica told the future")
		}
		f.Freeze(kvstore.Position{})
		synctest.Wait()
		if seen != 1 {
			t.Errorf("%d events after thawing, want 1", seen)
		}
		f.Break(context.DeadlineExceeded)
		if err := <-end; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("broken watch: %v", err)
		}
	})
}
