package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// What the owner goroutine does in one turn before it looks at what is new: a
// large first list or resync never keeps a small change waiting for long.
const (
	turnServices = 512          // merged
	turnRows     = 4 * MaxBatch // written, of each table
	turnResync   = 2 * MaxBatch
	turnEvents   = 256
	maxOrigins   = 4096 // latencies measured at once
)

const (
	resyncEvery  = 30 * time.Second
	resyncRetry  = 200 * time.Millisecond // after a table could not be read
	eventsQueued = 64
)

// Agent turns what the clusters say into rows of tables. One goroutine (Run)
// owns all its state; every exported method may be called from any goroutine.
//
//	followers ──updates──►┐
//	API, pods ──calls────►│ owner: State → Deltas → Tables
//	snapshots, timers ───►┘          └─targets─► health loop → its two tables
type Agent struct {
	cfg    Config
	log    *slog.Logger
	events chan func()
	wake   chan struct{} // something is to be done that is no event
	ready  atomic.Bool
	pods   atomic.Pointer[[]LocalPod] // newer than the state's; nil = none
	health *healthLoop

	// Everything below belongs to the owner goroutine.
	state     *State
	followers map[string]*follower
	stopping  sync.WaitGroup // goroutines that end by themselves
	lost      map[string]lostNote
	refused   map[string]*refusals
	problems  map[string]clustermesh.Problem
	snapshots snapshots

	fromSnapshot  map[viewName]bool // views that were read from a snapshot
	kernelHadRows bool              // at the start
	resync        []anyDelta        // to be read again, in order
	resyncAt      time.Time         // next periodic one
	retryAt       time.Time         // when a table that could not be read is tried again
	origins       []clustermesh.Origin
	latency       prometheus.Histogram
	ownNode       *clustermesh.Node
	started       time.Time
	settled       time.Time // since when there is nothing left to do; zero while there is
	turns         uint64
}

// New makes an agent of the tables. It touches nothing before Run.
func New(cfg Config, tables Tables) (*Agent, error) {
	switch {
	case cfg.Connector == nil:
		return nil, errors.New("agent: Config.Connector is missing: there is nothing to follow")
	case cfg.Cluster == "" || cfg.Node == "":
		return nil, errors.New("agent: Config.Cluster and Config.Node must be set")
	case cfg.ClusterID == 0 || cfg.ClusterID > clustermesh.MaxID:
		return nil, fmt.Errorf("agent: cluster ID %d: must be 1–%d", cfg.ClusterID, clustermesh.MaxID)
	}
	if err := checkTables(tables); err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Resync = cmp.Or(cfg.Resync, resyncEvery)
	a := &Agent{
		cfg: cfg, log: cfg.Log, events: make(chan func(), eventsQueued), wake: make(chan struct{}, 1),
		state: newState(cfg, tables), followers: map[string]*follower{}, lost: map[string]lostNote{},
		refused: map[string]*refusals{}, problems: map[string]clustermesh.Problem{}, fromSnapshot: map[viewName]bool{},
		snapshots: snapshots{dir: cfg.SnapshotDir, own: cfg.Cluster, dirty: map[viewName]*changedView{}},
		latency:   newLatency(), started: time.Now(),
	}
	a.health = newHealthLoop(cfg.Health, cfg.Prober, tables, cfg.Log)
	return a, nil
}

func checkTables(t Tables) error {
	v := reflect.ValueOf(t)
	for i := range v.NumField() {
		if v.Field(i).IsNil() {
			return fmt.Errorf("agent: table %s is missing", v.Type().Field(i).Name)
		}
	}
	return nil
}

// Run does everything until ctx ends, and returns nil. The tables are left as
// they are: an agent that stops takes nothing away. It may be called once.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var health sync.WaitGroup
	health.Go(func() { a.health.run(ctx) })
	defer func() {
		cancel()
		a.shutdown()
		health.Wait()
	}()
	if !a.readKernel(ctx) {
		return nil
	}
	a.syncFollowers(ctx)
	a.loop(ctx)
	return nil
}

// readKernel reads all tables before anything else, so that what is there is
// known before the first wish is.
func (a *Agent) readKernel(ctx context.Context) bool {
	for _, d := range a.state.t.all() {
		for !d.Scanned() {
			done, err := d.Resync(turnResync)
			if err != nil {
				a.log.Warn("cannot read a table; trying again", "table", d.name(), "err", err)
				a.problems["read "+d.name()] = readProblem(d.name(), err)
			} else if done {
				delete(a.problems, "read "+d.name())
			}
			if !a.pause(ctx, err) {
				return false
			}
		}
		a.kernelHadRows = a.kernelHadRows || d.Held() > 0 || d.Pending() > 0
	}
	a.resyncAt = a.nextResync()
	return true
}

// pause serves the API, and after an error waits; false = ctx ended.
func (a *Agent) pause(ctx context.Context, err error) bool {
	var wait <-chan time.Time
	if err != nil {
		wait = time.After(resyncRetry)
	}
	for {
		select {
		case <-ctx.Done():
			return false
		case f := <-a.events:
			f()
			continue
		case <-wait:
			return true
		default:
		}
		if wait == nil {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case f := <-a.events:
			f()
		case <-wait:
			return true
		}
	}
}

func (a *Agent) nextResync() time.Time {
	if a.cfg.Resync < 0 {
		return time.Time{}
	}
	return time.Now().Add(a.cfg.Resync + rand.N(a.cfg.Resync/4+1))
}

func readProblem(table string, err error) clustermesh.Problem {
	return clustermesh.Problem{
		What: "table " + table + " cannot be read", Why: err.Error(),
		Fix: "it is tried again by itself; until then rows that drifted are not repaired",
	}
}

// loop takes what is new, then does a turn of work; while work is left it does
// not wait.
func (a *Agent) loop(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	busy := true
	for {
		if busy {
			select {
			case <-ctx.Done():
				return
			case f := <-a.events:
				f()
			default:
			}
		} else {
			select {
			case <-ctx.Done():
				return
			case f := <-a.events:
				f()
			case <-a.wake:
			case <-timer.C:
			}
		}
		a.drain()
		var next time.Time
		busy, next = a.turn(ctx)
		if !busy && !next.IsZero() {
			timer.Reset(max(time.Until(next), 0))
		}
	}
}

// drain takes more of what is new, without waiting.
func (a *Agent) drain() {
	for range turnEvents {
		select {
		case f := <-a.events:
			f()
		default:
			return
		}
	}
}

// turn does a bounded amount of work. It reports whether there is more to do at
// once, and otherwise when to come again (zero: when something happens).
func (a *Agent) turn(ctx context.Context) (busy bool, next time.Time) {
	a.turns++
	if pods := a.pods.Swap(nil); pods != nil {
		a.state.setHurry(true)
		a.state.SetPods(*pods)
		a.state.setHurry(false)
	}
	if a.state.peersDirty {
		a.state.peersDirty = false
		a.syncFollowers(ctx)
	}
	busy = a.state.Compute(turnServices)
	if a.state.healthDirty {
		a.state.healthDirty = false
		a.health.SetTargets(a.state.healthTargets())
		a.tellOwnNode()
	}
	busy = a.state.t.flush(turnRows) || busy
	a.measure(busy)
	now := time.Now()
	a.noteSettled(now)
	busy = a.resyncStep(now) || busy
	if !busy {
		a.checkReady()
		more, again, err := a.snapshots.step(now, a.viewOf, a.wakeUp)
		if err != nil {
			a.snapshotFailed(err)
		} else if a.snapshots.present != nil {
			delete(a.problems, "snapshot")
		}
		busy, next = more, again
	}
	for _, t := range append(a.retryTimes(), a.resyncAt, a.retryAt) {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	return busy, next
}

func (a *Agent) retryTimes() []time.Time {
	var out []time.Time
	for _, d := range a.state.t.all() {
		out = append(out, d.RetryAt())
	}
	return out
}

func (a *Agent) viewOf(n viewName) (*clustermesh.View, clustermesh.ID) {
	c := a.state.clusters[n.cluster]
	if c == nil {
		return nil, 0
	}
	return c.views[n.scope], c.id
}

func (a *Agent) snapshotFailed(err error) {
	a.log.Warn("snapshot not written", "err", err)
	a.problems["snapshot"] = clustermesh.Problem{
		What: "the last-good snapshot cannot be written to " + a.cfg.SnapshotDir, Why: err.Error(),
		Fix: "make room and make the directory writable; without it a reboot needs the control plane",
	}
}

// resyncStep reads a piece of a table again when one is due.
func (a *Agent) resyncStep(now time.Time) (more bool) {
	if !a.resyncAt.IsZero() && !now.Before(a.resyncAt) {
		a.resyncAt = a.nextResync()
		a.addResync("")
	}
	if !a.retryAt.IsZero() {
		if now.Before(a.retryAt) {
			return false
		}
		a.retryAt = time.Time{}
	}
	if len(a.resync) == 0 {
		return false
	}
	d := a.resync[0]
	done, err := d.Resync(turnResync)
	switch {
	case err != nil:
		a.log.Warn("cannot read a table; trying again", "table", d.name(), "err", err)
		a.problems["read "+d.name()] = readProblem(d.name(), err)
		a.resync = append(a.resync[1:], d)
		a.retryAt = now.Add(resyncRetry)
		return false
	case done:
		delete(a.problems, "read "+d.name())
		a.resync = a.resync[1:]
	}
	return true
}

// addResync has a table (or, with "", all) read again. A reading under way
// begins anew: it may have passed what changed.
func (a *Agent) addResync(name string) {
	for _, d := range a.state.t.all() {
		if name != "" && d.name() != name {
			continue
		}
		if name != "" {
			d.StopResync()
		}
		if !slices.Contains(a.resync, d) {
			a.resync = append(a.resync, d)
		}
	}
}

// measure notes how long changes took from their origin into the kernel.
func (a *Agent) measure(busy bool) {
	if len(a.origins) == 0 {
		return
	}
	if busy {
		for _, d := range a.state.t.all() {
			if d.Urgent() > 0 {
				return
			}
		}
	}
	now := time.Now()
	for _, o := range a.origins {
		a.latency.Observe(max(now.Sub(o.Time()), 0).Seconds())
	}
	a.origins = a.origins[:0]
}

// noteSettled notes since when all clusters are synced and all rows written.
func (a *Agent) noteSettled(now time.Time) {
	if len(a.state.dirty) == 0 && a.allWritten() {
		if a.settled.IsZero() {
			a.settled = now
		}
		return
	}
	a.settled = time.Time{}
}

func (a *Agent) allWritten() bool {
	for _, c := range a.state.clusters {
		if !c.synced() {
			return false
		}
	}
	for _, d := range a.state.t.all() {
		if !d.Scanned() || d.Pending() > 0 {
			return false
		}
	}
	return true
}

// checkReady latches: once ready, always ready. What became of a cluster later
// is for the status to tell, not a reason to stop serving.
func (a *Agent) checkReady() {
	if a.ready.Load() || !a.state.clusters[a.cfg.Cluster].synced() {
		return
	}
	for _, d := range a.state.t.all() {
		if !d.Scanned() || d.Pending() > d.Stuck() {
			return
		}
	}
	a.ready.Store(true)
	a.log.Info("ready: the own cluster is synced and the tables are written")
}

func (a *Agent) tellOwnNode() {
	n := a.state.clusters[a.cfg.Cluster].nodes[a.cfg.Node]
	if a.cfg.OwnNode == nil || n == nil || n == a.ownNode {
		return
	}
	a.ownNode = n
	a.cfg.OwnNode(*n)
}

// shutdown ends what runs beside the owner. It serves calls that wait meanwhile.
func (a *Agent) shutdown() {
	for _, f := range a.followers {
		f.stop()
	}
	for _, f := range a.followers {
		f.done.Wait()
	}
	a.stopping.Wait()
	a.snapshots.close(true)
	for _, d := range a.state.t.all() {
		d.StopResync()
	}
}

// post hands f to the owner; false = ctx ended first.
func (a *Agent) post(ctx context.Context, f func()) bool {
	select {
	case <-ctx.Done():
		return false
	case a.events <- f:
		return true
	}
}

// call runs f on the owner goroutine and waits for it.
func (a *Agent) call(ctx context.Context, f func()) error {
	done := make(chan struct{})
	if !a.post(ctx, func() { f(); close(done) }) {
		return fmt.Errorf("the agent does not answer: %w", context.Cause(ctx))
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the agent does not answer: %w", context.Cause(ctx))
	}
}

func (a *Agent) wakeUp() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// callTimeout bounds calls that have no context of their own.
const callTimeout = 5 * time.Second

// SetPods says which pods are on this node, all of them; the latest word
// counts. Before the first call no pod's row is removed. It does not wait.
func (a *Agent) SetPods(pods []LocalPod) {
	pods = slices.Clone(pods)
	a.pods.Store(&pods)
	a.wakeUp()
}

// Notify says that the kernel object behind a table was made anew (a link came
// back, a map was replaced): it is read and repaired at once. "" = all tables.
// It does not wait.
func (a *Agent) Notify(table string) {
	f := func() { a.addResync(table) }
	select {
	case a.events <- f:
	default:
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
			defer cancel()
			a.post(ctx, f)
		}()
	}
}

// Ready reports whether the own cluster was synced and the tables were written.
func (a *Agent) Ready() bool { return a.ready.Load() }

// Dump is a table as text, as the kernel is known to hold it; see Text.
func (a *Agent) Dump(table string) (string, error) { return a.dump(table, true) }

// DumpWanted is a table as text, as it should be.
func (a *Agent) DumpWanted(table string) (string, error) { return a.dump(table, false) }

func (a *Agent) dump(table string, actual bool) (text string, err error) {
	if text, ok := a.health.dump(table, actual); ok {
		return text, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	ok := false
	if err := a.call(ctx, func() { text, ok = a.state.t.dump(table, actual) }); err != nil {
		return "", err
	}
	if !ok {
		return "", fmt.Errorf("no table %q; the tables are %v", table, TableNames())
	}
	return text, nil
}

// Handler is the API for the agent's Unix socket.
func (a *Agent) Handler() http.Handler { return newAPI(a) }
