package kvstore

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"sort"
	"strings"
	"sync"
	"time"
)

// Publisher keeps the wanted keys of one writer in a store: it writes what
// differs and nothing else, sweeps what is not wanted under its own prefixes
// once the source has been listed completely, undoes foreign changes, and
// writes the marker after everything else.
//
// Only present state counts: wanted (what the source says) and actual (what the
// store was last known to hold). A key is queued when the two may differ, and
// what to write is decided when a commit takes it from the queue; so changes
// coalesce by themselves and an idle publisher commits at once.
type Publisher struct {
	c     PublishConfig
	wake  chan struct{} // buffered by one: there may be something to do
	parts []*part       // what Run follows; their fields belong to mu

	mu        sync.Mutex
	wanted    map[string]wish
	refused   map[string]refusal
	explicit  map[string]struct{} // to be deleted, whatever the guard says
	gen       uint64              // of the source list being received
	relisting bool
	listed    bool // a complete source list has been received

	actual  map[string]fact
	kinds   map[string]int                  // existing keys per kind, the marker not counted
	present int                             // existing keys, the marker not counted
	extra   map[string]struct{}             // exist, are not wanted and were not deleted one by one
	held    map[string]map[string]time.Time // kind → key → when first found missing
	epoch   uint64                          // counts lists of the store

	queue      []string
	queued     map[string]struct{}
	flying     map[string]struct{} // keys in commits under way
	flights    int
	bulk       bool // several commits at a time: a first publication or a resync
	maxBytes   int  // of a commit; shrinks when the store refuses
	markerDue  bool
	asking     bool   // MarkerValue is being called
	storeID    uint64 // of the store in actual; 0 until all parts are read
	storeEmpty bool
	running    bool
	settled    chan struct{} // closed when idle; nil while nobody waits
	commits    uint64
	lastError  error
}

// wish is a wanted value. gen is the source list that mentioned it last.
type wish struct {
	value []byte
	gen   uint64
}

type refusal struct {
	err error
	gen uint64
}

// fact is what the store holds under a key, as far as we know.
type fact struct {
	value  []byte
	rev    int64
	epoch  uint64 // of the publisher when it was learnt
	absent bool   // deleted by us; kept until the watch has passed rev
	unsure bool   // the answer of a commit was lost: write again
}

// publishBytes bounds keys and values of one commit, well below the store's
// own limit.
const publishBytes = 1 << 20

// NewPublisher makes a publisher. Wishes can be given at once; Run writes them.
func NewPublisher(c PublishConfig) *Publisher {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Same == nil {
		c.Same = func(_ string, a, b []byte) bool { return bytes.Equal(a, b) }
	}
	if c.Kind == nil {
		c.Kind = func(string) string { return "" }
	}
	if c.InFlight <= 0 {
		c.InFlight = 4
	}
	c.Guard.defaults()
	p := &Publisher{
		c:         c,
		wake:      make(chan struct{}, 1),
		wanted:    map[string]wish{},
		refused:   map[string]refusal{},
		explicit:  map[string]struct{}{},
		queued:    map[string]struct{}{},
		flying:    map[string]struct{}{},
		held:      map[string]map[string]time.Time{},
		maxBytes:  publishBytes,
		markerDue: true,
	}
	p.forgetStore()
	for _, prefix := range outermost(c.Prefixes) {
		p.parts = append(p.parts, &part{p: p, prefix: prefix})
	}
	if c.Marker != "" && !p.owns(c.Marker) {
		p.parts = append(p.parts, &part{p: p, prefix: c.Marker, only: c.Marker})
	}
	return p
}

// outermost drops prefixes that lie under others.
func outermost(prefixes []string) []string {
	sorted := append([]string(nil), prefixes...)
	sort.Strings(sorted)
	var out []string
	for _, p := range sorted {
		if len(out) == 0 || !strings.HasPrefix(p, out[len(out)-1]) {
			out = append(out, p)
		}
	}
	return out
}

// owns reports whether key lies under one of the prefixes.
func (p *Publisher) owns(key string) bool {
	for _, prefix := range p.c.Prefixes {
		if strings.HasPrefix(key, prefix) {
			return true
		}
	}
	return false
}

// forgetStore drops all that is known of the store. Callers hold mu.
func (p *Publisher) forgetStore() {
	p.actual = map[string]fact{}
	p.kinds = map[string]int{}
	p.extra = map[string]struct{}{}
	p.present = 0
	p.storeID = 0
}

// Set says that key should have value, which it keeps. It never blocks on the
// store. A value that cannot be stored is refused for that key alone: what the
// store holds stays in force, and Refused names it.
func (p *Publisher) Set(key string, value []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.acceptable(key, value); err != nil {
		p.refuse(key, err)
		return
	}
	delete(p.refused, key)
	delete(p.explicit, key)
	p.wanted[key] = wish{value, p.gen}
	p.reconsider(key)
}

func (p *Publisher) acceptable(key string, value []byte) error {
	switch {
	case key == p.c.Marker:
		return errors.New("the marker key is written by the publisher itself")
	case !p.owns(key):
		return errors.New("the key lies under none of the publisher's prefixes")
	case len(value) > MaxValue:
		return fmt.Errorf("the value has %d bytes, at most %d are allowed", len(value), MaxValue)
	}
	return nil
}

// refuse notes that key's new value was not taken. Callers hold mu.
func (p *Publisher) refuse(key string, err error) {
	if old, ok := p.refused[key]; !ok || old.err.Error() != err.Error() {
		p.c.Log.Error("record refused, the last good one stays in force", "key", key, "error", err)
	}
	p.refused[key] = refusal{err, p.gen}
	delete(p.explicit, key)
	p.reconsider(key)
}

// Delete says that key should not exist. A single delete is not guarded.
func (p *Publisher) Delete(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if key == p.c.Marker || !p.owns(key) {
		return
	}
	delete(p.wanted, key)
	delete(p.refused, key)
	p.explicit[key] = struct{}{}
	p.reconsider(key)
}

// Relist begins a complete list of the source: what is not Set again before
// the next Listed is no longer wanted. The guard judges what that deletes.
func (p *Publisher) Relist() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gen++
	p.relisting = true
}

// Listed says that a complete list of the source has been Set. From the first
// time on the publisher sweeps, and writes the marker when all else is written.
// Each further call asks MarkerValue anew; only one that ends a list begun with
// Relist counts as a second list that agrees with what the guard holds.
func (p *Publisher) Listed() {
	p.mu.Lock()
	defer p.mu.Unlock()
	anew := p.relisting
	if anew {
		p.relisting = false
		p.dropUnlisted()
	}
	p.listed = true
	p.markerDue = true
	if len(p.queue) > MaxOps {
		p.bulk = true
	}
	p.sweep(anew)
	p.poke()
}

// dropUnlisted forgets wishes that the source list did not repeat. Callers hold mu.
func (p *Publisher) dropUnlisted() {
	for key, r := range p.refused {
		if r.gen < p.gen {
			delete(p.refused, key)
			p.reconsider(key)
		}
	}
	for key, w := range p.wanted {
		if _, refused := p.refused[key]; w.gen < p.gen && !refused {
			delete(p.wanted, key)
			p.reconsider(key)
		}
	}
}

// reconsider puts key where it belongs after wanted or actual changed: into the
// queue, among the extra ones, or nowhere. Callers hold mu.
func (p *Publisher) reconsider(key string) {
	w, want := p.wanted[key]
	a, known := p.actual[key]
	exists := known && (!a.absent || a.unsure)
	delete(p.extra, key)
	switch {
	case key == p.c.Marker:
		return
	case want:
		p.release(key)
		if !exists || a.unsure || !bytes.Equal(a.value, w.value) {
			p.enqueue(key)
		}
	case exists:
		if _, ok := p.explicit[key]; ok {
			p.release(key)
			p.enqueue(key)
		} else if _, ok := p.refused[key]; ok {
			p.release(key)
		} else {
			p.extra[key] = struct{}{}
		}
	case p.storeID != 0:
		p.release(key)
		delete(p.explicit, key)
	}
}

// enqueue has key looked at by the next commit. Callers hold mu.
func (p *Publisher) enqueue(key string) {
	if _, ok := p.queued[key]; ok {
		return
	}
	p.queued[key] = struct{}{}
	p.queue = append(p.queue, key)
	p.poke()
}

// poke wakes Run.
func (p *Publisher) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// learn replaces what is known about key; nil forgets it. Callers hold mu.
func (p *Publisher) learn(key string, f *fact) {
	old, known := p.actual[key]
	if key != p.c.Marker {
		if known && !old.absent {
			p.count(key, -1)
		}
		if f != nil && !f.absent {
			p.count(key, 1)
		}
	}
	if f == nil {
		delete(p.actual, key)
		return
	}
	if w, ok := p.wanted[key]; ok && bytes.Equal(w.value, f.value) {
		f.value = w.value // one copy in memory is enough
	}
	p.actual[key] = *f
}

func (p *Publisher) count(key string, by int) {
	p.present += by
	kind := p.c.Kind(key)
	if p.kinds[kind] += by; p.kinds[kind] == 0 {
		delete(p.kinds, kind)
	}
}
