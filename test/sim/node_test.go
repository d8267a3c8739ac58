package sim

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// node is an agent with its kernel. The kernel outlives the agent.
type node struct {
	s    *sim
	of   *cluster
	name string
	dir  string // snapshots
	n    int

	peers    *agent.Fake[agent.PeerKey, agent.PeerRow]
	routes   *agent.Fake[agent.RouteKey, agent.RouteRow]
	prefixes *agent.Fake[agent.Prefix, agent.IPCacheRow]
	ips      *agent.Fake[agent.Addr, agent.IPCacheRow]
	slots    *agent.Fake[agent.SlotKey, agent.SlotRow]
	services *agent.Fake[agent.ServiceKey, agent.ServiceRow]
	tables   agent.Tables
	faults   []func(agent.Schedule)

	a    *agent.Agent
	stop func()
	seen map[string]bool // services that had a backend at rest
}

func faulty[K comparable, V comparable](n *node, f *agent.Fake[K, V]) agent.Table[K, V] {
	t := agent.NewFaulty(f, agent.NoFaults)
	n.faults = append(n.faults, t.SetSchedule)
	return t
}

// boot gives the node an empty kernel.
func (n *node) boot() {
	n.faults = nil
	n.peers = agent.NewFake[agent.PeerKey, agent.PeerRow](agent.TablePeers, 0)
	n.routes = agent.NewFake[agent.RouteKey, agent.RouteRow](agent.TableRoutes, 0)
	n.prefixes = agent.NewFake[agent.Prefix, agent.IPCacheRow](agent.TableIPPrefixes, 0)
	n.ips = agent.NewFake[agent.Addr, agent.IPCacheRow](agent.TableIPs, 0)
	n.slots = agent.NewFake[agent.SlotKey, agent.SlotRow](agent.TableSlots, 0)
	n.services = agent.NewFake[agent.ServiceKey, agent.ServiceRow](agent.TableServices, 0)
	n.tables = agent.NewFakes()
	n.tables.Peers, n.tables.Routes = faulty(n, n.peers), faulty(n, n.routes)
	n.tables.IPPrefixes, n.tables.IPs = faulty(n, n.prefixes), faulty(n, n.ips)
	n.tables.Slots, n.tables.Services = faulty(n, n.slots), faulty(n, n.services)
	n.watch()
}

func (n *node) start() {
	a, err := agent.New(agent.Config{
		Cluster: n.of.Name, ClusterID: n.of.ID, Node: n.name, Connector: n.s.mesh, SnapshotDir: n.dir, Prober: always{},
	}, n.tables)
	if err != nil {
		n.s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = a.Run(ctx)
	}()
	n.a = a
	n.stop = sync.OnceFunc(func() { cancel(); <-done })
}

// watch checks each single write of the agent: no reference to something absent
// enters, nothing that is referred to leaves.
func (n *node) watch() {
	n.services.OnChange(func(k agent.ServiceKey, v *agent.ServiceRow) {
		if v != nil {
			n.checkSlots(k, *v)
		}
	})
	n.slots.OnChange(func(k agent.SlotKey, v *agent.SlotRow) {
		if v != nil {
			return
		}
		for sk, row := range n.services.Rows() {
			for _, g := range row.Groups {
				if row.ID == k.Service && g.Cluster == k.Cluster && k.Slot < g.Count {
					n.s.fail("%s: slot %v left while service %v has %d of cluster %d", n.name, k, sk, g.Count, g.Cluster)
				}
			}
		}
	})
	n.ips.OnChange(func(k agent.Addr, v *agent.IPCacheRow) {
		if v != nil {
			n.checkIP(k, *v)
		}
	})
	n.peers.OnChange(func(k agent.PeerKey, v *agent.PeerRow) {
		if v == nil {
			n.checkPaths("peer left")
		}
	})
	n.routes.OnChange(func(k agent.RouteKey, v *agent.RouteRow) {
		if k.Kind != agent.RouteBlackhole || v != nil {
			if _, guarded := n.routes.Get(agent.RouteKey{Prefix: k.Prefix, Kind: agent.RouteBlackhole}); k.Kind == agent.RouteTunnel && !guarded {
				n.s.fail("%s: tunnel route %v without its blackhole", n.name, k)
			}
			return
		}
		if _, open := n.routes.Get(agent.RouteKey{Prefix: k.Prefix, Kind: agent.RouteTunnel}); open {
			n.s.fail("%s: blackhole %v left before the tunnel route", n.name, k)
		}
	})
}

func (n *node) checkSlots(k agent.ServiceKey, row agent.ServiceRow) {
	for _, g := range row.Groups {
		for i := range g.Count {
			if _, ok := n.slots.Get(agent.SlotKey{Service: row.ID, Cluster: g.Cluster, Slot: i}); !ok {
				n.s.fail("%s: service %v has no slot %d of cluster %d", n.name, k, i, g.Cluster)
			}
		}
	}
}

// checkIP: an identity lies in its cluster's range, and a path leads there.
func (n *node) checkIP(k agent.Addr, row agent.IPCacheRow) {
	if c := clustermesh.Identity(row.Identity).Cluster(); c != 0 && !inside(n.s.clusters[c-1].Prefixes(), k.IP()) {
		n.s.fail("%s: address %v has identity %d:…", n.name, k, c)
	}
	own := n.of.Facts.Node(n.n).PodPrefixes
	known := n.of.nodes[n.n]
	if n.underlay(k) {
		return
	}
	if known && !inside(own, k.IP()) && !n.path(k.IP()) {
		n.s.fail("%s: address %v (%s) has no peer", n.name, k, agent.IPText.Format(k, row))
	}
}

// underlay tells the addresses that a node of the cluster has, or had, outside
// the mesh: no peer leads there.
func (n *node) underlay(k agent.Addr) bool {
	for i := range 5 {
		if slices.Contains(n.of.Facts.Node(i).UnderlayAddresses, k.IP()) {
			return true
		}
	}
	return false
}

func (n *node) path(a netip.Addr) bool {
	for _, row := range n.peers.Rows() {
		for s := range strings.SplitSeq(row.Allowed, ",") {
			if p, err := netip.ParsePrefix(s); err == nil && p.Contains(a) {
				return true
			}
		}
	}
	return false
}

func (n *node) checkPaths(what string) {
	own := n.of.Facts.Node(n.n).PodPrefixes
	var allowed []netip.Prefix
	for _, row := range n.peers.Rows() {
		for s := range strings.SplitSeq(row.Allowed, ",") {
			if p, err := netip.ParsePrefix(s); err == nil {
				allowed = append(allowed, p)
			}
		}
	}
	for k := range n.ips.Rows() {
		if !inside(own, k.IP()) && !inside(allowed, k.IP()) && !n.underlay(k) {
			n.s.fail("%s: %s while address %v leads there", n.name, what, k)
		}
	}
}

// remote are the addresses of a cluster in this node's kernel, as text.
func (n *node) remote(c *cluster) map[string]bool {
	out := map[string]bool{}
	for k, v := range n.ips.Rows() {
		if inside(c.Prefixes(), k.IP()) {
			out[agent.IPText.Format(k, v)] = true
		}
	}
	return out
}

// dump is the kernel as text.
func (n *node) dump() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# peers\n%s# routes\n%s# ipprefixes\n%s# ips\n%s# slots\n%s# services\n%s",
		agent.PeerText.Print(n.peers.Rows()), agent.RouteText.Print(n.routes.Rows()), agent.IPPrefixText.Print(n.prefixes.Rows()),
		agent.IPText.Print(n.ips.Rows()), agent.SlotText.Print(n.slots.Rows()), agent.ServiceText.Print(n.services.Rows()))
	return b.String()
}

// expected is the dump computed again from the sources, the slow obvious way.
func (n *node) expected() string {
	views := map[string]map[clustermesh.Scope]*clustermesh.View{}
	own := n.of.views(clustermesh.Admission{Cluster: n.of.Name, ID: n.of.ID, Local: true})
	views[n.of.Name] = own
	in := agent.PlanInput{Own: own[export].Node(n.name)}
	for v := range own[export].Nodes() {
		in.OwnNodes = append(in.OwnNodes, v)
	}
	for p := range own[local].Peers() {
		c := n.s.named(p.Name)
		views[p.Name] = c.views(clustermesh.AdmissionOf(p))
		plan := agent.PlanCluster{Name: p.Name, PodPrefixes: p.PodPrefixes}
		for v := range views[p.Name][export].Nodes() {
			plan.Nodes = append(plan.Nodes, v)
		}
		in.Remote = append(in.Remote, plan)
	}
	peers, routes, _ := agent.Plan(in)
	prefixes, ips := map[agent.Prefix]agent.IPCacheRow{}, map[agent.Addr]agent.IPCacheRow{}
	exports := map[string]*clustermesh.View{}
	for name, v := range views {
		exports[name] = v[export]
		n.expectIPs(v[export], prefixes, ips)
	}
	slots, services := map[agent.SlotKey]agent.SlotRow{}, map[agent.ServiceKey]agent.ServiceRow{}
	for _, v := range own {
		for svc := range v.Services() {
			m := clustermesh.Merge(clustermesh.MergeInput{Name: svc.Name, Local: n.of.Name, Views: exports, Home: own[local]})
			expectService(m, slots, services)
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# peers\n%s# routes\n%s# ipprefixes\n%s# ips\n%s# slots\n%s# services\n%s",
		agent.PeerText.Print(peers), agent.RouteText.Print(routes), agent.IPPrefixText.Print(prefixes),
		agent.IPText.Print(ips), agent.SlotText.Print(slots), agent.ServiceText.Print(services))
	return b.String()
}

// expectIPs: nothing is on one link here, so all nodes but this one are behind
// the tunnel.
func (n *node) expectIPs(v *clustermesh.View, prefixes map[agent.Prefix]agent.IPCacheRow, ips map[agent.Addr]agent.IPCacheRow) {
	own := v.Name() == n.of.Name
	at := func(node *clustermesh.Node) agent.IPFlags {
		if own && node.Name == n.name {
			return agent.IPHere
		}
		return agent.IPEncrypted
	}
	for a := range v.Addresses() {
		if node := v.Node(a.Name.Node); node != nil {
			ips[agent.MakeAddr(a.Name.Prefix.Addr())] = agent.IPCacheRow{Identity: uint32(a.Identity), Node: node.Number, Flags: at(node)}
		}
	}
	for node := range v.Nodes() {
		for _, p := range node.PodPrefixes {
			prefixes[agent.MakePrefix(p)] = agent.IPCacheRow{Identity: uint32(clustermesh.MakeIdentity(v.ID(), 0)), Node: node.Number, Flags: at(node)}
		}
		host := agent.IPCacheRow{Identity: uint32(clustermesh.IdentityRemoteNode), Node: node.Number}
		tunnel := host
		tunnel.Flags = agent.IPEncrypted
		if own && node.Name == n.name {
			host.Identity = uint32(clustermesh.IdentityHost)
			tunnel = host
			tunnel.Flags = agent.IPTunnelAddress
		}
		for _, a := range node.TunnelAddresses {
			ips[agent.MakeAddr(a)] = tunnel
		}
		for _, a := range node.UnderlayAddresses {
			if own {
				ips[agent.MakeAddr(a)] = host
			}
		}
	}
}

func expectService(m clustermesh.Merged, slots map[agent.SlotKey]agent.SlotRow, services map[agent.ServiceKey]agent.ServiceRow) {
	for _, p := range m.Ports {
		row := agent.ServiceRow{ID: agent.ServiceID(m.Name, p.Port.Name, p.Port.Protocol, p.V6)}
		next := 0
		for _, t := range p.Tiers {
			row.Tiers[row.NumTiers] = agent.Tier{First: uint8(next), Groups: uint8(len(t.Groups)), Share: t.Share}
			row.NumTiers++
			for _, g := range t.Groups {
				row.Groups[next] = agent.Group{Cluster: uint16(g.ID), Weight: g.Weight, Count: uint32(len(g.Backends))}
				next++
				for i, b := range g.Backends {
					slots[agent.SlotKey{Service: row.ID, Cluster: uint16(g.ID), Slot: uint32(i)}] =
						agent.SlotRow{Addr: agent.MakeAddr(b.Address), Port: b.Port, Cluster: uint16(g.ID), Node: b.Node}
				}
			}
		}
		for _, f := range p.Frontends {
			services[agent.ServiceKey{Addr: agent.MakeAddr(f), Port: p.Port.Port, Proto: uint8(p.Port.Protocol)}] = row
		}
	}
}
