package agent

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// addressName is the name of an address record from its key.
func addressName(k clustermesh.Key) (clustermesh.AddressName, bool) {
	node, rest, ok := strings.Cut(k.Name, "/")
	if !ok {
		return clustermesh.AddressName{}, false
	}
	p, err := clustermesh.ParseKeyPrefix(rest)
	return clustermesh.AddressName{Node: node, Prefix: p}, err == nil
}

// ipFacts is everything that says something about one prefix, in one cluster.
type ipFacts struct {
	cluster clustermesh.ID
	own     bool                 // the cluster is this node's
	tunnel  *clustermesh.Node    // the node whose tunnel address this is
	address *clustermesh.Address // the record that counts
	number  uint16               // node number of the record's node
	pod     *LocalPod            // this node's pod that has the address
	node    *clustermesh.Node    // the node whose pod prefix this is
	under   *clustermesh.Node    // the node of the own cluster whose underlay address this is
	here    uint16               // this node's number
	tunnels bool                 // what goes to the node that counts goes through the tunnel
	local   bool                 // the node that counts is this one
	across  bool                 // this node is a gateway, and the cluster another
}

// ipRow says who a prefix belongs to. Pure. A node's addresses are the node's
// whatever else is said; a record counts more than what this node knows of its
// own pod, which covers the moment until the record arrives; the pod prefix of a
// node stands for "some workload of that cluster, not yet known".
func ipRow(f ipFacts) (IPCacheRow, bool) {
	anyone := clustermesh.MakeIdentity(f.cluster, 0)
	var flags IPFlags
	if f.tunnels {
		flags |= IPEncrypted
	}
	if f.local {
		flags |= IPHere
	}
	if f.across {
		flags |= IPAcross
	}
	switch {
	case f.tunnel != nil && f.local:
		return IPCacheRow{Identity: uint32(clustermesh.IdentityHost), Node: f.tunnel.Number, Flags: IPTunnelAddress}, true
	case f.tunnel != nil:
		return IPCacheRow{Identity: uint32(clustermesh.IdentityRemoteNode), Node: f.tunnel.Number, Flags: flags}, true
	case f.under != nil && f.local:
		return IPCacheRow{Identity: uint32(clustermesh.IdentityHost), Node: f.under.Number}, true
	case f.under != nil: // never encrypted: tunnels themselves go there
		return IPCacheRow{Identity: uint32(clustermesh.IdentityRemoteNode), Node: f.under.Number}, true
	case f.address != nil:
		id := f.address.Identity
		if c := id.Cluster(); c != f.cluster && (c != 0 || !f.own) {
			id = anyone
		}
		return IPCacheRow{Identity: uint32(id), Node: f.number, Flags: flags}, true
	case f.pod != nil:
		id := f.pod.Identity
		if id.Cluster() != f.cluster {
			id = anyone
		}
		return IPCacheRow{Identity: uint32(id), Node: f.here, Flags: flags}, true
	case f.node != nil:
		return IPCacheRow{Identity: uint32(anyone), Node: f.node.Number, Flags: flags}, true
	}
	return IPCacheRow{}, false
}

// reachable reports whether a path can lead to a node: it is known and has
// registered a WireGuard key, or it is of the own cluster, where it may be a
// neighbour. Nothing is said about addresses behind a node that is not.
func (c *clusterState) reachable(n *clustermesh.Node) bool {
	return n != nil && (c.peer == nil || n.WireGuardKey != [32]byte{})
}

// winner is the record that counts when several nodes claim one prefix: the
// latest fact (a pod moves with its address), then the greatest node name.
func winner(claims []clustermesh.Address) *clustermesh.Address {
	var best *clustermesh.Address
	for i := range claims {
		a := &claims[i]
		if best == nil || a.Origin > best.Origin || a.Origin == best.Origin && a.Name.Node > best.Name.Node {
			best = a
		}
	}
	return best
}

// takeAddress brings the row of a prefix up to date after node's record of it
// changed.
func (s *State) takeAddress(c *clusterState, node string, p netip.Prefix) {
	p = p.Masked()
	names, several := c.claims[p]
	if !several {
		names = []string{node}
		if other, ok := s.holder(c, p); ok && other != node {
			names = append(names, other)
		}
	} else if !slices.Contains(names, node) {
		names = append(names, node)
	}
	s.setIP(c, p, names)
}

// takeFirst is takeAddress for a view that is taken in whole: most prefixes are
// said by one record, of a node that is known.
func (s *State) takeFirst(c *clusterState, a *clustermesh.Address) {
	n := c.nodes[a.Name.Node]
	if _, said := s.wantedIP(a.Name.Prefix); said || !c.reachable(n) {
		s.takeAddress(c, a.Name.Node, a.Name.Prefix)
		return
	}
	f := ipFacts{cluster: c.id, own: c.peer == nil, address: a, number: n.Number}
	s.nodeFacts(c, a.Name.Prefix, &f)
	s.writeIP(c, a.Name.Prefix, f)
}

// holder is the node whose record made the present row of p, as far as the row
// tells: by node number. Records of nodes without a path are in claims.
func (s *State) holder(c *clusterState, p netip.Prefix) (string, bool) {
	row, ok := s.wantedIP(p)
	if !ok || row.Node == 0 {
		return "", false
	}
	n := c.export().NodeByNumber(row.Node)
	if n == nil {
		return "", false
	}
	return n.Name, true
}

func (s *State) wantedIP(p netip.Prefix) (IPCacheRow, bool) {
	if p.IsSingleIP() {
		return s.t.ips.Wanted(MakeAddr(p.Addr()))
	}
	return s.t.ipPrefixes.Wanted(MakePrefix(p))
}

// setIP computes the row of p from all facts, names being the nodes that may
// have a record of it.
func (s *State) setIP(c *clusterState, p netip.Prefix, names []string) {
	var claims []clustermesh.Address // of nodes to which a path leads
	var kept []string                // all of them
	if v := c.export(); v != nil {
		for _, n := range names {
			if a, ok := v.Address(clustermesh.AddressName{Node: n, Prefix: p}); ok {
				kept = append(kept, n)
				if c.reachable(c.nodes[n]) {
					claims = append(claims, a)
				}
			}
		}
	}
	f := ipFacts{cluster: c.id, own: c.peer == nil, address: winner(claims)}
	if f.address != nil {
		f.number = c.nodes[f.address.Name.Node].Number
	}
	if len(kept) > 1 || len(kept) > len(claims) {
		c.claims[p] = kept
	} else if len(c.claims) > 0 {
		delete(c.claims, p)
	}
	s.nodeFacts(c, p, &f)
	s.writeIP(c, p, f)
}

func (s *State) nodeFacts(c *clusterState, p netip.Prefix, f *ipFacts) {
	named := func(names []string) *clustermesh.Node {
		if len(names) > 0 && c.reachable(c.nodes[names[0]]) {
			return c.nodes[names[0]]
		}
		return nil
	}
	f.node = named(c.prefixes[p])
	if p.IsSingleIP() {
		f.tunnel, f.under = named(c.tunnels[p.Addr()]), named(c.underlay[p.Addr()])
		if f.own && f.under == nil && s.hostAddrs[p.Addr()] {
			f.under = c.nodes[s.node]
		}
		if uid, ok := s.podAddrs[p.Addr()]; ok && f.own {
			pod := s.pods[uid]
			f.pod = &pod
			if n := c.nodes[s.node]; n != nil {
				f.here = n.Number
			}
		}
	}
	f.local, f.tunnels = s.place(c, f)
	f.across = !f.own && s.stand.gateway
}

// place says where what counts for a prefix is: on this node, or behind the
// tunnel.
func (s *State) place(c *clusterState, f *ipFacts) (local, tunnels bool) {
	n := f.node
	switch {
	case f.tunnel != nil:
		n = f.tunnel
	case f.under != nil:
		n = f.under
	case f.address != nil:
		n = c.nodes[f.address.Name.Node]
	case f.pod != nil:
		return true, false
	}
	switch {
	case n == nil:
		return false, false
	case f.own && n.Name == s.node:
		return true, false
	}
	if s.chained && f.own && f.tunnel == nil {
		return false, false // the other CNI carries it
	}
	return false, s.tunnelled(c, n)
}

// tunnelled reports whether packets to a node go through the tunnel.
func (s *State) tunnelled(c *clusterState, n *clustermesh.Node) bool {
	if c.peer != nil {
		return true
	}
	in := PlanInput{Own: c.nodes[s.node], Topology: c.topology(), OnLink: s.onLink, EncryptAll: s.encryptAll, Chained: s.chained}
	_, direct := in.neighbour(n)
	return !direct
}

func (s *State) writeIP(c *clusterState, p netip.Prefix, f ipFacts) {
	if p.IsSingleIP() && c.peer != nil && len(s.clusters[s.own].underlay[p.Addr()]) > 0 {
		return // a node of the own cluster has it, whatever others say
	}
	row, ok := ipRow(f)
	switch {
	case c.export() == nil && c.peer == nil:
		// Only this node's pods are known. What the kernel holds of them says more.
	case p.IsSingleIP() && ok:
		s.t.ips.Set(MakeAddr(p.Addr()), row)
	case p.IsSingleIP():
		s.t.ips.Delete(MakeAddr(p.Addr()))
		s.addressLeft(MakeAddr(p.Addr()))
	case ok:
		s.t.ipPrefixes.Set(MakePrefix(p), row)
	default:
		s.t.ipPrefixes.Delete(MakePrefix(p))
	}
	if p.IsSingleIP() {
		s.takeRecord(p, f, row, ok)
	}
}

// dropChangedIdentities makes rows leave whose identity means something else in
// a new incarnation of a cluster, before the new rows enter: in between nothing
// is believed to be what it no longer is.
func (s *State) dropChangedIdentities(c *clusterState, old, now *clustermesh.View) {
	if now.Scope() != clustermesh.ScopeExport || old.Cluster() == nil || now.Cluster() == nil || old.Cluster().Incarnation == now.Cluster().Incarnation {
		return
	}
	changed := map[clustermesh.Identity]bool{}
	for r := range old.Identities() {
		if again, ok := now.Identity(r.ID); !ok || !slices.Equal(again.Labels, r.Labels) {
			changed[r.ID] = true
		}
	}
	for a := range old.Addresses() {
		again, ok := now.Address(a.Name)
		if !changed[a.Identity] && ok && again.Identity == a.Identity {
			continue
		}
		if a.Name.Prefix.IsSingleIP() {
			s.t.ips.Drop(MakeAddr(a.Name.Prefix.Addr()))
		} else {
			s.t.ipPrefixes.Drop(MakePrefix(a.Name.Prefix))
		}
	}
}
