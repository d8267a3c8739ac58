package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
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
	cfg       Config
	log       *slog.Logger
	quiet     *quietLog // of what fails again and again
	events    chan func()
	wake      chan struct{} // something is to be done that is no event
	ready     atomic.Bool
	pods      atomic.Pointer[[]LocalPod]   // newer than the state's; nil = none
	hostAddrs atomic.Pointer[[]netip.Addr] // the same
	health    *healthLoop
	flows     flowHub
	resets    *resetLoop
	gate      podGate
	judged    atomic.Pointer[map[NodeKey]HealthRow] // down, newer than downs; nil = none

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
	downs         downNodes
	askedAt       time.Time // when gossip was last asked who misses what
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
		cfg: cfg, log: cfg.Log, quiet: newQuietLog(cfg.Log), events: make(chan func(), eventsQueued), wake: make(chan struct{}, 1),
		state: newState(cfg, tables), followers: map[string]*follower{}, lost: map[string]lostNote{},
		refused: map[string]*refusals{}, problems: map[string]clustermesh.Problem{}, fromSnapshot: map[viewName]bool{},
		snapshots: snapshots{dir: cfg.SnapshotDir, own: cfg.Cluster, dirty: map[viewName]*changedView{}},
		latency:   newLatency(), started: time.Now(),
	}
	a.health = newHealthLoop(cfg.Health, cfg.Prober, cfg.Gossip, tables, a.quiet)
	a.resets = newResetLoop(cfg.Resets, a.quiet)
	a.gate.agent = a
	a.health.judged = func(down map[NodeKey]HealthRow) { a.judged.Store(&down); a.wakeUp() }
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
	var beside sync.WaitGroup
	beside.Go(func() { a.health.run(ctx) })
	beside.Go(func() { a.resets.run(ctx) })
	defer func() {
		cancel()
		a.shutdown()
		beside.Wait()
	}()
	if !a.readKernel(ctx) {
		return nil
	}
	a.syncFollowers(ctx)
	a.loop(ctx)
	return nil
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

// SetHostAddresses says which addresses the host has that its record does not name, all
// of them; the latest word counts. Before SetPods, so that a pod's probes are the host's
// from the first on.
func (a *Agent) SetHostAddresses(addrs []netip.Addr) {
	addrs = slices.Clone(addrs)
	a.hostAddrs.Store(&addrs)
	a.wakeUp()
}

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
