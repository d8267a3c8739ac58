package sim

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// views are what a cluster's store says now, read by the slow obvious way.
func (c *cluster) views(a clustermesh.Admission) (map[clustermesh.Scope]*clustermesh.View, error) {
	out := map[clustermesh.Scope]*clustermesh.View{}
	for _, scope := range []clustermesh.Scope{export, local} {
		v := clustermesh.NewView(a, scope)
		content := contentOf(c.store(), clustermesh.ScopePrefix(scope, c.Name))
		for _, key := range slices.Sorted(maps.Keys(content)) {
			k, err := clustermesh.ParseKey(key)
			if err != nil {
				return nil, err
			}
			r, err := clustermesh.Decode(k, content[key])
			if err == nil {
				err = v.Apply(clustermesh.Change{Key: k, Record: r})
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", key, err)
			}
		}
		out[scope] = v
	}
	return out, nil
}

// published is what the store should say of pods and nodes, and what it does, as
// lines: from the cluster's Kubernetes, without any of the code that derives it.
func (c *cluster) published() (got, want string) {
	c.mu.Lock()
	pods, nodes, services := maps.Clone(c.pods), maps.Clone(c.nodes), maps.Clone(c.services)
	c.mu.Unlock()
	var wants []string
	for _, p := range pods {
		wants = append(wants, fmt.Sprintf("address %s/%s is %s %s\n", c.NodeName(p.n), c.Pod(p.n, p.p), p.uid(), p.label()))
	}
	for n := range nodes {
		wants = append(wants, fmt.Sprintf("node %s %v\n", c.NodeName(n), c.Node(n).PodPrefixes[:1]))
	}
	for name, svc := range services {
		scope := local
		if svc.global && svc.shared {
			scope = export
		}
		wants = append(wants, fmt.Sprintf("%s service %s weight %d affinity %q\n", scope, name, svc.weight, affinities[svc.affinity]))
		for _, p := range svc.pods {
			wants = append(wants, fmt.Sprintf("%s service %s endpoint %s ready %v\n", scope, name, c.Pod(p[0], p[1]), p[2] != 0))
		}
	}
	views, err := c.views(clustermesh.Admission{Cluster: c.Name, ID: c.ID, Local: true})
	if err != nil {
		return err.Error() + "\n", ""
	}
	return c.lines(views), sorted(wants)
}

func (c *cluster) lines(views map[clustermesh.Scope]*clustermesh.View) string {
	var out []string
	for a := range views[export].Addresses() {
		label := "unknown"
		if id, ok := views[export].Identity(a.Identity); ok {
			for _, l := range id.Labels {
				if strings.HasPrefix(l.Value, "app") {
					label = l.Value
				}
			}
		}
		out = append(out, fmt.Sprintf("address %s/%s is %s %s\n", a.Name.Node, a.Name.Prefix.Addr(), a.Owner, label))
	}
	for n := range views[export].Nodes() {
		out = append(out, fmt.Sprintf("node %s %v\n", n.Name, n.PodPrefixes))
	}
	for scope, v := range views {
		for svc := range v.Services() {
			out = append(out, fmt.Sprintf("%s service %s weight %d affinity %q\n", scope, svc.Name.Name, svc.Weight, svc.Affinity))
			for s := range v.Slices(svc.Name) {
				for _, e := range s.Endpoints {
					out = append(out, fmt.Sprintf("%s service %s endpoint %s ready %v\n", scope, svc.Name.Name, e.Address, e.Ready))
				}
			}
		}
	}
	return sorted(out)
}

func sorted(lines []string) string {
	slices.Sort(lines)
	return strings.Join(slices.Compact(lines), "")
}

// dump is the kernel as text.
func (n *node) dump() string {
	return text(n.peers.Rows(), n.routes.Rows(), n.prefixes.Rows(), n.ips.Rows(), n.slots.Rows(), n.services.Rows()) +
		"# node health\n" + agent.NodeHealthText.Print(n.down.Rows()) + "# cluster health\n" + agent.ClusterHealthText.Print(n.shut.Rows())
}

func text(peers map[agent.PeerKey]agent.PeerRow, routes map[agent.RouteKey]agent.RouteRow, prefixes map[agent.Prefix]agent.IPCacheRow,
	ips map[agent.Addr]agent.IPCacheRow, slots map[agent.SlotKey]agent.SlotRow, services map[agent.ServiceKey]agent.ServiceRow) string {
	return fmt.Sprintf("# peers\n%s# routes\n%s# ipprefixes\n%s# ips\n%s# slots\n%s# services\n%s",
		agent.PeerText.Print(peers), agent.RouteText.Print(routes), agent.IPPrefixText.Print(prefixes),
		agent.IPText.Print(ips), agent.SlotText.Print(slots), agent.ServiceText.Print(services))
}

// expected is the dump computed again from the stores, the slow obvious way. All
// ways are well: nobody is down.
func (n *node) expected() (string, error) {
	views := map[string]map[clustermesh.Scope]*clustermesh.View{}
	own, err := n.of.views(clustermesh.Admission{Cluster: n.of.Name, ID: n.of.ID, Local: true})
	if err != nil {
		return "", err
	}
	views[n.of.Name] = own
	in := agent.PlanInput{Own: own[export].Node(n.name), OwnPrefixes: n.of.prefixes}
	in.OwnNodes = slices.Collect(own[export].Nodes())
	for p := range own[local].Peers() {
		c := n.s.named(p.Name)
		if n.s.plant == plantUnchecked {
			p = n.s.unchecked(p)
		}
		if views[p.Name], err = c.views(clustermesh.AdmissionOf(p)); err != nil {
			return "", err
		}
		in.Remote = append(in.Remote, agent.PlanCluster{
			Name: p.Name, ID: p.ID, Joined: p.Joined, PodPrefixes: p.PodPrefixes, Nodes: slices.Collect(views[p.Name][export].Nodes()),
		})
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
	return text(peers, routes, prefixes, ips, slots, services) + "# node health\n# cluster health\n", nil
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

// diff are the lines that only one of two texts has.
func diff(got, want string) string {
	var b strings.Builder
	only := func(sign, a, b2 string) {
		have := map[string]bool{}
		for line := range strings.Lines(b2) {
			have[line] = true
		}
		for line := range strings.Lines(a) {
			if !have[line] {
				b.WriteString(sign + line)
			}
		}
	}
	only("- ", want, got)
	only("+ ", got, want)
	return b.String()
}
