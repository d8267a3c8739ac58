// Package kvtest proves that a kvstore.Store keeps its contract: a conformance
// suite, a recorder with checkers for the watch promises, and a wrapper that
// fails on purpose.
package kvtest

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

// patience is how long the suite waits for what must happen soon.
const patience = 20 * time.Second

// Option adapts the suite to a store.
type Option func(*suite)

// Compacting tells how to compact what the reader reads. Without it the suite
// uses a method Compact(int64) of the reader if there is one, else it skips what
// needs compaction. With Run, writer and reader are the same.
func Compacting(compact func(writer, reader kvstore.Store, rev int64) error) Option {
	return func(s *suite) { s.compact = compact }
}

// ReadOnly says that the reader of a pair must refuse to write.
func ReadOnly() Option { return func(s *suite) { s.readOnly = true } }

// NoLeases skips what needs leases.
func NoLeases() Option { return func(s *suite) { s.noLeases = true } }

// suite is one run of the conformance suite.
type suite struct {
	compact  func(writer, reader kvstore.Store, rev int64) error
	readOnly bool
	noLeases bool
	lagging  bool // the reader may be behind the writer
	open     func(*testing.T) (writer, reader kvstore.Store)
}

// Run runs the conformance suite on stores made by newStore, one for each test.
// A store may hold other keys already, but nobody else may write to it.
func Run(t *testing.T, newStore func(t *testing.T) kvstore.Store, opts ...Option) {
	s := &suite{open: func(t *testing.T) (kvstore.Store, kvstore.Store) {
		store := newStore(t)
		return store, store
	}}
	s.run(t, opts)
}

// RunPair runs the suite on pairs: all writes go to writer, all reads to
// reader, which shows the writer's store and may lag behind it. The reader must
// be ready, and have all revisions from then on, when newPair returns.
func RunPair(t *testing.T, newPair func(t *testing.T) (writer, reader kvstore.Store), opts ...Option) {
	s := &suite{open: newPair, lagging: true}
	s.run(t, opts)
}

func (s *suite) run(t *testing.T, opts []Option) {
	for _, opt := range opts {
		opt(s)
	}
	groups := []struct {
		name  string
		tests map[string]func(*testing.T, *bench)
	}{
		{"List", listTests}, {"Watch", watchTests}, {"Commit", commitTests}, {"Lease", leaseTests},
	}
	for _, g := range groups {
		t.Run(g.name, func(t *testing.T) {
			for name, test := range g.tests {
				t.Run(name, func(t *testing.T) {
					if g.name == "Lease" && s.noLeases {
						t.Skip("the store has no leases")
					}
					if g.name == "Lease" {
						t.Parallel() // they wait for real time to pass
					}
					test(t, s.bench(t))
				})
			}
		})
	}
}

var benches atomic.Int64

// bench is where one test works: its store, below a prefix of its own.
type bench struct {
	*suite
	t      *testing.T
	ctx    context.Context
	w, r   kvstore.Store
	prefix string
}

func (s *suite) bench(t *testing.T) *bench {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	t.Cleanup(cancel)
	b := &bench{suite: s, t: t, ctx: ctx, prefix: fmt.Sprintf("/kvtest/%d-%d/", time.Now().UnixNano(), benches.Add(1))}
	b.w, b.r = s.open(t)
	return b
}

func (b *bench) key(name string) string { return b.prefix + name }

// put commits keys with values, in one commit.
func (b *bench) put(nameValues ...string) kvstore.Position {
	b.t.Helper()
	var ops []kvstore.Op
	for i := 0; i < len(nameValues); i += 2 {
		ops = append(ops, kvstore.Put(b.key(nameValues[i]), []byte(nameValues[i+1]), 0))
	}
	return b.commit(ops...)
}

func (b *bench) delete(names ...string) kvstore.Position {
	b.t.Helper()
	var ops []kvstore.Op
	for _, name := range names {
		ops = append(ops, kvstore.Delete(b.key(name)))
	}
	return b.commit(ops...)
}

func (b *bench) commit(ops ...kvstore.Op) kvstore.Position {
	b.t.Helper()
	pos, err := b.w.Commit(b.ctx, ops...)
	if err != nil {
		b.t.Fatalf("commit: %v", err)
	}
	if pos.StoreID == 0 || pos.Revision == 0 {
		b.t.Fatalf("commit: position %v, want a store ID and a revision", pos)
	}
	return pos
}

// list reads at a position, waiting for a reader that lags.
func (b *bench) list(prefix string, at kvstore.Position) ([]kvstore.KV, kvstore.Position) {
	b.t.Helper()
	for deadline := time.Now().Add(patience); ; {
		var kvs []kvstore.KV
		pos, err := b.r.List(b.ctx, prefix, at, func(chunk []kvstore.KV) error {
			kvs = append(kvs, chunk...)
			return nil
		})
		if err == nil {
			return kvs, pos
		}
		if !b.lagging || !errors.Is(err, kvstore.ErrFutureRevision) && !errors.Is(err, kvstore.ErrNotReady) || time.Now().After(deadline) {
			b.t.Fatalf("list %q at %v: %v", prefix, at, err)
		}
		time.Sleep(time.Millisecond)
	}
}

// settle waits until the reader has reached at.
func (b *bench) settle(at kvstore.Position) { b.t.Helper(); b.list(b.prefix, at) }

// content is what the prefix holds at a position, as a map of names to values.
func (b *bench) content(at kvstore.Position) map[string]string {
	b.t.Helper()
	kvs, _ := b.list(b.prefix, at)
	m := map[string]string{}
	for _, kv := range kvs {
		m[kv.Key[len(b.prefix):]] = string(kv.Value)
	}
	return m
}

func (b *bench) wantContent(at kvstore.Position, nameValues ...string) {
	b.t.Helper()
	got := b.content(at)
	want := map[string]string{}
	for i := 0; i < len(nameValues); i += 2 {
		want[nameValues[i]] = nameValues[i+1]
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		b.t.Errorf("at %d: %v, want %v", at.Revision, got, want)
	}
}

// now is a position that the reader has, at or after the last commit.
func (b *bench) now() kvstore.Position {
	b.t.Helper()
	pos := b.put("now", "")
	b.settle(pos)
	return pos
}

// readError is the error of a list and that of a watch at a position.
func (b *bench) readErrors(at kvstore.Position) (list, watch error) {
	_, list = b.r.List(b.ctx, b.prefix, at, func([]kvstore.KV) error { return nil })
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	for _, err := range b.r.Watch(ctx, b.prefix, at) {
		if err != nil {
			return list, err
		}
	}
	return list, nil
}

func (b *bench) wantReadErrors(at kvstore.Position, want error) {
	b.t.Helper()
	list, watch := b.readErrors(at)
	if !errors.Is(list, want) {
		b.t.Errorf("list at %v: %v, want %q", at, list, want)
	}
	if !errors.Is(watch, want) {
		b.t.Errorf("watch after %v: %v, want %q", at, watch, want)
	}
}

// watching is a watch running in a goroutine.
type watching struct {
	b       *bench
	batches chan kvstore.Batch
	err     chan error // the end: nil if it ended without an error
	cancel  context.CancelFunc
}

// watch begins a watch of names that begin with sub, once the reader has after.
func (b *bench) watch(sub string, after kvstore.Position) *watching {
	b.t.Helper()
	if b.lagging && !after.IsZero() {
		b.settle(after)
	}
	ctx, cancel := context.WithCancel(b.ctx)
	w := &watching{b: b, batches: make(chan kvstore.Batch), err: make(chan error, 1), cancel: cancel}
	go func() {
		for batch, err := range b.r.Watch(ctx, b.prefix+sub, after) {
			if err != nil {
				w.err <- err
				return
			}
			select {
			case w.batches <- batch:
			case <-b.ctx.Done():
				return
			}
		}
		w.err <- nil
	}()
	b.t.Cleanup(func() {
		cancel()
		for {
			select {
			case <-w.batches:
			case <-w.err:
				return
			case <-b.ctx.Done():
				return
			}
		}
	})
	return w
}

// batch waits for the next batch.
func (w *watching) batch() kvstore.Batch {
	w.b.t.Helper()
	select {
	case batch := <-w.batches:
		return batch
	case err := <-w.err:
		w.err <- err
		w.b.t.Fatalf("the watch ended: %v", err)
	case <-time.After(patience):
		w.b.t.Fatal("no batch came")
	}
	panic("unreachable")
}

// until gathers events until the watch has delivered everything up to at.
func (w *watching) until(at kvstore.Position) []kvstore.Event {
	w.b.t.Helper()
	var events []kvstore.Event
	for {
		batch := w.batch()
		events = append(events, batch.Events...)
		if batch.Position.Revision >= at.Revision {
			return events
		}
	}
}

// describe prints events in one line: "+name=value@mod(create)" or "-name@mod".
func (b *bench) describe(events []kvstore.Event, base int64) string {
	out := ""
	for _, e := range events {
		name := e.KV.Key
		if len(name) >= len(b.prefix) {
			name = name[len(b.prefix):]
		}
		if e.Delete {
			out += fmt.Sprintf(" -%s@%d", name, e.KV.ModRevision-base)
		} else {
			out += fmt.Sprintf(" +%s=%s@%d(%d)", name, e.KV.Value, e.KV.ModRevision-base, e.KV.CreateRevision-base)
		}
	}
	return out
}
