package apiserver

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// core owns the deriver. Its goroutine runs what others hand it, one after the
// other; after each piece it brings what it leads up to date.
type core struct {
	cfg         Config
	log         *slog.Logger
	cache       *kvstore.Memory
	problems    *Problems
	identities  *numbers
	nodeNumbers *numbers
	work        chan func()
	stopped     chan struct{}

	// Of the goroutine alone.
	d            *deriver
	sourceListed bool // the source has delivered a complete list
	claimsListed bool // what is under private/ has been read
	relist       bool // the source was listed anew: the guard judges
	pub          *kvstore.Publisher
	listed       bool // the publisher of this term has had a complete list
	retry        *time.Timer
	unused       map[string]time.Time // label texts and nodes → since when nobody uses their number
	guardAt      time.Time            // last complete list handed to the publisher
	moves        *moves
	placed       *placed
	guard        *sourceGuard
	start        startGuard

	own       atomic.Pointer[clustermesh.Cluster] // as it should be announced; incarnation and bundle left out
	publisher atomic.Pointer[kvstore.Publisher]   // pub, for status
}

const (
	identityCooldown = 24 * time.Hour
	nodeCooldown     = 10 * time.Minute
	// unusedFor is how long nobody must have used a number before it is freed: a
	// redeployment keeps its identities.
	unusedFor = time.Minute
	// collectEvery is how often unused numbers are looked for.
	collectEvery = 15 * time.Second
	ensureTime   = 5 * time.Second
	// followedFor is how long a replica that does not lead knows when what changed:
	// should it lead before that has been published, the origin is that of the change.
	followedFor = 10 * time.Minute
)

func newCore(cfg Config, store kvstore.Store, cache *kvstore.Memory, problems *Problems) *core {
	c := &core{
		cfg: cfg, log: cfg.Log, cache: cache, problems: problems,
		identities:  newNumbers(numbersConfig{Store: store, Prefix: identityPrefix(cfg.Cluster), Max: 1<<clustermesh.IdentityBits - 1, Cooldown: identityCooldown}),
		nodeNumbers: newNumbers(numbersConfig{Store: store, Prefix: nodeNumberPrefix(cfg.Cluster), Max: 1<<16 - 1, Cooldown: nodeCooldown}),
		work:        make(chan func(), 1024),
		stopped:     make(chan struct{}),
		unused:      make(map[string]time.Time),
		moves:       newMoves(),
		placed:      newPlaced(),
		guard:       newSourceGuard(cfg.Guard),
	}
	c.d = newDeriver(deriveConfig{
		Cluster: cfg.Cluster, ID: cfg.ID, Bound: cfg.PodPrefixes, Tunnels: cfg.TunnelPrefixes, SlicesGiven: cfg.SlicesGiven,
		Identity: func(text string) uint32 { n, _ := c.identities.lookup(text); return n },
		NodeNumber: func(node string) uint16 {
			n, _ := c.nodeNumbers.lookup(node)
			return uint16(n)
		},
		Stored:      c.stored,
		StoredUnder: c.storedUnder,
	})
	c.announce()
	return c
}

// do hands f to the core's goroutine and does not wait for it. After the core
// has stopped it does nothing.
func (c *core) do(f func()) {
	select {
	case c.work <- f:
	case <-c.stopped:
	}
}

var errStopping = errors.New("the mesh API server is stopping")

// ask runs f in the core's goroutine and waits for it. If it gives up, f has not
// run and never will: f may write to variables of the caller.
func (c *core) ask(ctx context.Context, f func()) error {
	var claimed atomic.Bool // by whoever decides first whether f runs
	done := make(chan struct{})
	giveUp := func(err error) error {
		if claimed.CompareAndSwap(false, true) {
			return err
		}
		<-done // it runs just now
		return nil
	}
	select {
	case c.work <- func() {
		defer close(done)
		if claimed.CompareAndSwap(false, true) {
			f()
		}
	}:
	case <-c.stopped:
		return errStopping
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-done:
		return nil
	case <-c.stopped:
		return giveUp(errStopping)
	case <-ctx.Done():
		return giveUp(ctx.Err())
	}
}

// whenListed waits until what is under private/ was read for the first time:
// from then on only changes come.
func (c *core) whenListed(ctx context.Context) error {
	for {
		listed := false
		if err := c.ask(ctx, func() { listed = c.claimsListed }); err != nil || listed {
			return err
		}
		if pause(ctx, 2*time.Millisecond); ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// run works until ctx ends.
func (c *core) run(ctx context.Context) {
	defer close(c.stopped)
	c.retry = time.NewTimer(time.Hour)
	defer c.retry.Stop()
	defer c.moves.timer.Stop()
	defer c.placed.timer.Stop()
	collect := time.NewTicker(min(collectEvery, max(c.cfg.Guard/2, 10*time.Millisecond)))
	defer collect.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case f := <-c.work:
			f()
			c.takePending()
		case <-c.retry.C:
		case <-c.moves.timer.C:
			c.finishMoves()
		case <-c.placed.timer.C:
		case <-collect.C:
			c.collect(ctx)
			c.reconfirm()
		}
		c.settle(ctx)
	}
}

// takePending takes what else has come in, so that many changes are derived at
// once.
func (c *core) takePending() {
	for range cap(c.work) {
		select {
		case f := <-c.work:
			f()
		default:
			return
		}
	}
}

// deliver takes what the source says. What it says of an object that has just
// changed waits until that is derived, which may be the last good state.
func (c *core) deliver(ctx context.Context, o Objects) {
	c.do(func() {
		admitted := c.guard.admit(o, time.Now())
		if c.d.underWay(admitted) {
			c.settle(ctx)
		}
		c.d.apply(admitted)
		c.problems.Set("source", o.Problems)
		if o.Complete {
			c.sourceListed, c.relist = true, true
		}
	})
}

// lead begins a term: everything is derived for a fresh publisher. nil ends it.
func (c *core) lead(pub *kvstore.Publisher) {
	c.do(func() {
		c.pub, c.listed, c.relist = pub, false, true
		clear(c.moves.due) // a new term sweeps what is not wanted
		c.publisher.Store(pub)
	})
}

// settle brings what is published up to date.
func (c *core) settle(ctx context.Context) {
	if !c.sourceListed || !c.claimsListed {
		return
	}
	c.d.shareOut()
	if c.pub == nil {
		clear(c.d.since) // what is in force is another's work
		return
	}
	if c.holdStart() {
		c.problems.Set("guard", c.start.problems())
		return
	}
	if !c.ensure(ctx) {
		c.retry.Reset(time.Second)
		return
	}
	c.placed.flush(c.d)
	if c.relist {
		c.publishAll()
	} else if len(c.d.dirty) > 0 {
		c.d.flush(c.emit)
		c.problems.Set("objects", c.d.problems())
	}
	if c.announce() && c.listed {
		c.pub.Listed() // the marker says something new
	}
	c.problems.Set("guard", append(c.guard.problems(), heldProblems(c.pub)...))
}

func (c *core) emit(key string, value []byte) {
	switch {
	case value != nil:
		delete(c.moves.due, key)
		c.pub.Set(key, value)
	case c.moved(key):
		c.moves.leave(key)
	default:
		c.pub.Delete(key)
		c.leftToo(key)
	}
}

// publishAll hands the publisher a complete list. What it lacks is not deleted
// one by one: the guard has a say.
func (c *core) publishAll() {
	at := clustermesh.OriginAt(time.Now())
	c.d.touchAll(at)
	for _, text := range c.identities.texts() {
		c.d.touch(identityUnit(text), at)
	}
	c.pub.Relist()
	c.d.flush(func(key string, value []byte) {
		if value != nil {
			delete(c.moves.due, key)
			c.pub.Set(key, value)
			c.keepTwin(key)
		}
	})
	c.announce()
	c.pub.Listed()
	c.relist, c.listed, c.guardAt = false, true, time.Now()
	c.problems.Set("objects", c.d.problems())
}

// reconfirm gives the guard a second list to agree with, when it holds something.
// The source reads itself anew in the meantime.
func (c *core) reconfirm() {
	c.releaseDeletes("", time.Now().Add(-c.cfg.Guard))
	if c.pub != nil && c.listed && len(c.pub.Held()) > 0 && time.Since(c.guardAt) > c.cfg.Guard {
		c.relist = true
	}
}

// releaseDeletes lets deletes take effect that are held since before then, and
// says how many.
func (c *core) releaseDeletes(kind string, before time.Time) int {
	refs := c.guard.release(kind, before)
	if len(refs) > 0 {
		c.d.apply(Objects{Deletes: refs, At: time.Now()})
	}
	return len(refs)
}

// confirm lets all deletes of a kind go ahead ("" = all).
func (c *core) confirm(kind string) int {
	n := c.releaseDeletes(kind, time.Now())
	if kind == "" || strings.EqualFold(kind, KindPod) {
		n += c.start.release()
	}
	return n
}

// ensure gives numbers to all that needs one. It is false when the store did not
// answer: what is published stays as it is until it does.
func (c *core) ensure(ctx context.Context) bool {
	if len(c.d.unnumbered)+len(c.d.unnumberedNodes) == 0 {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, ensureTime)
	defer cancel()
	at := clustermesh.OriginAt(time.Now())
	var problems []Problem
	texts := unnumbered(c.identities, c.d.unnumbered, func(text string) bool { return len(c.d.podsByText[text]) > 0 })
	_, err := c.identities.ensure(ctx, texts)
	ok := c.numbered("identities", err, &problems)
	nodes := unnumbered(c.nodeNumbers, c.d.unnumberedNodes, func(node string) bool { return c.d.nodes[node] != nil })
	_, err = c.nodeNumbers.ensure(ctx, nodes)
	ok = c.numbered("node numbers", err, &problems) && ok
	// Whoever gave it: a registration, or another replica that was faster, whose
	// change is read with the next list and says nothing new when it comes.
	for text := range c.d.unnumbered {
		if _, has := c.identities.lookup(text); has {
			c.d.touchIdentity(text, at)
		}
	}
	for node := range c.d.unnumberedNodes {
		if _, has := c.nodeNumbers.lookup(node); has {
			c.d.touchNode(node, at)
		}
	}
	c.problems.Set("numbers", problems)
	if ok {
		clear(c.d.unnumbered)
		clear(c.d.unnumberedNodes)
	}
	return ok
}

func unnumbered(n *numbers, candidates map[string]bool, needed func(string) bool) []string {
	var texts []string
	for _, text := range slices.Sorted(maps.Keys(candidates)) {
		if _, has := n.lookup(text); !has && needed(text) {
			texts = append(texts, text)
		}
	}
	return texts
}

// numbered judges an allocation. Numbers that are used up stop nothing else:
// the workload counts as not yet known.
func (c *core) numbered(what string, err error, problems *[]Problem) bool {
	if err == nil {
		return true
	}
	p := Problem{Object: what, What: "some have no number", Why: printable(err.Error()), Fix: "it is tried again; see that the store answers"}
	if errors.Is(err, errNumbersUsedUp) {
		p.Fix = "until one is free such workloads count as unknown ones of this cluster"
	}
	*problems = append(*problems, p)
	return errors.Is(err, errNumbersUsedUp)
}

// collect frees numbers that nobody has used for a while. The leader alone does it.
func (c *core) collect(ctx context.Context) {
	if c.pub == nil {
		c.d.forget(clustermesh.OriginAt(time.Now().Add(-followedFor)))
	}
	if c.pub == nil || !c.listed || !c.sourceListed || !c.claimsListed {
		clear(c.unused)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, ensureTime)
	defer cancel()
	at := clustermesh.OriginAt(time.Now())
	free := func(n *numbers, prefix string, used func(string) bool, touch func(string, clustermesh.Origin)) {
		var due []string
		for _, text := range n.texts() {
			since, waiting := c.unused[prefix+text]
			switch {
			case used(text):
				delete(c.unused, prefix+text)
			case !waiting:
				c.unused[prefix+text] = time.Now()
			case time.Since(since) >= unusedFor:
				due = append(due, text)
				delete(c.unused, prefix+text)
			}
		}
		done, err := n.free(ctx, due)
		if err != nil {
			c.log.Info("unused numbers were not freed; it is tried again", "err", err)
		}
		for _, text := range done {
			touch(text, at)
		}
	}
	free(c.identities, "i", func(text string) bool { return len(c.d.podsByText[text]) > 0 }, c.d.touchIdentity)
	free(c.nodeNumbers, "n", func(node string) bool { return c.d.nodes[node] != nil }, c.d.touchNode)
}

// announce notes what the own cluster record should say; true if that changed.
func (c *core) announce() bool {
	r := &clustermesh.Cluster{
		Name: c.cfg.Cluster, ID: c.cfg.ID, MeshAddresses: c.cfg.Advertise,
		PodPrefixes: c.d.podPrefixes(), Capabilities: capabilities, Version: c.cfg.Version, Topology: c.cfg.Topology,
	}
	old := c.own.Load()
	c.own.Store(r)
	return old == nil || !slices.Equal(old.PodPrefixes, r.PodPrefixes)
}

// announceAnew has the cluster record written again if it says something new.
func (c *core) announceAnew() {
	c.do(func() {
		if c.pub != nil && c.listed {
			c.pub.Listed()
		}
	})
}

// capabilities are announced in the cluster record: what a reader may rely on.
var capabilities = []string{"zstd", clustermesh.CapabilityGateway}

// heldProblems says what the guard holds and how it is let go.
func heldProblems(pub *kvstore.Publisher) []Problem {
	var ps []Problem
	for _, h := range pub.Held() {
		ps = append(ps, Problem{
			Object: "records of kind " + h.Kind,
			What:   "a mass delete is held",
			Why:    massDelete(h),
			Fix:    "if it is meant: tombolo mesh confirm-deletes " + h.Kind + "; it goes ahead by itself when a second list agrees",
			Since:  h.Since,
		})
	}
	for _, r := range pub.Refused() {
		ps = append(ps, Problem{Object: "record " + r.Key, What: "not taken", Why: r.Err.Error(), Fix: "what was published before stays in force"})
	}
	return ps
}
