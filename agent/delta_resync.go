package agent

import (
	"fmt"
	"iter"
)

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
