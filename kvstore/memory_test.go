package kvstore

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// all is what a list under prefix at a position returns.
func all(t testing.TB, s Store, prefix string, at Position) ([]KV, Position) {
	t.Helper()
	var kvs []KV
	pos, err := s.List(context.Background(), prefix, at, func(chunk []KV) error {
		kvs = append(kvs, chunk...)
		return nil
	})
	if err != nil {
		t.Fatalf("list %q at %v: %v", prefix, at, err)
	}
	return kvs, pos
}

func put(t testing.TB, s Store, kv ...string) Position {
	t.Helper()
	var ops []Op
	for i := 0; i < len(kv); i += 2 {
		ops = append(ops, Put(kv[i], []byte(kv[i+1]), 0))
	}
	pos, err := s.Commit(context.Background(), ops...)
	if err != nil {
		t.Fatal(err)
	}
	return pos
}

func TestHistoryIsBounded(t *testing.T) {
	m := NewMemory(MemoryOptions{History: 10})
	first := put(t, m, "a", "0")
	for i := range 50 {
		put(t, m, "a", fmt.Sprint(i), "b", "x")
	}
	if n := m.hist.count; n > 10 {
		t.Errorf("%d events kept, want at most 10", n)
	}
	_, err := m.List(context.Background(), "", first, func([]KV) error { return nil })
	if !errors.Is(err, ErrCompacted) {
		t.Errorf("list at %v: %v, want ErrCompacted", first, err)
	}
	for _, err := range m.Watch(context.Background(), "", first) {
		if !errors.Is(err, ErrCompacted) {
			t.Errorf("watch after %v: %v, want ErrCompacted", first, err)
		}
	}
	now := m.Position()
	kvs, _ := all(t, m, "", Position{now.StoreID, now.Revision - 3})
	if string(kvs[0].Value) != "46" {
		t.Errorf("three revisions ago a was %s, want 46", kvs[0].Value)
	}
}

// A commit larger than the history still reaches a watch that stands.
func TestHistoryKeepsTheNewestRevision(t *testing.T) {
	m := NewMemory(MemoryOptions{History: 1})
	before := put(t, m, "z", "")
	put(t, m, "a", "1", "b", "2", "c", "3")
	for batch, err := range m.Watch(context.Background(), "", before) {
		if err != nil || len(batch.Events) != 3 {
			t.Fatalf("batch %v, error %v, want 3 events", batch, err)
		}
		break
	}
}

// A reader that stands still does not hold writers back, and is told that it
// fell behind.
func TestSlowWatchFallsBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory(MemoryOptions{History: 5})
		resume := make(chan struct{})
		done := make(chan error, 1)
		go func() {
			for _, err := range m.Watch(t.Context(), "", m.Position()) {
				if err != nil {
					done <- err
					return
				}
				<-resume
			}
		}()
		synctest.Wait()
		for i := range 100 {
			put(t, m, "k", fmt.Sprint(i))
		}
		close(resume)
		if err := <-done; !errors.Is(err, ErrCompacted) {
			t.Fatalf("got %v, want ErrCompacted", err)
		}
	})
}

// A watch whose prefix is quiet learns of new positions now and then, so that
// it can resume after the history it did not need is gone.
func TestQuietWatchMakesProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory(MemoryOptions{})
		ctx, cancel := context.WithCancel(t.Context())
		var batches []Batch
		done := make(chan struct{})
		go func() {
			defer close(done)
			for batch, err := range m.Watch(ctx, "quiet/", Position{}) {
				if err != nil {
					t.Error(err)
					return
				}
				batches = append(batches, batch)
			}
		}()
		synctest.Wait()
		var last Position
		for i := range 100 {
			last = put(t, m, "busy/a", fmt.Sprint(i))
			time.Sleep(time.Second)
		}
		time.Sleep(progressEvery)
		cancel()
		<-done
		if got := batches[len(batches)-1]; got.Position != last || len(got.Events) > 0 {
			t.Errorf("the last batch is %v, want progress to %v", got, last)
		}
		if n := len(batches); n < 10 || n > 30 {
			t.Errorf("%d batches in 100 s, want about one in %v", n, progressEvery)
		}
	})
}

func TestCutAndClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory(MemoryOptions{})
		cause := errors.New("power cut")
		watch := func() <-chan error {
			done := make(chan error, 1)
			go func() {
				for _, err := range m.Watch(t.Context(), "", Position{}) {
					if err != nil {
						done <- err
					}
				}
			}()
			synctest.Wait()
			return done
		}
		a := watch()
		m.CutWatches(cause)
		if err := <-a; !errors.Is(err, cause) {
			t.Errorf("got %v, want %v", err, cause)
		}
		b := watch()
		if _, err := m.Grant(t.Context(), time.Minute); err != nil {
			t.Fatal(err)
		}
		m.Close()
		m.Close()
		if err := <-b; !errors.Is(err, ErrNotReady) {
			t.Errorf("got %v, want ErrNotReady", err)
		}
		if _, err := m.Commit(t.Context(), Put("a", nil, 0)); !errors.Is(err, ErrNotReady) {
			t.Errorf("commit after close: %v, want ErrNotReady", err)
		}
	})
}

func TestReplica(t *testing.T) {
	ctx := context.Background()
	r := NewReplica(MemoryOptions{})
	nothing := func([]KV) error { return nil }
	if _, err := r.List(ctx, "", Position{}, nothing); !errors.Is(err, ErrNotReady) {
		t.Errorf("list before the first Synced: %v, want ErrNotReady", err)
	}
	if _, err := r.Commit(ctx, Put("a", nil, 0)); !errors.Is(err, ErrReadOnly) {
		t.Errorf("commit: %v, want ErrReadOnly", err)
	}
	if _, err := r.Grant(ctx, time.Second); !errors.Is(err, ErrReadOnly) {
		t.Errorf("grant: %v, want ErrReadOnly", err)
	}
	sink := r.Sink()
	up := func(key, value string, rev int64) Event {
		return Event{KV: KV{Key: key, Value: []byte(value), CreateRevision: rev, ModRevision: rev}}
	}
	at := Position{7, 40}
	must(t, sink.Begin(at, nil))
	must(t, sink.Apply(at, []Event{up("a", "1", 12), up("b", "1", 40)}))
	select {
	case <-r.Ready():
		t.Error("ready before Synced")
	default:
	}
	sink.Synced(at)
	<-r.Ready()
	if pos := r.Position(); pos != at {
		t.Errorf("position %v, want %v", pos, at)
	}
	// Two revisions in one batch are two revisions here, too.
	must(t, sink.Apply(Position{7, 45}, []Event{up("a", "2", 42), {Delete: true, KV: KV{Key: "b", ModRevision: 44}}}))
	if kvs, _ := all(t, r, "", Position{7, 42}); len(kvs) != 2 || string(kvs[0].Value) != "2" {
		t.Errorf("at 42: %v, want a=2 and b", kvs)
	}
	// A list that breaks off changes nothing.
	must(t, sink.Begin(Position{7, 50}, nil))
	must(t, sink.Apply(Position{7, 50}, []Event{up("x", "1", 50)}))
	sink.Lost(errors.New("cut"))
	if kvs, pos := all(t, r, "", Position{}); len(kvs) != 1 || pos != (Position{7, 45}) {
		t.Errorf("after a broken list: %v at %v", kvs, pos)
	}
	// A second list replaces everything; what was before is gone.
	must(t, sink.Begin(Position{7, 60}, nil))
	must(t, sink.Apply(Position{7, 60}, []Event{up("c", "1", 55)}))
	sink.Synced(Position{7, 60})
	for _, err := range r.Watch(ctx, "", Position{7, 45}) {
		if !errors.Is(err, ErrCompacted) {
			t.Errorf("watch from before the list: %v, want ErrCompacted", err)
		}
	}
	// A restored backup: who is ahead of it is told so.
	must(t, sink.Begin(Position{7, 30}, nil))
	sink.Synced(Position{7, 30})
	for _, err := range r.Watch(ctx, "", Position{7, 60}) {
		if !errors.Is(err, ErrFutureRevision) {
			t.Errorf("watch from before the restore: %v, want ErrFutureRevision", err)
		}
	}
	// Another store.
	must(t, sink.Begin(Position{8, 3}, nil))
	sink.Synced(Position{8, 3})
	if _, err := r.List(ctx, "", Position{7, 60}, nothing); !errors.Is(err, ErrOtherStore) {
		t.Errorf("list of the old store: %v, want ErrOtherStore", err)
	}
}

func TestReplicaOfAnotherStoreCutsWatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewReplica(MemoryOptions{})
		fill := func(at Position) {
			must(t, r.Sink().Begin(at, nil))
			r.Sink().Synced(at)
		}
		fill(Position{7, 40})
		done := make(chan error, 1)
		go func() {
			for _, err := range r.Watch(t.Context(), "", Position{}) {
				if err != nil {
					done <- err
				}
			}
		}()
		synctest.Wait()
		fill(Position{8, 90})
		if err := <-done; !errors.Is(err, ErrOtherStore) {
			t.Errorf("got %v, want ErrOtherStore", err)
		}
	})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
