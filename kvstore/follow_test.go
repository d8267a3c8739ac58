package kvstore_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
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

// copyOf is a store with the same ID and content as m, as a backup of it is.
func copyOf(t *testing.T, m *Memory) *Memory {
	c := NewMemory(MemoryOptions{StoreID: m.Position().StoreID})
	_, err := m.List(context.Background(), "", Position{}, func(kvs []KV) error {
		for _, kv := range kvs {
			commit(t, c, kv.Key, string(kv.Value))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestFollowAcceptsARestoredBackup(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := NewMemory(MemoryOptions{})
		commit(t, m, "a", "1")
		backup := copyOf(t, m)
		for range 10 {
			commit(t, m, "a", "2", "b", "2")
		}
		one, two := healthy(m), healthy(m)
		v := newView(t)
		start(t, FollowConfig{Stores: []Store{one, two}, Sink: v, BackupAfter: 30 * time.Second})
		synctest.Wait()
		v.want("before", "a", "2", "b", "2")
		one.Swap(backup)
		two.Break(errors.New("down"))
		time.Sleep(5 * time.Minute)
		v.want("one replica is behind, the other cannot say", "a", "2", "b", "2")
		two.Swap(backup)
		two.Break(nil)
		time.Sleep(10 * time.Second)
		v.want("not long enough", "a", "2", "b", "2")
		time.Sleep(5 * time.Minute)
		v.want("restored", "a", "1")
		commit(t, backup, "c", "3")
		time.Sleep(time.Second)
		v.want("goes on", "a", "1", "c", "3")
	})
}

func TestFollowIgnoresALaggingReplica(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := NewMemory(MemoryOptions{})
		old := commit(t, m, "a", "1")
		fresh, lagging := healthy(m), healthy(m)
		lagging.Freeze(old)
		commit(t, m, "a", "2")
		v := newView(t)
		start(t, FollowConfig{Stores: []Store{fresh, lagging}, Sink: v})
		synctest.Wait()
		for range 5 {
			fresh.Break(errors.New("blip"))
			time.Sleep(time.Minute)
			v.want("only the lagging one is left", "a", "2")
			fresh.Break(nil)
			time.Sleep(time.Minute)
		}
		// Nor does it list from it when it must list.
		fresh.Break(errors.New("blip"))
		commit(t, m, "a", "3")
		m.Compact(m.Position().Revision)
		time.Sleep(time.Minute)
		v.want("must list, but not there", "a", "2")
		fresh.Break(nil)
		time.Sleep(2 * time.Minute)
		v.want("caught up", "a", "3")
	})
}

// hanging is a store whose lists never answer.
type hanging struct{ Store }

func (hanging) List(ctx context.Context, _ string, _ Position, _ func([]KV) error) (Position, error) {
	<-ctx.Done()
	return Position{}, ctx.Err()
}

func TestFollowGivesUpOnASilentList(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := NewMemory(MemoryOptions{})
		commit(t, m, "a", "1")
		v := newView(t)
		start(t, FollowConfig{Stores: []Store{hanging{m}, m}, Sink: v})
		time.Sleep(2 * time.Minute)
		v.want("on the other replica", "a", "1")
	})
}

// lying is a store that breaks a promise in its first watch.
type lying struct {
	Store
	batch Batch
	lied  *bool
}

func (l lying) Watch(ctx context.Context, prefix string, after Position) iter.Seq2[Batch, error] {
	return func(yield func(Batch, error) bool) {
		if !*l.lied {
			*l.lied = true
			yield(l.batch, nil)
			return
		}
		l.Store.Watch(ctx, prefix, after)(yield)
	}
}

func TestFollowChecksEveryBatch(t *testing.T) {
	bad := func(rev int64) []Event { return []Event{{KV: KV{Key: "a", Value: []byte("lie"), ModRevision: rev}}} }
	for name, batch := range map[string]Batch{
		"old event":    {Position{1, 9}, bad(2)},
		"early event":  {Position{1, 3}, bad(8)},
		"back in time": {Position{1, 1}, nil},
		"other store":  {Position{2, 9}, bad(9)},
		"no store":     {Position{0, 9}, bad(9)},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				m := NewMemory(MemoryOptions{StoreID: 1})
				commit(t, m, "a", "1")
				v := newView(t)
				start(t, FollowConfig{Stores: []Store{lying{m, batch, new(bool)}}, Sink: v})
				time.Sleep(time.Minute)
				v.want("afterwards", "a", "1")
				if v.calls().lost != 1 {
					t.Errorf("%d attempts failed, want 1: %v", v.calls().lost, v.lost)
				}
			})
		})
	}
}

// Under any mixture of faults the view never breaks an order, and when the
// faults stop it is what the store holds.
func TestFollowUnderAllFaults(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			bubble(t, func(t *testing.T) { followUnderFaults(t, seed) })
		})
	}
}

func followUnderFaults(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 7))
	m := NewMemory(MemoryOptions{History: 40})
	commit(t, m, "marker", "0")
	faults := kvtest.Faults{List: 0.2, ListChunk: 0.1, Cut: 0.2, Delay: 0.3, MaxDelay: time.Second}
	replicas := []*kvtest.Faulty{kvtest.NewFaulty(m, seed, faults), kvtest.NewFaulty(m, seed+1000, faults)}
	v := newView(t)
	start(t, FollowConfig{Stores: []Store{replicas[0], replicas[1]}, Marker: "marker", Sink: v})
	for step := range 200 {
		f := replicas[r.IntN(2)]
		switch r.IntN(12) {
		case 0:
			f.Break(errors.New("down"))
		case 1, 2:
			f.Break(nil)
		case 3:
			f.Freeze(m.Position())
		case 4, 5:
			f.Freeze(Position{})
		case 6:
			m.Compact(m.Position().Revision - int64(r.IntN(5)))
		case 7:
			if step%10 == 0 { // the store is replaced, at all addresses
				m = NewMemory(MemoryOptions{History: 40})
				commit(t, m, "marker", fmt.Sprint(step))
				for _, f := range replicas {
					f.Freeze(Position{})
					f.Swap(m)
				}
			}
		default:
			commit(t, m, fmt.Sprint("k", r.IntN(9)), fmt.Sprint(step), fmt.Sprint("d", r.IntN(9)), []string{"-", "x"}[r.IntN(2)])
		}
		time.Sleep(time.Duration(r.IntN(3000)) * time.Millisecond)
	}
	for _, f := range replicas {
		f.Set(kvtest.Faults{})
		f.Freeze(Position{})
		f.Break(nil)
	}
	time.Sleep(3 * time.Minute)
	var want []string
	if _, err := m.List(context.Background(), "", Position{}, func(kvs []KV) error {
		for _, kv := range kvs {
			want = append(want, kv.Key, string(kv.Value))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	v.want("at rest", want...)
}
