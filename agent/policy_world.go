package agent

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/tombolo-mesh/tombolo/agent/policy"
	"github.com/tombolo-mesh/tombolo/agent/policy/trace"
	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// policyWorld is the mesh as this node knows it, for questions about policy.
// Owner goroutine. There is no index from names of pods to addresses, as nothing
// but questions would use it: the pods that some questions name are found in one
// pass over all.
type policyWorld struct {
	s    *State
	pods map[trace.Name]*trace.End // with and without cluster
}

func (s *State) policyWorld(questions []trace.Question) *policyWorld {
	w := &policyWorld{s: s, pods: map[trace.Name]*trace.End{}}
	type pod struct{ namespace, name string }
	asked := map[pod]bool{}
	for _, q := range questions {
		for _, text := range []string{q.From, q.To} {
			if n, err := trace.ParseEnd(text); err == nil && n.Kind == trace.KindPod {
				asked[pod{n.Namespace, n.Name}] = true
			}
		}
	}
	if len(asked) == 0 {
		return w
	}
	for _, c := range s.clusters {
		v := c.export()
		if v == nil {
			continue
		}
		for a := range v.Addresses() {
			if asked[pod{a.Namespace, a.Pod}] && a.Name.Prefix.IsSingleIP() {
				w.addPod(c, a)
			}
		}
	}
	w.addHostPods(func(namespace, name string) bool { return asked[pod{namespace, name}] })
	return w
}

func (w *policyWorld) addPod(c *clusterState, a clustermesh.Address) {
	n := trace.Name{Kind: trace.KindPod, Cluster: c.name, Namespace: a.Namespace, Name: a.Pod}
	e := w.pods[n]
	if e == nil {
		e = &trace.End{Kind: trace.KindPod, Name: w.podName(n), Cluster: c.name, Namespace: a.Namespace, Pod: a.Pod, Node: a.Name.Node, Identity: a.Identity, Ports: a.NamedPorts}
		w.pods[n] = e
	}
	e.Addresses = append(e.Addresses, a.Name.Prefix.Addr())
	slices.SortFunc(e.Addresses, netip.Addr.Compare)
	n.Cluster = ""
	if old := w.pods[n]; old == nil || c.peer == nil {
		w.pods[n] = e // that of the own cluster is meant, if there is one
	}
}

// addHostPods adds pods on their node's network. Those of peers are not known.
func (w *policyWorld) addHostPods(asked func(namespace, name string) bool) {
	own := w.s.clusters[w.s.own]
	v := own.views[clustermesh.ScopeLocal]
	if v == nil {
		return
	}
	for work := range v.Workloads() {
		n := trace.Name{Kind: trace.KindPod, Namespace: work.Namespace, Name: work.Name}
		if !work.HostNetwork || !asked(work.Namespace, work.Name) {
			continue
		}
		e := &trace.End{Kind: trace.KindPod, Name: w.podName(n), Cluster: own.name, Namespace: work.Namespace, Pod: work.Name, Node: work.Node, HostNetwork: true, Identity: clustermesh.IdentityRemoteNode}
		if node := own.nodes[work.Node]; node != nil {
			e.Addresses = nodeAddresses(own, node)
		}
		w.pods[n] = e
		n.Cluster = own.name
		w.pods[n] = e
	}
}

func (w *policyWorld) podName(n trace.Name) string {
	name := n.Namespace + "/" + n.Name
	if n.Cluster != "" && n.Cluster != w.s.own {
		name = n.Cluster + "/" + name
	}
	return name
}

// nodeAddresses are those by which pods see a node: of a peer's, only what comes
// through the tunnel.
func nodeAddresses(c *clusterState, n *clustermesh.Node) []netip.Addr {
	if c.peer != nil {
		return n.TunnelAddresses
	}
	return slices.Concat(n.UnderlayAddresses, n.TunnelAddresses)
}

// Engine implements trace.World: of peers nobody here knows the policies.
func (w *policyWorld) Engine(cluster string) *policy.Engine {
	if cluster != w.s.own {
		return nil
	}
	return w.s.policy.engine
}

// Find implements trace.World.
func (w *policyWorld) Find(n trace.Name) (*trace.End, error) {
	switch n.Kind {
	case trace.KindPod:
		return w.pod(n)
	case trace.KindNode:
		return w.node(n)
	case trace.KindAddress:
		return w.address(n.Address), nil
	}
	return trace.Outside(netip.Addr{}), nil
}

func (w *policyWorld) pod(n trace.Name) (*trace.End, error) {
	if e := w.pods[n]; e != nil {
		out := *e
		return &out, nil
	}
	if n.Cluster != "" && w.s.clusters[n.Cluster] == nil {
		return nil, fmt.Errorf("no cluster %s is in this mesh", n.Cluster)
	}
	return nil, fmt.Errorf("no pod %s with an address is known on this node\nfix: check the name, and that the pod runs; pods on their node's network in other clusters are asked about as node/NAME", w.podName(n))
}

func (w *policyWorld) node(n trace.Name) (*trace.End, error) {
	for name, c := range sortedKeys(w.s.clusters) {
		if n.Cluster != "" && n.Cluster != name || n.Cluster == "" && c.peer != nil && w.s.clusters[w.s.own].nodes[n.Name] != nil {
			continue
		}
		if node := c.nodes[n.Name]; node != nil {
			return &trace.End{Kind: trace.KindNode, Name: "node/" + n.Name, Cluster: c.name, Node: n.Name, Addresses: nodeAddresses(c, node), Identity: clustermesh.IdentityRemoteNode}, nil
		}
	}
	return nil, fmt.Errorf("no node %s is known on this node", n.Name)
}

// address finds whose an address is.
func (w *policyWorld) address(a netip.Addr) *trace.End {
	at := w.s.whoIs(a)
	switch {
	case at.pod != "":
		n := trace.Name{Kind: trace.KindPod, Cluster: at.cluster, Namespace: at.namespace, Name: at.pod}
		e := &trace.End{Kind: trace.KindPod, Name: w.podName(n), Cluster: at.cluster, Namespace: at.namespace, Pod: at.pod, Node: at.node, Identity: at.identity}
		if rec, ok := w.s.clusters[at.cluster].export().Address(clustermesh.AddressName{Node: at.node, Prefix: netip.PrefixFrom(a, a.BitLen())}); ok {
			e.Ports = rec.NamedPorts
		}
		e.Addresses = []netip.Addr{a}
		return e
	case at.node != "" && at.identity.Cluster() == 0:
		return &trace.End{Kind: trace.KindNode, Name: "node/" + at.node, Cluster: at.cluster, Node: at.node, Addresses: []netip.Addr{a}, Identity: clustermesh.IdentityRemoteNode}
	}
	e := trace.Outside(a)
	if row, ok := w.s.longestIP(a); ok {
		e.Identity = clustermesh.Identity(row.Identity)
		if c := w.s.byID(e.Identity.Cluster()); c != nil {
			e.Cluster = c.name
			e.Notes = append(e.Notes, fmt.Sprintf("%s is a pod address of cluster %s, of which no more is known", a, c.name))
		}
	}
	return e
}

// longestIP is the row of the longest prefix that contains an address.
func (s *State) longestIP(a netip.Addr) (IPCacheRow, bool) {
	for bits := a.BitLen(); bits >= 0; bits-- {
		p, err := a.Prefix(bits)
		if err != nil {
			return IPCacheRow{}, false
		}
		if row, ok := s.wantedIP(p); ok {
			return row, true
		}
	}
	return IPCacheRow{}, false
}
