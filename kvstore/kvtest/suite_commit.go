package kvtest

import (
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

var commitTests = map[string]func(*testing.T, *bench){
	"OneRevisionEach": func(t *testing.T, b *bench) {
		first := b.put("a", "1")
		second := b.put("a", "2", "b", "2", "c", "2")
		third := b.delete("a")
		if second.Revision != first.Revision+1 || third.Revision != first.Revision+2 {
			t.Errorf("revisions %d, %d, %d: each commit takes the next one", first.Revision, second.Revision, third.Revision)
		}
	},
	"DeleteOfTheAbsent": func(t *testing.T, b *bench) {
		before := b.put("a", "1")
		if after := b.delete("nothing"); after.Revision < before.Revision {
			t.Errorf("revision went from %d to %d", before.Revision, after.Revision)
		}
		b.wantContent(b.put("b", "1", "a", "1"), "a", "1", "b", "1")
	},
	"Conditions": func(t *testing.T, b *bench) {
		type rev = kvstore.Position
		mod, create := kvstore.IfModRevision, kvstore.IfCreateRevision
		cases := []struct {
			name string
			cond func(a, none string, created, written rev) []kvstore.Op
			ok   bool
		}{
			{"mod holds", func(a, _ string, _, w rev) []kvstore.Op { return []kvstore.Op{mod(a, w.Revision)} }, true},
			{"mod does not", func(a, _ string, c, _ rev) []kvstore.Op { return []kvstore.Op{mod(a, c.Revision)} }, false},
			{"create holds", func(a, _ string, c, _ rev) []kvstore.Op { return []kvstore.Op{create(a, c.Revision)} }, true},
			{"create does not", func(a, _ string, _, w rev) []kvstore.Op { return []kvstore.Op{create(a, w.Revision)} }, false},
			{"absent holds", func(_, none string, _, _ rev) []kvstore.Op { return []kvstore.Op{mod(none, 0)} }, true},
			{"absent does not", func(a, _ string, _, _ rev) []kvstore.Op { return []kvstore.Op{mod(a, 0)} }, false},
			{"create of the absent", func(_, none string, _, _ rev) []kvstore.Op { return []kvstore.Op{create(none, 0)} }, true},
			{"one of two", func(a, none string, _, _ rev) []kvstore.Op { return []kvstore.Op{mod(none, 0), mod(a, 1)} }, false},
		}
		base := b.prefix
		for _, c := range cases {
			b.prefix = base + c.name + "/"
			created := b.put("a", "1")
			written := b.put("a", "2", "y", "before")
			ops := append(c.cond(b.key("a"), b.key("none"), created, written),
				kvstore.Put(b.key("x"), []byte("new"), 0), kvstore.Delete(b.key("y")))
			pos, err := b.w.Commit(b.ctx, ops...)
			switch {
			case c.ok && err != nil:
				t.Errorf("%s: %v", c.name, err)
			case c.ok:
				b.wantContent(pos, "a", "2", "x", "new")
			case !errors.Is(err, kvstore.ErrConflict):
				t.Errorf("%s: %v, want ErrConflict", c.name, err)
			default:
				b.wantContent(b.put("z", ""), "a", "2", "y", "before", "z", "")
			}
		}
	},
	"SecondLifeFailsTheFence": func(t *testing.T, b *bench) {
		token := b.put("leader", "me")
		b.delete("leader")
		b.put("leader", "me")
		_, err := b.w.Commit(b.ctx, kvstore.IfCreateRevision(b.key("leader"), token.Revision), kvstore.Put(b.key("x"), nil, 0))
		if !errors.Is(err, kvstore.ErrConflict) {
			t.Errorf("got %v, want ErrConflict", err)
		}
	},
	"Limits": func(t *testing.T, b *bench) {
		ops := func(n int) (out []kvstore.Op) {
			for i := range n - 1 {
				out = append(out, kvstore.Put(b.key(fmt.Sprintf("%03d", i)), []byte("x"), 0))
			}
			return append(out, kvstore.IfModRevision(b.key("none"), 0))
		}
		if _, err := b.w.Commit(b.ctx, ops(kvstore.MaxOps+1)...); !errors.Is(err, kvstore.ErrTooLarge) {
			t.Errorf("%d operations: %v, want ErrTooLarge", kvstore.MaxOps+1, err)
		}
		if _, err := b.w.Commit(b.ctx, kvstore.Put(b.key("big"), make([]byte, 8<<20), 0)); !errors.Is(err, kvstore.ErrTooLarge) {
			t.Errorf("8 MiB: %v, want ErrTooLarge", err)
		}
		b.wantContent(b.put("a", "1"), "a", "1")
		pos := b.commit(ops(kvstore.MaxOps)...)
		if n := len(b.content(pos)); n != kvstore.MaxOps {
			t.Errorf("%d keys after a commit of the largest size, want %d", n, kvstore.MaxOps)
		}
		b.commit(kvstore.Put(b.key("record"), make([]byte, kvstore.MaxValue), 0))
	},
	"KeyTwice": func(t *testing.T, b *bench) {
		for _, ops := range [][]kvstore.Op{
			{kvstore.Put(b.key("a"), nil, 0), kvstore.Put(b.key("a"), nil, 0)},
			{kvstore.Put(b.key("a"), nil, 0), kvstore.Delete(b.key("a"))},
		} {
			if _, err := b.w.Commit(b.ctx, ops...); err == nil {
				t.Error("a commit that writes a key twice was taken")
			}
		}
		b.wantContent(b.put("b", ""), "b", "")
	},
	"EmptyValue": func(t *testing.T, b *bench) {
		b.wantContent(b.put("a", ""), "a", "")
	},
	"CompareAndPutLosesNothing": func(t *testing.T, b *bench) {
		const workers, each = 4, 10
		b.put("n", "0")
		var group sync.WaitGroup
		for range workers {
			group.Go(func() {
				for range each {
					for b.increment("n") != nil && b.ctx.Err() == nil {
					}
				}
			})
		}
		group.Wait()
		b.wantContent(b.put("end", ""), "n", strconv.Itoa(workers*each), "end", "")
	},
	"ReaderRefuses": func(t *testing.T, b *bench) {
		if !b.readOnly {
			t.Skip("the reader may write")
		}
		b.now()
		if _, err := b.r.Commit(b.ctx, kvstore.Put(b.key("a"), nil, 0)); !errors.Is(err, kvstore.ErrReadOnly) {
			t.Errorf("commit: %v, want ErrReadOnly", err)
		}
		if _, err := b.r.Grant(b.ctx, time.Minute); !errors.Is(err, kvstore.ErrReadOnly) {
			t.Errorf("grant: %v, want ErrReadOnly", err)
		}
	},
}

// increment adds one to a number by compare-and-put; ErrConflict if somebody
// came first.
func (b *bench) increment(name string) error {
	var kv kvstore.KV
	_, err := b.w.List(b.ctx, b.key(name), kvstore.Position{}, func(kvs []kvstore.KV) error {
		kv = kvs[0]
		return nil
	})
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(string(kv.Value))
	if err != nil {
		return err
	}
	_, err = b.w.Commit(b.ctx, kvstore.IfModRevision(kv.Key, kv.ModRevision),
		kvstore.Put(kv.Key, []byte(strconv.Itoa(n+1)), 0))
	return err
}

var leaseTests = map[string]func(*testing.T, *bench){
	"ExpiresWithItsKeys": func(t *testing.T, b *bench) {
		lease, err := b.w.Grant(b.ctx, 1500*time.Millisecond) // rounded up to 2 s
		if err != nil {
			t.Fatal(err)
		}
		if lease.ID() == 0 {
			t.Error("the lease has no ID")
		}
		pos := b.commit(kvstore.Put(b.key("a"), []byte("1"), lease.ID()), kvstore.Put(b.key("b"), nil, lease.ID()),
			kvstore.Put(b.key("c"), nil, lease.ID()), kvstore.Put(b.key("stays"), nil, 0))
		kvs, _ := b.list(b.prefix, pos)
		if kvs[0].Lease != lease.ID() || kvs[3].Lease != 0 {
			t.Errorf("leases %x and %x, want %x and 0", kvs[0].Lease, kvs[3].Lease, lease.ID())
		}
		pos = b.put("c", "without") // a put without a lease takes the key off it
		left, err := lease.KeepAlive(b.ctx)
		if err != nil || left <= time.Second || left > 10*time.Second {
			t.Errorf("keep alive: %v left, error %v", left, err)
		}
		w := b.watch("", pos)
		var gone []kvstore.Event
		for len(gone) < 2 {
			gone = append(gone, w.batch().Events...)
		}
		for _, e := range gone {
			if !e.Delete || e.KV.Key != b.key("a") && e.KV.Key != b.key("b") {
				t.Errorf("event %v, want deletes of a and b", e)
			}
		}
		if gone[0].KV.ModRevision != gone[1].KV.ModRevision {
			t.Error("a lease takes its keys at one revision")
		}
		if _, err := lease.KeepAlive(b.ctx); !errors.Is(err, kvstore.ErrLeaseNotFound) {
			t.Errorf("keep alive after the end: %v, want ErrLeaseNotFound", err)
		}
		if _, err := b.w.Commit(b.ctx, kvstore.Put(b.key("d"), nil, lease.ID())); !errors.Is(err, kvstore.ErrLeaseNotFound) {
			t.Errorf("put on a dead lease: %v, want ErrLeaseNotFound", err)
		}
		b.wantContent(b.put("stays", "1"), "c", "without", "stays", "1")
	},
	"KeepAliveKeeps": func(t *testing.T, b *bench) {
		lease, err := b.w.Grant(b.ctx, 2*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		b.commit(kvstore.Put(b.key("a"), nil, lease.ID()))
		for end := time.Now().Add(3500 * time.Millisecond); time.Now().Before(end); time.Sleep(400 * time.Millisecond) {
			if _, err := lease.KeepAlive(b.ctx); err != nil {
				t.Fatal(err)
			}
		}
		b.wantContent(b.put("b", ""), "a", "", "b", "")
	},
	"Revoke": func(t *testing.T, b *bench) {
		lease, err := b.w.Grant(b.ctx, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		other, err := b.w.Grant(b.ctx, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		b.commit(kvstore.Put(b.key("a"), nil, lease.ID()), kvstore.Put(b.key("b"), nil, other.ID()))
		if err := lease.Revoke(b.ctx); err != nil {
			t.Fatal(err)
		}
		b.wantContent(b.put("c", ""), "b", "", "c", "")
		if err := lease.Revoke(b.ctx); !errors.Is(err, kvstore.ErrLeaseNotFound) {
			t.Errorf("second revoke: %v, want ErrLeaseNotFound", err)
		}
		if err := other.Revoke(b.ctx); err != nil {
			t.Error(err)
		}
	},
}
