package agent

import (
	"context"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// Workloads are the pods that the own cluster places on this node. known is
// false until the cluster's local records are there (also from a snapshot): an
// empty list means nothing before.
func (a *Agent) Workloads(ctx context.Context) (list []clustermesh.Workload, known bool, err error) {
	err = a.call(ctx, func() { list, known = a.workloads() })
	return list, known, err
}

// LiveWorkloads are the same when they came from the cluster itself since the agent
// started: what a snapshot lacks may be newer than the snapshot.
func (a *Agent) LiveWorkloads(ctx context.Context) (list []clustermesh.Workload, live bool, err error) {
	err = a.call(ctx, func() {
		if live = a.state.clusters[a.cfg.Cluster].live[clustermesh.ScopeLocal]; live {
			list, live = a.workloads()
		}
	})
	return list, live, err
}

// workloads is for the owner goroutine.
func (a *Agent) workloads() (list []clustermesh.Workload, known bool) {
	v, _ := a.viewOf(viewName{a.cfg.Cluster, clustermesh.ScopeLocal})
	if v == nil {
		return nil, false
	}
	for w := range v.Workloads() {
		if w.Node == a.cfg.Node {
			list = append(list, *w)
		}
	}
	return list, true
}
