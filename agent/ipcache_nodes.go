package agent

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// takeNode brings everything that hangs on a node up to date after its record
// changed.
func (s *State) takeNode(c *clusterState, name string) {
	old := c.nodes[name]
	var now *clustermesh.Node
	if v := c.export(); v != nil {
		now = v.Node(name)
	}
	was := old != nil && s.tunnelled(c, old)
	if old != nil {
		s.unindexNode(c, old)
	}
	if now != nil {
		s.indexNode(c, now)
	}
	s.takePolicyNode(c, name)
	again := map[netip.Prefix]bool{}
	for _, n := range []*clustermesh.Node{old, now} {
		if n != nil {
			for _, p := range c.prefixesOf(n) {
				again[p] = true
			}
		}
	}
	moved := old == nil || now == nil || old.Number != now.Number || c.reachable(old) != c.reachable(now) || was != s.tunnelled(c, now)
	// Until this node itself is known, all others are behind the tunnel.
	all := c.peer == nil && name == s.node && (old == nil) != (now == nil)
	if c.peer == nil && name == s.node {
		maps.Copy(again, s.herePrefixes()) // their rows have its number
	}
	if all {
		for _, n := range c.nodes {
			for _, p := range c.prefixesOf(n) {
				again[p] = true
			}
		}
	}
	s.retakeIPs(c, func(a clustermesh.AddressName) bool { return all || again[a.Prefix] || moved && a.Node == name }, again)
	if c.peer == nil {
		s.yieldUnderlay(old)
	}
	s.planDirty = true
}

// yieldUnderlay has other clusters speak again for addresses that a node of the
// own cluster may have given up.
func (s *State) yieldUnderlay(old *clustermesh.Node) {
	if old == nil {
		return
	}
	for _, a := range old.UnderlayAddresses {
		p := netip.PrefixFrom(a, a.BitLen())
		if other := s.byID(s.ownerOf(p)); other != nil && other.peer != nil {
			s.retakeIPs(other, func(clustermesh.AddressName) bool { return false }, map[netip.Prefix]bool{p: true})
		}
	}
}

// retakeIPs computes the rows of the prefixes in extra, and of the address
// records that which selects, from all records there are.
func (s *State) retakeIPs(c *clusterState, which func(clustermesh.AddressName) bool, extra map[netip.Prefix]bool) {
	names := map[netip.Prefix][]string{}
	for p := range extra {
		names[p] = nil
	}
	if v := c.export(); v != nil {
		for a := range v.Addresses() {
			if which(a.Name) {
				names[a.Name.Prefix] = nil
			}
		}
		for a := range v.Addresses() {
			if have, ok := names[a.Name.Prefix]; ok {
				names[a.Name.Prefix] = append(have, a.Name.Node)
			}
		}
	}
	for p, nodes := range names {
		s.setIP(c, p, nodes)
	}
}

// prefixesOf are the prefixes about which a node itself says something. Underlay
// addresses of other clusters' nodes are ends of tunnels, and nothing else.
func (c *clusterState) prefixesOf(n *clustermesh.Node) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range n.PodPrefixes {
		out = append(out, p.Masked())
	}
	for _, a := range n.TunnelAddresses {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	if c.peer == nil {
		for _, a := range n.UnderlayAddresses {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return out
}

// nodeRows writes the rows that a node itself makes. For a node of a view that
// is being taken in or forgotten as a whole.
func (s *State) nodeRows(c *clusterState, n *clustermesh.Node) {
	for _, p := range c.prefixesOf(n) {
		s.setIP(c, p, nil)
	}
}

func (s *State) indexNode(c *clusterState, n *clustermesh.Node) {
	c.nodes[n.Name] = n
	for _, p := range n.PodPrefixes {
		c.prefixes[p.Masked()] = insertName(c.prefixes[p.Masked()], n.Name)
	}
	for _, a := range n.TunnelAddresses {
		c.tunnels[a] = insertName(c.tunnels[a], n.Name)
	}
	if c.peer == nil { // those of other clusters are ends of tunnels alone
		for _, a := range n.UnderlayAddresses {
			c.underlay[a] = insertName(c.underlay[a], n.Name)
		}
	}
}

func (s *State) unindexNode(c *clusterState, n *clustermesh.Node) {
	delete(c.nodes, n.Name)
	for _, p := range n.PodPrefixes {
		removeName(c.prefixes, p.Masked(), n.Name)
	}
	for _, a := range n.TunnelAddresses {
		removeName(c.tunnels, a, n.Name)
	}
	if c.peer == nil {
		for _, a := range n.UnderlayAddresses {
			removeName(c.underlay, a, n.Name)
		}
	}
}

func insertName(names []string, name string) []string {
	at, found := slices.BinarySearch(names, name)
	if found {
		return names
	}
	return slices.Insert(names, at, name)
}

func removeName[K comparable](index map[K][]string, k K, name string) {
	left := slices.DeleteFunc(index[k], func(n string) bool { return n == name })
	if len(left) == 0 {
		delete(index, k)
		return
	}
	index[k] = left
}
