package agent

import (
	"errors"
	"iter"
	"maps"
	"time"
)

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
