package kvstore

import (
	"context"
	"strings"
	"time"
)

// maxBatch is about how many events one Batch of a watch that is behind has;
// revisions are never split, so it may have more.
const maxBatch = 1024

// watcher is the state of one Watch.
type watcher struct {
	prefix string
	pos    Position
	epoch  uint64
	told   time.Time // when the reader last heard of a position
	behind bool      // pos is further than what the reader heard of
	first  bool      // nothing has been yielded yet
}

func (m *Memory) watch(ctx context.Context, prefix string, after Position, yield func(Batch, error) bool) {
	w, err := m.begin(prefix, after)
	if err != nil {
		yield(Batch{}, err)
		return
	}
	var due <-chan time.Time
	for ctx.Err() == nil {
		batch, wake, err := m.next(w)
		if err != nil {
			yield(Batch{}, err)
			return
		}
		if wake == nil {
			w.told, w.behind, w.first, due = time.Now(), false, false, nil
			if !yield(batch, nil) {
				return
			}
			continue
		}
		if w.behind && due == nil {
			due = time.After(progressEvery)
		}
		select {
		case <-ctx.Done():
		case <-wake:
		case <-due:
			w.told = time.Time{}
		}
	}
}

func (m *Memory) begin(prefix string, after Position) (*watcher, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.usable(); err != nil {
		return nil, err
	}
	if after.IsZero() {
		after = Position{m.id, m.rev}
	}
	if err := m.check(after); err != nil {
		return nil, err
	}
	return &watcher{prefix: prefix, pos: after, epoch: m.epoch, first: true}, nil
}

// next returns what follows w's position, or, if there is nothing to tell yet,
// a channel that closes when there may be.
func (m *Memory) next(w *watcher) (Batch, <-chan struct{}, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if w.epoch != m.epoch {
		return Batch{}, nil, m.cause
	}
	if err := m.check(w.pos); err != nil {
		return Batch{}, nil, err
	}
	events, rev := collect(m.hist.after(w.pos.Revision), w.prefix)
	if len(events) == 0 {
		rev = m.rev
	}
	w.behind = w.behind || rev > w.pos.Revision
	w.pos.Revision = rev
	if len(events) == 0 && !w.first && !(w.behind && time.Since(w.told) >= progressEvery) {
		if m.wake == nil {
			m.wake = make(chan struct{})
		}
		return Batch{}, m.wake, nil
	}
	return Batch{Position: w.pos, Events: events}, nil, nil
}

// collect gathers the events under prefix from whole revisions, until there are
// enough, and says up to which revision. A single revision whose events all
// match is handed out uncopied: the common case of many watches of one change.
func collect(revs []revision, prefix string) (events []Event, rev int64) {
	shared := false
	for i := range revs {
		r := &revs[i]
		if len(events) >= maxBatch {
			break
		}
		rev = r.rev
		n := 0
		for j := range r.events {
			if strings.HasPrefix(r.events[j].KV.Key, prefix) {
				n++
			}
		}
		switch {
		case n == 0:
			continue
		case n == len(r.events) && events == nil:
			events, shared = r.events[:n:n], true
			continue
		case shared:
			events, shared = append(make([]Event, 0, len(events)+n), events...), false
		}
		for j := range r.events {
			if strings.HasPrefix(r.events[j].KV.Key, prefix) {
				events = append(events, r.events[j])
			}
		}
	}
	return events, rev
}
