package kvstore

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// DefaultHistory is the number of events a Memory keeps for resuming watches
// and for reading older revisions.
const DefaultHistory = 20000

// maxCommitBytes is the largest sum of keys and values in one Commit: etcd's
// default request limit.
const maxCommitBytes = 1536 << 10

// progressEvery bounds how often a watch is told that nothing under its prefix
// changed while other keys did, so that it can resume from a recent revision.
const progressEvery = 5 * time.Second

// MemoryOptions configures a Memory; the zero value is usable.
type MemoryOptions struct {
	StoreID uint64       // of a primary; 0 = random. A replica has its source's
	History int          // events kept; 0 = DefaultHistory
	Log     *slog.Logger // nil = discard
}

// Memory is a whole Store in memory. As a primary (NewMemory) it takes commits
// and grants leases. As a replica (NewReplica) it is a watch cache: its content,
// revisions and store ID are its source's, fed through Sink.
//
// Reads never block writes: a list reads an immutable tree, a watch reads the
// history and, when it falls behind that, ends with ErrCompacted.
type Memory struct {
	log      *slog.Logger
	history  int
	readOnly bool

	mu     sync.Mutex
	id     uint64
	rev    int64
	tree   tree
	hist   history
	leases map[int64]*lease
	closed bool
	epoch  uint64 // counts cuts: a watch of an older epoch ends with cause
	cause  error
	wake   chan struct{} // closed at the next change; nil while nobody waits
	fill   *filling      // replica: the list being received
	ready  chan struct{} // closed when there is content to read
	synced bool
}

var _ Store = (*Memory)(nil)

// NewMemory makes an empty primary store at revision 1.
func NewMemory(opt MemoryOptions) *Memory {
	m := newMemory(opt)
	m.id = opt.StoreID
	for m.id == 0 {
		m.id = rand.Uint64()
	}
	m.rev = 1
	m.hist.floor = 1
	m.synced = true
	close(m.ready)
	return m
}

// NewReplica makes a watch cache. Until its Sink has seen a first Synced, reads
// fail with ErrNotReady. Commit and Grant always fail with ErrReadOnly.
func NewReplica(opt MemoryOptions) *Memory {
	m := newMemory(opt)
	m.readOnly = true
	return m
}

func newMemory(opt MemoryOptions) *Memory {
	m := &Memory{
		log:     opt.Log,
		history: opt.History,
		leases:  map[int64]*lease{},
		ready:   make(chan struct{}),
	}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	if m.history <= 0 {
		m.history = DefaultHistory
	}
	return m
}

// Ready is closed once there is content to read: at once for a primary, at the
// first Synced for a replica.
func (m *Memory) Ready() <-chan struct{} { return m.ready }

// Position is the present one; zero for a replica that is not ready.
func (m *Memory) Position() Position {
	m.mu.Lock()
	defer m.mu.Unlock()
	return Position{m.id, m.rev}
}

// Len is the number of keys.
func (m *Memory) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.tree.size
}

// Compact forgets what happened before rev: an older List or Watch gets
// ErrCompacted. A rev above the present one compacts up to the present one.
func (m *Memory) Compact(rev int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hist.compact(min(rev, m.rev))
	m.broadcast()
}

// CutWatches ends all present watches with err, as a server that goes away
// would. New ones may begin at once.
func (m *Memory) CutWatches(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cut(err)
}

// Close ends all watches and makes every later call fail with ErrNotReady.
func (m *Memory) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	m.closed = true
	for _, l := range m.leases {
		l.timer.Stop()
	}
	m.cut(errClosed)
}

var errClosed = fmt.Errorf("%w: it was closed", ErrNotReady)

// usable says why the store cannot be read now, if so. Callers hold mu.
func (m *Memory) usable() error {
	switch {
	case m.closed:
		return errClosed
	case !m.synced:
		return fmt.Errorf("%w: its source has not been read completely yet", ErrNotReady)
	}
	return nil
}

// cut ends the present watches. Callers hold mu.
func (m *Memory) cut(err error) {
	m.epoch++
	m.cause = err
	m.broadcast()
}

// broadcast wakes all waiting watches. Callers hold mu.
func (m *Memory) broadcast() {
	if m.wake != nil {
		close(m.wake)
		m.wake = nil
	}
}

// check says whether at can be read here. Callers hold mu.
func (m *Memory) check(at Position) error {
	switch {
	case at.StoreID != m.id:
		return fmt.Errorf("%w: asked for store %016x, this is %016x", ErrOtherStore, at.StoreID, m.id)
	case at.Revision > m.rev:
		return fmt.Errorf("%w: asked for %d, the store is at %d", ErrFutureRevision, at.Revision, m.rev)
	case at.Revision < m.hist.floor:
		return fmt.Errorf("%w: asked for %d, the oldest kept is %d", ErrCompacted, at.Revision, m.hist.floor)
	}
	return nil
}

// List implements Store. Chunks are leaves of the tree, handed out uncopied.
// A list of the present is O(keys visited); one of an older revision first
// takes back the events since then.
func (m *Memory) List(ctx context.Context, prefix string, at Position, visit func([]KV) error) (Position, error) {
	if err := ctx.Err(); err != nil {
		return Position{}, err
	}
	root, pos, err := m.snapshot(at)
	if err != nil {
		return Position{}, err
	}
	for chunk := range root.chunks(prefix) {
		if err := ctx.Err(); err != nil {
			return Position{}, err
		}
		if err := visit(chunk); err != nil {
			return Position{}, err
		}
	}
	return pos, nil
}

// snapshot returns the immutable tree as of at.
func (m *Memory) snapshot(at Position) (tree, Position, error) {
	now, later, at, err := m.since(at)
	if err != nil || len(later) == 0 {
		return now, at, err
	}
	// Going back takes time, so it is done without the lock.
	edit := now.edit()
	undo(edit, later)
	return edit.done(), at, nil
}

// since returns the present tree and what has changed in it since at.
func (m *Memory) since(at Position) (tree, []revision, Position, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.usable(); err != nil {
		return tree{}, nil, Position{}, err
	}
	if at.IsZero() {
		at = Position{m.id, m.rev}
	}
	if err := m.check(at); err != nil {
		return tree{}, nil, Position{}, err
	}
	return m.tree, slices.Clone(m.hist.after(at.Revision)), at, nil
}

// Watch implements Store.
func (m *Memory) Watch(ctx context.Context, prefix string, after Position) iter.Seq2[Batch, error] {
	return func(yield func(Batch, error) bool) { m.watch(ctx, prefix, after, yield) }
}
