package kvtest

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strings"
	"testing"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

var listTests = map[string]func(*testing.T, *bench){
	"Empty": func(t *testing.T, b *bench) {
		kvs, pos := b.list(b.prefix, kvstore.Position{})
		if len(kvs) != 0 || pos.StoreID == 0 || pos.Revision <= 0 {
			t.Errorf("%v at %v, want nothing at a real position", kvs, pos)
		}
	},
	"OrderAndPrefix": func(t *testing.T, b *bench) {
		names := []string{"b", "a/2", "a/10", "a", "a0", "a/", "a.", "\xff", "\xfe\xff", "a/\xff", "a/\x00", "ab"}
		var last kvstore.Position
		for _, name := range names {
			last = b.put(name, name)
		}
		sort.Strings(names)
		for _, prefix := range append([]string{"", "a\xff", "c", "\xff\xff", "a/1"}, names...) {
			var want, got []string
			for _, name := range names {
				if strings.HasPrefix(name, prefix) {
					want = append(want, name)
				}
			}
			kvs, _ := b.list(b.prefix+prefix, last)
			for _, kv := range kvs {
				got = append(got, kv.Key[len(b.prefix):])
			}
			if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
				t.Errorf("prefix %q: %q, want %q", prefix, got, want)
			}
		}
	},
	"EmptyPrefixIsEverything": func(t *testing.T, b *bench) {
		last := b.put("a", "1")
		kvs, _ := b.list("", last)
		for _, kv := range kvs {
			if kv.Key == b.key("a") {
				return
			}
		}
		t.Errorf("the key is not among all %d", len(kvs))
	},
	"Revisions": func(t *testing.T, b *bench) {
		one := b.put("a", "1", "b", "1")
		two := b.put("a", "2")
		b.delete("b")
		three := b.put("b", "2")
		kvs, pos := b.list(b.prefix, three)
		if pos != three || len(kvs) != 2 {
			t.Fatalf("%d keys at %v, want 2 at %v", len(kvs), pos, three)
		}
		a, c := kvs[0], kvs[1]
		if a.CreateRevision != one.Revision || a.ModRevision != two.Revision || string(a.Value) != "2" {
			t.Errorf("a: %+v, want created at %d and written at %d", a, one.Revision, two.Revision)
		}
		if c.CreateRevision != three.Revision || c.ModRevision != three.Revision {
			t.Errorf("b, in its second life: %+v, want both revisions %d", c, three.Revision)
		}
	},
	"SeesCommitsThatEnded": func(t *testing.T, b *bench) {
		if b.lagging {
			t.Skip("the reader may lag")
		}
		for i := range 50 {
			want := b.put("a", fmt.Sprint(i))
			kvs, pos := b.list(b.prefix, kvstore.Position{})
			if pos.Revision < want.Revision || pos.StoreID != want.StoreID || string(kvs[0].Value) != fmt.Sprint(i) {
				t.Fatalf("%v at %v after commit %v", kvs, pos, want)
			}
		}
	},
	"OldSnapshots": func(t *testing.T, b *bench) {
		type snap struct {
			at   kvstore.Position
			want []string
		}
		snaps := []snap{
			{b.put("a", "1"), []string{"a", "1"}},
			{b.put("b", "1", "c", "1"), []string{"a", "1", "b", "1", "c", "1"}},
			{b.put("a", "2"), []string{"a", "2", "b", "1", "c", "1"}},
			{b.delete("b"), []string{"a", "2", "c", "1"}},
			{b.put("b", "3", "a", ""), []string{"a", "", "b", "3", "c", "1"}},
			{b.delete("a", "b", "c"), nil},
		}
		for _, s := range snaps {
			b.wantContent(s.at, s.want...)
			if _, pos := b.list(b.prefix, s.at); pos != s.at {
				t.Errorf("position %v, want %v", pos, s.at)
			}
		}
	},
	"FutureRevision": func(t *testing.T, b *bench) {
		now := b.now()
		b.wantReadErrors(kvstore.Position{StoreID: now.StoreID, Revision: now.Revision + 1000}, kvstore.ErrFutureRevision)
	},
	"OtherStore": func(t *testing.T, b *bench) {
		now := b.now()
		b.wantReadErrors(kvstore.Position{StoreID: now.StoreID + 1, Revision: now.Revision}, kvstore.ErrOtherStore)
		b.wantReadErrors(kvstore.Position{StoreID: now.StoreID + 1, Revision: now.Revision + 1000}, kvstore.ErrOtherStore)
	},
	"Compacted": func(t *testing.T, b *bench) {
		old := b.put("a", "1")
		edge := b.put("a", "2")
		now := b.put("a", "3")
		b.settle(now)
		b.compactTo(edge.Revision)
		b.wantReadErrors(old, kvstore.ErrCompacted)
		b.wantContent(edge, "a", "2")
		if got := b.describe(b.watch("", edge).until(now), edge.Revision); !strings.HasPrefix(got, " +a=3@1") {
			t.Errorf("watch after the compacted revision: %q, want a=3", got)
		}
	},
	"ErrorOfVisit": func(t *testing.T, b *bench) {
		now := b.now()
		mine := errors.New("enough")
		if _, err := b.r.List(b.ctx, b.prefix, now, func([]kvstore.KV) error { return mine }); !errors.Is(err, mine) {
			t.Errorf("got %v, want the error of visit", err)
		}
	},
	"EndedContext": func(t *testing.T, b *bench) {
		now := b.now()
		ctx, cancel := context.WithCancel(b.ctx)
		cancel()
		if _, err := b.r.List(ctx, b.prefix, now, func([]kvstore.KV) error { return nil }); err == nil {
			t.Error("a list with an ended context succeeded")
		}
	},
	"ManyKeysOneSnapshot": func(t *testing.T, b *bench) {
		const n = 3000
		var last kvstore.Position
		for i := 0; i < n; i += 100 {
			var nv []string
			for j := range 100 {
				nv = append(nv, fmt.Sprintf("%05d", i+j), "first")
			}
			last = b.put(nv...)
		}
		b.settle(last)
		seen := 0
		var held []kvstore.KV
		_, err := b.r.List(b.ctx, b.prefix, last, func(chunk []kvstore.KV) error {
			if seen == 0 { // what is written now is not in the snapshot
				b.put("00000", "second", fmt.Sprintf("%05d", n-1), "second", fmt.Sprintf("%05d", n), "new")
				b.delete("01500")
			}
			seen += len(chunk)
			held = append(held, chunk...)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if seen != n {
			t.Fatalf("%d keys, want %d", seen, n)
		}
		for i, kv := range held {
			if kv.Key != b.key(fmt.Sprintf("%05d", i)) || string(kv.Value) != "first" {
				t.Fatalf("key %d is %q=%q", i, kv.Key, kv.Value)
			}
		}
	},
}

// compactTo compacts what the reader reads, or skips the test.
func (b *bench) compactTo(rev int64) {
	b.t.Helper()
	if b.compact != nil {
		if err := b.compact(b.w, b.r, rev); err != nil {
			b.t.Fatalf("compact: %v", err)
		}
		return
	}
	c, ok := b.r.(interface{ Compact(rev int64) })
	if !ok {
		b.t.Skip("the suite was not told how to compact this store")
	}
	c.Compact(rev)
}
