package agent

import (
	"context"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// Workloads are the pods that the own cluster places on this node. known is
// false until the cluster's local records are there (also from a snapshot): an
// empty list means nothing before.
func (a *Agent) Workloads(ctx context.Context) (list []clustermesh.Workload, known bool, err error) {
	err = a.call(ctx, func() {
		v, _ := a.viewOf(viewName{a.cfg.Cluster, clustermesh.ScopeLocal})
		if v == nil {
			return
		}
		known = true
		for w := range v.Workloads() {
			if w.Node == a.cfg.Node {
				list = append(list, *w)
			}
		}
	})
	return list, known, err
}
