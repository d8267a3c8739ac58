package agent

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// tunnelOverhead is what WireGuard adds to a packet, in bytes, over IPv6.
const tunnelOverhead = 80

// PlanInput is everything Plan looks at.
type PlanInput struct {
	Own         *clustermesh.Node // this node; nil = not registered yet: routes have no source
	OwnID       clustermesh.ID
	Topology    clustermesh.Topology // of the own cluster
	OwnNodes    []*clustermesh.Node
	OwnPrefixes []netip.Prefix // pod prefixes of the own cluster; no other cluster's node has a part of them
	OnLink      []netip.Prefix // this node's underlay interfaces
	Remote      []PlanCluster
	UnderlayMTU uint16
	EncryptAll  bool // neighbours, too, by WireGuard
	// Chained: another CNI carries what goes between pods of the own cluster. Of its
	// nodes the tunnel addresses alone are routed: those are Tombolo's.
	Chained bool
	// Down are the gateways that are judged down, of any cluster; other nodes in it
	// change nothing.
	Down map[NodeKey]bool
	// Astray are gateways of the own cluster that reach no node of a cluster, by what
	// their agents say.
	Astray map[NodeKey]map[clustermesh.ID]bool
}

// PlanCluster is a remote cluster: what it was admitted for, and its nodes.
type PlanCluster struct {
	Name        string
	ID          clustermesh.ID
	Joined      time.Time // zero = at the beginning
	PodPrefixes []netip.Prefix
	Topology    clustermesh.Topology
	Nodes       []*clustermesh.Node
}

// Plan says which WireGuard peers and routes this node should have. Pure, and
// the order of its input does not matter.
//
// A cluster may lie only about itself: a WireGuard key, a pod prefix or a tunnel
// address that clusters claim both belongs to the one that was there first (the
// own one, then by time of joining, then by ID), and the other's claim is a
// Problem.
//
// A neighbour of the own cluster on the same L2 gets direct routes, unless
// everything is to be encrypted; every other
// node a WireGuard peer that may carry exactly its pod prefixes, and tunnel
// routes. Where gateways stand in between, they have the prefixes of the nodes
// behind them as well: see carriers. Every prefix behind the tunnel, and every prefix a peer was admitted
// for, has a blackhole route as well, so that losing the device loses
// connectivity and never secrecy. This node's own prefixes have an unreachable
// route, so that who asks for a pod that is gone is told at once. The exception is a remote prefix that takes in
// an address which tunnels themselves need: see overUnderlay.
func Plan(in PlanInput) (peers map[PeerKey]PeerRow, routes map[RouteKey]RouteRow, problems []clustermesh.Problem) {
	p := planner{in: in, ends: map[PeerKey]netip.AddrPort{}, carry: map[PeerKey][]netip.Prefix{}, routes: map[RouteKey]RouteRow{}, claimed: newClaims(in), keys: map[PeerKey]string{}}
	p.viaUplink = in.Topology == clustermesh.TopologyGateway && (in.Own == nil || !in.Own.Gateway)
	p.ownPlaces = placesOf("", in.OwnNodes)
	p.ownNodes()
	remote := slices.Clone(in.Remote)
	slices.SortFunc(remote, func(a, b PlanCluster) int {
		return cmp.Or(a.Joined.Compare(b.Joined), cmp.Compare(a.ID, b.ID), cmp.Compare(a.Name, b.Name))
	})
	for _, c := range remote {
		p.places = endpointsOf(c.Name, c.Nodes)
		for _, prefix := range c.PodPrefixes {
			if refused, _ := p.overUnderlay("cluster "+c.Name, prefix); !refused {
				p.blackhole(prefix)
			}
		}
		p.remoteNodes(c)
	}
	return p.rows(), p.routes, p.problems
}

type planner struct {
	in      PlanInput
	ends    map[PeerKey]netip.AddrPort // of the peers
	carry   map[PeerKey][]netip.Prefix // what they may carry
	routes  map[RouteKey]RouteRow
	claimed *claims
	keys    map[PeerKey]string // whose they are
	// ownPlaces are what the own cluster's nodes are reached at, places where the
	// tunnels of the remote cluster in turn end: no pod of a remote one is there.
	ownPlaces, places places
	viaUplink         bool // this node is behind a gateway
	problems          []clustermesh.Problem
}

// rows are the peers.
func (p *planner) rows() map[PeerKey]PeerRow {
	peers := make(map[PeerKey]PeerRow, len(p.ends))
	for key, end := range p.ends {
		peers[key] = PeerRow{Endpoint: end, Allowed: formatAllowed(p.carry[key])}
	}
	return peers
}

func byName(nodes []*clustermesh.Node) []*clustermesh.Node {
	nodes = slices.Clone(nodes)
	slices.SortFunc(nodes, func(a, b *clustermesh.Node) int { return cmp.Compare(a.Name, b.Name) })
	return nodes
}

func (p *planner) ownNodes() {
	if p.in.Own != nil {
		for _, prefix := range p.in.Own.PodPrefixes {
			p.claimed.add(prefix, claim{"", p.in.Own.Name})
			if !p.in.Chained { // else a pod that is gone may be on another node by now
				p.routes[RouteKey{MakePrefix(prefix), RouteUnreachable}] = RouteRow{}
			}
		}
		p.keys[PeerKey(p.in.Own.WireGuardKey)] = p.in.Own.Name
	}
	for _, prefix := range p.in.OwnPrefixes {
		p.claimed.add(prefix, claim{"", ""})
	}
	for _, n := range byName(p.in.OwnNodes) {
		if p.in.Own != nil && n.Name == p.in.Own.Name {
			continue
		}
		hops, ok := p.in.neighbour(n)
		if !ok {
			if prefixes, ok := p.accept("", n); ok {
				p.peer("", n)
				p.give(n, prefixes)
				p.lead(slices.DeleteFunc(prefixes, func(prefix netip.Prefix) bool { return !p.in.routes("", n, prefix) }))
			}
			continue
		}
		p.direct(n, hops)
		if key := PeerKey(n.WireGuardKey); p.keys[key] == "" {
			p.keys[key] = n.Name // no peer has it, and no other cluster's node may
		}
	}
}

// direct gives a neighbour direct routes.
func (p *planner) direct(n *clustermesh.Node, via map[netip.Prefix]netip.Addr) {
	for prefix, hop := range via {
		if p.claim("", n, prefix) {
			p.routes[RouteKey{MakePrefix(prefix), RouteDirect}] = RouteRow{Via: MakeAddr(hop), Source: p.source(prefix)}
		}
	}
}

// neighbour says whether a node of the own cluster is reached by direct routes,
// all its prefixes, and by which next hops.
func (in *PlanInput) neighbour(n *clustermesh.Node) (map[netip.Prefix]netip.Addr, bool) {
	if in.Own == nil || in.EncryptAll || in.Topology == clustermesh.TopologyGateway && (in.Own.Gateway || n.Gateway) {
		return nil, false
	}
	via := map[netip.Prefix]netip.Addr{}
	for _, prefix := range in.routed("", n) {
		hop, ok := in.onLink(n, prefix.Addr().Is4())
		if !ok {
			return nil, false
		}
		via[prefix] = hop
	}
	return via, true
}

// routed are the prefixes of a node that this one has peers and routes for.
func (in *PlanInput) routed(cluster string, n *clustermesh.Node) []netip.Prefix {
	if cluster != "" || !in.Chained {
		return n.PodPrefixes
	}
	var own []netip.Prefix
	for _, a := range n.TunnelAddresses {
		own = append(own, netip.PrefixFrom(a, a.BitLen()))
	}
	return own
}

// onLink is an underlay address of n that lies on a link of this node.
func (in *PlanInput) onLink(n *clustermesh.Node, v4 bool) (netip.Addr, bool) {
	var found []netip.Addr
	for _, a := range n.UnderlayAddresses {
		for _, link := range in.OnLink {
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

// accept says which of a node's prefixes are its own, and whether there may be a
// path to it. They have blackholes from now on.
func (p *planner) accept(cluster string, n *clustermesh.Node) (own []netip.Prefix, ok bool) {
	for _, prefix := range p.in.carried(cluster, n) {
		prefix = prefix.Masked()
		if cluster != "" {
			if refused, ours := p.overUnderlay("node "+nodeLabel(cluster, n), prefix); refused {
				if !ours {
					p.blackhole(prefix) // what goes to its pods must not go in clear
				}
				continue
			}
		}
		if !p.claim(cluster, n, prefix) {
			continue
		}
		if p.in.routes(cluster, n, prefix) {
			p.blackhole(prefix)
		}
		own = append(own, prefix)
	}
	key := PeerKey(n.WireGuardKey)
	if key == (PeerKey{}) || !p.mayHavePeer(cluster, n, own) {
		return nil, false
	}
	p.keys[key] = nodeLabel(cluster, n)
	return own, true
}

// peer makes a node a WireGuard peer, which carries nothing yet.
func (p *planner) peer(cluster string, n *clustermesh.Node) {
	p.ends[PeerKey(n.WireGuardKey)] = p.endpoint(cluster, n)
}

// give has a peer carry prefixes.
func (p *planner) give(via *clustermesh.Node, prefixes []netip.Prefix) {
	key := PeerKey(via.WireGuardKey)
	p.carry[key] = append(p.carry[key], prefixes...)
}

// lead has what goes to prefixes take the tunnel.
func (p *planner) lead(prefixes []netip.Prefix) {
	for _, prefix := range prefixes {
		p.routes[RouteKey{MakePrefix(prefix), RouteTunnel}] = RouteRow{Source: p.source(prefix), MTU: p.mtu()}
	}
}

// mayHavePeer reports whether a node's key and tunnel addresses are its own; what
// lies in the prefixes that it was given is.
func (p *planner) mayHavePeer(cluster string, n *clustermesh.Node, given []netip.Prefix) bool {
	if other, twice := p.keys[PeerKey(n.WireGuardKey)]; twice {
		p.problem(fmt.Sprintf("node %s has the WireGuard key of node %s", nodeLabel(cluster, n), other),
			"two nodes with one key cannot be told apart, so the second gets no traffic",
			"delete the key on one of them and let it register again")
		return false
	}
	for _, a := range n.TunnelAddresses {
		if slices.ContainsFunc(given, func(prefix netip.Prefix) bool { return prefix.Contains(a) }) {
			continue
		}
		if c, taken := p.claimed.find(netip.PrefixFrom(a, a.BitLen()), cluster); taken {
			p.problem(fmt.Sprintf("tunnel address %s of node %s is in a pod prefix of %s", a, nodeLabel(cluster, n), c),
				"a cluster speaks only for itself; the node gets no traffic", "give the node another pod prefix")
			return false
		}
	}
	return true
}

// claim gives a prefix to the first node that names it: own cluster first, then
// by cluster and node name.
func (p *planner) claim(cluster string, n *clustermesh.Node, prefix netip.Prefix) bool {
	me := claim{cluster, n.Name}
	if other, taken := p.claimed.same(prefix); taken && other != me && other.node != "" {
		p.problem(fmt.Sprintf("pod prefix %s belongs to node %s and to node %s", prefix, other.label(), me.label()),
			"one prefix leads to one node; the second is ignored", "give one of the nodes another pod prefix")
		return false
	}
	if other, taken := p.claimed.find(prefix, cluster); taken {
		p.problem(fmt.Sprintf("pod prefix %s of node %s overlaps one of %s", prefix, me.label(), other),
			"a cluster speaks only for itself; the prefix is ignored", "give the clusters pod prefixes of their own")
		return false
	}
	p.claimed.add(prefix, me)
	return true
}

func nodeLabel(cluster string, n *clustermesh.Node) string { return claim{cluster, n.Name}.label() }

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

func (p *planner) mtu() uint16 { return tunnelMTU(p.in.UnderlayMTU) }

func tunnelMTU(underlay uint16) uint16 {
	mtu := cmp.Or(underlay, 1500)
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
