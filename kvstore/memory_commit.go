package kvstore

import (
	"context"
	"errors"
	"fmt"
)

// Commit implements Store. It keeps the values: the caller must not modify them
// afterwards.
func (m *Memory) Commit(ctx context.Context, ops ...Op) (Position, error) {
	if m.readOnly {
		return Position{}, ErrReadOnly
	}
	if err := ctx.Err(); err != nil {
		return Position{}, err
	}
	c, err := sortOps(ops)
	if err != nil {
		return Position{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.usable(); err != nil {
		return Position{}, err
	}
	if err := m.conditions(c); err != nil {
		return Position{}, err
	}
	m.apply(c.writes)
	return Position{m.id, m.rev}, nil
}

// write is a put or a delete.
type write struct {
	del   bool
	key   string
	value []byte
	lease int64
}

// condition is one comparison of a Commit.
type condition struct {
	key    string
	rev    int64
	create bool
}

type commit struct {
	writes     []write
	conditions []condition
}

// sortOps takes ops apart and refuses what no store would take.
func sortOps(ops []Op) (commit, error) {
	var c commit
	if len(ops) > MaxOps {
		return c, fmt.Errorf("%w: %d operations, at most %d are allowed", ErrTooLarge, len(ops), MaxOps)
	}
	size := 0
	for _, op := range ops {
		size += len(op.key) + len(op.value)
		if op.key == "" {
			return c, errors.New("commit: an operation has an empty key")
		}
		op.Decode(
			func(key string, value []byte, lease int64) {
				c.writes = append(c.writes, write{key: key, value: value, lease: lease})
			},
			func(key string) { c.writes = append(c.writes, write{del: true, key: key}) },
			func(key string, rev int64) { c.conditions = append(c.conditions, condition{key, rev, false}) },
			func(key string, rev int64) { c.conditions = append(c.conditions, condition{key, rev, true}) },
		)
	}
	if size > maxCommitBytes {
		return c, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrTooLarge, size, maxCommitBytes)
	}
	if key, twice := repeated(c.writes); twice {
		return c, fmt.Errorf("commit: key %q is written twice", key)
	}
	return c, nil
}

func repeated(writes []write) (string, bool) {
	if len(writes) < 2 {
		return "", false
	}
	seen := make(map[string]struct{}, len(writes))
	for _, w := range writes {
		if _, ok := seen[w.key]; ok {
			return w.key, true
		}
		seen[w.key] = struct{}{}
	}
	return "", false
}

// conditions checks that c may be applied. Callers hold mu.
func (m *Memory) conditions(c commit) error {
	for _, cond := range c.conditions {
		kv, _ := m.tree.get(cond.key) // the zero KV has the revisions of absence
		have, what := kv.ModRevision, "last written"
		if cond.create {
			have, what = kv.CreateRevision, "created"
		}
		if have != cond.rev {
			return fmt.Errorf("%w: %q was %s at %d, not %d", ErrConflict, cond.key, what, have, cond.rev)
		}
	}
	for _, w := range c.writes {
		if w.lease == 0 {
			continue
		}
		if l := m.leases[w.lease]; l == nil || l.over() {
			return fmt.Errorf("%w: %x", ErrLeaseNotFound, w.lease)
		}
	}
	return nil
}

// apply performs writes at the next revision. If they change nothing there is
// none. Callers hold mu.
func (m *Memory) apply(writes []write) {
	rev := m.rev + 1
	edit := m.tree.edit()
	r := revision{rev: rev, events: make([]Event, 0, len(writes)), before: make([]KV, 0, len(writes))}
	for _, w := range writes {
		old, existed := edit.get(w.key)
		if w.del {
			if !existed {
				continue
			}
			edit.delete(w.key)
			m.detach(old)
			r.add(Event{Delete: true, KV: KV{Key: old.Key, ModRevision: rev}}, old)
			continue
		}
		kv := KV{Key: w.key, Value: w.value, CreateRevision: rev, ModRevision: rev, Lease: w.lease}
		if existed {
			kv.Key, kv.CreateRevision = old.Key, old.CreateRevision
			m.detach(old)
		}
		m.attach(kv)
		edit.put(kv)
		r.add(Event{KV: kv}, old)
	}
	if len(r.events) == 0 {
		return
	}
	m.tree = edit.done()
	m.rev = rev
	m.hist.add(r, m.history)
	m.broadcast()
}
