// Package linux is the agent's tables on a real kernel: BPF maps, WireGuard
// peers and routes, and the network of pods. It carries out and reports; what
// should be there is decided in package agent.
package linux

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/tombolo-mesh/tombolo/agent"
)

// batchRows is how many rows one system call carries: measured, larger ones gain
// nothing.
const batchRows = 4096

// bpfMap is the Table of one BPF map. RK and RV are the rows as the map has them.
type bpfMap[K comparable, V any, RK, RV any] struct {
	name   string
	m      *ebpf.Map
	key    func(K) RK
	unkey  func(RK) K
	row    func(V) RV
	unrow  func(RV) V
	single bool // the kernel has no batch calls for this type of map
	// order, if any, is that in which rows are written; they leave in reverse.
	order func(a, b K) int
	err   error
}

func newMap[K comparable, V any, RK, RV any](name string, m *ebpf.Map, key func(K) RK, unkey func(RK) K, row func(V) RV, unrow func(RV) V) *bpfMap[K, V, RK, RV] {
	return &bpfMap[K, V, RK, RV]{name: name, m: m, key: key, unkey: unkey, row: row, unrow: unrow}
}

// Dump reads by batches. The map has one writer, who does not write meanwhile,
// so no row is missed or seen twice.
func (t *bpfMap[K, V, RK, RV]) Dump() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		t.err = nil
		if !t.single {
			done, stop := t.dumpBatches(yield)
			if done || stop {
				return
			}
		}
		t.dumpSingly(yield)
	}
}

func (t *bpfMap[K, V, RK, RV]) DumpErr() error { return t.err }

// Size is how many rows fit.
func (t *bpfMap[K, V, RK, RV]) Size() int { return int(t.m.MaxEntries()) }

// dumpBatches is done when nothing is left to read (or an error is kept), and
// stopped when yield said so; neither means that the kernel cannot do it.
func (t *bpfMap[K, V, RK, RV]) dumpBatches(yield func(K, V) bool) (done, stop bool) {
	var cursor ebpf.MapBatchCursor
	size := min(batchRows, int(t.m.MaxEntries()))
	keys, rows := make([]RK, size), make([]RV, size)
	for first := true; ; first = false {
		n, err := t.m.BatchLookup(&cursor, keys, rows, nil)
		if first && n == 0 && err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			// Not supported, or (ENOSPC) more rows in one bucket than a batch
			// holds, or an error that reading singly will show too.
			t.single = errors.Is(err, ebpf.ErrNotSupported)
			return false, false
		}
		for i := range n {
			if !yield(t.unkey(keys[i]), t.unrow(rows[i])) {
				return false, true
			}
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return true, false
		}
		if err != nil {
			t.err = fmt.Errorf("read map %s: %w", t.name, err)
			return true, false
		}
	}
}

func (t *bpfMap[K, V, RK, RV]) dumpSingly(yield func(K, V) bool) {
	var key RK
	var row RV
	rows := t.m.Iterate()
	for rows.Next(&key, &row) {
		if !yield(t.unkey(key), t.unrow(row)) {
			return
		}
	}
	if err := rows.Err(); err != nil {
		t.err = fmt.Errorf("read map %s: %w", t.name, err)
	}
}

// ordered has rows written in an order.
func (t *bpfMap[K, V, RK, RV]) ordered(order func(a, b K) int) *bpfMap[K, V, RK, RV] {
	t.order = order
	return t
}

// Put writes by batches; a full map keeps what fitted.
func (t *bpfMap[K, V, RK, RV]) Put(rows map[K]V) error {
	size := min(batchRows, len(rows))
	keys, values := make([]RK, 0, size), make([]RV, 0, size)
	list := maps.Keys(rows)
	if t.order != nil {
		list = slices.Values(slices.SortedFunc(list, t.order))
	}
	for k := range list {
		keys, values = append(keys, t.key(k)), append(values, t.row(rows[k]))
		if len(keys) == batchRows {
			if err := t.putBatch(keys, values); err != nil {
				return err
			}
			keys, values = keys[:0], values[:0]
		}
	}
	return t.putBatch(keys, values)
}

func (t *bpfMap[K, V, RK, RV]) putBatch(keys []RK, values []RV) error {
	if len(keys) > 1 && !t.single {
		_, err := t.m.BatchUpdate(keys, values, nil)
		if !errors.Is(err, ebpf.ErrNotSupported) {
			return t.explain(err)
		}
		t.single = true
	}
	for i := range keys {
		if err := t.m.Put(&keys[i], &values[i]); err != nil {
			return t.explain(err)
		}
	}
	return nil
}

// Delete removes by batches. The kernel stops a batch at a key that is absent;
// the rest is taken up after it.
func (t *bpfMap[K, V, RK, RV]) Delete(keys []K) error {
	if t.order != nil {
		keys = slices.SortedFunc(slices.Values(keys), func(a, b K) int { return t.order(b, a) })
	}
	batch := make([]RK, 0, min(batchRows, len(keys)))
	for i, k := range keys {
		batch = append(batch, t.key(k))
		if len(batch) == batchRows || i == len(keys)-1 {
			if err := t.deleteBatch(batch); err != nil {
				return err
			}
			batch = batch[:0]
		}
	}
	return nil
}

func (t *bpfMap[K, V, RK, RV]) deleteBatch(keys []RK) error {
	for len(keys) > 1 && !t.single {
		n, err := t.m.BatchDelete(keys, nil)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, ebpf.ErrKeyNotExist) && n < len(keys):
			keys = keys[n+1:]
		case errors.Is(err, ebpf.ErrNotSupported):
			t.single = true
		default:
			return t.explain(err)
		}
	}
	for i := range keys {
		if err := t.m.Delete(&keys[i]); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return t.explain(err)
		}
	}
	return nil
}

// explain names the map; a full one is agent.ErrFull with its size.
func (t *bpfMap[K, V, RK, RV]) explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.E2BIG), errors.Is(err, unix.ENOSPC):
		return fmt.Errorf("map %s holds %d rows: %w", t.name, t.m.MaxEntries(), agent.ErrFull)
	case errors.Is(err, unix.ENOMEM):
		return fmt.Errorf("map %s (room for %d rows): the kernel has no memory for more: %w", t.name, t.m.MaxEntries(), agent.ErrFull)
	}
	return fmt.Errorf("write map %s: %w", t.name, err)
}
