package agent

import (
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// MaxBatch is the largest number of rows in one Put or Delete of a table: what
// one batched map call of the kernel takes comfortably.
const MaxBatch = 4096

// Retry pauses after rows were refused by the kernel.
const (
	retryFirst = 50 * time.Millisecond
	retryMax   = 5 * time.Second
	// maxSplits bounds the extra calls one flush spends on finding the rows of
	// a failing batch that are at fault.
	maxSplits = 512
)

// actualState says what is known of a row in the kernel.
type actualState uint8

const (
	absent  actualState = iota // the kernel has no such row
	present                    // the kernel has the row, with the value noted
	unknown                    // a write failed half way: it must be repeated
)

type actual[V any] struct {
	state actualState
	value V
}

// Delta is one table as it should be and as it is. It holds one map of the
// wanted rows and, beside it, only the rows where the kernel differs:
//
//	dirty    wanted, to be written at the next flush
//	leaving  not wanted, to be removed at the next flush
//	stuck    refused by the kernel; tried again after a pause
//	held     in the kernel, not wanted, of an owner that has not reported synced
//	         yet: kept until it has (silence is not deletion)
//
// A key is in at most one of the four. A Delta is not safe for concurrent use.
type Delta[K comparable, V comparable] struct {
	Name  string
	table Table[K, V]
	owner func(K, V) clustermesh.ID // whose row it is; decides what may be swept
	known func(clustermesh.ID) bool // true: what this owner says is complete

	wanted  map[K]V
	dirty   map[K]actual[V]
	leaving map[K]actual[V]
	stuck   map[K]actual[V]
	held    map[K]V
	drops   map[K]struct{} // dirty or leaving keys that must leave before they are put again
	urgent  []K            // dirty keys that go before the others; see Hurry
	hurry   bool

	scan     *scan[K, V]
	scanned  bool // the kernel was read at least once, completely
	retryAt  time.Time
	backoff  time.Duration
	problem  error // of the last flush; nil when all rows went in
	peak     int   // largest size of dirty since it was last empty
	written  uint64
	removed  uint64
	failures uint64
	drifted  uint64
}

// scan is a resync under way.
type scan[K comparable, V any] struct {
	next    func() (K, V, bool)
	stop    func()
	seen    map[K]struct{}
	touched map[K]struct{} // written since the scan began: its answer is too old for them
}

// NewDelta makes the tracker of one table. owner says whose a row is, from the
// row alone, so that a process with no memory can tell; known says whether an
// owner's wishes are complete, so that its unwanted rows may be swept.
func NewDelta[K comparable, V comparable](name string, table Table[K, V], owner func(K, V) clustermesh.ID, known func(clustermesh.ID) bool) *Delta[K, V] {
	return &Delta[K, V]{
		Name: name, table: table, owner: owner, known: known,
		wanted: map[K]V{}, dirty: map[K]actual[V]{}, leaving: map[K]actual[V]{}, stuck: map[K]actual[V]{}, held: map[K]V{}, drops: map[K]struct{}{},
	}
}

// Wanted is the row that k should have.
func (d *Delta[K, V]) Wanted(k K) (V, bool) {
	v, ok := d.wanted[k]
	return v, ok
}

// Len is the number of wanted rows; Held of rows kept for owners not synced.
func (d *Delta[K, V]) Len() int  { return len(d.wanted) }
func (d *Delta[K, V]) Held() int { return len(d.held) }

// Pending is the number of rows in which the kernel differs from the wish,
// those refused by the kernel included, those held not.
func (d *Delta[K, V]) Pending() int { return len(d.dirty) + len(d.leaving) + len(d.stuck) }

// Size is how many rows fit into the kernel's table; 0 = no limit is known.
func (d *Delta[K, V]) Size() int { return sizeOf(d.table) }

// Stuck is the number of rows that the kernel refused last time.
func (d *Delta[K, V]) Stuck() int { return len(d.stuck) }

// Actual is what the kernel has at k, as far as it is known: ok is false when
// it has nothing or when a write failed half way.
func (d *Delta[K, V]) Actual(k K) (v V, ok bool) {
	if a, differs := d.differs(k); differs {
		return a.value, a.state == present
	}
	v, ok = d.wanted[k]
	return v, ok
}

func (d *Delta[K, V]) differs(k K) (actual[V], bool) {
	for _, m := range [...]map[K]actual[V]{d.dirty, d.leaving, d.stuck} {
		if len(m) > 0 {
			if a, ok := m[k]; ok {
				return a, true
			}
		}
	}
	if len(d.held) > 0 {
		if v, ok := d.held[k]; ok {
			return actual[V]{present, v}, true
		}
	}
	return actual[V]{}, false
}

// Set makes v wanted at k.
func (d *Delta[K, V]) Set(k K, v V) {
	old, had := d.wanted[k]
	if had && old == v {
		if _, ok := d.stuck[k]; !ok {
			return
		}
	}
	a, differs := d.differs(k)
	if !differs && had {
		a = actual[V]{present, old}
	}
	d.wanted[k] = v
	d.note(k, a, !(a.state == present && a.value == v))
}

// Delete makes k unwanted. What the kernel holds at k is removed by the next
// flush: an explicit delete waits for nobody.
func (d *Delta[K, V]) Delete(k K) {
	old, had := d.wanted[k]
	a, differs := d.differs(k)
	if !had && !differs {
		return
	}
	if !differs {
		a = actual[V]{present, old}
	}
	delete(d.wanted, k)
	d.note(k, a, a.state != absent)
}

// Drop makes the kernel's row at k leave before it may be written again, even
// if the value is the same: its meaning changed.
func (d *Delta[K, V]) Drop(k K) {
	a, differs := d.differs(k)
	if !differs {
		v, had := d.wanted[k]
		if !had {
			return
		}
		a = actual[V]{present, v}
	}
	if a.state == absent {
		return
	}
	d.note(k, a, true)
	d.drops[k] = struct{}{}
}

// note files what is actually at k, as dirty or leaving if it differs from the
// wish.
func (d *Delta[K, V]) note(k K, a actual[V], differs bool) {
	_, wanted := d.wanted[k]
	if len(d.stuck) > 0 {
		delete(d.stuck, k)
	}
	if len(d.held) > 0 {
		delete(d.held, k)
	}
	if _, drop := d.drops[k]; drop {
		if a.state == absent {
			delete(d.drops, k)
		} else {
			differs = true
		}
	}
	switch {
	case !differs:
		delete(d.dirty, k)
		delete(d.leaving, k)
	case wanted:
		delete(d.leaving, k)
		d.dirty[k] = a
		if d.hurry {
			d.urgent = append(d.urgent, k)
		}
	default:
		delete(d.dirty, k)
		d.leaving[k] = a
	}
	d.peak = max(d.peak, len(d.dirty), len(d.leaving))
}

// Hurry says whether rows changed from now on go before those that wait
// already: one small change is not to queue behind a first list.
func (d *Delta[K, V]) Hurry(on bool) { d.hurry = on }

// Urgent is the number of rows that were changed in a hurry and still wait.
func (d *Delta[K, V]) Urgent() int { return len(d.urgent) }

// candidates yields the dirty keys, urgent ones first (some of them twice), and
// forgets which of them no longer differ.
func (d *Delta[K, V]) candidates() iter.Seq[K] {
	return func(yield func(K) bool) {
		for _, k := range d.urgent {
			if _, ok := d.dirty[k]; ok && !yield(k) {
				return
			}
		}
		for k := range d.dirty {
			if !yield(k) {
				return
			}
		}
	}
}

// settle forgets the urgent keys that were written or became stuck.
func (d *Delta[K, V]) settle() {
	d.urgent = slices.DeleteFunc(d.urgent, func(k K) bool {
		_, ok := d.dirty[k]
		return !ok
	})
	if len(d.urgent) == 0 {
		d.urgent = nil
	}
}

// Release makes the held rows of owners that are known by now removable. Call
// it when an owner reports synced or is gone for good.
func (d *Delta[K, V]) Release() {
	for k, v := range d.held {
		if d.known(d.owner(k, v)) {
			d.note(k, actual[V]{present, v}, true)
		}
	}
}

// HeldRows are the rows kept for owners that are not known yet.
func (d *Delta[K, V]) HeldRows() iter.Seq2[K, V] { return maps.All(d.held) }

func (d *Delta[K, V]) touch(k K) {
	if d.scan != nil {
		d.scan.touched[k] = struct{}{}
	}
}

// shrink gives the memory of a large flush back: Go maps do not shrink.
func (d *Delta[K, V]) shrink() {
	if len(d.dirty)+len(d.leaving) == 0 && d.peak > 2*MaxBatch {
		d.dirty, d.leaving, d.peak = map[K]actual[V]{}, map[K]actual[V]{}, 0
	}
}

// pending yields the keys that differ, with the rows of both sides that exist:
// what the kernel may hold and what is wanted.
func (d *Delta[K, V]) pending() iter.Seq2[K, [2]*V] {
	return func(yield func(K, [2]*V) bool) {
		for _, m := range []map[K]actual[V]{d.dirty, d.leaving, d.stuck} {
			for k, a := range m {
				var rows [2]*V
				if a.state != absent {
					rows[0] = &a.value
				}
				if v, ok := d.wanted[k]; ok {
					rows[1] = &v
				}
				if !yield(k, rows) {
					return
				}
			}
		}
	}
}
