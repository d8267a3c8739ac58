package kvstore_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	. "github.com/tombolo-mesh/tombolo/kvstore"
	"github.com/tombolo-mesh/tombolo/kvstore/kvtest"
)

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
