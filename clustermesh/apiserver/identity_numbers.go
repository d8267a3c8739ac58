package apiserver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// numbersConfig says what is numbered.
type numbersConfig struct {
	Store    kvstore.Store
	Prefix   string // ends in a slash; what is numbered is at Prefix<number>
	Max      uint32 // numbers are 1…Max
	Cooldown time.Duration
}

// numbers gives numbers to texts: identities to label sets, node numbers to
// nodes. One text has one number and one number one text, across restarts and
// replicas: every change is one commit that compares a version key all of them
// write, so that two replicas cannot decide at once. A freed number keeps its
// text: the same text gets it back at any time, another one not before Cooldown.
//
// It is safe for concurrent use. Lookups do not wait for the store.
type numbers struct {
	cfg     numbersConfig
	writing chan struct{} // taken for a change, store included: who waits for it waits no longer than it may
	loaded  bool          // guarded by writing: known well enough to decide on

	mu      sync.RWMutex
	entries map[uint32]numberEntry
	byText  map[string]uint32 // in use and freed ones alike
	next    uint32            // where the search for a number never used goes on
	version int64             // ModRevision of the version key, 0 = absent
	store   uint64            // that version is of; 0 = not known
	lost    time.Time         // since when the store lacks what it had; zero = it does not
}

// numberEntry is what a number stands for.
type numberEntry struct {
	of    string
	freed int64 // Unix nanoseconds; 0 = in use
	rev   int64 // that wrote it: an older event changes nothing
}

// errNumbersUsedUp: all numbers are in use or were freed too short a time ago.
var errNumbersUsedUp = errors.New("all numbers are in use or were in use until short of the cooldown; remove label sets that differ from pod to pod")

// errNumbersLost: numbers given out now could be those that others have.
var errNumbersLost = errors.New("the store lacks numbers that it had: it was emptied, replaced or restored; they are put back first")

const (
	versionName = "version"
	// lostMost is how long numbers that the store lacks are waited for: who leads
	// has put back by then what there is to put back.
	lostMost = 2 * time.Minute
)

func newNumbers(cfg numbersConfig) *numbers {
	return &numbers{cfg: cfg, writing: make(chan struct{}, 1), entries: make(map[uint32]numberEntry), byText: make(map[string]uint32), next: 1}
}

func (n *numbers) key(number uint32) string {
	return n.cfg.Prefix + strconv.FormatUint(uint64(number), 10)
}

// lookup is the number of text, if it has one in use.
func (n *numbers) lookup(text string) (uint32, bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	number, ok := n.byText[text]
	if !ok || n.entries[number].freed != 0 {
		return 0, false
	}
	return number, true
}

// texts are all texts that have a number in use.
func (n *numbers) texts() []string {
	n.mu.RLock()
	defer n.mu.RUnlock()
	var all []string
	for text, number := range n.byText {
		if n.entries[number].freed == 0 {
			all = append(all, text)
		}
	}
	return all
}

// apply takes a change that somebody made in the store; value nil = deleted. It
// returns the text it is about, "" if nothing changed.
func (n *numbers) apply(key string, value []byte, rev int64) (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	name := strings.TrimPrefix(key, n.cfg.Prefix)
	if name == versionName {
		n.version = max(n.version, rev)
		return "", nil
	}
	number, err := strconv.ParseUint(name, 10, 32)
	if err != nil {
		return "", fmt.Errorf("key %q: %w", key, err)
	}
	return n.install(uint32(number), value, rev)
}

// install puts one entry in place. Callers hold mu.
func (n *numbers) install(number uint32, value []byte, rev int64) (string, error) {
	old, had := n.entries[number]
	if had && rev < old.rev {
		return old.of, nil
	}
	var c pb.NumberClaim
	if err := c.UnmarshalVT(value); err != nil {
		return "", fmt.Errorf("number %d: %w", number, err)
	}
	if had && n.byText[old.of] == number {
		delete(n.byText, old.of)
	}
	delete(n.entries, number)
	if value == nil {
		return old.of, nil
	}
	n.entries[number] = numberEntry{of: c.Of, freed: c.Freed, rev: rev}
	n.byText[c.Of] = number
	if had && old.of == c.Of && old.freed == c.Freed {
		return "", nil // our own change, come back through the watch
	}
	return c.Of, nil
}

// replace puts a complete list in place of everything known.
func (n *numbers) replace(kvs []kvstore.KV) error {
	fresh := newNumbers(n.cfg)
	for _, kv := range kvs {
		if _, err := fresh.apply(kv.Key, kv.Value, kv.ModRevision); err != nil {
			return err
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.entries, n.byText, n.version, n.next = fresh.entries, fresh.byText, fresh.version, 1
	n.store, n.lost = 0, time.Time{}
	return nil
}

// accept takes the store as it is from now on: what it lacked was put back.
func (n *numbers) accept() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.version, n.store, n.lost = 0, 0, time.Time{}
}

// lacks says whether a store whose version key is at that revision has lost what
// is known here, for no longer than lostMost.
func (n *numbers) lacks(store uint64, version int64) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if version >= n.version && (n.store == 0 || n.store == store) {
		return false
	}
	if n.lost.IsZero() {
		n.lost = time.Now()
	}
	return time.Since(n.lost) < lostMost
}

// load reads everything from the store. Callers hold writing.
func (n *numbers) load(ctx context.Context) error {
	var all []kvstore.KV
	version := int64(0)
	at, err := n.cfg.Store.List(ctx, n.cfg.Prefix, kvstore.Position{}, func(kvs []kvstore.KV) error {
		for _, kv := range kvs {
			if kv.Key == n.cfg.Prefix+versionName {
				version = kv.ModRevision
			}
		}
		all = append(all, kvs...)
		return nil
	})
	if err != nil {
		return err
	}
	if n.lacks(at.StoreID, version) {
		return errNumbersLost
	}
	if err := n.replace(all); err != nil {
		return err
	}
	n.inStore(at)
	n.loaded = true
	return nil
}

// inStore notes which store is known.
func (n *numbers) inStore(at kvstore.Position) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.store = at.StoreID
}

// ensure gives a number to every text that has none. It returns the texts whose
// number is new or was taken back.
func (n *numbers) ensure(ctx context.Context, texts []string) ([]string, error) {
	if len(texts) == 0 {
		return nil, nil
	}
	return n.change(ctx, func(now time.Time) ([]numberChange, error) {
		var changes []numberChange
		taken := make(map[uint32]bool)
		for _, text := range texts {
			number, known := n.byText[text]
			if known && n.entries[number].freed == 0 {
				continue
			}
			if !known {
				var err error
				if number, err = n.pick(now, taken); err != nil {
					return changes, err
				}
				taken[number] = true
			}
			changes = append(changes, numberChange{number, &pb.NumberClaim{Of: text}})
		}
		return changes, nil
	})
}

// free takes the numbers of texts out of use.
func (n *numbers) free(ctx context.Context, texts []string) ([]string, error) {
	if len(texts) == 0 {
		return nil, nil
	}
	return n.change(ctx, func(now time.Time) ([]numberChange, error) {
		var changes []numberChange
		for _, text := range texts {
			if number, known := n.byText[text]; known && n.entries[number].freed == 0 {
				changes = append(changes, numberChange{number, &pb.NumberClaim{Of: text, Freed: now.UnixNano()}})
			}
		}
		return changes, nil
	})
}

type numberChange struct {
	number uint32
	claim  *pb.NumberClaim
}

// pick finds a number never used, or the one freed longest ago, beyond the
// cooldown. Callers hold mu for reading.
func (n *numbers) pick(now time.Time, taken map[uint32]bool) (uint32, error) {
	for ; n.next <= n.cfg.Max; n.next++ {
		if _, used := n.entries[n.next]; !used && !taken[n.next] {
			return n.next, nil
		}
	}
	best, since := uint32(0), now.Add(-n.cfg.Cooldown).UnixNano()
	for number, c := range n.entries {
		if c.freed != 0 && c.freed <= since && !taken[number] && (best == 0 || c.freed < n.entries[best].freed) {
			best = number
		}
	}
	if best == 0 {
		return 0, errNumbersUsedUp
	}
	return best, nil
}

// change computes what to write from what is known and commits it, as often as
// another replica was faster. decide runs with mu held.
func (n *numbers) change(ctx context.Context, decide func(time.Time) ([]numberChange, error)) ([]string, error) {
	select {
	case n.writing <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("numbers: the change before this one is not through: %w", ctx.Err())
	}
	defer func() { <-n.writing }()
	var done []string
	for range 20 {
		if !n.loaded {
			if err := n.load(ctx); err != nil {
				return done, err
			}
		}
		n.mu.Lock()
		changes, failed := decide(time.Now())
		n.mu.Unlock()
		texts, err := n.write(ctx, changes)
		done = append(done, texts...)
		switch {
		case errors.Is(err, kvstore.ErrConflict):
			n.loaded = false
		case err != nil:
			// It may have been written: what is known is not to be trusted.
			n.loaded = false
			return done, err
		default:
			return done, failed
		}
	}
	return done, errors.New("numbers: other replicas were faster twenty times; try again")
}

// write commits changes in as few commits as the limit allows.
func (n *numbers) write(ctx context.Context, changes []numberChange) ([]string, error) {
	var done []string
	for chunk := range slices.Chunk(changes, kvstore.MaxOps-2) {
		n.mu.RLock()
		ops := []kvstore.Op{
			kvstore.IfModRevision(n.cfg.Prefix+versionName, n.version),
			kvstore.Put(n.cfg.Prefix+versionName, nil, 0),
		}
		n.mu.RUnlock()
		values := make(map[uint32][]byte, len(chunk))
		for _, c := range chunk {
			value, err := c.claim.MarshalVT()
			if err != nil {
				return done, err
			}
			values[c.number] = value
			ops = append(ops, kvstore.Put(n.key(c.number), value, 0))
		}
		at, err := n.cfg.Store.Commit(ctx, ops...)
		if err != nil {
			return done, err
		}
		n.mu.Lock()
		n.version, n.store = at.Revision, at.StoreID
		for _, number := range slices.Sorted(maps.Keys(values)) {
			if _, err := n.install(number, values[number], at.Revision); err != nil {
				n.mu.Unlock()
				return done, err
			}
		}
		n.mu.Unlock()
		for _, c := range chunk {
			done = append(done, c.claim.Of)
		}
	}
	return done, nil
}
