package kvstore

import (
	"fmt"
)

// filling is a list being received by a replica.
type filling struct {
	at   Position
	edit *editor
}

// replicaSink is the Sink of a replica. It is used from one goroutine.
type replicaSink struct{ m *Memory }

// Sink is where Follow feeds a replica. It panics on a primary.
func (m *Memory) Sink() Sink {
	if !m.readOnly {
		panic("kvstore: Sink of a primary Memory")
	}
	return replicaSink{m}
}

// Begin implements Sink: the list is built aside; readers see what was.
func (s replicaSink) Begin(at Position, _ []byte) error {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if s.m.closed {
		return errClosed
	}
	if at.StoreID == 0 {
		return fmt.Errorf("replica: the source has no store ID")
	}
	s.m.fill = &filling{at: at, edit: tree{}.edit()}
	return nil
}

// Apply implements Sink.
func (s replicaSink) Apply(at Position, events []Event) error {
	m := s.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return errClosed
	}
	if m.fill != nil {
		for i := range events {
			m.fill.edit.put(events[i].KV)
		}
		return nil
	}
	if at.StoreID != m.id || at.Revision < m.rev {
		return fmt.Errorf("replica: change at %016x/%d does not follow %016x/%d", at.StoreID, at.Revision, m.id, m.rev)
	}
	m.replay(events)
	if at.Revision > m.rev {
		m.rev = at.Revision
	}
	m.broadcast()
	return nil
}

// replay applies watch events, whole revisions in order. Callers hold mu.
func (m *Memory) replay(events []Event) {
	edit := m.tree.edit()
	for len(events) > 0 {
		rev, n := events[0].KV.ModRevision, 1
		for n < len(events) && events[n].KV.ModRevision == rev {
			n++
		}
		r := revision{rev: rev, events: events[:n:n], before: make([]KV, 0, n)}
		for _, e := range r.events {
			old, existed := edit.get(e.KV.Key)
			r.before = append(r.before, old)
			if !e.Delete {
				edit.put(e.KV)
			} else if existed {
				edit.delete(e.KV.Key)
			}
		}
		m.rev = rev
		m.hist.add(r, m.history)
		events = events[n:]
	}
	m.tree = edit.done()
}

// Synced implements Sink: the list takes the place of what was. Watches are
// behind it and end; those of another store end with ErrOtherStore.
func (s replicaSink) Synced(Position) {
	m := s.m
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.fill
	if f == nil || m.closed {
		return
	}
	m.fill = nil
	m.tree, m.id, m.rev = f.edit.done(), f.at.StoreID, f.at.Revision
	m.hist.reset(m.rev)
	if !m.synced {
		m.synced = true
		close(m.ready)
	}
	m.broadcast()
}

// Lost implements Sink: silence is not deletion, readers go on with what is.
func (s replicaSink) Lost(err error) { s.m.log.Debug("replica lost its source", "error", err) }
