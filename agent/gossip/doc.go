// Package gossip joins the agents of one cluster by memberlist: who is there, and
// what each says of the nodes that its probes miss. It decides nothing about
// nodes: that is package agent's, which asks for a View.
//
// A member that is gone is no dead node, only a reason to probe that node at once:
// an agent may be killed or updated while its kernel goes on.
//
//	agent ──Report──► own parts ─┐            ┌─► ledger ──View──► agent
//	                             └─ broadcast ┘ (of the others)
//
// All is encrypted by keys that the mesh API server hands to the nodes of its own
// cluster, and carries the cluster's name as a label: members of other clusters,
// which have other keys, are not even understood. Who holds a key is trusted in
// full, which is why gossip never crosses clusters.
package gossip
