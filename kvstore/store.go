// Package kvstore is the contract between Tombolo and whatever keeps its
// records: a consistent, revisioned key-value store with leases and watches.
//
// Three things implement it: Memory (part of the product: it is the mesh API
// server's watch cache), kvstore/etcd (a real etcd, or anything that speaks the
// read half of the etcd v3 API), and the wrapper in kvtest that fails on
// purpose. One conformance suite (kvtest) runs on all of them.
//
// Follow and Publish are the only code that loops over a Store.
package kvstore

import (
	"context"
	"errors"
	"iter"
	"time"
)

// Position is a place in the history of one store. A revision means nothing
// without the store that issued it: two stores count independently, and a store
// restored from a backup counts again from an older number.
type Position struct {
	StoreID  uint64 // random, drawn when a store is first created; never 0 in an answer
	Revision int64  // store-wide counter; every commit takes the next one
}

// IsZero reports whether p names no place; List reads it as "now".
func (p Position) IsZero() bool { return p == Position{} }

// KV is one key with its value. Key and Value are shared with the store and
// must not be modified by anybody.
type KV struct {
	Key            string
	Value          []byte
	CreateRevision int64 // revision that created the key, in its present life
	ModRevision    int64 // revision that wrote Value
	Lease          int64 // lease the key hangs on; 0 = none
}

// Event is one change of one key. There are only two: upsert and delete.
type Event struct {
	Delete bool
	KV     KV // for a delete: Key and ModRevision (the revision of the delete) only
}

// Batch is what a watch hands over at once: whole revisions, never part of one,
// in revision order. A batch without events is progress: everything up to
// Position has been delivered.
type Batch struct {
	Position Position
	Events   []Event
}

// Op is one operation of a Commit. Exactly one of the constructors below makes it.
type Op struct {
	kind  opKind
	key   string
	value []byte
	lease int64
	rev   int64
}

type opKind uint8

const (
	opPut opKind = iota + 1
	opDelete
	opIfModRevision
	opIfCreateRevision
)

// Put writes key. A lease of 0 means the key stays until it is deleted.
func Put(key string, value []byte, lease int64) Op {
	return Op{kind: opPut, key: key, value: value, lease: lease}
}

// Delete removes key. Deleting what is absent is not an error.
func Delete(key string) Op { return Op{kind: opDelete, key: key} }

// IfModRevision makes the whole Commit conditional on key having been written
// last at rev; 0 means that the key must be absent.
func IfModRevision(key string, rev int64) Op {
	return Op{kind: opIfModRevision, key: key, rev: rev}
}

// IfCreateRevision makes the whole Commit conditional on key's present life
// having begun at rev. This is the fencing token of a leader key.
func IfCreateRevision(key string, rev int64) Op {
	return Op{kind: opIfCreateRevision, key: key, rev: rev}
}

// Decode takes an Op apart for implementations of Store: exactly one of the
// callbacks is called.
func (o Op) Decode(put func(key string, value []byte, lease int64), del func(key string), ifMod, ifCreate func(key string, rev int64)) {
	switch o.kind {
	case opPut:
		put(o.key, o.value, o.lease)
	case opDelete:
		del(o.key)
	case opIfModRevision:
		ifMod(o.key, o.rev)
	case opIfCreateRevision:
		ifCreate(o.key, o.rev)
	}
}

// MaxOps is the largest number of operations (conditions included) in one
// Commit: etcd's default limit.
const MaxOps = 128

// MaxValue is the largest value of a record, in bytes.
const MaxValue = 64 << 10

var (
	// ErrCompacted ends a List or Watch whose revision the store no longer has.
	// The reader must list again.
	ErrCompacted = errors.New("revision compacted")
	// ErrFutureRevision ends a List or Watch at a revision the store has not
	// reached: a lagging replica (try another) or a restored backup.
	ErrFutureRevision = errors.New("revision in the future")
	// ErrOtherStore ends a List or Watch whose answer came from a store with
	// another ID than the Position named.
	ErrOtherStore = errors.New("another store answered")
	// ErrConflict: a condition of a Commit did not hold. Nothing was written.
	ErrConflict = errors.New("commit condition failed")
	// ErrTooLarge: a Commit with more than MaxOps operations, or a value or
	// request beyond the store's limit. Nothing was written.
	ErrTooLarge = errors.New("commit too large")
	// ErrLeaseNotFound: the lease expired or was revoked.
	ErrLeaseNotFound = errors.New("lease not found")
	// ErrReadOnly: this store has no write half (a mesh port).
	ErrReadOnly = errors.New("store is read only")
	// ErrDenied: the certificate does not allow this key range.
	ErrDenied = errors.New("not allowed")
	// ErrNotReady: a replica that has not been filled yet, or was closed.
	ErrNotReady = errors.New("store is not ready")
)

// Store is the contract. All methods are safe for concurrent use. Keys are
// ordered bytewise; a prefix selects all keys that begin with it.
type Store interface {
	// List reads all keys under prefix from one consistent snapshot and hands
	// them to visit in key order, in chunks, as they arrive; visit must not be
	// retained past its call but the KVs may be. A zero at means "now, and at
	// least as new as every commit that ended before this call"; the Position
	// returned is that of the snapshot, so that further prefixes can be read
	// from the same one. An error from visit ends the list and is returned.
	// After an error some chunks may have been visited.
	List(ctx context.Context, prefix string, at Position, visit func([]KV) error) (Position, error)

	// Watch yields every change under prefix after the given Position, until
	// ctx ends (then the sequence ends without an error) or an error ends it.
	// A lost connection is an error like any other: Watch itself never
	// reconnects. A zero after means "from now". The first batch comes as soon
	// as the watch stands; if there is nothing to tell it is empty and its
	// Position is at or above after, so that the reader knows it is connected.
	// The watch promises (kvtest checks them): ordered, unique, atomic,
	// reliable, resumable, bookmarkable, filtered.
	Watch(ctx context.Context, prefix string, after Position) iter.Seq2[Batch, error]

	// Commit applies all ops at one new revision, or none. A Commit that ends
	// in a transport error may have been applied; only ErrConflict,
	// ErrTooLarge, ErrLeaseNotFound, ErrReadOnly and ErrDenied say it was not.
	// A key may occur in at most one Put or Delete. A Commit that changes
	// nothing (deletes of absent keys) may leave the revision as it is.
	Commit(ctx context.Context, ops ...Op) (Position, error)

	// Grant makes a lease that dies ttl after its last KeepAlive, taking its
	// keys with it. ttl is rounded up to whole seconds.
	Grant(ctx context.Context, ttl time.Duration) (Lease, error)
}

// Lease keeps keys alive while its owner renews it.
type Lease interface {
	ID() int64
	// KeepAlive renews once and returns the time left; ErrLeaseNotFound when it is over.
	KeepAlive(ctx context.Context) (time.Duration, error)
	// Revoke ends the lease and deletes its keys.
	Revoke(ctx context.Context) error
}

// Sink receives what Follow learns, from one goroutine, in this order:
//
//	( Begin Apply* Synced Apply* Lost* )*
//
// A sink builds a fresh view from Begin to Synced and puts it in place of the
// old one at Synced: a list that breaks off half way changes nothing.
type Sink interface {
	// Begin announces a complete list as of at. marker is the value of the
	// marker key in that snapshot (nil if FollowConfig.Marker is "").
	// An error refuses this store: Follow reports it, backs off and tries again.
	Begin(at Position, marker []byte) error
	// Apply hands over a chunk of the list, or whole revisions of the watch
	// that follows it. Events are shared and must not be modified. Without
	// events it is progress: everything up to at has been handed over.
	Apply(at Position, events []Event) error
	// Synced: the list begun last is complete; what it lacks is deleted.
	Synced(at Position)
	// Lost: there is no connection at present. Nothing is deleted. Called once
	// per failed attempt with the reason; the next Apply or Begin ends it.
	Lost(err error)
}
