package kvtest

import (
	"cmp"
	"context"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

// Commit is one commit that succeeded: what is true.
type Commit struct {
	Revision int64
	Writes   []Write
}

// Write is one operation of a commit: Delete, or a put of Value.
type Write struct {
	Key    string
	Delete bool
	Value  []byte
}

// Watch is one watch and what it was told.
type Watch struct {
	Prefix  string
	After   kvstore.Position // zero: from now
	Batches []kvstore.Batch
	Err     error // what ended it; nil if it was left, or its context ended
}

// History is what was done to a store and what its watches were told. Commits
// holds every commit under the watched prefixes after Start, where nothing
// exists there.
type History struct {
	Start   kvstore.Position
	Commits []Commit
	Watches []Watch
}

// addCommit adds a commit at its place in the order of revisions.
func (h *History) addCommit(at kvstore.Position, ops []kvstore.Op) {
	c := Commit{Revision: at.Revision}
	for _, op := range ops {
		op.Decode(
			func(key string, value []byte, _ int64) { c.Writes = append(c.Writes, Write{Key: key, Value: value}) },
			func(key string) { c.Writes = append(c.Writes, Write{Key: key, Delete: true}) },
			func(string, int64) {}, func(string, int64) {},
		)
	}
	h.Commits = append(h.Commits, c)
	slices.SortStableFunc(h.Commits, func(a, b Commit) int { return cmp.Compare(a.Revision, b.Revision) })
}

// Recorder is a Store that remembers what was done through it. Commits whose
// answer is an error are not recorded: use it on a store that tells the truth.
type Recorder struct {
	kvstore.Store
	mu sync.Mutex
	h  History
}

// NewRecorder records what is done to s through the recorder.
func NewRecorder(s kvstore.Store) *Recorder { return &Recorder{Store: s} }

// Commit implements kvstore.Store.
func (r *Recorder) Commit(ctx context.Context, ops ...kvstore.Op) (kvstore.Position, error) {
	pos, err := r.Store.Commit(ctx, ops...)
	if err == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.h.addCommit(pos, ops)
	}
	return pos, err
}

// Watch implements kvstore.Store.
func (r *Recorder) Watch(ctx context.Context, prefix string, after kvstore.Position) iter.Seq2[kvstore.Batch, error] {
	return func(yield func(kvstore.Batch, error) bool) {
		w := Watch{Prefix: prefix, After: after}
		defer func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.h.Watches = append(r.h.Watches, w)
		}()
		for batch, err := range r.Store.Watch(ctx, prefix, after) {
			if err != nil {
				w.Err = err
			} else {
				w.Batches = append(w.Batches, batch)
			}
			if !yield(batch, err) {
				return
			}
		}
	}
}

// Grant implements kvstore.Store. What a lease deletes is not recorded.
func (r *Recorder) Grant(ctx context.Context, ttl time.Duration) (kvstore.Lease, error) {
	return r.Store.Grant(ctx, ttl)
}

// History is a copy of what has been recorded; watches that still run are not
// in it.
func (r *Recorder) History() *History {
	r.mu.Lock()
	defer r.mu.Unlock()
	return &History{Start: r.h.Start, Commits: slices.Clone(r.h.Commits), Watches: slices.Clone(r.h.Watches)}
}
