package kvstore

import "fmt"

// room reports whether another commit may start now. While much is written,
// several may be under way, but further ones only with a full load: what comes
// in little by little gathers for the next.
func (p *Publisher) room() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.storeID == 0:
		return false
	case p.flights == 0:
		return true
	}
	return p.bulk && p.flights < p.c.InFlight && len(p.queue) >= MaxOps
}

// take makes a commit of at most n operations out of the queue; nil if there is
// nothing to write.
func (p *Publisher) take(n int) *flight {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := &flight{}
	var later []string
	size, i := 0, 0
	for ; i < len(p.queue) && len(f.writes) < n && size < p.maxBytes; i++ {
		key := p.queue[i]
		if _, ok := p.flying[key]; ok {
			later = append(later, key)
			continue
		}
		w, ok := p.needed(key)
		if ok && len(f.writes) > 0 && size+len(key)+len(w.value) > p.maxBytes {
			break
		}
		delete(p.queued, key)
		if ok {
			f.writes = append(f.writes, w)
			size += len(key) + len(w.value)
		}
	}
	copy(p.queue[i-len(later):], later) // back to the front, in the space just read
	p.queue = p.queue[i-len(later):]
	if len(f.writes) == 0 {
		if p.flights == 0 && p.listed {
			p.bulk = false
		}
		return nil
	}
	p.send(f)
	return f
}

// needed is the write that makes actual what is wanted; none if it is so
// already, or if the guard has yet to decide. Callers hold mu.
func (p *Publisher) needed(key string) (write, bool) {
	a, known := p.actual[key]
	exists := known && !a.absent
	if w, want := p.wanted[key]; want {
		if exists && !a.unsure && p.c.Same(key, a.value, w.value) {
			return write{}, false
		}
		return write{key: key, value: w.value}, true
	}
	if _, ok := p.explicit[key]; ok && (exists || a.unsure) {
		return write{del: true, key: key}, true
	}
	return write{}, false
}

// send makes the operations of f and notes it as under way. Callers hold mu.
func (p *Publisher) send(f *flight) {
	f.ops = make([]Op, 0, len(f.writes)+2)
	for _, w := range f.writes {
		p.flying[w.key] = struct{}{}
		if w.del {
			f.ops = append(f.ops, Delete(w.key))
		} else {
			f.ops = append(f.ops, Put(w.key, w.value, 0))
		}
	}
	p.flights++
}

// takeMarker makes the commit of the marker if all else is done and it is due.
// MarkerValue is asked without the lock held.
func (p *Publisher) takeMarker() *flight {
	p.mu.Lock()
	if p.storeID == 0 || p.flights > 0 || len(p.queue) > 0 {
		p.mu.Unlock()
		return nil
	}
	p.sweep(false) // what has turned out to be extra meanwhile
	if len(p.queue) > 0 || !p.markerWanted() {
		p.mu.Unlock()
		return nil
	}
	a, known := p.actual[p.c.Marker]
	var old []byte
	if known && !a.absent {
		old = a.value
		if old == nil {
			old = []byte{}
		}
	}
	p.markerDue, p.asking = false, true
	empty := p.storeEmpty
	p.mu.Unlock()

	value := p.c.MarkerValue(empty, old)

	p.mu.Lock()
	defer p.mu.Unlock()
	p.asking = false
	if value == nil || old != nil && !a.unsure && p.c.Same(p.c.Marker, old, value) {
		return nil
	}
	if len(value) > MaxValue {
		p.lastError = fmt.Errorf("the marker's value has %d bytes, at most %d are allowed", len(value), MaxValue)
		p.c.Log.Error("marker refused", "key", p.c.Marker, "error", p.lastError)
		return nil
	}
	f := &flight{writes: []write{{key: p.c.Marker, value: value}}}
	p.send(f)
	return f
}
