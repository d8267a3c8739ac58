package agent

import (
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"sync"
)

// ErrInjected is what a Faulty table fails with unless its schedule names
// another error.
var ErrInjected = errors.New("injected fault")

// FaultOp is a call of a Table.
type FaultOp string

const (
	OpDump   FaultOp = "dump"
	OpPut    FaultOp = "put"
	OpDelete FaultOp = "delete"
)

// Fault is what becomes of one call. The zero Fault lets it pass.
type Fault struct {
	Err   error // the call fails with this ...
	Apply int   // ... after so many of its rows took effect
	Drift int   // so many rows are removed behind the caller's back first
}

// Schedule decides the fate of call number n (from 0) with that many rows.
type Schedule func(op FaultOp, n, rows int) Fault

// NoFaults lets everything pass.
func NoFaults(FaultOp, int, int) Fault { return Fault{} }

// RandomFaults fails a share of the calls (0–1), after a random part of their
// rows, and lets rows drift as often. The same seed gives the same decisions.
func RandomFaults(seed uint64, share float64) Schedule {
	r := rand.New(rand.NewPCG(seed, seed^0x9e3779b97f4a7c15))
	return func(_ FaultOp, _, rows int) Fault {
		var f Fault
		if r.Float64() < share {
			f.Err = ErrInjected
			if rows > 0 {
				f.Apply = r.IntN(rows)
			}
		}
		if r.Float64() < share {
			f.Drift = 1
		}
		return f
	}
}

// Faulty wraps a table and fails as its schedule says.
type Faulty[K comparable, V any] struct {
	table Table[K, V]

	mu       sync.Mutex
	schedule Schedule
	calls    int
	dumpErr  error
	faults   int
}

// NewFaulty wraps table; the schedule is asked on every call and may be
// replaced by SetSchedule.
func NewFaulty[K comparable, V any](table Table[K, V], schedule Schedule) *Faulty[K, V] {
	return &Faulty[K, V]{table: table, schedule: schedule}
}

// SetSchedule replaces the schedule; NoFaults heals the table.
func (f *Faulty[K, V]) SetSchedule(s Schedule) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.schedule = s
}

// Faults is the number of calls that failed so far.
func (f *Faulty[K, V]) Faults() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.faults
}

func (f *Faulty[K, V]) next(op FaultOp, rows int) Fault {
	f.mu.Lock()
	fault := f.schedule(op, f.calls, rows)
	f.calls++
	if fault.Err != nil {
		f.faults++
		fault.Err = fmt.Errorf("%s: %w", op, fault.Err)
	}
	f.mu.Unlock()
	if fault.Drift > 0 {
		var lost []K
		for k := range f.table.Dump() {
			if len(lost) == fault.Drift {
				break
			}
			lost = append(lost, k)
		}
		_ = f.table.Delete(lost)
	}
	return fault
}

// Dump yields the rows, or part of them and an error in DumpErr.
func (f *Faulty[K, V]) Dump() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		f.dumpErr = nil
		fault := f.next(OpDump, 0)
		n := 0
		for k, v := range f.table.Dump() {
			if fault.Err != nil && n >= fault.Apply {
				break
			}
			n++
			if !yield(k, v) {
				return
			}
		}
		f.dumpErr = fault.Err
		if f.dumpErr == nil {
			f.dumpErr = f.table.DumpErr()
		}
	}
}

// Size is that of the table behind.
func (f *Faulty[K, V]) Size() int { return sizeOf(f.table) }

// DumpErr is the error that ended the last Dump early.
func (f *Faulty[K, V]) DumpErr() error { return f.dumpErr }

// Put writes rows, or some of them and an error.
func (f *Faulty[K, V]) Put(rows map[K]V) error {
	fault := f.next(OpPut, len(rows))
	if fault.Err == nil {
		return f.table.Put(rows)
	}
	some := map[K]V{}
	for k, v := range rows {
		if len(some) == fault.Apply {
			break
		}
		some[k] = v
	}
	if err := f.table.Put(some); err != nil {
		return err
	}
	return fault.Err
}

// Delete removes rows, or some of them with an error.
func (f *Faulty[K, V]) Delete(keys []K) error {
	fault := f.next(OpDelete, len(keys))
	if fault.Err == nil {
		return f.table.Delete(keys)
	}
	if err := f.table.Delete(keys[:min(fault.Apply, len(keys))]); err != nil {
		return err
	}
	return fault.Err
}
