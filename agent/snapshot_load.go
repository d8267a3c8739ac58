package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// loadSnapshots reads what a cluster said last, aside, and hands it to the owner
// unless the cluster itself has spoken by then. When the kernel was empty at the
// start (a reboot) that happens at once; after a mere restart of the agent the
// kernel goes on by itself and knows better than a file, so the store is given a
// moment to answer first.
func (a *Agent) loadSnapshots(ctx context.Context, c *clusterState) {
	if a.cfg.SnapshotDir == "" {
		return
	}
	wait := time.Duration(0)
	if a.kernelHadRows {
		wait = snapshotGrace
	}
	admission, peer := c.admission(), c.peer
	for _, scope := range c.scopes() {
		a.stopping.Go(func() {
			u, err := readSnapshot(a.cfg.SnapshotDir, a.cfg.Cluster, admission, scope)
			if errors.Is(err, errNoSnapshot) {
				return
			}
			var aside string
			if err != nil {
				aside = setAside(a.cfg.SnapshotDir, admission.Cluster, scope)
			} else {
				select {
				case <-ctx.Done():
					return
				case <-time.After(wait):
				}
			}
			a.post(ctx, func() { a.takeSnapshot(u, err, aside, admission.Cluster, scope, peer) })
		})
	}
}

// snapshotGrace is how long a store may take to answer before the snapshot
// speaks for it, when the kernel is at work already.
const snapshotGrace = time.Second

func (a *Agent) takeSnapshot(u clustermesh.Update, err error, aside, cluster string, scope clustermesh.Scope, peer *clustermesh.Peer) {
	if err != nil {
		a.log.Warn("snapshot cannot be used", "cluster", cluster, "scope", string(scope), "err", err, "aside", aside)
		a.problems["snapshot "+cluster+" "+string(scope)] = clustermesh.Problem{
			What: fmt.Sprintf("the snapshot of cluster %s (scope %s) cannot be used", cluster, scope),
			Why:  err.Error(),
			Fix:  fmt.Sprintf("nothing has to be done: a new one is written once the cluster is in reach. The old file is kept as %s; delete it when you have looked at it", aside),
		}
		return
	}
	c := a.state.clusters[cluster]
	if c == nil || c.views[scope] != nil || !samePeer(c.peer, peer) {
		return
	}
	a.log.Info("cluster has not answered yet; using what it said last", "cluster", cluster, "scope", string(scope))
	a.fromSnapshot[viewName{cluster, scope}] = true
	a.state.Apply(u, false)
}
