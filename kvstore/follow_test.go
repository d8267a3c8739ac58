package kvstore_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	. "github.com/tombolo-mesh/tombolo/kvstore"
	"github.com/tombolo-mesh/tombolo/kvstore/kvtest"
)

// view is a sink that keeps what it is told, and complains when Follow breaks
// the order of calls.
type view struct {
	t       *testing.T
	mu      sync.Mutex
	keys    map[string]string // as of the last Synced and what followed
	at      Position
	fresh   map[string]string // between Begin and Synced
	marker  string
	begins  int
	synced  int
	lost    []error
	refuse  error // of Begin
	deletes int   // explicit ones
	ready   bool
}

func newView(t *testing.T) *view { return &view{t: t} }

func (v *view) Begin(at Position, marker []byte) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.begins++
	if v.refuse != nil {
		return v.refuse
	}
	v.fresh, v.marker, v.at = map[string]string{}, string(marker), at
	return nil
}

func (v *view) Apply(at Position, events []Event) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.fresh != nil {
		if at != v.at {
			v.t.Errorf("a chunk at %v of a list at %v", at, v.at)
		}
		for _, e := range events {
			if e.Delete {
				v.t.Errorf("a delete in a list")
			}
			v.fresh[e.KV.Key] = string(e.KV.Value)
		}
		return nil
	}
	if !v.ready {
		v.t.Errorf("a change before the first Synced")
	}
	if at.StoreID != v.at.StoreID || at.Revision < v.at.Revision {
		v.t.Errorf("changes at %v after %v", at, v.at)
	}
	for _, e := range events {
		if e.KV.ModRevision <= v.at.Revision {
			v.t.Errorf("revision %d after %d", e.KV.ModRevision, v.at.Revision)
		}
		if e.Delete {
			v.deletes++
			delete(v.keys, e.KV.Key)
		} else {
			v.keys[e.KV.Key] = string(e.KV.Value)
		}
	}
	v.at = at
	return nil
}

func (v *view) Synced(at Position) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.fresh == nil || at != v.at {
		v.t.Errorf("Synced at %v without a list at it", at)
	}
	v.keys, v.fresh, v.ready = v.fresh, nil, true
	v.synced++
}

func (v *view) Lost(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.lost = append(v.lost, err)
}

// refuseWith sets what Begin returns.
func (v *view) refuseWith(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.refuse = err
}

// calls are how often the sink was told what.
type calls struct{ begins, lists, lost, deletes int }

func (v *view) calls() calls {
	synctest.Wait()
	v.mu.Lock()
	defer v.mu.Unlock()
	return calls{v.begins, v.synced, len(v.lost), v.deletes}
}

func (v *view) want(step string, kv ...string) {
	v.t.Helper()
	synctest.Wait()
	v.mu.Lock()
	defer v.mu.Unlock()
	want := map[string]string{}
	for i := 0; i < len(kv); i += 2 {
		want[kv[i]] = kv[i+1]
	}
	if fmt.Sprint(v.keys) != fmt.Sprint(want) {
		v.t.Errorf("%s: the view holds %v, want %v", step, v.keys, want)
	}
}

// start runs Follow until the test ends.
func start(t *testing.T, c FollowConfig) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Follow(ctx, c) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Follow returned %v", err)
		}
	})
}

func commit(t testing.TB, s Store, kv ...string) Position {
	t.Helper()
	var ops []Op
	for i := 0; i < len(kv); i += 2 {
		if kv[i+1] == "-" {
			ops = append(ops, Delete(kv[i]))
		} else {
			ops = append(ops, Put(kv[i], []byte(kv[i+1]), 0))
		}
	}
	pos, err := s.Commit(context.Background(), ops...)
	if err != nil {
		t.Fatal(err)
	}
	return pos
}

func healthy(s Store) *kvtest.Faulty { return kvtest.NewFaulty(s, 1, kvtest.Faults{}) }

// latest keeps the last value it was given, for reading from another goroutine.
func latest[T any]() (get func() T, set func(T)) {
	var mu sync.Mutex
	var last T
	get = func() T {
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		return last
	}
	set = func(v T) {
		mu.Lock()
		defer mu.Unlock()
		last = v
	}
	return get, set
}

// bubble runs a test in virtual time; cleanups run inside.
func bubble(t *testing.T, test func(t *testing.T)) { synctest.Test(t, test) }

func TestFollowListsThenWatches(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := NewMemory(MemoryOptions{})
		commit(t, m, "p/a", "1", "p/b", "1", "q/x", "1")
		v := newView(t)
		status, setStatus := latest[FollowStatus]()
		start(t, FollowConfig{Stores: []Store{m}, Prefix: "p/", Sink: v, Status: setStatus})
		synctest.Wait()
		v.want("listed", "p/a", "1", "p/b", "1")
		last := commit(t, m, "p/a", "2", "p/b", "-", "q/x", "2")
		synctest.Wait()
		v.want("watched", "p/a", "2")
		if !status().Connected || !status().Synced || status().Position != last || status().Lists != 1 || status().LastError != nil {
			t.Errorf("status %+v", status())
		}
	})
}

func TestFollowWaitsForAWholePublication(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := NewMemory(MemoryOptions{})
		commit(t, m, "p/a", "1")
		v := newView(t)
		status, setStatus := latest[FollowStatus]()
		start(t, FollowConfig{Stores: []Store{m}, Prefix: "p/", Marker: "p/marker", Sink: v,
			Complete: func(marker []byte) error {
				if string(marker) != "done" {
					return fmt.Errorf("it says %q", marker)
				}
				return nil
			},
			Status: setStatus})
		time.Sleep(time.Minute)
		synctest.Wait()
		if v.calls().begins > 0 || !strings.Contains(status().LastError.Error(), "absent") {
			t.Errorf("without a marker: %d lists begun, %v", v.calls().begins, status().LastError)
		}
		commit(t, m, "p/marker", "half", "p/marker2", "done")
		time.Sleep(time.Minute)
		synctest.Wait()
		if v.calls().begins > 0 || !strings.Contains(status().LastError.Error(), `"half"`) {
			t.Errorf("with half a publication: %d lists begun, %v", v.calls().begins, status().LastError)
		}
		commit(t, m, "p/marker", "done")
		time.Sleep(time.Minute)
		v.want("complete", "p/a", "1", "p/marker", "done", "p/marker2", "done")
		if v.marker != "done" {
			t.Errorf("Begin was given the marker %q", v.marker)
		}
	})
}

// pausing is a store whose lists stop after the marker was read, until released.
type pausing struct {
	Store
	between func()
}

func (p pausing) List(ctx context.Context, prefix string, at Position, visit func([]KV) error) (Position, error) {
	pos, err := p.Store.List(ctx, prefix, at, visit)
	if at.IsZero() {
		p.between()
	}
	return pos, err
}

// The list is read at the marker's revision, and what happens between the list
// and the watch is not lost, deletes least of all.
func TestFollowPinsTheMarkersRevision(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := NewMemory(MemoryOptions{})
		commit(t, m, "p/a", "1", "p/b", "1", "p/marker", "")
		v := newView(t)
		p := pausing{m, func() { commit(t, m, "p/a", "-", "p/c", "1") }}
		start(t, FollowConfig{Stores: []Store{p}, Prefix: "p/", Marker: "p/marker", Sink: v})
		synctest.Wait()
		v.want("after", "p/b", "1", "p/c", "1", "p/marker", "")
		if v.calls().deletes != 1 {
			t.Errorf("%d deletes came by the watch, want 1", v.calls().deletes)
		}
	})
}

func TestFollowResumesWithoutAList(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := NewMemory(MemoryOptions{})
		commit(t, m, "a", "1", "b", "1")
		f := healthy(m)
		v := newView(t)
		start(t, FollowConfig{Stores: []Store{f}, Sink: v})
		synctest.Wait()
		f.Break(errors.New("no route"))
		commit(t, m, "a", "2", "b", "-")
		time.Sleep(10 * time.Minute)
		v.want("cut off", "a", "1", "b", "1")
		if v.calls().lost < 10 || v.calls().lost > 200 {
			t.Errorf("%d attempts in 10 minutes: no backoff, or too much", v.calls().lost)
		}
		f.Break(nil)
		time.Sleep(time.Minute)
		v.want("back", "a", "2")
		if v.calls().lists != 1 || v.calls().deletes != 1 {
			t.Errorf("%d lists and %d deletes, want one of each", v.calls().lists, v.calls().deletes)
		}
	})
}

func TestFollowChangesReplica(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := NewMemory(MemoryOptions{})
		commit(t, m, "a", "1")
		one, two := healthy(m), healthy(m)
		v := newView(t)
		status, setStatus := latest[FollowStatus]()
		start(t, FollowConfig{Stores: []Store{one, two}, Sink: v, Status: setStatus})
		synctest.Wait()
		one.Break(errors.New("gone"))
		commit(t, m, "a", "2")
		time.Sleep(300 * time.Millisecond)
		v.want("on the other replica", "a", "2")
		if status().Store != 1 || v.calls().lists != 1 {
			t.Errorf("on replica %d after %d lists, want the second and one", status().Store, v.calls().lists)
		}
	})
}

func TestFollowListsAgainAfterCompaction(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := NewMemory(MemoryOptions{})
		commit(t, m, "a", "1", "b", "1")
		f := healthy(m)
		v := newView(t)
		start(t, FollowConfig{Stores: []Store{f}, Sink: v})
		synctest.Wait()
		f.Break(errors.New("gone"))
		commit(t, m, "a", "2")
		commit(t, m, "b", "-", "c", "1")
		m.Compact(m.Position().Revision)
		time.Sleep(time.Minute)
		v.want("cut off", "a", "1", "b", "1")
		f.Break(nil)
		time.Sleep(time.Minute)
		v.want("listed again", "a", "2", "c", "1")
		if v.calls().lists != 2 || v.calls().deletes != 0 {
			t.Errorf("%d lists and %d explicit deletes, want 2 and 0", v.calls().lists, v.calls().deletes)
		}
	})
}

// A store that compacts faster than we can watch must not be listed in a loop.
func TestFollowBacksOffFromConstantCompaction(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := NewMemory(MemoryOptions{})
		v := newView(t)
		f := healthy(m)
		s := pausing{f, func() {
			commit(t, m, "a", fmt.Sprint(time.Now()))
			m.Compact(m.Position().Revision)
		}}
		start(t, FollowConfig{Stores: []Store{s}, Sink: v})
		time.Sleep(10 * time.Minute)
		if n := f.Counts().Lists; n < 10 || n > 300 {
			t.Errorf("%d lists in 10 minutes", n)
		}
	})
}

func TestFollowTakesAnotherStoreWhole(t *testing.T) {
	bubble(t, func(t *testing.T) {
		old, next := NewMemory(MemoryOptions{}), NewMemory(MemoryOptions{})
		commit(t, old, "a", "1", "b", "1", "marker", "x")
		f := healthy(old)
		v := newView(t)
		start(t, FollowConfig{Stores: []Store{f}, Marker: "marker", Sink: v})
		synctest.Wait()
		f.Swap(next)
		time.Sleep(10 * time.Minute)
		v.want("the new store is empty", "a", "1", "b", "1", "marker", "x")
		commit(t, next, "b", "2")
		time.Sleep(time.Minute)
		v.want("the new store is half full", "a", "1", "b", "1", "marker", "x")
		v.refuseWith(errors.New("not that cluster"))
		commit(t, next, "c", "3", "marker", "y")
		time.Sleep(time.Minute)
		v.want("the new store is refused", "a", "1", "b", "1", "marker", "x")
		v.refuseWith(nil)
		time.Sleep(time.Minute)
		v.want("the new store is whole", "b", "2", "c", "3", "marker", "y")
		if v.calls().deletes != 0 || v.calls().lists != 2 {
			t.Errorf("%d deletes, %d lists, want 0 and 2", v.calls().deletes, v.calls().lists)
		}
	})
}

// One of two replicas is suddenly another store: the other still serves.
func TestFollowPrefersTheStoreItKnows(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m, stranger := NewMemory(MemoryOptions{}), NewMemory(MemoryOptions{})
		commit(t, m, "a", "1")
		commit(t, stranger, "z", "1")
		one, two := healthy(m), healthy(m)
		v := newView(t)
		start(t, FollowConfig{Stores: []Store{one, two}, Sink: v})
		synctest.Wait()
		one.Swap(stranger)
		time.Sleep(10 * time.Minute)
		commit(t, m, "a", "2")
		time.Sleep(time.Second)
		v.want("after the swap of one", "a", "2")
		two.Swap(stranger)
		time.Sleep(time.Minute)
		v.want("after the swap of both", "z", "1")
	})
}
