package kvtest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

var watchTests = map[string]func(*testing.T, *bench){
	"FirstBatchAtOnce": func(t *testing.T, b *bench) {
		now := b.now()
		if got := b.watch("", now).batch(); got.Position.Revision < now.Revision || got.Position.StoreID != now.StoreID || len(got.Events) > 0 {
			t.Errorf("the first batch is %v, want an empty one at or above %v", got, now)
		}
		if got := b.watch("", kvstore.Position{}).batch(); got.Position.Revision <= 0 || got.Position.StoreID != now.StoreID || len(got.Events) > 0 {
			t.Errorf("the first batch of a watch from now is %v, want an empty one", got)
		}
	},
	"FromNow": func(t *testing.T, b *bench) {
		b.now()
		w := b.watch("", kvstore.Position{})
		start := w.batch()
		last := b.put("a", "1")
		got := b.describe(w.until(last), start.Position.Revision)
		if !b.lagging && got != " +a=1@1(1)" {
			t.Errorf("got%s, want the one put", got)
		}
	},
	"Everything": func(t *testing.T, b *bench) {
		start := b.now()
		w := b.watch("", start)
		b.put("a", "1")
		b.put("a", "2", "b", "1")
		b.delete("a")
		b.put("a", "3")
		last := b.delete("b", "absent")
		want := " +a=1@1(1) +a=2@2(1) +b=1@2(2) -a@3 +a=3@4(4) -b@5"
		if got := b.describe(w.until(last), start.Revision); got != want {
			t.Errorf("got%s\nwant%s", got, want)
		}
	},
	"ResumesAnywhere": func(t *testing.T, b *bench) {
		start := b.now()
		steps := []string{" +a=1@1(1)", " +a=2@2(1) +b=1@2(2)", " -a@3", " +a=3@4(4)", " -b@5"}
		b.put("a", "1")
		b.put("a", "2", "b", "1")
		b.delete("a")
		b.put("a", "3")
		last := b.delete("b")
		b.settle(last)
		for i := range steps {
			want := ""
			for _, s := range steps[i:] {
				want += s
			}
			w := b.watch("", kvstore.Position{StoreID: start.StoreID, Revision: start.Revision + int64(i)})
			if got := b.describe(w.until(last), start.Revision); got != want {
				t.Errorf("after %d: got%s\nwant%s", i, got, want)
			}
		}
	},
	"Filtered": func(t *testing.T, b *bench) {
		start := b.now()
		w := b.watch("a/", start)
		b.put("a", "no", "a0", "no", "a/x", "yes", "b", "no")
		b.put("b", "no")
		b.delete("a0")
		last := b.put("a/y", "yes")
		if got, want := b.describe(w.until(last), start.Revision), " +a/x=yes@1(1) +a/y=yes@4(4)"; got != want {
			t.Errorf("got%s\nwant%s", got, want)
		}
	},
	"DeleteShape": func(t *testing.T, b *bench) {
		start := b.put("a", "value")
		b.settle(start)
		w := b.watch("", start)
		last := b.delete("a")
		events := w.until(last)
		if len(events) != 1 {
			t.Fatalf("%d events, want 1", len(events))
		}
		want := kvstore.KV{Key: b.key("a"), ModRevision: last.Revision}
		if e := events[0]; !e.Delete || fmt.Sprint(e.KV) != fmt.Sprint(want) || e.KV.Value != nil {
			t.Errorf("%+v, want a delete of %+v", e, want)
		}
	},
	"WholeRevisions": func(t *testing.T, b *bench) {
		start := b.now()
		var last kvstore.Position
		for i := range 20 {
			var nv []string
			for j := range 100 {
				nv = append(nv, fmt.Sprintf("%03d", j), fmt.Sprint(i))
			}
			last = b.put(nv...)
		}
		b.settle(last)
		w := b.watch("", start)
		seen := map[int64]int{}
		for {
			batch := w.batch()
			inBatch := map[int64]int{}
			for _, e := range batch.Events {
				inBatch[e.KV.ModRevision]++
			}
			for rev, n := range inBatch {
				if n != 100 || seen[rev] != 0 {
					t.Fatalf("revision %d: %d events in a batch after %d before, want 100 at once", rev, n, seen[rev])
				}
				seen[rev] = n
			}
			if batch.Position.Revision >= last.Revision {
				break
			}
		}
		if len(seen) != 20 {
			t.Errorf("%d revisions, want 20", len(seen))
		}
	},
	"EndsWithoutErrorWhenTheContextDoes": func(t *testing.T, b *bench) {
		w := b.watch("", b.now())
		w.batch()
		w.cancel()
		select {
		case err := <-w.err:
			if err != nil {
				t.Errorf("ended with %v", err)
			}
			w.err <- err
		case <-time.After(patience):
			t.Error("did not end")
		}
	},
	"CanBeLeft": func(t *testing.T, b *bench) {
		now := b.now()
		for range 20 {
			for range b.r.Watch(b.ctx, b.prefix, now) {
				break
			}
		}
	},
	"PromisesUnderChurn": func(t *testing.T, b *bench) { churn(t, b) },
}

// churn writes at random from several goroutines while watches come, go and
// resume, and then judges the recorded history.
func churn(t *testing.T, b *bench) {
	start := b.now()
	writer := NewRecorder(b.w)
	reader := NewRecorder(b.r)
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel()
	var writers, readers sync.WaitGroup
	for i := range 3 {
		writers.Go(func() { scribble(ctx, writer, b.prefix, rand.New(rand.NewPCG(uint64(i), 1)), 100) })
	}
	for i, sub := range []string{"", "", "1/", "2/", "none/"} {
		readers.Go(func() { hop(ctx, reader, b.prefix+sub, start, 5+17*i) })
	}
	writers.Wait()
	last := b.put("end", "", "1/end", "", "2/end", "", "none/end", "")
	done := make(chan struct{})
	go func() { readers.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
		t.Error("a watch did not come to the end")
		cancel()
		<-done
	}
	h := reader.History()
	h.Commits = writer.History().Commits
	h.addCommit(last, endOps(b.prefix))
	h.Start = start
	for _, err := range h.Verify() {
		t.Error(err)
	}
}

func endOps(prefix string) (ops []kvstore.Op) {
	for _, name := range []string{"end", "1/end", "2/end", "none/end"} {
		ops = append(ops, kvstore.Put(prefix+name, nil, 0))
	}
	return ops
}

// scribble commits n small random changes.
func scribble(ctx context.Context, s kvstore.Store, prefix string, r *rand.Rand, n int) {
	for i := range n {
		var ops []kvstore.Op
		for _, k := range r.Perm(12)[:1+r.IntN(4)] {
			key := fmt.Sprintf("%s%d/%d", prefix, k%3, k)
			if r.IntN(3) == 0 {
				ops = append(ops, kvstore.Delete(key))
			} else {
				ops = append(ops, kvstore.Put(key, fmt.Appendf(nil, "%d", i), 0))
			}
		}
		if _, err := s.Commit(ctx, ops...); err != nil {
			return
		}
	}
}

// hop watches, leaves after a number of batches, and resumes where it was,
// until it has seen a key that ends with "end".
func hop(ctx context.Context, s kvstore.Store, prefix string, at kvstore.Position, leaveAfter int) {
	for ctx.Err() == nil {
		n := 0
		for batch, err := range s.Watch(ctx, prefix, at) {
			if err != nil {
				break
			}
			at = batch.Position
			for _, e := range batch.Events {
				if e.KV.Key == prefix+"end" {
					return
				}
			}
			if n++; n >= leaveAfter {
				break
			}
		}
	}
}
