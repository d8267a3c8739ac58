package kvtest

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

// Checker judges one watch promise over a recorded history. The names are those
// of etcd's robustness tests, so that findings can be compared.
type Checker struct {
	Name    string
	Promise string
	check   func(h *History, truth *truth, w *Watch) error
}

// Checkers are the nine watch promises.
var Checkers = []Checker{
	{"filter", "every event is of a key under the prefix", checkFilter},
	{"ordered", "revisions never go back", checkOrdered},
	{"unique", "no event comes twice", checkUnique},
	{"atomic", "the events of one revision come in one batch", checkAtomic},
	{"bookmarkable", "after a batch at a position, nothing at or before it follows", checkBookmarkable},
	{"resumable", "a watch after a position begins with the first event after it", checkResumable},
	{"reliable", "no event is left out up to the position, and none is made up", checkReliable},
	{"create", "CreateRevision is that of the key's present life", checkCreate},
	{"delete", "a delete has the key and its own revision, and nothing else", checkDelete},
}

// Verify returns the broken promises, at most one of each kind per watch.
func (h *History) Verify() []error {
	t := h.truth()
	var errs []error
	for _, c := range Checkers {
		errs = append(errs, c.of(h, t)...)
	}
	return errs
}

// Of judges this promise alone.
func (c Checker) Of(h *History) []error { return c.of(h, h.truth()) }

func (c Checker) of(h *History, t *truth) []error {
	var errs []error
	for i := range h.Watches {
		w := &h.Watches[i]
		if err := c.check(h, t, w); err != nil {
			errs = append(errs, fmt.Errorf("%s (%s) is broken: watch %d of %q after %d: %w",
				c.Name, c.Promise, i, w.Prefix, w.After.Revision, err))
		}
	}
	return errs
}

// truth is every event that the commits of a history caused, in order.
type truth struct{ events []kvstore.Event }

func (h *History) truth() *truth {
	t := &truth{}
	created := map[string]int64{}
	for _, c := range h.Commits {
		for _, w := range c.Writes {
			_, exists := created[w.Key]
			switch {
			case w.Delete && exists:
				delete(created, w.Key)
				t.events = append(t.events, kvstore.Event{Delete: true, KV: kvstore.KV{Key: w.Key, ModRevision: c.Revision}})
				continue
			case w.Delete:
				continue
			case !exists:
				created[w.Key] = c.Revision
			}
			t.events = append(t.events, kvstore.Event{KV: kvstore.KV{
				Key: w.Key, Value: w.Value, CreateRevision: created[w.Key], ModRevision: c.Revision}})
		}
	}
	return t
}

// between is what a watch of prefix is to be told after one revision and up to
// another, by revision and key.
func (t *truth) between(prefix string, after, upTo int64) []kvstore.Event {
	var out []kvstore.Event
	for _, e := range t.events {
		if e.KV.ModRevision > after && e.KV.ModRevision <= upTo && strings.HasPrefix(e.KV.Key, prefix) {
			out = append(out, e)
		}
	}
	return out
}

// begin is the position after which the watch was to begin: for one from now,
// its first batch says so, if it was empty.
func (w *Watch) begin() (int64, bool) {
	if !w.After.IsZero() {
		return w.After.Revision, true
	}
	if len(w.Batches) > 0 && len(w.Batches[0].Events) == 0 {
		return w.Batches[0].Position.Revision, true
	}
	return 0, false
}

func checkFilter(_ *History, _ *truth, w *Watch) error {
	for _, b := range w.Batches {
		for _, e := range b.Events {
			if !strings.HasPrefix(e.KV.Key, w.Prefix) {
				return fmt.Errorf("key %q", e.KV.Key)
			}
		}
	}
	return nil
}

func checkOrdered(_ *History, _ *truth, w *Watch) error {
	rev, pos := int64(0), kvstore.Position{}
	for _, b := range w.Batches {
		for _, e := range b.Events {
			if e.KV.ModRevision < rev {
				return fmt.Errorf("revision %d after %d", e.KV.ModRevision, rev)
			}
			rev = e.KV.ModRevision
		}
		if pos.StoreID != 0 && (b.Position.StoreID != pos.StoreID || b.Position.Revision < pos.Revision) {
			return fmt.Errorf("position %v after %v", b.Position, pos)
		}
		pos = b.Position
	}
	return nil
}

func checkUnique(_ *History, _ *truth, w *Watch) error {
	type id struct {
		rev int64
		key string
	}
	seen := map[id]bool{}
	for _, b := range w.Batches {
		for _, e := range b.Events {
			at := id{e.KV.ModRevision, e.KV.Key}
			if seen[at] {
				return fmt.Errorf("key %q at revision %d", e.KV.Key, e.KV.ModRevision)
			}
			seen[at] = true
		}
	}
	return nil
}

func checkAtomic(_ *History, _ *truth, w *Watch) error {
	in := map[int64]int{}
	for i, b := range w.Batches {
		for _, e := range b.Events {
			if j, ok := in[e.KV.ModRevision]; ok && j != i {
				return fmt.Errorf("revision %d is in batches %d and %d", e.KV.ModRevision, j, i)
			}
			in[e.KV.ModRevision] = i
		}
	}
	return nil
}

func checkBookmarkable(_ *History, _ *truth, w *Watch) error {
	pos := w.After.Revision
	for _, b := range w.Batches {
		for _, e := range b.Events {
			if e.KV.ModRevision <= pos {
				return fmt.Errorf("revision %d after position %d", e.KV.ModRevision, pos)
			}
			if e.KV.ModRevision > b.Position.Revision {
				return fmt.Errorf("revision %d in a batch at position %d", e.KV.ModRevision, b.Position.Revision)
			}
		}
		pos = b.Position.Revision
	}
	return nil
}

func checkResumable(h *History, t *truth, w *Watch) error {
	from, ok := w.begin()
	if !ok || from < h.Start.Revision {
		return nil
	}
	for _, b := range w.Batches {
		due := t.between(w.Prefix, from, b.Position.Revision)
		switch {
		case len(due) == 0 && len(b.Events) == 0:
			continue
		case len(due) == 0:
			return fmt.Errorf("it begins with %q at %d, nothing was due", b.Events[0].KV.Key, b.Events[0].KV.ModRevision)
		case len(b.Events) == 0 || b.Events[0].KV.ModRevision != due[0].KV.ModRevision:
			return fmt.Errorf("it does not begin with revision %d", due[0].KV.ModRevision)
		}
		return nil
	}
	return nil
}

func checkReliable(h *History, t *truth, w *Watch) error {
	from, ok := w.begin()
	if !ok || from < h.Start.Revision || len(w.Batches) == 0 {
		return nil
	}
	type id struct {
		rev    int64
		key    string
		delete bool
	}
	due := map[id][]byte{}
	for _, e := range t.between(w.Prefix, from, w.Batches[len(w.Batches)-1].Position.Revision) {
		due[id{e.KV.ModRevision, e.KV.Key, e.Delete}] = e.KV.Value
	}
	for _, b := range w.Batches {
		for _, e := range b.Events {
			at := id{e.KV.ModRevision, e.KV.Key, e.Delete}
			value, ok := due[at]
			if !ok || !e.Delete && !bytes.Equal(value, e.KV.Value) {
				return fmt.Errorf("nobody did this: %+v with value %q", at, e.KV.Value)
			}
			delete(due, at)
		}
	}
	for at := range due {
		return fmt.Errorf("%d are missing, one is %+v", len(due), at)
	}
	return nil
}

func checkCreate(_ *History, t *truth, w *Watch) error {
	type id struct {
		rev int64
		key string
	}
	created := map[id]int64{}
	for _, e := range t.events {
		if !e.Delete {
			created[id{e.KV.ModRevision, e.KV.Key}] = e.KV.CreateRevision
		}
	}
	for _, b := range w.Batches {
		for _, e := range b.Events {
			want, ok := created[id{e.KV.ModRevision, e.KV.Key}]
			if !e.Delete && ok && e.KV.CreateRevision != want {
				return fmt.Errorf("key %q at %d was created at %d, not %d", e.KV.Key, e.KV.ModRevision, want, e.KV.CreateRevision)
			}
		}
	}
	return nil
}

func checkDelete(_ *History, _ *truth, w *Watch) error {
	for _, b := range w.Batches {
		for _, e := range b.Events {
			if e.Delete && (e.KV.Key == "" || e.KV.ModRevision == 0 || len(e.KV.Value) > 0 || e.KV.CreateRevision != 0 || e.KV.Lease != 0) {
				return fmt.Errorf("%+v", e.KV)
			}
		}
	}
	return nil
}
