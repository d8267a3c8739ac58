package agent

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// deltaWorld is a Delta over a table of ints, whose owner is the key modulo 3.
type deltaWorld struct {
	fake   *Fake[int, int]
	faulty *Faulty[int, int]
	known  map[clustermesh.ID]bool
	*Delta[int, int]
}

func newDeltaWorld(size int, s Schedule) *deltaWorld {
	w := &deltaWorld{fake: NewFake[int, int]("ints", size), known: map[clustermesh.ID]bool{}}
	w.faulty = NewFaulty(w.fake, s)
	w.Delta = NewDelta("ints", w.faulty, func(k, _ int) clustermesh.ID { return clustermesh.ID(k % 3) },
		func(id clustermesh.ID) bool { return w.known[id] })
	return w
}

func (w *deltaWorld) readAll(t *testing.T) {
	t.Helper()
	for {
		done, err := w.Resync(1000)
		if err != nil {
			t.Fatal(err)
		}
		if done {
			return
		}
	}
}

func (w *deltaWorld) flushAll() {
	w.FlushDrops()
	w.FlushPuts(1<<20, nil)
	w.FlushDeletes(1<<20, nil)
}

func (w *deltaWorld) want(t *testing.T, want map[int]int) {
	t.Helper()
	if got := w.fake.Rows(); !maps.Equal(got, want) {
		t.Fatalf("kernel has %v, want %v", got, want)
	}
}

func TestDeltaWritesTheDifferenceOnly(t *testing.T) {
	w := newDeltaWorld(0, NoFaults)
	_ = w.fake.Put(map[int]int{1: 1, 2: 2, 4: 4})
	w.known[1], w.known[2], w.known[0] = true, true, true
	w.Set(1, 1)
	w.Set(2, 20)
	w.Set(3, 3)
	if w.FlushPuts(10, nil); w.fake.Len() != 3 {
		t.Error("something was written before the kernel was read")
	}
	w.readAll(t)
	calls := w.fake.Calls()
	w.flushAll()
	w.want(t, map[int]int{1: 1, 2: 20, 3: 3})
	if n := w.fake.Calls() - calls; n != 2 || w.written != 2 || w.removed != 1 {
		t.Errorf("%d calls, %d rows written, %d removed; want 2, 2, 1", n, w.written, w.removed)
	}
	if w.Set(3, 30); w.Pending() != 1 {
		t.Error("a change is not pending")
	}
	if w.Set(3, 3); w.Pending() != 0 {
		t.Error("a change that was taken back is pending")
	}
}

func TestDeltaSweepsOnlyWhatIsKnown(t *testing.T) {
	w := newDeltaWorld(0, NoFaults)
	_ = w.fake.Put(map[int]int{1: 1, 2: 2, 4: 4, 5: 5})
	w.known[1] = true
	w.readAll(t)
	w.flushAll()
	w.want(t, map[int]int{2: 2, 5: 5})
	w.Set(5, 5)
	w.Delete(5) // an explicit delete waits for nobody
	w.flushAll()
	w.want(t, map[int]int{2: 2})
	w.known[2] = true
	w.Release()
	w.flushAll()
	w.want(t, map[int]int{})
}

func TestDeltaFullTableLetsOthersIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newDeltaWorld(100, NoFaults)
		w.readAll(t)
		for i := range 150 {
			w.Set(i, i)
		}
		w.flushAll()
		if w.fake.Len() != 100 || !errors.Is(w.Problem(), ErrFull) || w.Stuck() != 50 {
			t.Fatalf("%d rows, %d stuck, problem %v", w.fake.Len(), w.Stuck(), w.Problem())
		}
		var gone []int
		for k := range w.fake.Rows() {
			gone = append(gone, k)
		}
		for _, k := range gone[:60] {
			w.Delete(k)
		}
		w.flushAll()
		time.Sleep(retryMax)
		w.flushAll()
		if w.fake.Len() != 90 || w.Problem() != nil || w.Pending() != 0 {
			t.Fatalf("after room was made: %d rows, %d pending, problem %v", w.fake.Len(), w.Pending(), w.Problem())
		}
	})
}

func TestDeltaDropsBeforeItPuts(t *testing.T) {
	w := newDeltaWorld(0, NoFaults)
	w.readAll(t)
	w.Set(1, 1)
	w.Set(2, 2)
	w.flushAll()
	var seen []string
	w.fake.OnChange(func(k int, v *int) {
		if v == nil {
			seen = append(seen, fmt.Sprintf("-%d", k))
		} else {
			seen = append(seen, fmt.Sprintf("%d=%d", k, *v))
		}
	})
	w.Drop(1)
	w.Drop(2)
	w.Set(1, 10)
	w.Delete(2)
	w.Drop(3)
	w.flushAll()
	w.flushAll()
	w.want(t, map[int]int{1: 10})
	if len(seen) < 3 || seen[len(seen)-1] != "1=10" {
		t.Errorf("order %v: the new row must enter after the old left", seen)
	}
}

func TestDeltaUrgentGoesFirst(t *testing.T) {
	w := newDeltaWorld(0, NoFaults)
	w.readAll(t)
	for i := range 10_000 {
		w.Set(i, i)
	}
	w.Hurry(true)
	w.Set(-1, 1)
	w.Set(5000, 5)
	w.Hurry(false)
	w.FlushPuts(2, nil)
	w.want(t, map[int]int{-1: 1, 5000: 5})
	if w.Urgent() != 0 {
		t.Error("urgent rows are still waiting")
	}
}

// TestDeltaConverges runs random changes, faults, drift, readings and flushes
// against a table that fails on purpose; once the faults end, the kernel must
// hold the wish, and in between nothing of an owner not known may vanish.
func TestDeltaConverges(t *testing.T) {
	for seed := range uint64(300) {
		synctest.Test(t, func(t *testing.T) { deltaRun(t, seed) })
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func deltaRun(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 1))
	w := newDeltaWorld(0, RandomFaults(seed, 0.2))
	old := map[int]int{}
	for range 20 {
		old[r.IntN(60)] = r.IntN(3)
	}
	_ = w.fake.Put(old)
	defer w.StopResync()
	w.known[0] = true
	wanted := map[int]int{}
	drift := w.faulty.schedule
	w.faulty.SetSchedule(func(op FaultOp, n, rows int) Fault {
		f := drift(op, n, rows)
		if !w.known[1] || !w.known[2] {
			f.Drift = 0 // what drifts away is nobody's fault
		}
		return f
	})
	for range 200 {
		k := r.IntN(60)
		switch r.IntN(10) {
		case 0, 1, 2:
			v := r.IntN(3)
			w.Set(k, v)
			wanted[k] = v
		case 3, 4:
			w.Delete(k)
			delete(wanted, k)
			delete(old, k)
		case 5:
			w.Drop(k) // explicit, as a delete is
			delete(old, k)
		case 6:
			_, _ = w.Resync(1 + r.IntN(20))
		case 7:
			w.FlushDrops()
			w.FlushPuts(1+r.IntN(20), nil)
		case 8:
			w.FlushDeletes(1+r.IntN(20), nil)
		case 9:
			time.Sleep(time.Duration(r.IntN(200)) * time.Millisecond)
		}
		if r.IntN(100) == 0 {
			w.known[clustermesh.ID(r.IntN(3))] = true
			w.Release()
		}
		for k := range old {
			if _, there := w.fake.Rows()[k]; !there && !w.known[clustermesh.ID(k%3)] && wanted[k] == 0 {
				if _, w := wanted[k]; !w {
					t.Fatalf("row %d of an owner not known is gone", k)
				}
			}
		}
	}
	w.faulty.SetSchedule(NoFaults)
	w.known = map[clustermesh.ID]bool{0: true, 1: true, 2: true}
	w.Release()
	for range 5 {
		time.Sleep(retryMax)
		w.readAll(t)
		w.flushAll()
	}
	w.StopResync()
	w.want(t, wanted)
	if w.Pending() != 0 || w.Held() != 0 || w.Problem() != nil {
		t.Fatalf("at rest: %d pending, %d held, problem %v", w.Pending(), w.Held(), w.Problem())
	}
}

func TestDeltaSlicedReadingMissesNothing(t *testing.T) {
	w := newDeltaWorld(0, NoFaults)
	w.known = map[clustermesh.ID]bool{0: true, 1: true, 2: true}
	w.readAll(t)
	for i := range 100 {
		w.Set(i, i)
	}
	w.flushAll()
	_ = w.fake.Delete([]int{7, 8})            // drift
	_ = w.fake.Put(map[int]int{500: 1, 9: 0}) // drift
	for n := 0; ; n++ {
		done, err := w.Resync(10)
		if err != nil {
			t.Fatal(err)
		}
		w.Set(200+n, n) // written while the reading is under way
		w.FlushPuts(1, func(k, _ int) bool { return k >= 200 })
		if done {
			break
		}
	}
	w.flushAll()
	for _, k := range []int{7, 8, 9} {
		if v := w.fake.Rows()[k]; v != k {
			t.Errorf("row %d was not repaired: %d", k, v)
		}
	}
	if _, there := w.fake.Rows()[500]; there {
		t.Error("a row that nobody wants was not swept")
	}
	if w.drifted != 4 {
		t.Errorf("%d rows drifted, want 4", w.drifted)
	}
}

func BenchmarkDeltaFirstList(b *testing.B) {
	for range b.N {
		w := newDeltaWorld(0, NoFaults)
		_, _ = w.Resync(1)
		for i := range 90_000 {
			w.Set(i, i)
		}
		w.FlushPuts(1<<20, nil)
	}
}
