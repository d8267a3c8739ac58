package agent

import (
	"context"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

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
	if addrs := a.hostAddrs.Swap(nil); addrs != nil {
		a.state.setHurry(true)
		a.state.SetHostAddresses(*addrs)
		a.state.setHurry(false)
	}
	if pods := a.pods.Swap(nil); pods != nil {
		a.state.setHurry(true)
		a.state.SetPods(*pods)
		a.state.setHurry(false)
	}
	if down := a.judged.Swap(nil); down != nil {
		a.state.SetDown(*down)
		if a.cfg.Resets != nil {
			a.downs.set(*down, time.Now())
		}
	}
	missingAt := a.askMissing(time.Now())
	if a.state.peersDirty {
		a.state.peersDirty = false
		a.syncFollowers(ctx)
	}
	shareAt := a.state.passOn(time.Now())
	busy = a.state.Compute(turnServices)
	if a.state.healthDirty {
		a.state.healthDirty = false
		a.health.SetTargets(a.state.healthTargets())
		if a.cfg.Gossip != nil {
			a.cfg.Gossip.SetPeers(a.state.gossipPeers())
		}
		a.tellOwnNode()
	}
	busy = a.state.t.flush(turnRows) || busy
	busy = a.state.sweepPolicy() || busy
	a.measure(busy)
	now := time.Now()
	resetAt := a.tellOthers(now)
	a.noteSettled(now)
	busy = a.resyncStep(now) || busy
	if !busy {
		a.checkReady()
		more, again, err := a.snapshots.step(now, a.viewOf, a.wakeUp)
		if err != nil {
			a.snapshotFailed(err)
		} else if a.snapshots.present != nil {
			a.quiet.works("snapshot", "snapshots are written again")
			delete(a.problems, "snapshot")
		}
		busy, next = more, again
	}
	for _, t := range append(a.retryTimes(), a.resyncAt, a.retryAt, resetAt, missingAt, shareAt) {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	return busy, next
}

// askEvery is how often a node behind a gateway asks where gateways lead.
const askEvery = 500 * time.Millisecond

// askMissing takes in what the agents of the own cluster say that they miss, where
// that says by which gateway to go. It returns when to ask again.
func (a *Agent) askMissing(now time.Time) (next time.Time) {
	if a.cfg.Gossip == nil || !a.state.behind() {
		return next
	}
	if next = a.askedAt.Add(askEvery); now.Before(next) {
		return next
	}
	a.askedAt = now
	a.state.SetMissing(a.cfg.Gossip.View().Missing)
	return now.Add(askEvery)
}

// tellOthers says what changed to who answers at health check ports and to who
// resets sockets. It returns when a node will have been down for long enough.
func (a *Agent) tellOthers(now time.Time) (next time.Time) {
	if changes := a.state.takeHealthPorts(); len(changes) > 0 && a.cfg.HealthPorts != nil {
		a.cfg.HealthPorts.Set(changes)
	}
	a.resets.add(a.state.takeGone())
	nodes, next := a.downs.due(now)
	if len(nodes) > 0 {
		a.resets.add(a.state.backendsOn(func(k NodeKey) bool { return nodes[k] }))
	}
	return next
}

func (a *Agent) retryTimes() []time.Time {
	var out []time.Time
	for _, d := range a.state.t.all() {
		out = append(out, d.RetryAt())
	}
	return append(out, a.state.t.epoch.retryAt)
}

func (a *Agent) viewOf(n viewName) (*clustermesh.View, clustermesh.ID) {
	c := a.state.clusters[n.cluster]
	if c == nil {
		return nil, 0
	}
	return c.views[n.scope], c.id
}

func (a *Agent) snapshotFailed(err error) {
	a.quiet.failed("snapshot", "snapshot not written; trying again", err)
	a.problems["snapshot"] = clustermesh.Problem{
		What: "the last-good snapshot cannot be written to " + a.cfg.SnapshotDir, Why: err.Error(),
		Fix: "make room and make the directory writable; without it a reboot needs the control plane",
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
	if len(a.state.dirty)+a.state.pass.waiting() == 0 && !a.state.policyDue() && a.allWritten() {
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
