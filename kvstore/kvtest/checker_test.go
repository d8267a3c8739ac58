package kvtest

import (
	"slices"
	"testing"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

const storeID = 5

// sound is a history without a fault: a created, changed, deleted, created
// anew; b beside it, outside the prefix of the second watch.
func sound() *History {
	up := func(key, value string, create, mod int64) kvstore.Event {
		return kvstore.Event{KV: kvstore.KV{Key: key, Value: []byte(value), CreateRevision: create, ModRevision: mod}}
	}
	gone := func(key string, mod int64) kvstore.Event {
		return kvstore.Event{Delete: true, KV: kvstore.KV{Key: key, ModRevision: mod}}
	}
	batch := func(rev int64, events ...kvstore.Event) kvstore.Batch {
		return kvstore.Batch{Position: kvstore.Position{StoreID: storeID, Revision: rev}, Events: events}
	}
	h := &History{Start: kvstore.Position{StoreID: storeID, Revision: 1}}
	at := func(rev int64, ops ...kvstore.Op) {
		h.addCommit(kvstore.Position{StoreID: storeID, Revision: rev}, ops)
	}
	at(2, kvstore.Put("p/a", []byte("1"), 0), kvstore.Put("q/b", []byte("1"), 0))
	at(3, kvstore.Put("p/a", []byte("2"), 0), kvstore.Put("p/c", []byte("1"), 0))
	at(4, kvstore.Delete("p/a"), kvstore.Delete("p/none"))
	at(5, kvstore.Put("p/a", []byte("3"), 0))
	h.Watches = []Watch{
		{Prefix: "", After: h.Start, Batches: []kvstore.Batch{
			batch(1),
			batch(2, up("p/a", "1", 2, 2), up("q/b", "1", 2, 2)),
			batch(4, up("p/a", "2", 2, 3), up("p/c", "1", 3, 3), gone("p/a", 4)),
			batch(5, up("p/a", "3", 5, 5)),
		}},
		{Prefix: "p/", After: kvstore.Position{StoreID: storeID, Revision: 2}, Batches: []kvstore.Batch{
			batch(2),
			batch(3, up("p/a", "2", 2, 3), up("p/c", "1", 3, 3)),
			batch(5, gone("p/a", 4), up("p/a", "3", 5, 5)),
		}},
	}
	return h
}

func TestSoundHistoryPasses(t *testing.T) {
	for _, err := range sound().Verify() {
		t.Error(err)
	}
}

// Every checker fails on a history that breaks its promise.
func TestCheckersCanFail(t *testing.T) {
	second := func(h *History) *Watch { return &h.Watches[1] }
	cases := []struct {
		name   string
		breakI func(h *History)
		want   string
	}{
		{"a key outside the prefix", func(h *History) { second(h).Prefix = "p/a" }, "filter"},
		{"revisions swapped", func(h *History) {
			e := second(h).Batches[2].Events
			e[0], e[1] = e[1], e[0]
		}, "ordered"},
		{"positions swapped", func(h *History) {
			b := second(h).Batches
			b[1].Position, b[2].Position = b[2].Position, b[1].Position
		}, "ordered"},
		{"an event twice", func(h *History) {
			b := &second(h).Batches[1]
			b.Events = append(b.Events, b.Events[0])
		}, "unique"},
		{"a revision split", func(h *History) {
			w := second(h)
			first := w.Batches[1]
			half := first
			half.Events, first.Events = first.Events[:1], first.Events[1:]
			w.Batches = slices.Insert(w.Batches, 1, half)
			w.Batches[2] = first
		}, "atomic"},
		{"an event behind the bookmark", func(h *History) { second(h).Batches[0].Position.Revision = 3 }, "bookmarkable"},
		{"an event ahead of its batch", func(h *History) { second(h).Batches[1].Position.Revision = 2 }, "bookmarkable"},
		{"the first revision left out", func(h *History) { second(h).Batches = slices.Delete(second(h).Batches, 1, 2) }, "resumable"},
		{"an event left out", func(h *History) { second(h).Batches[2].Events = second(h).Batches[2].Events[1:] }, "reliable"},
		{"an event made up", func(h *History) { second(h).Batches[1].Events[0].KV.Value = []byte("x") }, "reliable"},
		{"progress past an event", func(h *History) {
			h.Watches[0].Batches = h.Watches[0].Batches[:1]
			h.Watches[0].Batches[0].Position.Revision = 5
		}, "reliable"},
		{"a second life as the first", func(h *History) { second(h).Batches[2].Events[1].KV.CreateRevision = 2 }, "create"},
		{"a delete with a value", func(h *History) { second(h).Batches[2].Events[0].KV.Value = []byte("2") }, "delete"},
		{"a delete with a create revision", func(h *History) { second(h).Batches[2].Events[0].KV.CreateRevision = 2 }, "delete"},
	}
	failed := map[string]bool{}
	for _, c := range cases {
		h := sound()
		c.breakI(h)
		for _, checker := range Checkers {
			if checker.Name == c.want && len(checker.Of(h)) == 0 {
				t.Errorf("%s: the checker %q does not see it", c.name, c.want)
			}
		}
		failed[c.want] = true
	}
	for _, checker := range Checkers {
		if !failed[checker.Name] {
			t.Errorf("no case makes the checker %q fail", checker.Name)
		}
	}
}
