package agent

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// allProblems are all that is known to be wrong, without those that plainly
// follow from another one.
func (a *Agent) allProblems(clusters []ClusterStatus) []clustermesh.Problem {
	var out []clustermesh.Problem
	out = append(out, a.clusterProblems(clusters)...)
	tables := append(a.state.t.problems(), a.health.problems()...)
	for _, p := range tables {
		if strings.HasPrefix(p.What, "table "+TableRoutes+":") && a.state.t.peers.Problem() != nil {
			continue // without the tunnel device there are no routes into it either
		}
		out = append(out, p)
	}
	for _, key := range slices.Sorted(maps.Keys(a.problems)) {
		out = append(out, a.problems[key])
	}
	for _, name := range slices.Sorted(maps.Keys(a.refused)) {
		if p, is := a.refused[name].problem(name); is {
			out = append(out, p)
		}
	}
	if a.cfg.HealthPorts != nil {
		out = append(out, a.cfg.HealthPorts.Problems()...)
	}
	if a.cfg.Conditions != nil {
		out = append(out, a.cfg.Conditions()...)
	}
	return append(out, a.state.Problems()...)
}

func (a *Agent) clusterProblems(clusters []ClusterStatus) []clustermesh.Problem {
	var out []clustermesh.Problem
	local := true // the own cluster answers
	for _, c := range clusters {
		if c.Local {
			local = c.Synced
		}
	}
	if local && a.state.clusters[a.cfg.Cluster].nodes[a.cfg.Node] == nil {
		out = append(out, clustermesh.Problem{
			What: fmt.Sprintf("cluster %s has no record of node %s", a.cfg.Cluster, a.cfg.Node),
			Why:  "the node is not registered, or its name differs",
			Fix:  "check the name, and the agent's log about registration; until then nothing leads to other nodes",
		})
	}
	for _, c := range clusters {
		what := fmt.Sprintf("cluster %s is not in reach", c.Name)
		fix := "what is known of it stays in force; check its mesh API server and the way to it"
		switch {
		case c.Connected && c.Synced:
		case !c.Synced && !c.Local && !local:
			continue // who the peers are is known from the own cluster; that is said already
		case !c.Synced && c.FromSnapshot:
			out = append(out, clustermesh.Problem{What: what + "; what it said before the restart is used", Why: c.LastError, Fix: fix})
		case !c.Synced:
			out = append(out, clustermesh.Problem{What: what + " and has not been since the agent started", Why: c.LastError, Fix: fix})
		case c.LastError != "":
			out = append(out, clustermesh.Problem{What: what, Why: c.LastError, Fix: fix})
		}
		if c.Down {
			out = append(out, clustermesh.Problem{
				What: fmt.Sprintf("no node of cluster %s answers through the tunnel", c.Name),
				Why:  fmt.Sprintf("all %d nodes missed their probes in a row", c.Nodes),
				Fix:  "connections go to other clusters until one answers; check its power, its network, and UDP between the nodes",
			})
			continue
		}
		if len(c.NodesDown) > 0 {
			out = append(out, clustermesh.Problem{
				What: fmt.Sprintf("nodes of cluster %s do not answer through the tunnel: %s", c.Name, strings.Join(c.NodesDown, ", ")),
				Why:  "they missed their probes in a row",
				Fix:  "connections go to other backends until they answer; check the nodes, and UDP between them and this one",
			})
		}
	}
	return out
}
