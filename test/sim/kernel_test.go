package sim

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// watch checks each single write of the agent: no reference to something absent
// enters, nothing that is referred to leaves, nothing goes that nobody took away.
func (n *node) watch() {
	n.services.OnChange(func(k agent.ServiceKey, v *agent.ServiceRow) {
		if v != nil {
			n.checkSlots(k, *v)
		}
		n.checkAlways(k, v)
	})
	n.slots.OnChange(func(k agent.SlotKey, v *agent.SlotRow) {
		if v == nil && !n.drifted.Load() {
			n.checkSlotLeft(k)
		}
	})
	n.ips.OnChange(func(k agent.Addr, v *agent.IPCacheRow) {
		if v != nil {
			n.checkIP(k, *v)
		} else {
			n.checkGone(k)
		}
	})
	n.peers.OnChange(func(k agent.PeerKey, v *agent.PeerRow) {
		if v == nil {
			n.checkPaths("peer left")
			n.checkPeerGone(k)
		}
	})
	n.routes.OnChange(func(k agent.RouteKey, v *agent.RouteRow) { n.checkRoute(k, v) })
	n.down.OnChange(func(k agent.NodeKey, v *agent.HealthRow) {
		if v != nil {
			n.checkDown(k)
		}
	})
	n.shut.OnChange(func(k agent.ClusterKey, v *agent.HealthRow) {
		if v != nil {
			n.checkShut(k)
		}
	})
}

// checkRoute: what goes to a prefix may be lost, but it never goes in clear.
func (n *node) checkRoute(k agent.RouteKey, v *agent.RouteRow) {
	if n.drifted.Load() {
		return
	}
	_, guarded := n.routes.Get(agent.RouteKey{Prefix: k.Prefix, Kind: agent.RouteBlackhole})
	_, open := n.routes.Get(agent.RouteKey{Prefix: k.Prefix, Kind: agent.RouteTunnel})
	if open && !guarded {
		what := "entered before its blackhole"
		if v == nil {
			what = "outlives its blackhole"
		}
		n.s.fail("routes", "%s: tunnel route %v %s", n.name, k.Prefix, what)
	}
}

func (n *node) checkSlotLeft(k agent.SlotKey) {
	for sk, row := range n.services.Rows() {
		for _, g := range row.Groups {
			if row.ID == k.Service && g.Cluster == k.Cluster && k.Slot < g.Count {
				n.s.fail("slots", "%s: slot %v left while service %v has %d of cluster %d", n.name, k, sk, g.Count, g.Cluster)
			}
		}
	}
}

func (n *node) checkSlots(k agent.ServiceKey, row agent.ServiceRow) {
	if n.drifted.Load() {
		return
	}
	for _, g := range row.Groups {
		for i := range g.Count {
			if _, ok := n.slots.Get(agent.SlotKey{Service: row.ID, Cluster: g.Cluster, Slot: i}); !ok {
				n.s.fail("slots", "%s: service %v has no slot %d of cluster %d", n.name, k, i, g.Cluster)
			}
		}
	}
}

// checkAlways: the service that always has a backend always has one.
func (n *node) checkAlways(k agent.ServiceKey, v *agent.ServiceRow) {
	if n.drifting.Load() || k.Addr.IP() != n.of.always() || !n.s.begun.Load() {
		return
	}
	if v == nil || v.NumTiers == 0 {
		n.s.fail("backend", "%s: service %v has no backend, though one was ready all the time", n.name, k)
	}
}

// checkIP: an identity lies in its cluster's range and means what the pod is, and
// a path leads there.
func (n *node) checkIP(k agent.Addr, row agent.IPCacheRow) {
	id := clustermesh.Identity(row.Identity)
	if c := n.s.byID(id.Cluster()); id.Cluster() != 0 && (c == nil || !inside(c.prefixes, k.IP())) {
		n.s.fail("identity", "%s: address %v has an identity of cluster %d", n.name, k, id.Cluster())
		return
	} else if c != nil && id.Number() != 0 {
		c.steady.checkMeaning(n, k.IP(), id)
	}
	if !n.drifted.Load() && row.Flags&agent.IPEncrypted != 0 && n.registered(k.IP()) && !n.path(k.IP()) {
		n.s.fail("path", "%s: address %v (%s) has no peer", n.name, k, agent.IPText.Format(k, row))
	}
}

// checkGone: an address that its cluster has had all the time does not leave,
// whoever is out of reach, restarted, wiped or restored.
func (n *node) checkGone(k agent.Addr) {
	c := n.s.of(k.IP())
	if c == nil || n.drifting.Load() || !n.of.admits(c) {
		return
	}
	if c.steady.lasts(k.IP()) {
		n.s.fail("silence", "%s: address %v left, though %s has had it all the time", n.name, k, c.Name)
	}
}

// checkPeerGone: the same of nodes.
func (n *node) checkPeerGone(k agent.PeerKey) {
	for _, c := range n.s.clusters {
		for i := 1; i <= maxNodes; i++ {
			if c.Node(i).WireGuardKey == k && n.of.admits(c) && c.steady.node(c.NodeName(i)) {
				n.s.fail("silence", "%s: peer %s left, though %s has had that node all the time", n.name, c.NodeName(i), c.Name)
			}
		}
	}
}

// registered tells addresses of the own cluster's nodes that may not have
// registered yet: they have rows, for they may be neighbours, and no peer.
func (n *node) registered(a netip.Addr) bool {
	c := n.s.of(a)
	return c != n.of || c.steady.node(c.NodeName(int(a.As4()[2])))
}

func (n *node) path(a netip.Addr) bool {
	return inside(n.allowed(), a)
}

// allowed is what the peers carry.
func (n *node) allowed() (out []netip.Prefix) {
	for _, row := range n.peers.Rows() {
		for s := range strings.SplitSeq(row.Allowed, ",") {
			if p, err := netip.ParsePrefix(s); err == nil {
				out = append(out, p)
			}
		}
	}
	return out
}

func (n *node) checkPaths(what string) {
	if n.drifted.Load() {
		return
	}
	allowed := n.allowed()
	for k, row := range n.ips.Rows() {
		if row.Flags&agent.IPEncrypted != 0 && n.registered(k.IP()) && !inside(allowed, k.IP()) {
			n.s.fail("path", "%s: %s while address %v leads there", n.name, what, k)
		}
	}
}

func inside(prefixes []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

func (c *cluster) always() netip.Addr { return netip.AddrFrom4([4]byte{172, 20, byte(c.ID), 1}) }

// admits says whether another cluster has been a peer all the time.
func (c *cluster) admits(o *cluster) bool { return c == o || c.steady.peer(o.ID) }
