package agent

import (
	"context"
	"errors"
	"fmt"
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
	// healthTalk is the least time between two words to other agents, and between two
	// looks at theirs: when many nodes fall silent, many words are one.
	healthTalk = 20 * time.Millisecond
	// restoreWait is how long others wait for the verdicts of a former life when they
	// cannot be read. An agent that plans nothing is worse than one that goes back to a
	// gateway which is down.
	restoreWait = 3 * time.Second
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

	hear, speak pace // of run alone

	mu      sync.Mutex
	machine *health
	targets *HealthTargets // newer than the machine's; nil = none
	record  *verdictRecord
	changed bool       // verdicts differ from the wanted rows
	writing sync.Mutex // guards the deltas, and blind: Dump reads them from other goroutines
	blind   error      // why the verdicts of a former life are not known
}

func newHealthLoop(cfg HealthConfig, prober Prober, gossip Gossip, t Tables, quiet *quietLog) *healthLoop {
	always := func(clustermesh.ID) bool { return true }
	return &healthLoop{
		prober: prober, gossip: gossip, quiet: quiet, wake: make(chan struct{}, 1), machine: newHealth(cfg), record: newVerdictRecord(),
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

// echo is what came back of a probe.
type echo struct {
	node      NodeKey
	number    uint32
	from      netip.Addr
	roundTrip time.Duration
}

// run probes until ctx ends. The rows stay: verdicts outlive the agent.
func (l *healthLoop) run(ctx context.Context) {
	if !l.restore(ctx) {
		return
	}
	answers := make(chan echo, 1024)
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
			l.hear.want = true
		case a := <-answers:
			l.takeAnswers(a, answers)
		case <-resync.C:
			_ = l.read() // logged; the next one repairs
		case <-timer.C:
		}
		again := l.takeGossip(time.Now())
		l.conclude()
		retry := l.write()
		due, next := l.nextProbes()
		for _, p := range due {
			for _, to := range p.to {
				probing.Go(func() { l.probe(ctx, p, to, answers) })
			}
		}
		next = sooner(next, again)
		next = sooner(next, l.say(time.Now())) // after what is urgent
		if retry {
			next = sooner(next, time.Now().Add(healthRetry))
		}
		if !next.IsZero() {
			timer.Reset(time.Until(next))
		}
	}
}

// restore reads the verdicts of a former life out of the kernel.
func (l *healthLoop) restore(ctx context.Context) bool {
	start, told := time.Now(), false
	for {
		err := l.read()
		if err == nil {
			break
		}
		if time.Since(start) >= restoreWait {
			l.writing.Lock()
			l.blind = err
			l.writing.Unlock()
			if !told && l.judged != nil {
				l.judged(nil)
			}
			told = true
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(healthRetry):
		}
	}
	l.writing.Lock()
	l.blind = nil
	nodes, clusters := l.nodes.actualRows(), l.clusters.actualRows()
	l.writing.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.machine.restore(nodes, clusters)
	l.changed = true // wanted at once: the first write must not take them for rows that nobody wants
	return true
}

func (l *healthLoop) read() (failed error) {
	l.writing.Lock()
	defer l.writing.Unlock()
	for _, d := range []anyDelta{l.nodes, l.clusters} {
		for {
			done, err := d.Resync(MaxBatch)
			if err != nil {
				l.quiet.failed("read "+d.name(), "cannot read a health table; trying again", err, "table", d.name())
				failed = errors.Join(failed, fmt.Errorf("table %s: %w", d.name(), err))
				break
			}
			if done {
				l.quiet.works("read "+d.name(), "a health table can be read again", "table", d.name())
				break
			}
		}
	}
	return failed
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

// takeGossip takes over what others say, if that changed. It returns when it is to be
// called again.
func (l *healthLoop) takeGossip(now time.Time) (again time.Time) {
	do, again := l.hear.turn(now)
	if do {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.sit()
	}
	return again
}

// pace bounds how often something is done.
type pace struct {
	want bool
	last time.Time
}

// turn reports whether to do it now, and otherwise when, if it is wanted.
func (p *pace) turn(now time.Time) (do bool, later time.Time) {
	if !p.want {
		return false, time.Time{}
	}
	if at := p.last.Add(healthTalk); now.Before(at) {
		return false, at
	}
	p.want, p.last = false, now
	return true, time.Time{}
}

// sit has the council of this moment decide. Callers hold mu.
func (l *healthLoop) sit() {
	if l.gossip == nil {
		return
	}
	t := l.machine.targets
	l.machine.setCouncil(newCouncil(t.Self, t.Members, l.gossip.View()), time.Now())
}

// say tells the other agents what this one's probes miss, if that changed. It returns
// when it is to be called again.
func (l *healthLoop) say(now time.Time) (again time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gossip == nil {
		return again
	}
	l.speak.want = l.speak.want || l.machine.unsaid
	l.machine.unsaid = false
	do, again := l.speak.turn(now)
	if do {
		l.gossip.Report(l.machine.said())
	}
	return again
}

// takeAnswers takes all that are there: what came counts before what is late.
func (l *healthLoop) takeAnswers(a echo, more <-chan echo) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for {
		l.machine.answered(a.node, a.number, a.from, a.roundTrip, now)
		select {
		case a = <-more:
		default:
			return
		}
	}
}

// conclude takes in which probes' time is over, and has what changed written.
func (l *healthLoop) conclude() {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.machine.expire(now)
	clusters := l.machine.judge(now)
	news := l.machine.takeNews()
	l.changed = l.changed || clusters || len(news) > 0
	if len(news) == 0 {
		return
	}
	l.record.decided(news)
	down, agreed := 0, 0 // verdicts of one turn are one line: a whole cluster may go at once
	for _, v := range news {
		if v.Down {
			down++
		}
		if len(v.By) > 0 {
			agreed++
		}
	}
	last := news[len(news)-1].Node
	l.quiet.log.Info("node health changed", "down", down, "up", len(news)-down, "agreed", agreed, "last-cluster", last.Cluster, "last-node", last.Node)
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
	if l.nodes.Pending()+l.clusters.Pending() > 0 {
		return true
	}
	l.record.written(time.Now())
	return false
}

func (l *healthLoop) nextProbes() ([]probeOf, time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.prober == nil {
		return nil, time.Time{}
	}
	return l.machine.due(time.Now())
}

// probe asks one tunnel address of a node. Only an answer is told: when a probe
// counts as lost is for the machine to say, and why nothing could be sent matters not.
func (l *healthLoop) probe(ctx context.Context, p probeOf, to netip.Addr, answers chan<- echo) {
	roundTrip, err := l.prober.Probe(ctx, sameFamily(p.from, to), to, patience)
	if err != nil {
		return
	}
	select {
	case answers <- echo{p.node, p.number, to, roundTrip}:
	case <-ctx.Done():
	}
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
	Verdicts []HealthVerdict      // the last ones, oldest first
}

func (l *healthLoop) report() healthReport {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := healthReport{Probes: l.machine.probes, Misses: l.machine.misses, Interval: l.machine.every,
		Targets: len(l.machine.targets.Nodes), Paths: map[NodeKey]pathReport{}, By: map[NodeKey][]string{}, Council: l.machine.council}
	r.Nodes, r.Clusters = l.machine.rows()
	r.Verdicts = l.record.last()
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
	if l.blind != nil {
		out = append(out, clustermesh.Problem{
			What: "no node is probed, and which nodes and gateways were down before the agent started is not known",
			Why:  "cannot read " + l.blind.Error(),
			Fix:  "it is tried again by itself; all are taken for up meanwhile; see the log of the agent and of the kernel",
		})
	}
	for _, d := range []anyDelta{l.nodes, l.clusters} {
		if err := d.Problem(); err != nil {
			out = append(out, tableProblem(d.name(), d.Stuck(), d.Len(), err))
		}
	}
	return out
}
