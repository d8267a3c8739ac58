package agent

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// stand is where this node stands among gateways: what the rows were computed for.
type stand struct {
	topology clustermesh.Topology // of the own cluster
	gateway  bool                 // this node is one
	down     map[NodeKey]bool     // gateways that were judged down
	astray   map[NodeKey]map[clustermesh.ID]bool
}

// missedAll is how many probes in a row a gateway says that it lost of each node of
// a cluster that it no longer reaches: about what a verdict of its own takes.
const missedAll = 20

// behind reports whether this node is behind a gateway.
func (s *State) behind() bool {
	return s.stand.topology == clustermesh.TopologyGateway && !s.stand.gateway
}

// SetMissing says which nodes the agents of the own cluster miss. A gateway probes
// other clusters directly, whoever is behind it, so that what it misses says where
// it leads; those behind it hear of a cut there from nobody else. All nodes must be
// missed, as some may be dead. An agent speaks of the nodes alone that it was chosen
// to probe: in a cluster of many agents a gateway may not be chosen for all, and then
// this says nothing.
func (s *State) SetMissing(missing map[string]map[NodeKey]uint8) {
	astray := map[NodeKey]map[clustermesh.ID]bool{}
	own := s.clusters[s.own]
	for name, missed := range missing {
		g := own.nodes[name]
		if g == nil || !g.Gateway {
			continue
		}
		for _, c := range s.clusters {
			if c.peer != nil && c.missedBy(missed) {
				k := NodeKey{uint16(s.ownID), g.Number}
				if astray[k] == nil {
					astray[k] = map[clustermesh.ID]bool{}
				}
				astray[k][c.id] = true
			}
		}
	}
	if !maps.EqualFunc(astray, s.stand.astray, maps.Equal[map[clustermesh.ID]bool, map[clustermesh.ID]bool]) {
		s.stand.astray, s.planDirty = astray, true
	}
}

// missedBy reports whether all nodes of a cluster are among those missed.
func (c *clusterState) missedBy(missed map[NodeKey]uint8) bool {
	probed := 0
	for _, n := range c.nodes {
		if n.Number == 0 || len(n.TunnelAddresses) == 0 {
			continue
		}
		if probed++; missed[NodeKey{uint16(c.id), n.Number}] < missedAll {
			return false
		}
	}
	return probed > 0
}

// topology is what the cluster last said.
func (c *clusterState) topology() clustermesh.Topology {
	if v := c.export(); v != nil && v.Cluster() != nil {
		return v.Cluster().Topology
	}
	return clustermesh.TopologyMesh
}

// takeStand has all rows of addresses computed again when this node becomes a
// gateway, or the own cluster has gateways from now on, or no longer: which
// packets belong into the tunnel, and which are sent on, hangs on that.
func (s *State) takeStand() {
	own := s.clusters[s.own]
	topology, me := own.topology(), own.nodes[s.node]
	gateway := topology == clustermesh.TopologyGateway && me != nil && me.Gateway
	if topology == s.stand.topology && gateway == s.stand.gateway {
		return
	}
	s.stand.topology, s.stand.gateway = topology, gateway
	s.planDirty = true
	for _, c := range s.clusters {
		prefixes := map[netip.Prefix]bool{}
		for _, n := range c.nodes {
			for _, p := range c.prefixesOf(n) {
				prefixes[p] = true
			}
		}
		if c.peer == nil {
			maps.Copy(prefixes, s.herePrefixes())
		}
		s.retakeIPs(c, func(clustermesh.AddressName) bool { return true }, prefixes)
	}
}

// SetDown says which nodes are judged down, all of them. Peers and routes change
// only if that is about a gateway.
func (s *State) SetDown(down map[NodeKey]HealthRow) {
	s.down, s.heard = down, true
	if !maps.Equal(s.downGateways(), s.stand.down) {
		s.planDirty = true
	}
}

// downGateways are the gateways that are judged down.
func (s *State) downGateways() map[NodeKey]bool {
	out := map[NodeKey]bool{}
	if len(s.down) == 0 {
		return out
	}
	for _, c := range s.clusters {
		if c.topology() != clustermesh.TopologyGateway {
			continue
		}
		for _, n := range c.nodes {
			k := NodeKey{uint16(c.id), n.Number}
			if _, down := s.down[k]; down && n.Gateway {
				out[k] = true
			}
		}
	}
	return out
}

// mayPlan reports whether it is known which gateways are down, where there are
// any: an agent that starts must not go back to one that its former life had left.
func (s *State) mayPlan() bool {
	if s.heard {
		return true
	}
	for _, c := range s.clusters {
		if c.topology() == clustermesh.TopologyGateway {
			return false
		}
	}
	return true
}

// gatewayStatus says who carries what of a cluster.
func (s *State) gatewayStatus(c *clusterState, out *ClusterStatus) {
	out.Topology = c.topology().String()
	if own := s.clusters[s.own]; c.peer != nil && s.behind() && own.nodes[s.node] != nil {
		way := newCarriers(s.ownID, slices.Collect(maps.Values(own.nodes)), s.stand.down).toward(c.id, s.stand.astray)
		if g := way.of(own.nodes[s.node]); g != nil {
			out.Gateway = g.Name
		}
	}
	if c.topology() != clustermesh.TopologyGateway {
		return
	}
	nodes := slices.Collect(maps.Values(c.nodes))
	way := newCarriers(c.id, nodes, s.stand.down)
	behind := map[string]int{}
	for _, n := range nodes {
		if g := way.of(n); g != nil && g != n {
			behind[g.Name]++
			if c.peer == nil && n.Name == s.node {
				out.Gateway = g.Name
			}
		}
	}
	for _, g := range gatewaysOf(nodes) {
		out.Gateways = append(out.Gateways, GatewayStatus{Name: g.Name, Down: s.stand.down[NodeKey{uint16(c.id), g.Number}], Nodes: behind[g.Name]})
	}
}
