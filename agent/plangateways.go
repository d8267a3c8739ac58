package agent

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// Where a cluster has gateways, each of its other nodes is behind one of them, for
// all that it sends to other clusters and all that it gets from them. WireGuard
// allows a prefix to one peer, so both ends must mean the same gateway: which one
// it is depends on the node alone, never on who asks or on the far end, and on
// which gateways are judged down or do not reach the other cluster. A gateway is
// behind nobody.
//
//	a3 ──► gateway of a3 ──► gateway of b3 ──► b3      and back the same way

// standing is a gateway's weight for a node: rendezvous hashing, so that a gateway
// that comes or goes moves only its own share. All versions of all agents must
// compute the same; a test holds it to given values.
func standing(cluster clustermesh.ID, gateway, node string) uint64 {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d/%s/%s", cluster, gateway, node))
	return binary.BigEndian.Uint64(sum[:])
}

// gatewaysOf are the nodes that may be gateways: labelled and registered, by name.
func gatewaysOf(nodes []*clustermesh.Node) []*clustermesh.Node {
	return byName(slices.DeleteFunc(slices.Clone(nodes), func(n *clustermesh.Node) bool {
		return !n.Gateway || n.WireGuardKey == [32]byte{}
	}))
}

// carriers answer which gateway a node is behind.
type carriers struct {
	cluster  clustermesh.ID
	gateways []*clustermesh.Node // of them those that are not judged down; all, if all are
}

func newCarriers(cluster clustermesh.ID, nodes []*clustermesh.Node, down map[NodeKey]bool) carriers {
	all := gatewaysOf(nodes)
	live := slices.DeleteFunc(slices.Clone(all), func(n *clustermesh.Node) bool { return down[NodeKey{uint16(cluster), n.Number}] })
	if len(live) == 0 {
		live = all
	}
	return carriers{cluster: cluster, gateways: live}
}

// of is the gateway that n is behind: n itself if it is one; nil = there is none.
func (c carriers) of(n *clustermesh.Node) *clustermesh.Node {
	if n.Gateway {
		return n
	}
	var best *clustermesh.Node
	var most uint64
	for _, g := range c.gateways {
		if s := standing(c.cluster, g.Name, n.Name); best == nil || s > most {
			best, most = g, s
		}
	}
	return best
}

// toward leaves the gateways out that are astray as to a cluster, if that leaves any:
// one whose link there is cut is left by the far end, too, whose probes miss it.
func (c carriers) toward(cluster clustermesh.ID, astray map[NodeKey]map[clustermesh.ID]bool) carriers {
	there := slices.DeleteFunc(slices.Clone(c.gateways), func(n *clustermesh.Node) bool { return astray[NodeKey{uint16(c.cluster), n.Number}][cluster] })
	if len(there) > 0 {
		c.gateways = there
	}
	return c
}

// uplink is the gateway by which this node, which is behind one, reaches a cluster;
// nil = there is none.
func (in *PlanInput) uplink(cluster clustermesh.ID) *clustermesh.Node {
	if in.Own == nil { // and so nobody's peer
		return nil
	}
	return newCarriers(in.OwnID, in.OwnNodes, in.Down).toward(cluster, in.Astray).of(in.Own)
}

// remoteNodes gives a remote cluster's nodes their peers and tunnel routes: where
// they have gateways those, and by way of this node's own gateway if it is behind
// one.
func (p *planner) remoteNodes(c PlanCluster) {
	way := newCarriers(c.ID, c.Nodes, p.in.Down)
	accepted := map[string][]netip.Prefix{}
	nodes := byName(c.Nodes)
	for _, n := range nodes {
		if prefixes, ok := p.accept(c.Name, n); ok {
			accepted[n.Name] = prefixes
		}
	}
	without := 0
	var uplink *clustermesh.Node
	if p.viaUplink {
		uplink = p.in.uplink(c.ID)
	}
	for _, n := range nodes {
		prefixes, ok := accepted[n.Name]
		if !ok {
			continue
		}
		via := n
		switch {
		case p.viaUplink:
			if via = uplink; via != nil && !p.isPeer("", via) {
				via = nil
			}
		case c.Topology == clustermesh.TopologyGateway:
			if via = way.of(n); via != nil {
				if _, ok := accepted[via.Name]; !ok {
					via = nil
				}
			}
		}
		if via == nil {
			without++
			continue
		}
		if via == n {
			p.peer(c.Name, n)
			p.meet(c.Name, n)
		}
		p.give(via, prefixes)
		p.lead(prefixes)
	}
	if without > 0 && !p.viaUplink {
		p.problem(fmt.Sprintf("cluster %s has no gateway for %d nodes", c.Name, without),
			"its topology is gateway, and no registered node of it is labelled as one; what goes to them is dropped",
			"label nodes of that cluster with tombolo.io/gateway=true, or set its topology to mesh")
	}
	if without > 0 && p.viaUplink && p.in.Own != nil {
		p.problem(fmt.Sprintf("no gateway leads to cluster %s", c.Name),
			"the topology of this cluster is gateway, and no registered node of it is labelled as one; what goes to other clusters is dropped",
			"label nodes with tombolo.io/gateway=true, or set the topology to mesh")
	}
}

// isPeer reports whether a node became a peer.
func (p *planner) isPeer(cluster string, n *clustermesh.Node) bool {
	key := PeerKey(n.WireGuardKey)
	_, is := p.ends[key]
	return is && p.keys[key] == nodeLabel(cluster, n)
}

// meet says when neither end can find the other.
func (p *planner) meet(cluster string, n *clustermesh.Node) {
	if p.in.Own != nil && p.in.Own.WireGuardKey != [32]byte{} && p.in.Own.WireGuardEndpoint == "" && n.WireGuardEndpoint == "" {
		p.problem(fmt.Sprintf("node %s and this one have no WireGuard endpoint", nodeLabel(cluster, n)),
			"both are behind NAT, so that neither can send first",
			"give one of them an endpoint that the other reaches: --wireguard-endpoint of its agent, or the annotation tombolo.io/wireguard-endpoint of its Node")
	}
}

// carried are the prefixes of a node whose packets this one takes from its tunnel,
// or sends there.
func (in *PlanInput) carried(cluster string, n *clustermesh.Node) []netip.Prefix {
	if cluster == "" && in.Topology == clustermesh.TopologyGateway && in.Own != nil && in.Own.Gateway {
		return n.PodPrefixes // also where another CNI has the routes to them
	}
	return in.routed(cluster, n)
}

// routes reports whether this node has routes to a prefix of a node that it carries.
func (in *PlanInput) routes(cluster string, n *clustermesh.Node, prefix netip.Prefix) bool {
	return cluster != "" || !in.Chained || prefix.IsSingleIP() && slices.Contains(n.TunnelAddresses, prefix.Addr())
}

// endpoint is where a node's tunnel is reached: of a node of the own cluster at an
// underlay address on a link of this one, whatever it has to be called from afar;
// and if it has no endpoint at any.
func (p *planner) endpoint(cluster string, n *clustermesh.Node) netip.AddrPort {
	end, err := netip.ParseAddrPort(n.WireGuardEndpoint)
	if err != nil && n.WireGuardEndpoint != "" {
		p.problem(fmt.Sprintf("node %s: WireGuard endpoint %q is not an address and port", nodeLabel(cluster, n), n.WireGuardEndpoint),
			err.Error(), "the node must register an IP address, not a name")
	}
	if cluster != "" || n.WireGuardPort == 0 || end.IsValid() && slices.Contains(n.UnderlayAddresses, end.Addr().Unmap()) {
		return end
	}
	for _, v4 := range []bool{true, false} {
		if a, ok := p.in.onLink(n, v4); ok {
			return netip.AddrPortFrom(a, n.WireGuardPort)
		}
	}
	if !end.IsValid() && len(n.UnderlayAddresses) > 0 {
		return netip.AddrPortFrom(n.UnderlayAddresses[0], n.WireGuardPort)
	}
	return end
}
