package agent

import (
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// Apply takes an update of a cluster's scope in. live says that it came from the
// store itself, not from a snapshot. It returns what was refused because of the
// cluster's other records.
func (s *State) Apply(u clustermesh.Update, live bool) []clustermesh.Refusal {
	c := s.clusters[u.Cluster]
	if c == nil || u.Lost != nil {
		return nil
	}
	old := c.views[u.Scope]
	view, changes, refused := u.Into(old)
	if view == nil {
		return refused
	}
	c.views[u.Scope] = view
	if u.Scope == clustermesh.ScopeExport {
		s.exports[u.Cluster] = view
	}
	peers := false
	if old == nil {
		s.takeView(c, view)
		peers = true
	} else {
		peers = s.takeChanges(c, old, view, changes, u.View != nil)
	}
	if s.blank[c.id] {
		s.setBlank(c)
		s.touchAll()
	}
	if c.peer == nil {
		s.takeStand()
	}
	if c.peer == nil && peers {
		s.takePeers(c)
	}
	if u.View != nil && live {
		s.nowLive(c, u.Scope)
	}
	return refused
}

// takeChanges takes in how a view changed, and reports whether peers did.
func (s *State) takeChanges(c *clusterState, old, view *clustermesh.View, changes iter.Seq[clustermesh.Change], list bool) (peers bool) {
	s.setHurry(!list)
	defer s.setHurry(false)
	if list {
		s.dropChangedIdentities(c, old, view)
	}
	if c.plannedBy(old.Cluster()) != c.plannedBy(view.Cluster()) {
		s.planDirty = true
	}
	for ch := range changes {
		s.take(c, ch)
		s.takePolicy(c, view, ch.Key)
		peers = peers || ch.Key.Kind == clustermesh.KindPeer
	}
	if list && len(c.claims) > 0 {
		// Origins decide among several claims, and a difference of origins
		// alone is no change.
		s.retakeIPs(c, func(a clustermesh.AddressName) bool { _, ok := c.claims[a.Prefix]; return ok }, nil)
	}
	return peers
}

// plannedBy is what Plan takes from a cluster's own record: where it has gateways, and
// the own cluster's pod prefixes, which are nobody else's; a peer's are the word of
// the operator. A peer may write its record again at any rate.
func (c *clusterState) plannedBy(r *clustermesh.Cluster) string {
	switch {
	case r == nil:
		return ""
	case c.peer != nil:
		return r.Topology.String()
	}
	return fmt.Sprint(r.Topology, r.PodPrefixes)
}

// nowLive notes that a scope of a cluster is complete, and lets go what was kept
// for its sake.
func (s *State) nowLive(c *clusterState, scope clustermesh.Scope) {
	if c.live[scope] {
		return
	}
	c.live[scope] = true
	s.healthDirty = true
	if c.peer == nil && c.synced() {
		s.touchAll() // clusters that are no peers lose what was kept for them
	}
	s.release()
}

// take notes one change of a view.
func (s *State) take(c *clusterState, ch clustermesh.Change) {
	switch ch.Key.Kind {
	case clustermesh.KindNode:
		s.takeNode(c, ch.Key.Name)
	case clustermesh.KindAddress:
		if name, ok := addressName(ch.Key); ok {
			s.takeAddress(c, name.Node, name.Prefix)
		}
	case clustermesh.KindDrain:
		s.drains.note(ch.Key)
	case clustermesh.KindWorkload:
		if ns, name, ok := strings.Cut(ch.Key.Name, "/"); ok && c.peer == nil {
			s.takeWorkload(clustermesh.ServiceName{Namespace: ns, Name: name})
		}
	case clustermesh.KindService, clustermesh.KindEndpointSlice:
		if name, ok := clustermesh.Affected(ch); ok {
			s.takeImport(c, name)
			s.touchWithImports(name)
		}
	}
}

// takeView takes a cluster's first view in, without a list of its changes.
func (s *State) takeView(c *clusterState, v *clustermesh.View) {
	for n := range v.Nodes() {
		s.indexNode(c, n)
		s.takePolicyNode(c, n.Name)
	}
	s.takePolicies(c, v)
	for n := range v.Nodes() {
		s.nodeRows(c, n)
	}
	for a := range v.Addresses() {
		s.takeFirst(c, &a)
	}
	if c.peer == nil && v.Scope() == clustermesh.ScopeExport {
		s.retakeIPs(c, func(clustermesh.AddressName) bool { return false }, s.herePrefixes())
	}
	for svc := range v.Services() {
		s.takeImport(c, svc.Name)
		s.touchWithImports(svc.Name)
	}
	for w := range v.Workloads() {
		if c.peer == nil && w.Node == s.node {
			s.takeWorkload(clustermesh.ServiceName{Namespace: w.Namespace, Name: w.Name})
		}
	}
	s.planDirty, s.drains.dirty = true, true
}

// forgetView takes the rows away that came from a view that is gone.
func (s *State) forgetView(c *clusterState, v *clustermesh.View) {
	nodes := slices.Collect(maps.Values(c.nodes))
	c.nodes, c.claims = map[string]*clustermesh.Node{}, map[netip.Prefix][]string{}
	c.prefixes, c.tunnels = map[netip.Prefix][]string{}, map[netip.Addr][]string{}
	s.forgetIdentities(v)
	for a := range v.Addresses() {
		s.setIP(c, a.Name.Prefix, nil)
	}
	for _, n := range nodes {
		s.nodeRows(c, n)
	}
}
