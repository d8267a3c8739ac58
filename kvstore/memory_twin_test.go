package kvstore

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// twin is the slow obvious store: every revision a whole map.
type twin struct {
	revs      []map[string]KV // revs[r] is the content at revision r
	compacted int64
}

func newTwin() *twin { return &twin{revs: []map[string]KV{nil, {}}, compacted: 1} }

func (w *twin) now() int64 { return int64(len(w.revs) - 1) }

func (w *twin) commit(ops []Op) (int64, error) {
	content, changed := map[string]KV{}, false
	for k, v := range w.revs[w.now()] {
		content[k] = v
	}
	rev, ok := w.now()+1, true
	for _, op := range ops {
		op.Decode(
			func(key string, value []byte, _ int64) {
				kv := KV{Key: key, Value: value, CreateRevision: rev, ModRevision: rev}
				if old, exists := content[key]; exists {
					kv.CreateRevision = old.CreateRevision
				}
				content[key], changed = kv, true
			},
			func(key string) {
				if _, exists := content[key]; exists {
					delete(content, key)
					changed = true
				}
			},
			func(key string, at int64) { ok = ok && w.revs[w.now()][key].ModRevision == at },
			func(key string, at int64) { ok = ok && w.revs[w.now()][key].CreateRevision == at },
		)
	}
	if !ok {
		return 0, ErrConflict
	}
	if changed {
		w.revs = append(w.revs, content)
	}
	return w.now(), nil
}

func (w *twin) check(rev int64) error {
	switch {
	case rev > w.now():
		return ErrFutureRevision
	case rev < w.compacted:
		return ErrCompacted
	}
	return nil
}

func (w *twin) list(prefix string, rev int64) string {
	var out []string
	for key, kv := range w.revs[rev] {
		if strings.HasPrefix(key, prefix) {
			out = append(out, dump(Event{KV: kv}))
		}
	}
	sort.Strings(out)
	return strings.Join(out, "\n")
}

// watch is what changed after rev, sorted within each revision.
func (w *twin) watch(prefix string, after int64) string {
	var out []string
	for rev := after + 1; rev <= w.now(); rev++ {
		var events []string
		for key, kv := range w.revs[rev] {
			if strings.HasPrefix(key, prefix) && kv.ModRevision == rev {
				events = append(events, dump(Event{KV: kv}))
			}
		}
		for key := range w.revs[rev-1] {
			if _, exists := w.revs[rev][key]; !exists && strings.HasPrefix(key, prefix) {
				events = append(events, dump(Event{Delete: true, KV: KV{Key: key, ModRevision: rev}}))
			}
		}
		sort.Strings(events)
		out = append(out, events...)
	}
	return strings.Join(out, "\n")
}

func dump(e Event) string {
	return fmt.Sprintf("%q %v %q %d %d", e.KV.Key, e.Delete, e.KV.Value, e.KV.CreateRevision, e.KV.ModRevision)
}

// Memory does what its twin does, whatever the order of calls; and a replica of
// it, fed in random pieces, shows the same.
func TestMemoryIsItsTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newTwin()
		m := NewMemory(MemoryOptions{StoreID: 1, History: 1 << 20})
		r := NewReplica(MemoryOptions{History: 1 << 20})
		if err := r.Sink().Begin(Position{1, 1}, nil); err != nil {
			t.Fatal(err)
		}
		r.Sink().Synced(Position{1, 1})
		spread := rapid.SampledFrom([]int{3, 30, 700}).Draw(t, "keys")
		key := rapid.Custom(func(t *rapid.T) string {
			return fmt.Sprintf("%c/%03d", 'a'+rapid.IntRange(0, 2).Draw(t, "dir"), rapid.IntRange(0, spread).Draw(t, "name"))
		})
		t.Repeat(map[string]func(*rapid.T){
			"commit": func(t *rapid.T) { twinCommit(t, w, m, key, spread) },
			"compact": func(t *rapid.T) {
				rev := rapid.Int64Range(1, w.now()+1).Draw(t, "rev")
				m.Compact(rev)
				w.compacted = max(w.compacted, min(rev, w.now()))
			},
			"feed": func(t *rapid.T) { twinFeed(t, m, r) },
			"list": func(t *rapid.T) { twinList(t, w, m, r) },
			"watch": func(t *rapid.T) {
				after := rapid.Int64Range(1, w.now()+1).Draw(t, "after")
				_, err := drain(m, prefixes.Draw(t, "prefix"), after, 0)
				if want := w.check(after); !errors.Is(err, want) {
					t.Fatalf("watch after %d: %v, want %v", after, err, want)
				}
			},
			"": func(t *rapid.T) {
				if err := m.tree.check(); err != nil {
					t.Fatal(err)
				}
				prefix := prefixes.Draw(t, "prefix")
				after := rapid.Int64Range(w.compacted, w.now()).Draw(t, "after")
				got, err := drain(m, prefix, after, w.now())
				if want := w.watch(prefix, after); err != nil || got != want {
					t.Fatalf("watch of %q after %d: %v\n%s\nwant\n%s", prefix, after, err, got, want)
				}
			},
		})
	})
}

var prefixes = rapid.SampledFrom([]string{"", "a/", "b/0", "b/01", "c", "d", "a/001"})

func twinCommit(t *rapid.T, w *twin, m *Memory, key *rapid.Generator[string], spread int) {
	keys := rapid.SliceOfNDistinct(key, 1, min(spread, 60), rapid.ID[string]).Draw(t, "keys")
	deletes := rapid.IntRange(0, 4).Draw(t, "deletes of 4")
	var ops []Op
	for i, k := range keys {
		switch {
		case i%4 < deletes:
			ops = append(ops, Delete(k))
		default:
			ops = append(ops, Put(k, fmt.Appendf(nil, "%d", w.now()), 0))
		}
	}
	switch rapid.IntRange(0, 5).Draw(t, "condition") {
	case 0:
		ops = append(ops, IfModRevision(key.Draw(t, "key"), rapid.Int64Range(0, w.now()).Draw(t, "rev")))
	case 1:
		k := key.Draw(t, "key")
		ops = append(ops, IfCreateRevision(k, w.revs[w.now()][k].CreateRevision))
	}
	want, wantErr := w.commit(ops)
	got, err := m.Commit(context.Background(), ops...)
	if !errors.Is(err, wantErr) || err == nil && got != (Position{1, want}) {
		t.Fatalf("commit: %v, %v, want %v, %v", got, err, want, wantErr)
	}
}

// twinFeed hands the replica some of what it lacks, or lists anew.
func twinFeed(t *rapid.T, m, r *Memory) {
	sink := r.Sink()
	after := r.Position()
	if m.check(after) != nil || rapid.IntRange(0, 5).Draw(t, "list") == 0 {
		at := m.Position()
		if err := sink.Begin(at, nil); err != nil {
			t.Fatal(err)
		}
		for chunk := range m.tree.chunks("") {
			var events []Event
			for _, kv := range chunk {
				events = append(events, Event{KV: kv})
			}
			if err := sink.Apply(at, events); err != nil {
				t.Fatal(err)
			}
		}
		sink.Synced(at)
		return
	}
	n := rapid.IntRange(0, 5).Draw(t, "revisions")
	revs := m.hist.after(after.Revision)
	revs = revs[:min(n, len(revs))]
	var events []Event
	for _, rev := range revs {
		events = append(events, rev.events...)
		after.Revision = rev.rev
	}
	if err := sink.Apply(after, events); err != nil {
		t.Fatal(err)
	}
}

func twinList(t *rapid.T, w *twin, m, r *Memory) {
	prefix := prefixes.Draw(t, "prefix")
	at := rapid.Int64Range(1, w.now()+1).Draw(t, "at")
	for name, s := range map[string]*Memory{"memory": m, "replica": r} {
		want := w.check(at)
		if s == r {
			want = nil
			if at < r.hist.floor {
				want = ErrCompacted
			} else if at > r.rev {
				want = ErrFutureRevision
			}
		}
		var got []string
		_, err := s.List(context.Background(), prefix, Position{1, at}, func(kvs []KV) error {
			for _, kv := range kvs {
				got = append(got, dump(Event{KV: kv}))
			}
			return nil
		})
		if !errors.Is(err, want) {
			t.Fatalf("%s at %d: %v, want %v", name, at, err, want)
		}
		if err == nil && strings.Join(got, "\n") != w.list(prefix, at) {
			t.Fatalf("%s at %d:\n%s\nwant\n%s", name, at, strings.Join(got, "\n"), w.list(prefix, at))
		}
	}
}

// drain is what a watch delivers up to a revision, sorted within each; with
// upTo 0 it stops after the first answer.
func drain(m *Memory, prefix string, after, upTo int64) (string, error) {
	var out []string
	for batch, err := range m.Watch(context.Background(), prefix, Position{1, after}) {
		if err != nil {
			return "", err
		}
		byRev := map[int64][]string{}
		var revs []int64
		for _, e := range batch.Events {
			if byRev[e.KV.ModRevision] == nil {
				revs = append(revs, e.KV.ModRevision)
			}
			byRev[e.KV.ModRevision] = append(byRev[e.KV.ModRevision], dump(e))
		}
		for _, rev := range revs {
			sort.Strings(byRev[rev])
			out = append(out, byRev[rev]...)
		}
		if batch.Position.Revision >= upTo {
			break
		}
	}
	return strings.Join(out, "\n"), nil
}

// check verifies the shape of a tree.
func (t tree) check() error {
	if t.root == nil {
		if t.size != 0 {
			return fmt.Errorf("empty tree of size %d", t.size)
		}
		return nil
	}
	n, last := 0, ""
	depth := -1
	var visit func(node *node, low string, level int) error
	visit = func(node *node, low string, level int) error {
		if node.kids == nil {
			if depth < 0 {
				depth = level
			}
			if len(node.kvs) == 0 || len(node.kvs) > leafMax || level != depth {
				return fmt.Errorf("a leaf of %d at level %d of %d", len(node.kvs), level, depth)
			}
			for _, kv := range node.kvs {
				if kv.Key < low || n > 0 && kv.Key <= last {
					return fmt.Errorf("key %q after %q, lower bound %q", kv.Key, last, low)
				}
				last = kv.Key
				n++
			}
			return nil
		}
		if len(node.kids) == 0 || len(node.kids) > kidsMax || len(node.kids) != len(node.keys) {
			return fmt.Errorf("a node of %d children and %d bounds", len(node.kids), len(node.keys))
		}
		for i, kid := range node.kids {
			bound := low
			if i > 0 {
				bound = node.keys[i]
				if bound <= last {
					return fmt.Errorf("bound %q after key %q", bound, last)
				}
			}
			if err := visit(kid, bound, level+1); err != nil {
				return err
			}
		}
		return nil
	}
	if err := visit(t.root, "", 0); err != nil {
		return err
	}
	if n != t.size {
		return fmt.Errorf("%d keys in a tree of size %d", n, t.size)
	}
	return nil
}

// A large tree stays well filled and sound while it grows in order, shrinks and
// is changed at random; and no editor keeps an old tree alive.
func TestTreeOfManyKeys(t *testing.T) {
	var tr tree
	const n = 30000
	e := tr.edit()
	for i := range n {
		e.put(KV{Key: fmt.Sprintf("%06d", i)})
	}
	tr = e.done()
	if err := tr.check(); err != nil {
		t.Fatal(err)
	}
	chunks := 0
	for range tr.chunks("") {
		chunks++
	}
	if chunks > n/leafMax+1 {
		t.Errorf("%d leaves for %d keys put in order", chunks, n)
	}
	before := tr
	for i := range n {
		e := tr.edit()
		e.delete(fmt.Sprintf("%06d", (i*7919)%n))
		tr = e.done()
		if i%1000 == 0 {
			if err := tr.check(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if tr.root != nil || tr.size != 0 {
		t.Errorf("%d keys left", tr.size)
	}
	if err := before.check(); err != nil || before.size != n {
		t.Errorf("the old tree changed: %d keys, %v", before.size, err)
	}
}
