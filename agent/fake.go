package agent

import (
	"fmt"
	"iter"
	"maps"
	"sync"
)

// Fake is a table in memory, as strict as the real ones: it has a size, it
// refuses what does not fit, and it counts. It is safe for concurrent use, so
// that a test may look while an agent writes.
type Fake[K comparable, V any] struct {
	name string
	size int

	mu      sync.Mutex
	rows    map[K]V
	calls   int
	changed func(k K, v *V) // nil value = deleted
}

// NewFake makes an empty table with room for size rows; 0 = no limit.
func NewFake[K comparable, V any](name string, size int) *Fake[K, V] {
	return &Fake[K, V]{name: name, size: size, rows: map[K]V{}}
}

// NewFakes makes a set of tables without a limit.
func NewFakes() Tables {
	return Tables{
		Config:        NewFake[ConfigKey, ConfigRow](TableConfig, 0),
		Peers:         NewFake[PeerKey, PeerRow](TablePeers, 0),
		Routes:        NewFake[RouteKey, RouteRow](TableRoutes, 0),
		Policy:        NewFake[PolicyKey, PolicyRow](TablePolicy, 0),
		IPPrefixes:    NewFake[Prefix, IPCacheRow](TableIPPrefixes, 0),
		IPs:           NewFake[Addr, IPCacheRow](TableIPs, 0),
		ClassPrefixes: NewFake[Prefix, ClassRow](TableClassPrefixes, 0),
		Classes:       NewFake[Addr, ClassRow](TableClasses, 0),
		Subjects:      NewFake[SubjectKey, SubjectRow](TableSubjects, 0),
		Endpoints:     NewFake[Addr, EndpointRow](TableEndpoints, 0),
		SourceRanges:  NewFake[RangeKey, RangeRow](TableSourceRanges, 0),
		Maglev:        NewFake[MaglevKey, MaglevRow](TableMaglev, 0),
		Slots:         NewFake[SlotKey, SlotRow](TableSlots, 0),
		Services:      NewFake[ServiceKey, ServiceRow](TableServices, 0),
		Epoch:         &FakeEpoch{},
		NodeHealth:    NewFake[NodeKey, HealthRow](TableNodeHealth, 0),
		ClusterHealth: NewFake[ClusterKey, HealthRow](TableClusterHealth, 0),
	}
}

// Dump yields a snapshot of the rows.
func (f *Fake[K, V]) Dump() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for k, v := range f.Rows() {
			if !yield(k, v) {
				return
			}
		}
	}
}

// Size is how many rows fit; 0 = no limit.
func (f *Fake[K, V]) Size() int { return f.size }

// DumpErr is always nil: a fake can be read.
func (f *Fake[K, V]) DumpErr() error { return nil }

// Put writes rows; those for which there is no room are named in ErrFull.
func (f *Fake[K, V]) Put(rows map[K]V) error {
	if len(rows) > MaxBatch {
		return fmt.Errorf("table %s: batch of %d rows, at most %d allowed", f.name, len(rows), MaxBatch)
	}
	f.mu.Lock()
	f.calls++
	refused := 0
	for k, v := range rows {
		if _, had := f.rows[k]; !had && f.size > 0 && len(f.rows) >= f.size {
			refused++
			continue
		}
		f.rows[k] = v
	}
	changed := f.changed
	f.mu.Unlock()
	if changed != nil {
		for k, v := range rows {
			changed(k, &v)
		}
	}
	if refused > 0 {
		return fmt.Errorf("table %s: %d of %d rows do not fit into %d: %w", f.name, refused, len(rows), f.size, ErrFull)
	}
	return nil
}

// Delete removes rows.
func (f *Fake[K, V]) Delete(keys []K) error {
	if len(keys) > MaxBatch {
		return fmt.Errorf("table %s: batch of %d rows, at most %d allowed", f.name, len(keys), MaxBatch)
	}
	f.mu.Lock()
	f.calls++
	for _, k := range keys {
		delete(f.rows, k)
	}
	changed := f.changed
	f.mu.Unlock()
	if changed != nil {
		for _, k := range keys {
			changed(k, nil)
		}
	}
	return nil
}

// Rows is a copy of the present rows.
func (f *Fake[K, V]) Rows() map[K]V {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.rows)
}

// Get is the row at k.
func (f *Fake[K, V]) Get(k K) (V, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	v, ok := f.rows[k]
	return v, ok
}

// Len is the number of rows.
func (f *Fake[K, V]) Len() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.rows)
}

// Calls is the number of Put and Delete calls so far.
func (f *Fake[K, V]) Calls() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

// OnChange calls hook for every row of a Put (v) or Delete (nil) from now on,
// after the call took effect and before it returns.
func (f *Fake[K, V]) OnChange(hook func(k K, v *V)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.changed = hook
}

// FakeEpoch is an epoch in memory. It fails as its hook says.
type FakeEpoch struct {
	mu   sync.Mutex
	n    uint32
	hook func() error
}

// Next counts up, unless the hook has an error.
func (e *FakeEpoch) Next() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.hook != nil {
		if err := e.hook(); err != nil {
			return err
		}
	}
	e.n++
	return nil
}

// Now is the present number.
func (e *FakeEpoch) Now() uint32 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.n
}

// OnNext calls hook before every count from now on; its error is the answer.
func (e *FakeEpoch) OnNext(hook func() error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.hook = hook
}
