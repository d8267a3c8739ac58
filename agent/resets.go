package agent

import (
	"bytes"
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"time"
)

// Resetter ends the connections of this node's processes to backends, and those
// that its programs translate packet by packet, so that clients try again and reach
// another one. See bpf.ResetSockets.
type Resetter interface {
	// Reset ends those that came about by a service; the others are nobody's
	// business. It is called from one goroutine at a time.
	Reset(ctx context.Context, backends []BackendKey) error
}

func compareBackends(a, b BackendKey) int {
	return cmp.Or(bytes.Compare(a.Addr[:], b.Addr[:]), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Proto, b.Proto))
}

const (
	maxResets  = 1 << 16 // that wait
	resetBatch = 1024    // in one call
	resetRetry = time.Second
	resetPause = 100 * time.Millisecond // between calls, each of which looks at every socket and flow
	// resetDown is how long a node is down before the sockets to it are reset:
	// most that fall silent are back before.
	resetDown = 5 * time.Second
)

// resetLoop has sockets reset beside the owner, which does not wait for it.
type resetLoop struct {
	resetter Resetter
	quiet    *quietLog
	wake     chan struct{}

	mu      sync.Mutex
	waiting map[BackendKey]struct{}
	lost    uint64 // for which there was no room
	asked   uint64 // backends that the resetter was asked for
}

func newResetLoop(r Resetter, quiet *quietLog) *resetLoop {
	return &resetLoop{resetter: r, quiet: quiet, wake: make(chan struct{}, 1), waiting: map[BackendKey]struct{}{}}
}

// add has the sockets to backends reset. It does not block.
func (l *resetLoop) add(backends []BackendKey) {
	if len(backends) == 0 || l.resetter == nil {
		return
	}
	l.mu.Lock()
	for _, b := range backends {
		if _, is := l.waiting[b]; !is && len(l.waiting) >= maxResets {
			l.lost++
			continue
		}
		l.waiting[b] = struct{}{}
	}
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *resetLoop) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		}
		for batch := l.take(); len(batch) > 0; batch = l.take() {
			pause := resetPause
			if err := l.resetter.Reset(ctx, batch); err == nil {
				l.quiet.works("resets", "sockets to backends that are gone are reset again")
			} else {
				if ctx.Err() == nil {
					l.quiet.failed("resets", "cannot reset sockets to backends that are gone; trying again", err)
				}
				l.add(batch)
				pause = resetRetry
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
		}
	}
}

func (l *resetLoop) take() []BackendKey {
	l.mu.Lock()
	defer l.mu.Unlock()
	batch := slices.SortedFunc(maps.Keys(l.waiting), compareBackends)
	batch = batch[:min(len(batch), resetBatch)]
	for _, b := range batch {
		delete(l.waiting, b)
	}
	l.asked += uint64(len(batch))
	return batch
}

func (l *resetLoop) counts() (asked, lost uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asked, l.lost
}

// downNodes says when a node has been down for long enough.
type downNodes struct {
	since map[NodeKey]time.Time // zero = its sockets were reset
}

// set takes the nodes in that are judged down now.
func (d *downNodes) set(down map[NodeKey]HealthRow, now time.Time) {
	next := make(map[NodeKey]time.Time, len(down))
	for k := range down {
		if since, known := d.since[k]; known {
			next[k] = since
		} else {
			next[k] = now
		}
	}
	d.since = next
}

// due are the nodes whose time has come, each once, and when to ask again.
func (d *downNodes) due(now time.Time) (nodes map[NodeKey]bool, next time.Time) {
	for k, since := range d.since {
		switch at := since.Add(resetDown); {
		case since.IsZero():
		case !at.After(now):
			if nodes == nil {
				nodes = map[NodeKey]bool{}
			}
			nodes[k] = true
			d.since[k] = time.Time{}
		case next.IsZero() || at.Before(next):
			next = at
		}
	}
	return nodes, next
}
