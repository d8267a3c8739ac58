package agent

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

func planCluster(id int, nodes ...*clustermesh.Node) PlanCluster {
	return PlanCluster{Name: fmt.Sprint("c", id), ID: clustermesh.ID(id), PodPrefixes: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/16", id))}, Nodes: nodes}
}

// A cluster may lie about itself. What it says of others changes nothing for them.
func TestPlanRefusesClaimsOnOthers(t *testing.T) {
	own, neighbour := planNode(1, 1, "10.1.1.0/24"), planNode(1, 2, "10.1.2.0/24")
	neighbour.UnderlayAddresses = []netip.Addr{netip.MustParseAddr("192.168.0.2")}
	with := func(n *clustermesh.Node, change func(*clustermesh.Node)) *clustermesh.Node { change(n); return n }
	keyOf := func(n *clustermesh.Node) func(*clustermesh.Node) {
		return func(to *clustermesh.Node) { to.WireGuardKey = n.WireGuardKey }
	}
	victim := planNode(2, 1, "10.2.1.0/24")
	early := planCluster(4, with(planNode(4, 1, "10.4.1.0/24"), keyOf(victim)))
	early.Joined = time.Unix(1, 0)
	late := planCluster(2, victim)
	late.Joined = time.Unix(2, 0)
	for name, c := range map[string]struct {
		remote  []PlanCluster
		problem string // "" = none
		peers   string // the last word of each peer: what it may carry
	}{
		"nothing wrong":                    {[]PlanCluster{planCluster(2, victim), planCluster(3, planNode(3, 1, "10.3.1.0/24"))}, "", "10.2.1.0/24 10.3.1.0/24"},
		"a key of another cluster's node":  {[]PlanCluster{planCluster(3, with(planNode(3, 1, "10.3.1.0/24"), keyOf(victim))), planCluster(2, victim)}, "node c3/n1 has the WireGuard key of node c2/n1", "10.2.1.0/24"},
		"who joined first has it":          {[]PlanCluster{late, early}, "node c2/n1 has the WireGuard key of node c4/n1", "10.4.1.0/24"},
		"this node's key":                  {[]PlanCluster{planCluster(2, with(planNode(2, 1, "10.2.1.0/24"), keyOf(own)))}, "node c2/n1 has the WireGuard key of node n1", ""},
		"a neighbour's key":                {[]PlanCluster{planCluster(2, with(planNode(2, 1, "10.2.1.0/24"), keyOf(neighbour)))}, "node c2/n1 has the WireGuard key of node n2", ""},
		"this node's prefix":               {[]PlanCluster{planCluster(2, victim, with(planNode(2, 2, "10.1.1.0/24"), func(n *clustermesh.Node) { n.TunnelAddresses = nil }))}, "pod prefix 10.1.1.0/24 belongs to node n1 and to node c2/n2", " 10.2.1.0/24"},
		"a part of a neighbour's prefix":   {[]PlanCluster{planCluster(2, with(planNode(2, 1, "10.1.2.128/25", "10.2.1.0/24"), func(n *clustermesh.Node) { n.TunnelAddresses = nil }))}, "pod prefix 10.1.2.128/25 of node c2/n1 overlaps one of node n2", "10.2.1.0/24"},
		"all around a neighbour's prefix":  {[]PlanCluster{planCluster(2, with(planNode(2, 1, "10.0.0.0/8", "10.2.1.0/24"), func(n *clustermesh.Node) { n.TunnelAddresses = nil }))}, "pod prefix 10.0.0.0/8 of node c2/n1 overlaps one of", "10.2.1.0/24"},
		"the own cluster's unused prefix":  {[]PlanCluster{planCluster(2, with(planNode(2, 1, "10.1.77.0/24", "10.2.1.0/24"), func(n *clustermesh.Node) { n.TunnelAddresses = nil }))}, "pod prefix 10.1.77.0/24 of node c2/n1 overlaps one of this cluster", "10.2.1.0/24"},
		"the tunnel address of a node":     {[]PlanCluster{planCluster(2, with(planNode(2, 1, "10.2.1.0/24"), func(n *clustermesh.Node) { n.TunnelAddresses = neighbour.TunnelAddresses }))}, "tunnel address 10.1.2.1 of node c2/n1 is in a pod prefix of node n2", ""},
		"another cluster's prefix":         {[]PlanCluster{planCluster(2, victim), planCluster(3, with(planNode(3, 1, "10.2.1.64/26"), func(n *clustermesh.Node) { n.TunnelAddresses = nil }))}, "pod prefix 10.2.1.64/26 of node c3/n1 overlaps one of node c2/n1", " 10.2.1.0/24"},
		"another cluster's tunnel address": {[]PlanCluster{planCluster(2, victim), planCluster(3, with(planNode(3, 1, "10.3.1.0/24"), func(n *clustermesh.Node) { n.TunnelAddresses = victim.TunnelAddresses }))}, "tunnel address 10.2.1.1 of node c3/n1 is in a pod prefix of node c2/n1", "10.2.1.0/24"},
	} {
		t.Run(name, func(t *testing.T) {
			peers, routes, problems := Plan(PlanInput{
				Own: own, OwnNodes: []*clustermesh.Node{own, neighbour}, OwnPrefixes: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")},
				OnLink: []netip.Prefix{netip.MustParsePrefix("192.168.0.0/24")}, Remote: c.remote,
			})
			var whats, carried []string
			for _, p := range problems {
				whats = append(whats, p.What)
			}
			if got := strings.Join(whats, "\n"); c.problem == "" && got != "" || len(whats) > 1 || !strings.HasPrefix(got, c.problem) {
				t.Errorf("problems:\n%s\nwant %s", got, c.problem)
			}
			for line := range strings.Lines(PeerText.Print(peers)) {
				_, allowed, _ := strings.Cut(strings.TrimSpace(line), "allowed=")
				carried = append(carried, allowed)
			}
			if got := strings.Join(carried, " "); strings.TrimSpace(got) != strings.TrimSpace(c.peers) {
				t.Errorf("peers carry %q, want %q", got, c.peers)
			}
			if via, ok := routes[RouteKey{MakePrefix(netip.MustParsePrefix("10.1.2.0/24")), RouteDirect}]; !ok || via.Via != MakeAddr(neighbour.UnderlayAddresses[0]) {
				t.Errorf("the neighbour lost its route: %v", via)
			}
		})
	}
}

// Whatever the clusters claim: no part of an address range is allowed to peers of
// two clusters, none of the own cluster's to a foreign one, no key has two
// owners, and the result agrees with a slow search among all claims.
func TestPlanClaimsProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := PlanInput{OwnPrefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")}}
		draw := rapid.Custom(func(t *rapid.T) netip.Prefix {
			a := netip.AddrFrom4([4]byte{10, byte(rapid.IntRange(0, 3).Draw(t, "cluster")), byte(rapid.IntRange(0, 3).Draw(t, "node")), 0})
			return netip.PrefixFrom(a, rapid.SampledFrom([]int{16, 24, 25, 32}).Draw(t, "bits")).Masked()
		})
		clusterOf := map[PeerKey]string{}
		for c := range 4 {
			var nodes []*clustermesh.Node
			for n := range rapid.IntRange(0, 3).Draw(t, "nodes") {
				node := &clustermesh.Node{Name: fmt.Sprint("n", n), Number: uint16(n + 1), WireGuardKey: [32]byte{byte(rapid.IntRange(1, 8).Draw(t, "key"))}}
				for range rapid.IntRange(1, 2).Draw(t, "prefixes") {
					node.PodPrefixes = append(node.PodPrefixes, draw.Draw(t, "prefix"))
				}
				nodes = append(nodes, node)
			}
			if c == 0 {
				in.OwnNodes = nodes
				for _, n := range nodes {
					clusterOf[PeerKey(n.WireGuardKey)] = ""
				}
				continue
			}
			in.Remote = append(in.Remote, planCluster(c, nodes...))
			for _, n := range nodes {
				if _, taken := clusterOf[PeerKey(n.WireGuardKey)]; !taken {
					clusterOf[PeerKey(n.WireGuardKey)] = fmt.Sprint("c", c)
				}
			}
		}
		peers, _, _ := Plan(in)
		for k, row := range peers {
			for p := range allowedPrefixes(row) {
				if clusterOf[k] != "" && p.Overlaps(in.OwnPrefixes[0]) {
					t.Fatalf("%v of the own cluster is allowed to a node of %s", p, clusterOf[k])
				}
				for k2, row2 := range peers {
					for p2 := range allowedPrefixes(row2) {
						if k != k2 && (p == p2 || clusterOf[k] != clusterOf[k2] && p.Overlaps(p2)) {
							t.Fatalf("%v of %q and %v of %q", p, clusterOf[k], p2, clusterOf[k2])
						}
					}
				}
			}
		}
	})
}
