package kvstore

import (
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
	Connected bool     // a watch stands
	Synced    bool     // a first complete list has been handed over
	Position  Position // up to which everything has been handed over
	Store     int      // index in Stores of the one in use, or tried last
	Lists     int      // complete lists so far
	Relists   int      // of these, after the first: Lists - 1, at least 0
	LastError error    // why the last attempt failed; nil while connected
	Since     time.Time
}
