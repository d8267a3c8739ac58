package agent

import (
	"errors"
	"fmt"
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

// Resync reads up to n rows from the kernel and files how they differ; it
// reports true when the reading that began with the first such call is
// complete. Between calls rows may be set, deleted and flushed. After an error
// nothing is taken for absent.
func (d *Delta[K, V]) Resync(n int) (done bool, err error) {
	if d.scan == nil {
		next, stop := iter.Pull2(d.table.Dump())
		d.scan = &scan[K, V]{next: next, stop: stop, seen: make(map[K]struct{}, len(d.wanted)), touched: map[K]struct{}{}}
	}
	for ; n > 0; n-- {
		k, v, ok := d.scan.next()
		if !ok {
			return true, d.endScan()
		}
		d.scan.seen[k] = struct{}{}
		if _, ok := d.scan.touched[k]; !ok {
			d.found(k, v)
		}
	}
	return false, nil
}

// found files a row read from the kernel.
func (d *Delta[K, V]) found(k K, v V) {
	want, wanted := d.wanted[k]
	before, differs := d.differs(k)
	switch {
	case wanted && want == v:
		if !differs || before.state != present || before.value != v {
			d.note(k, actual[V]{present, v}, false)
		}
	case wanted:
		if !differs {
			d.drifted++
		}
		d.refile(k, actual[V]{present, v})
	case differs:
		if _, isHeld := d.held[k]; isHeld {
			d.held[k] = v
			return
		}
		d.refile(k, actual[V]{present, v})
	case d.known(d.owner(k, v)):
		if d.scanned {
			d.drifted++
		}
		d.note(k, actual[V]{present, v}, true)
	default:
		d.held[k] = v
	}
}

// refile changes what is known of a row without trying a refused one earlier.
func (d *Delta[K, V]) refile(k K, a actual[V]) {
	if _, ok := d.stuck[k]; ok {
		d.stuck[k] = a
		return
	}
	d.note(k, a, true)
}

// endScan takes what the kernel did not show for absent.
func (d *Delta[K, V]) endScan() error {
	s := d.scan
	d.StopResync()
	if err := d.table.DumpErr(); err != nil {
		return fmt.Errorf("read table %s: %w", d.Name, err)
	}
	gone := func(k K) bool {
		if _, ok := s.seen[k]; ok {
			return false
		}
		_, ok := s.touched[k]
		return !ok
	}
	for k := range d.held {
		if gone(k) {
			delete(d.held, k)
		}
	}
	for _, m := range []map[K]actual[V]{d.dirty, d.leaving} {
		for k, a := range m {
			if a.state == absent || !gone(k) {
				continue
			}
			delete(d.drops, k)
			_, wanted := d.wanted[k]
			d.note(k, actual[V]{}, wanted)
		}
	}
	for k := range d.stuck {
		if !gone(k) {
			continue
		}
		if _, wanted := d.wanted[k]; wanted {
			d.stuck[k] = actual[V]{}
		} else {
			delete(d.stuck, k)
		}
	}
	if len(s.seen) < len(d.wanted) || d.scanned {
		for k := range d.wanted {
			if _, differs := d.differs(k); !differs && gone(k) {
				d.drifted++
				d.note(k, actual[V]{}, true)
			}
		}
	}
	d.scanned = true
	return nil
}

// StopResync gives a reading under way up.
func (d *Delta[K, V]) StopResync() {
	if d.scan != nil {
		d.scan.stop()
		d.scan = nil
	}
}

// Scanned reports whether the kernel was read completely at least once. Before
// that nothing is written: what is there is not known.
func (d *Delta[K, V]) Scanned() bool { return d.scanned }

// FlushDrops removes the rows that must leave before they are put again.
func (d *Delta[K, V]) FlushDrops() {
	if len(d.drops) == 0 {
		return
	}
	var keys []K
	for k := range d.drops {
		_, dirty := d.dirty[k]
		_, leaving := d.leaving[k]
		if dirty || leaving {
			keys = append(keys, k)
		}
	}
	d.remove(keys)
}

// FlushPuts writes up to budget rows for which may is true (nil: all) and
// returns how many it tried. Rows the kernel refuses become stuck; the others go on.
func (d *Delta[K, V]) FlushPuts(budget int, may func(K, V) bool) int {
	if !d.scanned {
		return 0
	}
	d.unstick()
	tried, splits := 0, maxSplits
	batch := make(map[K]V, min(budget, MaxBatch, len(d.dirty)))
	for k := range d.candidates() {
		if tried == budget {
			break
		}
		v, wanted := d.wanted[k]
		if _, twice := batch[k]; twice || !wanted || (may != nil && !may(k, v)) {
			continue
		}
		if _, drop := d.drops[k]; drop {
			continue
		}
		batch[k] = v
		tried++
		if len(batch) == MaxBatch {
			d.put(batch, &splits)
			clear(batch)
		}
	}
	d.put(batch, &splits)
	d.settle()
	d.shrink()
	return tried
}

// FlushDeletes removes up to budget unwanted rows for which may is true (nil:
// all), given the value the kernel holds, and returns how many it tried.
func (d *Delta[K, V]) FlushDeletes(budget int, may func(K, V) bool) int {
	if !d.scanned {
		return 0
	}
	d.unstick()
	tried := 0
	var keys []K
	for k, a := range d.leaving {
		if tried == budget {
			break
		}
		if may != nil && !may(k, a.value) {
			continue
		}
		keys = append(keys, k)
		tried++
		if len(keys) == MaxBatch {
			d.remove(keys)
			keys = keys[:0]
		}
	}
	d.remove(keys)
	d.settle()
	d.shrink()
	return tried
}

// put writes one batch. When it fails, halves are tried, so that one bad row
// does not keep the others out.
func (d *Delta[K, V]) put(batch map[K]V, splits *int) {
	if len(batch) == 0 {
		return
	}
	err := d.table.Put(batch)
	if err == nil {
		for k := range batch {
			d.touch(k)
			delete(d.dirty, k)
		}
		d.written += uint64(len(batch))
		return
	}
	d.failures++
	if len(batch) == 1 || *splits <= 0 {
		d.fail(maps.Keys(batch), err)
		return
	}
	*splits -= 2
	left, right := make(map[K]V, len(batch)/2+1), make(map[K]V, len(batch)/2+1)
	for k, v := range batch {
		if len(left) < len(batch)/2 {
			left[k] = v
		} else {
			right[k] = v
		}
	}
	d.put(left, splits)
	d.put(right, splits)
}

func (d *Delta[K, V]) remove(keys []K) {
	for len(keys) > 0 {
		n := min(len(keys), MaxBatch)
		chunk := keys[:n]
		keys = keys[n:]
		if err := d.table.Delete(chunk); err != nil {
			d.failures++
			d.fail(func(yield func(K) bool) {
				for _, k := range chunk {
					if !yield(k) {
						return
					}
				}
			}, err)
			continue
		}
		d.removed += uint64(n)
		for _, k := range chunk {
			d.touch(k)
			delete(d.drops, k)
			delete(d.leaving, k)
			if _, wanted := d.wanted[k]; wanted {
				d.dirty[k] = actual[V]{}
			}
		}
	}
}

// fail files rows whose write failed: what the kernel holds is not known.
func (d *Delta[K, V]) fail(keys iter.Seq[K], err error) {
	for k := range keys {
		d.touch(k)
		a, ok := d.dirty[k]
		if !ok {
			a = d.leaving[k]
		}
		a.state = unknown
		delete(d.dirty, k)
		delete(d.leaving, k)
		d.stuck[k] = a
	}
	if d.problem == nil || errors.Is(err, ErrFull) {
		d.problem = err
	}
	if d.retryAt.IsZero() {
		d.backoff = min(max(2*d.backoff, retryFirst), retryMax)
		d.retryAt = time.Now().Add(d.backoff)
	}
}

// unstick makes refused rows dirty again once their pause is over.
func (d *Delta[K, V]) unstick() {
	if len(d.stuck) == 0 {
		if d.problem != nil {
			d.problem, d.backoff, d.retryAt = nil, 0, time.Time{}
		}
		return
	}
	if time.Now().Before(d.retryAt) {
		return
	}
	d.retryAt, d.problem = time.Time{}, nil
	for k, a := range d.stuck {
		if _, wanted := d.wanted[k]; wanted {
			d.dirty[k] = a
		} else {
			d.leaving[k] = a
		}
	}
	clear(d.stuck)
	d.peak = max(d.peak, len(d.dirty), len(d.leaving))
}

// RetryAt is when refused rows are to be tried again; zero = nothing is refused.
func (d *Delta[K, V]) RetryAt() time.Time {
	if len(d.stuck) == 0 {
		return time.Time{}
	}
	return d.retryAt
}

// Problem is why rows are stuck; nil when none are.
func (d *Delta[K, V]) Problem() error {
	if len(d.stuck) == 0 {
		return nil
	}
	return d.problem
}

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
