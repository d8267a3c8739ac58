package kvstore

import (
	"context"
	"sort"
)

// Refused are the keys whose wanted values were not taken, by key.
func (p *Publisher) Refused() []Refusal {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []Refusal
	for key, r := range p.refused {
		out = append(out, Refusal{key, r.err})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Key < out[j].Key })
	return out
}

// Meant is what key will hold when all is written: the wanted value, or, of a key
// that nothing was said of, what the store was last known to hold; nil = nothing.
// known is false while the store has not been read.
func (p *Publisher) Meant(key string) (value []byte, known bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w, ok := p.wanted[key]; ok {
		return w.value, true
	}
	if _, gone := p.explicit[key]; gone {
		return nil, true
	}
	return p.actual[key].value, p.storeID != 0
}

// Idle reports whether the store holds all that is wanted, as far as the guard
// lets it and values were not refused, the marker included if Listed was called.
func (p *Publisher) Idle() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.idle()
}

func (p *Publisher) idle() bool {
	return p.storeID != 0 && len(p.queue) == 0 && p.flights == 0 && !p.asking && !p.markerWanted()
}

// markerWanted reports whether the marker may have to be written, now that the
// rest is. Callers hold mu.
func (p *Publisher) markerWanted() bool {
	return p.markerDue && p.listed && p.c.Marker != "" && p.c.MarkerValue != nil
}

// WaitIdle waits until Idle or the end of ctx, whose error it returns.
func (p *Publisher) WaitIdle(ctx context.Context) error {
	for {
		p.mu.Lock()
		if p.idle() {
			p.mu.Unlock()
			return nil
		}
		if p.settled == nil {
			p.settled = make(chan struct{})
		}
		settled := p.settled
		p.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-settled:
		}
	}
}

// PublishStatus is where a Publisher stands.
type PublishStatus struct {
	Running   bool
	Loaded    bool // the store's present content is known
	Listed    bool
	Wanted    int    // keys
	Pending   int    // keys waiting to be written
	InFlight  int    // commits under way
	Commits   uint64 // that succeeded
	Held      int    // kinds
	Refused   int    // keys
	LastError error  // of the last commit; nil if it succeeded
}

// Status says where the publisher stands.
func (p *Publisher) Status() PublishStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return PublishStatus{
		Running: p.running, Loaded: p.storeID != 0, Listed: p.listed,
		Wanted: len(p.wanted), Pending: len(p.queue), InFlight: p.flights, Commits: p.commits,
		Held: len(p.held), Refused: len(p.refused), LastError: p.lastError,
	}
}
