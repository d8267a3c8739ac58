package kvstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// lease is one lease of a primary Memory. Its fields belong to the Memory's
// lock.
type lease struct {
	m     *Memory
	id    int64
	ttl   time.Duration
	until time.Time
	timer *time.Timer
	keys  map[string]struct{}
}

func (l *lease) over() bool { return !time.Now().Before(l.until) }

// Grant implements Store.
func (m *Memory) Grant(ctx context.Context, ttl time.Duration) (Lease, error) {
	if m.readOnly {
		return nil, ErrReadOnly
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if ttl <= 0 {
		return nil, errors.New("grant: the time to live must be positive")
	}
	ttl = (ttl + time.Second - 1).Truncate(time.Second)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.usable(); err != nil {
		return nil, err
	}
	l := &lease{m: m, ttl: ttl, until: time.Now().Add(ttl), keys: map[string]struct{}{}}
	for l.id == 0 || m.leases[l.id] != nil {
		l.id = rand.Int64N(1<<62) + 1
	}
	l.timer = time.AfterFunc(ttl, l.expire)
	m.leases[l.id] = l
	return l, nil
}

// ID implements Lease.
func (l *lease) ID() int64 { return l.id }

// KeepAlive implements Lease.
func (l *lease) KeepAlive(ctx context.Context) (time.Duration, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if err := l.m.usable(); err != nil {
		return 0, err
	}
	if l.m.leases[l.id] != l || l.over() {
		return 0, fmt.Errorf("%w: %x", ErrLeaseNotFound, l.id)
	}
	l.until = time.Now().Add(l.ttl)
	l.timer.Reset(l.ttl)
	return l.ttl, nil
}

// Revoke implements Lease.
func (l *lease) Revoke(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if err := l.m.usable(); err != nil {
		return err
	}
	if l.m.leases[l.id] != l {
		return fmt.Errorf("%w: %x", ErrLeaseNotFound, l.id)
	}
	l.end()
	return nil
}

// expire runs when the timer fires; a renewal that came first has set it anew.
func (l *lease) expire() {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if l.m.closed || l.m.leases[l.id] != l || !l.over() {
		return
	}
	l.end()
}

// end deletes the lease's keys at one revision. Callers hold the lock.
func (l *lease) end() {
	l.timer.Stop()
	delete(l.m.leases, l.id)
	var writes []write
	for key := range l.keys {
		writes = append(writes, write{del: true, key: key})
	}
	slices.SortFunc(writes, func(a, b write) int { return strings.Compare(a.key, b.key) })
	l.m.apply(writes)
}

// attach and detach keep the lease's set of keys. Callers hold mu.
func (m *Memory) attach(kv KV) {
	if l := m.leases[kv.Lease]; l != nil {
		l.keys[kv.Key] = struct{}{}
	}
}

func (m *Memory) detach(kv KV) {
	if kv.Lease == 0 {
		return
	}
	if l := m.leases[kv.Lease]; l != nil {
		delete(l.keys, kv.Key)
	}
}
