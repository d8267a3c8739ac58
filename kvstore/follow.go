package kvstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// FollowConfig says what to follow, and where to.
type FollowConfig struct {
	// Stores are replicas of one store, tried in turn: they share a store ID,
	// and each may lag behind the others.
	Stores []Store
	Prefix string
	// Marker is a key that says whether the publication is whole. It is read
	// first, and the list is read at its revision. "" = there is none.
	Marker string
	// Complete says whether that marker value is a whole publication. It is not
	// called when the key is absent, which is never whole. nil = any value is.
	Complete func(marker []byte) error
	Sink     Sink
	Log      *slog.Logger       // nil = discard
	Status   func(FollowStatus) // called from Follow's goroutine on every change; nil = nobody asks
	// BackupAfter is how long every replica must have said that our revision
	// lies in its future before the store counts as restored from a backup.
	// 0 = 10 s.
	BackupAfter time.Duration
}

// FollowStatus is where a Follow stands.
type FollowStatus struct {
	Connected bool      // a watch stands
	Synced    bool      // a first complete list has been handed over
	Position  Position  // up to which everything has been handed over
	Store     int       // index in Stores of the one in use, or tried last
	Lists     int       // complete lists so far
	Relists   int       // of these, after the first: Lists - 1, at least 0
	LastError error     // why the last attempt failed; nil while connected
	Since     time.Time // when Connected last changed
}

const (
	// listStall is how long a list may go without an answer before it counts
	// as failed: every wait has an end. A silent watch is normal; finding out
	// that its connection is dead is the store's business.
	listStall = 30 * time.Second
	// watchProven is how long a watch must stand to count as a success even if
	// nothing came, so that one that is cut again and again is backed off from.
	watchProven = 10 * time.Second
)

// follower is the state of one Follow. It belongs to Follow's goroutine.
type follower struct {
	FollowConfig
	status FollowStatus

	pos      Position    // up to where Sink has been told; of the last Synced list or later
	mustList bool        // the watch cannot be resumed from pos
	store    int         // index of the replica to use next
	failures int         // in a row
	behind   []time.Time // per replica: since when all its answers were that pos lies in its future
	tried    int         // attempts since the last success
	said     []saidError // per replica
}

// Follow keeps c.Sink supplied with what is under c.Prefix until ctx ends, and
// returns ctx's error. It lists, watches, resumes a broken watch on the next
// replica, and lists anew when the store has forgotten its position, is another
// one, or came back from a backup. It never goes back in time for a replica that
// merely lags, and it never takes silence for deletion.
func Follow(ctx context.Context, c FollowConfig) error {
	if len(c.Stores) == 0 {
		return errors.New("follow: there is no store to follow")
	}
	if c.Sink == nil {
		return errors.New("follow: there is no sink")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.BackupAfter <= 0 {
		c.BackupAfter = 10 * time.Second
	}
	f := &follower{
		FollowConfig: c,
		mustList:     true,
		behind:       make([]time.Time, len(c.Stores)),
		said:         make([]saidError, len(c.Stores)),
	}
	for ctx.Err() == nil {
		f.status.Store = f.store
		err := f.attempt(ctx, c.Stores[f.store])
		if ctx.Err() != nil {
			break
		}
		f.failed(ctx, err)
	}
	return ctx.Err()
}

// attempt lists if it must, then watches until something ends that.
func (f *follower) attempt(ctx context.Context, s Store) error {
	if f.mustList {
		if err := f.list(ctx, s); err != nil {
			return err
		}
	}
	return f.watch(ctx, s)
}

// failed notes why an attempt ended, tells the sink, and waits before the next.
func (f *follower) failed(ctx context.Context, err error) {
	if err == nil {
		err = errors.New("the watch ended")
	}
	f.failures++
	f.tried++
	f.judge(err)
	if errors.Is(err, ErrCompacted) && f.failures == 1 {
		// The connection is good; only history was lost. List on it at once.
		f.Log.Info("history was compacted, listing again", "prefix", f.Prefix, "revision", f.pos.Revision)
		return
	}
	f.Sink.Lost(err)
	f.connected(false)
	f.status.LastError = err
	f.report()
	wait := f.pause(err)
	f.Log.Log(ctx, f.level(err), "not connected", "prefix", f.Prefix, "store", f.store, "error", err, "retry", wait)
	f.store = (f.store + 1) % len(f.Stores)
	sleep(ctx, wait)
}

// level is how loud a failure is: the first few with one text are heard, after
// them the same text says nothing new.
func (f *follower) level(err error) slog.Level {
	said := &f.said[f.store]
	if text := err.Error(); said.text != text {
		*said = saidError{text: text}
	}
	said.times++
	if said.times > saidAloud {
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

// saidAloud is how often in a row one replica's error is logged as information.
const saidAloud = 3

// saidError is what was logged of a replica last, and how often in a row.
type saidError struct {
	text  string
	times int
}

// pause is how long to wait before the next attempt: within a round of all
// replicas a moment, after it longer each time. A store that answers that it is
// behind, or another one, is in good health, and a restored or replaced one is
// to be noticed soon after BackupAfter: it is asked again before long.
func (f *follower) pause(err error) time.Duration {
	n := len(f.Stores)
	if f.failures%n != 0 {
		return backoffWait(1)
	}
	if errors.Is(err, ErrFutureRevision) || errors.Is(err, ErrOtherStore) {
		f.failures = min(f.failures, answeredRounds*n)
	}
	return backoffWait(f.failures / n)
}

// answeredRounds bounds the backoff from a store that answers but cannot help
// yet: waits of 2 s at most.
const answeredRounds = 4

// judge draws the conclusions from err: whether the watch can be resumed at
// all, or only a complete list helps.
func (f *follower) judge(err error) {
	since := &f.behind[f.store]
	switch {
	case errors.Is(err, ErrFutureRevision):
		if since.IsZero() {
			*since = time.Now()
		}
		f.mustList = f.mustList || f.mayLeap()
	case errors.Is(err, ErrCompacted):
		*since = time.Time{}
		f.mustList = true
	case errors.Is(err, ErrOtherStore):
		*since = time.Time{}
		f.mustList = f.mustList || f.maySwitch()
	}
}

// heard notes that a store knows our position.
func (f *follower) heard() {
	f.tried = 0
	clear(f.behind)
	clear(f.said)
}

// mayLeap reports whether a list may be older than our position: every replica
// has been saying for BackupAfter that it never got there, so the store was
// restored from a backup. A replica that cannot be reached has not said so.
func (f *follower) mayLeap() bool {
	for _, since := range f.behind {
		if since.IsZero() || time.Since(since) < f.BackupAfter {
			return false
		}
	}
	return true
}

// maySwitch reports whether a list of another store may be taken: a whole round
// of attempts found nobody who still has the one we know.
func (f *follower) maySwitch() bool { return f.tried >= len(f.Stores) }

// admit decides whether a list at a position may replace what the sink has.
func (f *follower) admit(at Position) error {
	switch {
	case at.StoreID == 0:
		return errors.New("the store does not say its ID")
	case f.pos.IsZero():
		return nil
	case at.StoreID != f.pos.StoreID:
		if !f.maySwitch() {
			return fmt.Errorf("%w: %016x instead of %016x", ErrOtherStore, at.StoreID, f.pos.StoreID)
		}
		f.Log.Warn("the store was replaced", "prefix", f.Prefix, "was", f.pos.StoreID, "is", at.StoreID)
	case at.Revision < f.pos.Revision:
		if !f.mayLeap() {
			return fmt.Errorf("%w: the replica is at %d, we are at %d", ErrFutureRevision, at.Revision, f.pos.Revision)
		}
		f.Log.Warn("the store was restored from a backup", "prefix", f.Prefix, "was", f.pos.Revision, "is", at.Revision)
	}
	return nil
}

// connected notes whether a watch stands.
func (f *follower) connected(is bool) {
	if f.status.Connected != is || f.status.Since.IsZero() {
		f.status.Connected, f.status.Since = is, time.Now()
	}
}

// report hands the status over.
func (f *follower) report() {
	f.status.Position = f.pos
	f.status.Relists = max(f.status.Lists-1, 0)
	if f.Status != nil {
		f.Status(f.status)
	}
}
