package agent

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// healthRetry is how soon rows that the kernel refused are tried again, and how
// often the health tables are read to repair drift.
const (
	healthRetry  = 100 * time.Millisecond
	healthResync = 30 * time.Second
)

// healthLoop probes and writes the two health tables, which are its own: no row
// of theirs queues behind anything else.
type healthLoop struct {
	prober   Prober
	gossip   Gossip // nil = this agent is on its own
	quiet    *quietLog
	nodes    *Delta[NodeKey, HealthRow]
	clusters *Delta[ClusterKey, HealthRow]

	wake   chan struct{}               // targets changed
	judged func(map[NodeKey]HealthRow) // told of the nodes that are down, all of them, when that changed; nil = nobody asks

	mu      sync.Mutex
	machine *health
	targets *HealthTargets // newer than the machine's; nil = none
	probes  uint64
	misses  uint64
	changed bool       // verdicts differ from the wanted rows
	writing sync.Mutex // guards the deltas: Dump reads them from other goroutines
}

func newHealthLoop(cfg HealthConfig, prober Prober, gossip Gossip, t Tables, quiet *quietLog) *healthLoop {
	always := func(clustermesh.ID) bool { return true }
	return &healthLoop{
		prober: prober, gossip: gossip, quiet: quiet, wake: make(chan struct{}, 1), machine: newHealth(cfg),
		nodes:    NewDelta(TableNodeHealth, t.NodeHealth, func(NodeKey, HealthRow) clustermesh.ID { return 0 }, always),
		clusters: NewDelta(TableClusterHealth, t.ClusterHealth, func(ClusterKey, HealthRow) clustermesh.ID { return 0 }, always),
	}
}

// SetTargets says whom to probe; the latest word counts.
func (l *healthLoop) SetTargets(t HealthTargets) {
	l.mu.Lock()
	l.targets = &t
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

type probeResult struct {
	node      NodeKey
	ok        bool
	roundTrip time.Duration // if ok
}

// run probes until ctx ends. The rows stay: verdicts outlive the agent.
func (l *healthLoop) run(ctx context.Context) {
	if !l.restore(ctx) {
		return
	}
	results := make(chan probeResult, 1024)
	var probing sync.WaitGroup
	defer probing.Wait()
	resync := time.NewTicker(healthResync)
	defer resync.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var gossip <-chan struct{}
	if l.gossip != nil {
		gossip = l.gossip.Changed()
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
			l.takeTargets()
		case <-gossip:
			l.takeGossip()
		case r := <-results:
			l.takeResults(r, results)
		case <-resync.C:
			l.read()
		case <-timer.C:
		}
		retry := l.write()
		l.say() // after what is urgent
		due, next := l.nextProbes()
		for _, k := range due {
			probing.Go(func() {
				select {
				case results <- l.probe(ctx, k):
				case <-ctx.Done():
				}
			})
		}
		if retry && (next.IsZero() || time.Until(next) > healthRetry) {
			next = time.Now().Add(healthRetry)
		}
		if !next.IsZero() {
			timer.Reset(time.Until(next))
		}
	}
}

// restore reads the verdicts of a former life out of the kernel.
func (l *healthLoop) restore(ctx context.Context) bool {
	for !l.read() {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(healthRetry):
		}
	}
	l.writing.Lock()
	nodes, clusters := l.nodes.actualRows(), l.clusters.actualRows()
	l.writing.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.machine.restore(nodes, clusters)
	l.changed = true // wanted at once: the first write must not take them for rows that nobody wants
	return true
}

func (l *healthLoop) read() bool {
	l.writing.Lock()
	defer l.writing.Unlock()
	ok := true
	for _, d := range []anyDelta{l.nodes, l.clusters} {
		for {
			done, err := d.Resync(MaxBatch)
			if err != nil {
				l.quiet.failed("read "+d.name(), "cannot read a health table; trying again", err, "table", d.name())
				ok = false
				break
			}
			if done {
				l.quiet.works("read "+d.name(), "a health table can be read again", "table", d.name())
				break
			}
		}
	}
	return ok
}

func (l *healthLoop) takeTargets() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.targets != nil {
		l.machine.setTargets(*l.targets, time.Now())
		l.changed = true
		l.targets = nil
		l.sit()
	}
}

func (l *healthLoop) takeGossip() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sit()
}

// sit has the council of this moment decide. Callers hold mu.
func (l *healthLoop) sit() {
	if l.gossip == nil {
		return
	}
	t := l.machine.targets
	down, up := l.machine.setCouncil(newCouncil(t.Self, t.Members, l.gossip.View()), time.Now())
	if down+up > 0 {
		l.changed = true
		l.quiet.log.Info("node health changed, by what other agents say", "down", down, "up", up)
	}
}

// say tells the other agents what this one's probes miss.
func (l *healthLoop) say() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gossip != nil && l.machine.unsaid {
		l.machine.unsaid = false
		l.gossip.Report(l.machine.said())
	}
}

func (l *healthLoop) takeResults(r probeResult, more <-chan probeResult) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	var down, up int // verdicts of one turn are one line: a whole cluster may go at once
	var last NodeKey
	defer func() {
		if down+up > 0 {
			l.quiet.log.Info("node health changed", "down", down, "up", up, "last-cluster", last.Cluster, "last-node", last.Node)
		}
	}()
	for {
		l.probes++
		if !r.ok {
			l.misses++
		}
		if l.machine.result(r.node, r.ok, r.roundTrip, now) {
			l.changed = true
			if l.machine.nodes[r.node].down {
				down++
			} else {
				up++
			}
			last = r.node
		}
		select {
		case r = <-more:
		default:
			return
		}
	}
}

// write brings the kernel in line with the verdicts: what is down first. It
// reports whether rows were refused.
func (l *healthLoop) write() (retry bool) {
	l.mu.Lock()
	changed := l.changed
	var nodes map[NodeKey]HealthRow
	var clusters map[ClusterKey]HealthRow
	if changed {
		nodes, clusters = l.machine.rows()
		l.changed = false
	}
	l.mu.Unlock()
	if changed && l.judged != nil {
		l.judged(nodes)
	}
	l.writing.Lock()
	defer l.writing.Unlock()
	if changed {
		replace(l.clusters, clusters)
		replace(l.nodes, nodes)
	}
	if l.nodes.Pending()+l.clusters.Pending() == 0 {
		return false
	}
	for l.clusters.FlushPuts(MaxBatch, nil) == MaxBatch {
	}
	for l.nodes.FlushPuts(MaxBatch, nil) == MaxBatch {
	}
	for l.clusters.FlushDeletes(MaxBatch, nil) == MaxBatch {
	}
	for l.nodes.FlushDeletes(MaxBatch, nil) == MaxBatch {
	}
	return l.nodes.Pending()+l.clusters.Pending() > 0
}

func (l *healthLoop) nextProbes() ([]NodeKey, time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.prober == nil {
		return nil, time.Time{}
	}
	return l.machine.due(time.Now())
}

// probe asks all tunnel addresses of a node at once; one answer is enough, and
// the first one's round trip is taken.
func (l *healthLoop) probe(ctx context.Context, k NodeKey) probeResult {
	l.mu.Lock()
	addrs, from, timeout := l.machine.targets.Nodes[k], l.machine.targets.From, l.machine.cfg.Timeout
	l.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan probeResult, len(addrs))
	for _, to := range addrs {
		go func() {
			roundTrip, err := l.prober.Probe(ctx, sameFamily(from, to), to, timeout)
			answers <- probeResult{k, err == nil, roundTrip}
		}()
	}
	first := probeResult{node: k}
	for range addrs {
		if r := <-answers; r.ok && !first.ok {
			first = r
			cancel()
		}
	}
	return first
}

func sameFamily(from []netip.Addr, to netip.Addr) netip.Addr {
	for _, a := range from {
		if a.Is4() == to.Is4() {
			return a
		}
	}
	return netip.Addr{}
}

// dump is one of the two tables as text.
func (l *healthLoop) dump(name string, actual bool) (string, bool) {
	l.writing.Lock()
	defer l.writing.Unlock()
	switch name {
	case TableNodeHealth:
		return dumpDelta(l.nodes, NodeHealthText, actual), true
	case TableClusterHealth:
		return dumpDelta(l.clusters, ClusterHealthText, actual), true
	}
	return "", false
}

// healthReport is what is known of health, for people.
type healthReport struct {
	Nodes    map[NodeKey]HealthRow
	Clusters map[ClusterKey]HealthRow
	Paths    map[NodeKey]pathReport // of every node that is or was probed
	Probes   uint64
	Misses   uint64
	Interval time.Duration
	Targets  int
	Full     int                  // of the targets: probed at the full rate
	By       map[NodeKey][]string // of the nodes that are down: who found so; none = this node's own probes
	Council  *council             // nil = no gossip
}

func (l *healthLoop) report() healthReport {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := healthReport{Probes: l.probes, Misses: l.misses, Interval: l.machine.every,
		Targets: len(l.machine.targets.Nodes), Paths: map[NodeKey]pathReport{}, By: map[NodeKey][]string{}, Council: l.machine.council}
	r.Nodes, r.Clusters = l.machine.rows()
	now := time.Now()
	for k, n := range l.machine.nodes {
		sent, missed := n.recent.sum(now)
		r.Paths[k] = pathReport{RoundTrip: n.evidence.RoundTrip, Sent: sent, Missed: missed}
		if n.down && n.others {
			r.By[k] = n.by
		}
		if _, target := l.machine.targets.Nodes[k]; target && n.full {
			r.Full++
		}
	}
	return r
}

// problems are what keeps verdicts out of the kernel.
func (l *healthLoop) problems() []clustermesh.Problem {
	l.writing.Lock()
	defer l.writing.Unlock()
	var out []clustermesh.Problem
	for _, d := range []anyDelta{l.nodes, l.clusters} {
		if err := d.Problem(); err != nil {
			out = append(out, tableProblem(d.name(), d.Stuck(), d.Len(), err))
		}
	}
	return out
}
