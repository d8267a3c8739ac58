package kvtest

import (
	"context"
	"errors"
	"iter"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

// ErrInjected is the error of every fault.
var ErrInjected = errors.New("injected fault")

// Faults are probabilities, from 0 to 1, of what may go wrong.
type Faults struct {
	List      float64       // a list fails before its first chunk
	ListChunk float64       // a list breaks off, at each chunk
	Cut       float64       // a watch is cut, at each batch
	Commit    float64       // a commit fails and is not applied
	Lost      float64       // a commit is applied, and its answer is lost
	Delay     float64       // a call, chunk or batch is late
	MaxDelay  time.Duration // by up to this much
}

// Faulty is a Store that misbehaves on purpose: by chance, reproducibly from a
// seed, and on command (Break, Freeze, Swap).
type Faulty struct {
	mu      sync.Mutex
	store   kvstore.Store
	rand    *rand.Rand
	faults  Faults
	broken  error            // if not nil, everything fails with it
	frozen  kvstore.Position // if not zero, a replica that has not got further
	life    int              // counts swaps; a watch ends with its life
	changed chan struct{}    // closed when any of these changes
	counts  Counts
}

// Counts are the calls that reached a Faulty.
type Counts struct{ Lists, Watches, Commits, Injected int }

// NewFaulty wraps s. Equal seeds and equal calls give equal faults.
func NewFaulty(s kvstore.Store, seed uint64, faults Faults) *Faulty {
	return &Faulty{store: s, rand: rand.New(rand.NewPCG(seed, 0)), faults: faults, changed: make(chan struct{})}
}

// Set replaces the faults; the zero value heals all chance.
func (f *Faulty) Set(faults Faults) { f.change(func() { f.faults = faults }) }

// Break makes everything fail with err and cuts all watches; nil heals.
func (f *Faulty) Break(err error) { f.change(func() { f.broken = err }) }

// Freeze makes reads behave like those of a replica that has stopped at a
// position: it knows nothing later. Commits go through. The zero Position thaws.
func (f *Faulty) Freeze(at kvstore.Position) { f.change(func() { f.frozen = at }) }

// Swap puts another store behind the same address and cuts all watches.
func (f *Faulty) Swap(s kvstore.Store) {
	f.change(func() { f.store, f.life = s, f.life+1 })
}

// Counts says what has been called so far.
func (f *Faulty) Counts() Counts {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counts
}

func (f *Faulty) change(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
	close(f.changed)
	f.changed = make(chan struct{})
}

// state is what a call works with.
type state struct {
	store   kvstore.Store
	faults  Faults
	broken  error
	frozen  kvstore.Position
	life    int
	changed <-chan struct{}
}

func (f *Faulty) now() state {
	f.mu.Lock()
	defer f.mu.Unlock()
	return state{f.store, f.faults, f.broken, f.frozen, f.life, f.changed}
}

func (f *Faulty) count(add func(*Counts)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	add(&f.counts)
}

// chance draws whether something of probability p happens.
func (f *Faulty) chance(p float64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	hit := p > 0 && f.rand.Float64() < p
	if hit {
		f.counts.Injected++
	}
	return hit
}

// late waits, if chance will have it.
func (f *Faulty) late(ctx context.Context, s state) error {
	if s.faults.MaxDelay <= 0 || !f.chance(s.faults.Delay) {
		return nil
	}
	f.mu.Lock()
	d := time.Duration(f.rand.Int64N(int64(s.faults.MaxDelay))) + 1
	f.mu.Unlock()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// List implements kvstore.Store.
func (f *Faulty) List(ctx context.Context, prefix string, at kvstore.Position, visit func([]kvstore.KV) error) (kvstore.Position, error) {
	f.count(func(c *Counts) { c.Lists++ })
	s := f.now()
	if err := f.late(ctx, s); err != nil {
		return kvstore.Position{}, err
	}
	switch {
	case s.broken != nil:
		return kvstore.Position{}, s.broken
	case f.chance(s.faults.List):
		return kvstore.Position{}, ErrInjected
	case s.frozen.IsZero():
	case at.IsZero():
		at = s.frozen
	case at.StoreID == s.frozen.StoreID && at.Revision > s.frozen.Revision:
		return kvstore.Position{}, kvstore.ErrFutureRevision
	}
	return s.store.List(ctx, prefix, at, func(kvs []kvstore.KV) error {
		if err := f.late(ctx, s); err != nil {
			return err
		}
		if f.chance(s.faults.ListChunk) {
			return ErrInjected
		}
		return visit(kvs)
	})
}

// Watch implements kvstore.Store.
func (f *Faulty) Watch(ctx context.Context, prefix string, after kvstore.Position) iter.Seq2[kvstore.Batch, error] {
	return func(yield func(kvstore.Batch, error) bool) {
		f.count(func(c *Counts) { c.Watches++ })
		s := f.now()
		switch {
		case s.broken != nil:
			yield(kvstore.Batch{}, s.broken)
			return
		case s.frozen.IsZero():
		case after.IsZero():
			after = s.frozen
		case after.StoreID == s.frozen.StoreID && after.Revision > s.frozen.Revision:
			yield(kvstore.Batch{}, kvstore.ErrFutureRevision)
			return
		}
		f.pass(ctx, s, prefix, after, yield)
	}
}

// pass hands on the batches of a real watch until it is cut.
func (f *Faulty) pass(ctx context.Context, s state, prefix string, after kvstore.Position, yield func(kvstore.Batch, error) bool) {
	inner, cancel := context.WithCancel(ctx)
	batches := make(chan kvstore.Batch)
	ended := make(chan error, 1)
	watch := s.store.Watch(inner, prefix, after) // not in there: refresh writes s
	go func() {
		for batch, err := range watch {
			if err != nil {
				ended <- err
				return
			}
			select {
			case batches <- batch:
			case <-inner.Done():
				ended <- nil
				return
			}
		}
		ended <- nil
	}()
	running := true
	defer func() {
		cancel()
		if running {
			<-ended
		}
	}()
	for {
		select {
		case err := <-ended:
			running = false
			if err != nil {
				yield(kvstore.Batch{}, err)
			}
			return
		case <-s.changed:
			if err := f.refresh(&s); err != nil {
				yield(kvstore.Batch{}, err)
				return
			}
		case batch := <-batches:
			if err := f.late(ctx, s); err != nil {
				return
			}
			if f.chance(s.faults.Cut) {
				yield(kvstore.Batch{}, ErrInjected)
				return
			}
			if !f.hold(ctx, &s, batch, yield) {
				return
			}
		}
	}
}

// refresh brings the state of a watch up to date, or says why it is over.
func (f *Faulty) refresh(s *state) error {
	life := s.life
	*s = f.now()
	switch {
	case s.broken != nil:
		return s.broken
	case s.life != life:
		return ErrInjected
	}
	return nil
}

// hold yields batch, once a frozen replica has thawed.
func (f *Faulty) hold(ctx context.Context, s *state, batch kvstore.Batch, yield func(kvstore.Batch, error) bool) bool {
	for s.frozen.StoreID == batch.Position.StoreID && batch.Position.Revision > s.frozen.Revision {
		select {
		case <-ctx.Done():
			return false
		case <-s.changed:
			if err := f.refresh(s); err != nil {
				yield(kvstore.Batch{}, err)
				return false
			}
		}
	}
	return yield(batch, nil)
}

// Commit implements kvstore.Store.
func (f *Faulty) Commit(ctx context.Context, ops ...kvstore.Op) (kvstore.Position, error) {
	f.count(func(c *Counts) { c.Commits++ })
	s := f.now()
	if err := f.late(ctx, s); err != nil {
		return kvstore.Position{}, err
	}
	switch {
	case s.broken != nil:
		return kvstore.Position{}, s.broken
	case f.chance(s.faults.Commit):
		return kvstore.Position{}, ErrInjected
	}
	pos, err := s.store.Commit(ctx, ops...)
	if err == nil && f.chance(s.faults.Lost) {
		return kvstore.Position{}, ErrInjected
	}
	return pos, err
}

// Grant implements kvstore.Store. Leases go straight to the store.
func (f *Faulty) Grant(ctx context.Context, ttl time.Duration) (kvstore.Lease, error) {
	s := f.now()
	if s.broken != nil {
		return nil, s.broken
	}
	return s.store.Grant(ctx, ttl)
}
