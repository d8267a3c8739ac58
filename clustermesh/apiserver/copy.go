package apiserver

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// lastGood keeps a copy, in the state directory, of what the store alone knows:
// registrations, numbers, tokens, promises, the peers and the drains. All else comes back
// from the source. When the store comes back without them, the leader puts them
// back; see restore.
//
// A copy is taken from the watch cache, and only while the cache shows the store
// the copy was taken from before, at a later revision. Any other store may be
// the one that lost what the copy still has: it is copied from when this
// replica's leader has put everything back, or after settleTime, when whoever
// leads has had the time to.
type lastGood struct {
	path    string
	cluster string
	cache   *kvstore.Memory
	marked  func() bool // the cache holds a publication
	log     *slog.Logger
	saved   func(kvstore.Position) // told of each store position the copy agrees with
	dirty   chan struct{}          // buffered by one

	mu       sync.Mutex
	last     *copyFile // nil = none
	kept     *copyFile // as on disk
	accepted kvstore.Position
	strange  time.Time // since when the cache shows another store; zero = it does not
	problem  *Problem
}

const (
	copyDelay  = 500 * time.Millisecond // between a change and its copy
	copyRest   = 20                     // at most one part in that many of the time is spent copying
	settleTime = time.Minute
)

// openLastGood reads the copy. One that cannot be used is named and set aside.
func openLastGood(dir, cluster string, cache *kvstore.Memory, log *slog.Logger) *lastGood {
	c := &lastGood{path: filepath.Join(dir, "last-good"), cluster: cluster, cache: cache, log: log, dirty: make(chan struct{}, 1)}
	c.saved = func(kvstore.Position) {}
	c.marked = func() bool {
		kv, err := getKey(context.Background(), cache, clustermesh.ClusterKey(clustermesh.ScopeExport, cluster))
		return err == nil && kv.Key != ""
	}
	f, err := readCopy(c.path, cluster)
	if err != nil {
		aside := c.path + ".bad"
		if moveErr := os.Rename(c.path, aside); moveErr != nil {
			aside = c.path
		}
		c.problem = &Problem{
			Object: "copy of registrations and peers", What: "cannot be used and was set aside as " + aside, Why: printable(err.Error()), Since: time.Now(),
			Fix: "nothing: a new one is made from the etcd. Only if the etcd is lost as well must clusters join again",
		}
		log.Error(c.problem.What, "object", c.problem.Object, "why", c.problem.Why, "fix", c.problem.Fix)
	}
	c.last, c.kept = f, f
	return c
}

// position is where the copy was taken; zero without one.
func (c *lastGood) position() kvstore.Position {
	c.mu.Lock()
	defer c.mu.Unlock()
	var at kvstore.Position
	if c.last != nil {
		if _, err := fmt.Sscanf(c.last.StoreID, "%x", &at.StoreID); err == nil {
			at.Revision = c.last.Revision
		}
	}
	return at
}

// prefixes are what is copied.
func (c *lastGood) prefixes() []string {
	return append([]string{
		clustermesh.KindPrefix(clustermesh.ScopeLocal, c.cluster, clustermesh.KindPeer),
		privatePrefix(c.cluster),
	}, drainPrefixes(c.cluster)...)
}

// wanted leaves out what lives shorter than a copy: who leads, and that a
// cluster is just about to join.
func (c *lastGood) wanted(kv kvstore.KV) bool {
	kind, _, _ := strings.Cut(strings.TrimPrefix(kv.Key, privatePrefix(c.cluster)), "/")
	return kind != "leader" && (kind != "joining" || kv.Lease == 0)
}

// run takes copies until ctx ends, and a last one then.
func (c *lastGood) run(ctx context.Context) {
	var follows sync.WaitGroup
	for _, prefix := range c.prefixes() {
		follows.Go(func() {
			// Follow ends with ctx alone: its configuration is ours.
			_ = kvstore.Follow(ctx, kvstore.FollowConfig{Stores: []kvstore.Store{c.cache}, Prefix: prefix, Sink: dirtySink(c.dirty), Log: c.log})
		})
	}
	defer follows.Wait()
	rest := copyDelay
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-c.dirty:
			pause(ctx, rest)
			began := time.Now()
			if !c.take() {
				c.again(ctx) // another store: look again later
			}
			rest = max(copyDelay, copyRest*time.Since(began))
		}
	}
	c.take()
}

// again marks the copy as out of date a little later.
func (c *lastGood) again(ctx context.Context) {
	pause(ctx, copyDelay)
	select {
	case c.dirty <- struct{}{}:
	default:
	}
}

// take copies what the cache holds, in memory and to disk; false if the cache
// shows a store that is not to be copied from yet.
func (c *lastGood) take() bool {
	f, ok := c.capture()
	if !ok || f == nil {
		return ok
	}
	text, err := f.encode()
	if err == nil {
		err = certs.WriteFile(c.path, text, 0o600)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.problem = &Problem{Object: "copy of registrations and peers", What: "cannot be written", Why: printable(err.Error()), Since: time.Now(),
			Fix: "make room in the state directory and see that it can be written to; everything works meanwhile"}
		return false
	}
	c.kept, c.problem = f, nil
	return true
}

// capture is take without the disk; nil if the copy on disk is as good.
func (c *lastGood) capture() (f *copyFile, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := c.cache.Position()
	if at.StoreID == 0 {
		return nil, true
	}
	if !c.mayCopy(at) {
		return nil, false
	}
	f, err := c.collect(at)
	if err != nil {
		return nil, false // the cache has moved on
	}
	c.last, c.strange = f, time.Time{}
	c.saved(at)
	if c.kept != nil && c.kept.StoreID == f.StoreID && sameRecords(c.kept.Records, f.Records) {
		return nil, true
	}
	return f, true
}

// mayCopy says whether the cache shows the store that is to be copied. Callers
// hold mu.
func (c *lastGood) mayCopy(at kvstore.Position) bool {
	if !c.marked() {
		return false // nothing has been published to it: it may have lost everything
	}
	if c.last == nil || c.last.before(at) || c.accepted.StoreID == at.StoreID && c.accepted.Revision <= at.Revision {
		return true
	}
	if c.strange.IsZero() {
		c.strange = time.Now()
	}
	return time.Since(c.strange) >= settleTime
}

func (c *lastGood) collect(at kvstore.Position) (*copyFile, error) {
	f := &copyFile{Cluster: c.cluster, StoreID: storeIDText(at.StoreID), Revision: at.Revision}
	for _, prefix := range c.prefixes() {
		_, err := c.cache.List(context.Background(), prefix, at, func(kvs []kvstore.KV) error {
			for _, kv := range kvs {
				if c.wanted(kv) {
					f.Records = append(f.Records, copyRecord{Key: kv.Key, Value: kv.Value, Leased: kv.Lease != 0})
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return f, nil
}

func sameRecords(a, b []copyRecord) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Key != b[i].Key || a[i].Leased != b[i].Leased || string(a[i].Value) != string(b[i].Value) {
			return false
		}
	}
	return true
}

// accept makes the store at that position one to copy from: the leader has put
// back what it lacked.
func (c *lastGood) accept(at kvstore.Position) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.accepted = at
}

// problems is what an operator should know.
func (c *lastGood) problems() []Problem {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.problem == nil {
		return nil
	}
	return []Problem{*c.problem}
}

// dirtySink notes that something changed.
type dirtySink chan struct{}

func (d dirtySink) mark() {
	select {
	case d <- struct{}{}:
	default:
	}
}

func (d dirtySink) Begin(kvstore.Position, []byte) error { return nil }
func (d dirtySink) Synced(kvstore.Position)              { d.mark() }
func (d dirtySink) Lost(error)                           {}

func (d dirtySink) Apply(_ kvstore.Position, events []kvstore.Event) error {
	if len(events) > 0 {
		d.mark()
	}
	return nil
}
