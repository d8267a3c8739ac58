package agent

import (
	"net/netip"
	"slices"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// vantage is what a node's choice of backends depends on: where it is.
type vantage struct {
	cluster clustermesh.ID
	number  uint16       // 0 = not registered: no backend is on it
	zone    string       // "" = not known
	ports   []netip.Addr // its addresses that node ports answer on, sorted
	all     []netip.Addr // all its addresses, sorted
}

// Three sets of backends can be in force for a port of a service on one node:
//
//	all   what the mesh has, in tiers
//	near  the same with fewer of the own cluster's: those that its hints mean for
//	      this node or its zone. Where hints are in force nothing else on the
//	      node uses all, so near has the ID of all
//	here  the own cluster's on this node: traffic policy Local. Its slots are
//	      others, so it has an ID of its own
//
// The rules are those of kube-proxy. Hints speak of the own cluster's endpoints;
// other clusters' tiers and weights stay as they are.

// Topology says how many of the own cluster's backends a node uses.
type Topology string

const (
	TopologyAll  Topology = ""     // all
	TopologyZone Topology = "zone" // those with a hint for its zone
	TopologyNode Topology = "node" // those with a hint for it
)

// topologyOf reads the hints of the own cluster's backends. They count only if
// every backend has some and one of them is for this node, or else its zone: a
// node that nothing is meant for uses all rather than none. Backends that are
// taken because nothing else is left are never left out.
func topologyOf(backends []clustermesh.Backend, at vantage) Topology {
	if len(backends) == 0 {
		return TopologyAll
	}
	nodes, zones, node, zone := true, true, false, false
	for i := range backends {
		h := backends[i].Hints
		if backends[i].Terminating || h.IsZero() {
			return TopologyAll
		}
		nodes, zones = nodes && h.HasNodes(), zones && h.HasZones()
		node = node || at.number != 0 && h.ForNode(at.number)
		zone = zone || h.ForZone(at.zone)
	}
	switch {
	case nodes && node:
		return TopologyNode
	case zones && zone:
		return TopologyZone
	}
	return TopologyAll
}

// meantFor reports whether a topology has a node use b.
func (t Topology) meantFor(b clustermesh.Backend, at vantage) bool {
	switch t {
	case TopologyNode:
		return b.Hints.ForNode(at.number)
	case TopologyZone:
		return b.Hints.ForZone(at.zone)
	}
	return true
}

// nearTiers are the tiers as this node uses them. tiers is not changed.
func nearTiers(tiers []clustermesh.Tier, at vantage) ([]clustermesh.Tier, Topology) {
	for i, t := range tiers {
		for j, g := range t.Groups {
			if g.ID != at.cluster {
				continue
			}
			topology := topologyOf(g.Backends, at)
			if topology == TopologyAll {
				return tiers, topology
			}
			g.Backends = slices.DeleteFunc(slices.Clone(g.Backends), func(b clustermesh.Backend) bool { return !topology.meantFor(b, at) })
			tiers, t.Groups = slices.Clone(tiers), slices.Clone(t.Groups)
			t.Groups[j] = g
			tiers[i] = t
			return tiers, topology
		}
	}
	return tiers, TopologyAll
}

// hereTiers are the backends on this node alone: those that are ready, or where
// none is those that still serve while they terminate. local are the own
// cluster's that can serve.
func hereTiers(cluster string, local []clustermesh.Backend, at vantage) []clustermesh.Tier {
	var ready, ending []clustermesh.Backend
	for _, b := range local {
		switch {
		case at.number == 0 || b.Node != at.number:
		case b.Terminating:
			ending = append(ending, b)
		default:
			ready = append(ready, b)
		}
	}
	if len(ready) == 0 {
		ready = ending
	}
	if len(ready) == 0 {
		return nil
	}
	return []clustermesh.Tier{{Share: clustermesh.ShareAll, Groups: []clustermesh.Group{{Cluster: cluster, ID: at.cluster, Weight: 1, Backends: ready}}}}
}

// readyHere counts the addresses of backends on this node that are ready: what a
// load balancer is told at the health check port. One that is about to end gets
// no new connections from it, though it still serves those that come.
func readyHere(ports []clustermesh.MergedPort, at vantage) int {
	seen := map[netip.Addr]struct{}{}
	for _, p := range ports {
		for _, b := range p.Local {
			if at.number != 0 && b.Node == at.number && !b.Terminating {
				seen[b.Address] = struct{}{}
			}
		}
	}
	return len(seen)
}

// takeVantage notes where this node is; if that changed, what it uses of every
// service may have.
func (s *State) takeVantage() {
	now := s.vantage()
	if now.equal(s.at) {
		return
	}
	s.at = now
	s.touchAll()
	s.touchHostPorts()
}

func (s *State) vantage() vantage {
	p := vantage{cluster: s.ownID}
	n := s.clusters[s.own].nodes[s.node]
	if n == nil {
		return p
	}
	p.number, p.zone = n.Number, n.Zone
	for _, a := range n.UnderlayAddresses {
		p.all = append(p.all, a.Unmap().WithZone(""))
	}
	p.all = append(p.all, n.TunnelAddresses...)
	p.all = slices.DeleteFunc(p.all, func(a netip.Addr) bool { return !a.IsGlobalUnicast() })
	slices.SortFunc(p.all, netip.Addr.Compare)
	p.all = slices.Compact(p.all)
	for _, a := range p.all {
		if !slices.Contains(n.TunnelAddresses, a) && within(s.portRange, a) {
			p.ports = append(p.ports, a)
		}
	}
	return p
}

func within(ranges []netip.Prefix, a netip.Addr) bool {
	return len(ranges) == 0 || slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a) })
}

func (p vantage) equal(q vantage) bool {
	return p.cluster == q.cluster && p.number == q.number && p.zone == q.zone && slices.Equal(p.ports, q.ports) && slices.Equal(p.all, q.all)
}
