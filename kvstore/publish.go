package kvstore

import (
	"log/slog"
	"time"
)

// PublishConfig says which part of a store a Publisher keeps.
type PublishConfig struct {
	Store Store
	// Prefixes are owned: what is under them and not wanted is swept, once
	// Listed was called, and foreign changes are undone.
	Prefixes []string
	// Marker is a key (it may lie under a prefix) that is written after
	// everything else and never swept. "" = none.
	Marker string
	// MarkerValue returns what the marker should say. storeEmpty: nothing was
	// under Prefixes when the store was first read. old is the present value,
	// nil if the key is absent. It returns nil for "leave it".
	MarkerValue func(storeEmpty bool, old []byte) []byte
	// Fence returns the conditions every commit carries. An error, or a
	// condition that does not hold, ends Run. nil = none.
	Fence func() ([]Op, error)
	// Same says whether two values of key mean the same, so that no write is
	// needed. nil = bytes.Equal.
	Same func(key string, a, b []byte) bool
	// Kind groups keys for the guard. nil = all are of one kind.
	Kind  func(key string) string
	Guard GuardConfig
	// InFlight is the largest number of commits at a time while a first
	// publication or a resync is written; afterwards there is one at a time, so
	// that changes arrive in order. 0 = 4.
	InFlight int
	Log      *slog.Logger // nil = discard
	// Committed is told the position of every commit, from Run's goroutine.
	Committed func(Position)
}

// GuardConfig says when a sweep is held: when it would delete more than
// Fraction and more than Count of the existing records of a kind.
type GuardConfig struct {
	Fraction float64       // 0 = one half
	Count    int           // 0 = 10
	Delay    time.Duration // how much later a second list must agree; 0 = 30 s
	Off      bool          // never hold
}

// Held is a sweep that the guard holds.
type Held struct {
	Kind   string
	Keys   int       // how many would be deleted
	Of     int       // of how many that exist
	Since  time.Time // of the first list that lacked them
	Sample []string  // up to five of the keys, in order
}

// Refusal is a key whose wanted value was not taken. What the store holds under
// it stays in force.
type Refusal struct {
	Key string
	Err error
}
