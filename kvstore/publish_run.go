package kvstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// commitTimeout ends a commit whose answer does not come; it may have been
// applied, and is done again.
const commitTimeout = 30 * time.Second

// flight is a commit under way, and then its result.
type flight struct {
	ops    []Op
	writes []write
	pos    Position
	err    error
}

// Run publishes until ctx ends, the fence fails (leadership is lost: the error
// wraps ErrConflict, or is the fence's own), or the store refuses writes for
// good. It may be called again: wishes are kept, the store is read anew.
func (p *Publisher) Run(ctx context.Context) error {
	if len(p.parts) == 0 {
		return errors.New("publish: neither prefixes nor a marker are given")
	}
	p.mu.Lock()
	if p.running {
		p.mu.Unlock()
		return errors.New("publish: already running")
	}
	p.running = true
	p.reset()
	p.mu.Unlock()

	ctx, cancel := context.WithCancel(ctx)
	var readers sync.WaitGroup
	for _, s := range p.parts {
		readers.Go(func() {
			// Follow ends with ctx alone: its configuration is ours.
			_ = Follow(ctx, FollowConfig{Stores: []Store{p.c.Store}, Prefix: s.prefix, Sink: s, Log: p.c.Log})
		})
	}
	r := &publishRun{p: p, results: make(chan *flight)}
	err := r.loop(ctx)
	cancel()
	r.drain()
	readers.Wait()

	p.mu.Lock()
	defer p.mu.Unlock()
	p.running = false
	p.storeID = 0
	return err
}

// reset forgets the store, so that Run begins with reading it. Callers hold mu.
func (p *Publisher) reset() {
	p.forgetStore()
	p.queue = nil
	clear(p.queued)
	clear(p.flying)
	p.flights, p.maxBytes = 0, publishBytes
	p.markerDue, p.bulk = true, true
	for _, s := range p.parts {
		s.storeID, s.fresh, s.tombs = 0, nil, nil
	}
}

// publishRun is one Run. It belongs to Run's goroutine.
type publishRun struct {
	p        *Publisher
	results  chan *flight
	flights  int
	failures int
	retry    *time.Timer // nil unless waiting after a failure
}

func (r *publishRun) loop(ctx context.Context) error {
	defer r.stopRetry()
	for {
		if r.retry == nil {
			if err := r.launch(ctx); err != nil {
				return err
			}
		}
		r.p.announce()
		var due <-chan time.Time
		if r.retry != nil {
			due = r.retry.C
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.p.wake:
		case <-due:
			r.stopRetry()
		case f := <-r.results:
			r.flights--
			if err := r.landed(ctx, f); err != nil {
				return err
			}
		}
	}
}

func (r *publishRun) stopRetry() {
	if r.retry != nil {
		r.retry.Stop()
		r.retry = nil
	}
}

// launch starts as many commits as may be under way.
func (r *publishRun) launch(ctx context.Context) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !r.p.room() {
			return nil
		}
		var fence []Op
		if r.p.c.Fence != nil {
			var err error
			if fence, err = r.p.c.Fence(); err != nil {
				return fmt.Errorf("publish: %w", err)
			}
		}
		f := r.p.take(MaxOps - len(fence))
		if f == nil {
			f = r.p.takeMarker()
		}
		if f == nil {
			return nil
		}
		f.ops = append(f.ops, fence...)
		r.flights++
		go func() {
			ctx, cancel := context.WithTimeout(ctx, commitTimeout)
			defer cancel()
			f.pos, f.err = r.p.c.Store.Commit(ctx, f.ops...)
			r.results <- f
		}()
	}
}

// drain waits for the commits under way when Run ends.
func (r *publishRun) drain() {
	for ; r.flights > 0; r.flights-- {
		r.p.land(<-r.results)
	}
}

// landed takes in a result. An error ends Run.
func (r *publishRun) landed(ctx context.Context, f *flight) error {
	err := r.p.land(f)
	switch {
	case err == nil:
		r.failures = 0
		if r.p.c.Committed != nil {
			r.p.c.Committed(f.pos)
		}
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, ErrConflict):
		return fmt.Errorf("publish: leadership is lost: %w", err)
	case errors.Is(err, ErrReadOnly), errors.Is(err, ErrDenied):
		return fmt.Errorf("publish: %w", err)
	case errors.Is(err, ErrTooLarge):
		return nil // it has been cut smaller
	}
	r.failures++
	wait := backoffWait(r.failures)
	r.p.c.Log.Warn("commit failed, it will be repeated", "error", err, "retry", wait)
	r.stopRetry()
	r.retry = time.NewTimer(wait)
	return nil
}

// land takes in the result of f and returns what went wrong.
func (p *Publisher) land(f *flight) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flights--
	err := f.err
	if s := p.partOf(f.writes[0].key); err == nil && f.pos.StoreID != s.storeID {
		err = fmt.Errorf("%w: the commit went to %016x, the list came from %016x", ErrOtherStore, f.pos.StoreID, s.storeID)
	}
	p.lastError = err
	if err == nil {
		p.commits++
	}
	for _, w := range f.writes {
		delete(p.flying, w.key)
		switch {
		case err == nil:
			p.wrote(w, f.pos.Revision)
		case !refusedForSure(err):
			a := p.actual[w.key]
			a.unsure = true
			a.absent = a.absent || a.rev == 0 // unknown so far: not counted as existing
			p.actual[w.key] = a
		}
		if err != nil && w.key == p.c.Marker {
			p.markerDue = true
		}
	}
	if errors.Is(err, ErrTooLarge) {
		p.tooLarge(f, err)
	}
	for _, w := range f.writes {
		p.reconsider(w.key)
	}
	return err
}

// wrote notes that w is in the store since rev. Callers hold mu.
func (p *Publisher) wrote(w write, rev int64) {
	if w.key == p.c.Marker {
		p.storeEmpty = false
	}
	if a, ok := p.actual[w.key]; ok && a.rev > rev {
		return // the watch has shown something newer
	}
	if !w.del {
		p.learn(w.key, &fact{value: w.value, rev: rev, epoch: p.epoch})
		return
	}
	p.learn(w.key, &fact{rev: rev, epoch: p.epoch, absent: true})
	s := p.partOf(w.key)
	s.tombs = append(s.tombs, tomb{w.key, rev})
}

// tooLarge makes the next commits smaller; a single write that is too large is
// refused. Callers hold mu.
func (p *Publisher) tooLarge(f *flight, err error) {
	if len(f.writes) > 1 {
		p.maxBytes = max(p.maxBytes/2, 1)
		return
	}
	w := f.writes[0]
	if w.key == p.c.Marker {
		p.markerDue = false
		p.c.Log.Error("marker refused", "key", w.key, "error", err)
		return
	}
	if wish, ok := p.wanted[w.key]; ok && bytes.Equal(wish.value, w.value) {
		delete(p.wanted, w.key)
		p.refuse(w.key, err)
	}
}

// refusedForSure reports whether err says that nothing was written.
func refusedForSure(err error) bool {
	for _, sure := range []error{ErrConflict, ErrTooLarge, ErrLeaseNotFound, ErrReadOnly, ErrDenied} {
		if errors.Is(err, sure) {
			return true
		}
	}
	return false
}

// announce tells those who wait that all is written.
func (p *Publisher) announce() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.settled != nil && p.idle() {
		close(p.settled)
		p.settled = nil
	}
}
