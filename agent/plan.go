package agent

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// tunnelOverhead is what WireGuard adds to a packet, in bytes, over IPv6.
const tunnelOverhead = 80

// PlanInput is everything Plan looks at.
type PlanInput struct {
	Own         *clustermesh.Node // this node; nil = not registered yet: routes have no source
	OwnNodes    []*clustermesh.Node
	OnLink      []netip.Prefix // this node's underlay interfaces
	Remote      []PlanCluster
	UnderlayMTU uint16
}

// PlanCluster is a remote cluster: what it was admitted for, and its nodes.
type PlanCluster struct {
	Name        string
	PodPrefixes []netip.Prefix
	Nodes       []*clustermesh.Node
}

// Plan says which WireGuard peers and routes this node should have. Pure, and
// the order of its input does not matter.
//
// A neighbour of the own cluster on the same L2 gets direct routes; every other
// node a WireGuard peer that may carry exactly its pod prefixes, and tunnel
// routes. Every prefix behind the tunnel, and every prefix a peer was admitted
// for, has a blackhole route as well, so that losing the device loses
// connectivity and never secrecy.
func Plan(in PlanInput) (peers map[PeerKey]PeerRow, routes map[RouteKey]RouteRow, problems []clustermesh.Problem) {
	p := planner{in: in, peers: map[PeerKey]PeerRow{}, routes: map[RouteKey]RouteRow{}, claimed: map[netip.Prefix]string{}, keys: map[PeerKey]string{}}
	p.ownNodes()
	remote := slices.Clone(in.Remote)
	slices.SortFunc(remote, func(a, b PlanCluster) int { return strings.Compare(a.Name, b.Name) })
	for _, c := range remote {
		for _, prefix := range c.PodPrefixes {
			p.blackhole(prefix)
		}
		for _, n := range byName(c.Nodes) {
			p.tunnel(c.Name, n)
		}
	}
	return p.peers, p.routes, p.problems
}

type planner struct {
	in       PlanInput
	peers    map[PeerKey]PeerRow
	routes   map[RouteKey]RouteRow
	claimed  map[netip.Prefix]string // by which node
	keys     map[PeerKey]string
	problems []clustermesh.Problem
}

func byName(nodes []*clustermesh.Node) []*clustermesh.Node {
	nodes = slices.Clone(nodes)
	slices.SortFunc(nodes, func(a, b *clustermesh.Node) int { return cmp.Compare(a.Name, b.Name) })
	return nodes
}

func (p *planner) ownNodes() {
	if p.in.Own != nil {
		for _, prefix := range p.in.Own.PodPrefixes {
			p.claimed[prefix.Masked()] = p.in.Own.Name
		}
	}
	for _, n := range byName(p.in.OwnNodes) {
		if p.in.Own != nil && n.Name == p.in.Own.Name {
			continue
		}
		if p.in.Own == nil || !p.direct(n) {
			p.tunnel("", n)
		}
	}
}

// direct gives a neighbour direct routes, if all its prefixes can have one.
func (p *planner) direct(n *clustermesh.Node) bool {
	via := map[netip.Prefix]netip.Addr{}
	for _, prefix := range n.PodPrefixes {
		hop, ok := p.neighbour(n, prefix.Addr().Is4())
		if !ok {
			return false
		}
		via[prefix] = hop
	}
	for prefix, hop := range via {
		if p.claim("", n, prefix) {
			p.routes[RouteKey{MakePrefix(prefix), RouteDirect}] = RouteRow{Via: MakeAddr(hop), Source: p.source(prefix)}
		}
	}
	return true
}

// neighbour is an underlay address of n that lies on a link of this node.
func (p *planner) neighbour(n *clustermesh.Node, v4 bool) (netip.Addr, bool) {
	var found []netip.Addr
	for _, a := range n.UnderlayAddresses {
		for _, link := range p.in.OnLink {
			if a.Is4() == v4 && link.Contains(a) {
				found = append(found, a)
			}
		}
	}
	if len(found) == 0 {
		return netip.Addr{}, false
	}
	return slices.MinFunc(found, netip.Addr.Compare), true
}

// tunnel gives a node a WireGuard peer and tunnel routes.
func (p *planner) tunnel(cluster string, n *clustermesh.Node) {
	var allowed []netip.Prefix
	for _, prefix := range n.PodPrefixes {
		prefix = prefix.Masked()
		if !p.claim(cluster, n, prefix) {
			continue
		}
		p.blackhole(prefix)
		allowed = append(allowed, prefix)
	}
	key := PeerKey(n.WireGuardKey)
	if key == (PeerKey{}) || p.in.Own != nil && PeerKey(p.in.Own.WireGuardKey) == key {
		return
	}
	if other, twice := p.keys[key]; twice {
		p.problem(fmt.Sprintf("node %s has the WireGuard key of node %s", nodeLabel(cluster, n), other),
			"two nodes with one key cannot be told apart, so the second gets no traffic",
			"delete the key on one of them and let it register again")
		return
	}
	p.keys[key] = nodeLabel(cluster, n)
	endpoint, err := netip.ParseAddrPort(n.WireGuardEndpoint)
	if err != nil && n.WireGuardEndpoint != "" {
		p.problem(fmt.Sprintf("node %s: WireGuard endpoint %q is not an address and port", nodeLabel(cluster, n), n.WireGuardEndpoint),
			err.Error(), "the node must register an IP address, not a name")
	}
	p.peers[key] = PeerRow{Endpoint: endpoint, Allowed: formatAllowed(allowed)}
	for _, prefix := range allowed {
		p.routes[RouteKey{MakePrefix(prefix), RouteTunnel}] = RouteRow{Source: p.source(prefix), MTU: p.mtu()}
	}
}

// claim gives a prefix to the first node that names it: own cluster first, then
// by cluster and node name.
func (p *planner) claim(cluster string, n *clustermesh.Node, prefix netip.Prefix) bool {
	prefix = prefix.Masked()
	other, taken := p.claimed[prefix]
	if taken && other != nodeLabel(cluster, n) {
		p.problem(fmt.Sprintf("pod prefix %s belongs to node %s and to node %s", prefix, other, nodeLabel(cluster, n)),
			"one prefix leads to one node; the second is ignored", "give one of the nodes another pod prefix")
		return false
	}
	p.claimed[prefix] = nodeLabel(cluster, n)
	return true
}

func nodeLabel(cluster string, n *clustermesh.Node) string {
	if cluster == "" {
		return n.Name
	}
	return cluster + "/" + n.Name
}

func (p *planner) problem(what, why, fix string) {
	p.problems = append(p.problems, clustermesh.Problem{What: what, Why: why, Fix: fix})
}

func (p *planner) blackhole(prefix netip.Prefix) {
	p.routes[RouteKey{MakePrefix(prefix), RouteBlackhole}] = RouteRow{}
}

// source is this node's own tunnel address of the prefix's family: what other
// nodes accept as coming from here.
func (p *planner) source(prefix netip.Prefix) Addr {
	if a, ok := tunnelAddress(p.in.Own, prefix.Addr().Is4()); ok {
		return MakeAddr(a)
	}
	return Addr{}
}

// tunnelAddress is the lowest tunnel address of a family.
func tunnelAddress(n *clustermesh.Node, v4 bool) (netip.Addr, bool) {
	var best netip.Addr
	if n != nil {
		for _, a := range n.TunnelAddresses {
			if a.Is4() == v4 && (!best.IsValid() || a.Less(best)) {
				best = a
			}
		}
	}
	return best, best.IsValid()
}

func (p *planner) mtu() uint16 {
	mtu := cmp.Or(p.in.UnderlayMTU, 1500)
	if mtu < 1280+tunnelOverhead {
		return 1280
	}
	return mtu - tunnelOverhead
}

func formatAllowed(prefixes []netip.Prefix) string {
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	var words []string
	for _, p := range slices.Compact(prefixes) {
		words = append(words, p.String())
	}
	return strings.Join(words, ",")
}
