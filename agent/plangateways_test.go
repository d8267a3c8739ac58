package agent

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// gatewayCluster has gateways numbered 1…gateways and nodes after them.
func gatewayCluster(id, gateways, nodes int) PlanCluster {
	c := planCluster(id)
	c.Topology = clustermesh.TopologyGateway
	for n := 1; n <= gateways+nodes; n++ {
		node := planNode(id, n, fmt.Sprintf("10.%d.%d.0/24", id, n))
		node.UnderlayAddresses = []netip.Addr{netip.MustParseAddr(fmt.Sprintf("192.168.%d.%d", id, n))}
		node.WireGuardPort = 51820
		node.Gateway = n <= gateways
		c.Nodes = append(c.Nodes, node)
	}
	return c
}

// planAt is what node n (from 0) of clusters[at] plans.
func planAt(clusters []PlanCluster, at, n int, down map[NodeKey]bool) (map[PeerKey]PeerRow, map[RouteKey]RouteRow, []clustermesh.Problem) {
	own := clusters[at]
	in := PlanInput{Own: own.Nodes[n], OwnID: own.ID, Topology: own.Topology, OwnNodes: own.Nodes, OwnPrefixes: own.PodPrefixes, Down: down,
		OnLink: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("192.168.%d.0/24", own.ID))}}
	for i, c := range clusters {
		if i != at {
			in.Remote = append(in.Remote, c)
		}
	}
	return Plan(in)
}

// The weights are part of what clusters of different versions agree on.
func TestStanding(t *testing.T) {
	for _, c := range []struct {
		cluster       clustermesh.ID
		gateway, node string
		want          uint64
	}{{1, "gw-1", "n7", 0xeaf77ca6e7335afc}, {4095, "a", "b", 0xa19cc33ce3a8878f}} {
		if got := standing(c.cluster, c.gateway, c.node); got != c.want {
			t.Errorf("%d %s %s: %#x, want %#x", c.cluster, c.gateway, c.node, got, c.want)
		}
	}
}

func TestPlanGateway(t *testing.T) {
	a, b := gatewayCluster(1, 2, 2), gatewayCluster(2, 0, 2)
	b.Topology = clustermesh.TopologyMesh
	for _, n := range b.Nodes {
		n.Gateway = false
	}
	a.Nodes[0].WireGuardEndpoint = "203.0.113.9:40000" // seen from afar
	a.Nodes[1].WireGuardEndpoint = ""                  // behind NAT
	clusters := []PlanCluster{a, b}
	for _, c := range []struct {
		at, n int
		down  map[NodeKey]bool
		want  string
	}{
		{0, 2, nil, `n1 endpoint=192.168.1.1:51820 allowed=10.1.1.0/24,10.2.1.0/24,10.2.2.0/24
n2 endpoint=192.168.1.2:51820 allowed=10.1.2.0/24
`},
		{0, 2, map[NodeKey]bool{{1, 1}: true}, `n1 endpoint=192.168.1.1:51820 allowed=10.1.1.0/24
n2 endpoint=192.168.1.2:51820 allowed=10.1.2.0/24,10.2.1.0/24,10.2.2.0/24
`},
		{0, 0, nil, `n1b endpoint=192.0.2.1:51820 allowed=10.2.1.0/24
n2 endpoint=192.168.1.2:51820 allowed=10.1.2.0/24
n2b endpoint=192.0.2.2:51820 allowed=10.2.2.0/24
n3 endpoint=192.168.1.3:51820 allowed=10.1.3.0/24
n4 endpoint=192.168.1.4:51820 allowed=10.1.4.0/24
`},
		{1, 0, nil, `n1 endpoint=203.0.113.9:40000 allowed=10.1.1.0/24,10.1.3.0/24,10.1.4.0/24
n2 endpoint= allowed=10.1.2.0/24
`},
		{1, 0, map[NodeKey]bool{{1, 1}: true}, `n1 endpoint=203.0.113.9:40000 allowed=10.1.1.0/24
n2 endpoint= allowed=10.1.2.0/24,10.1.3.0/24,10.1.4.0/24
`},
	} {
		peers, routes, problems := planAt(clusters, c.at, c.n, c.down)
		if len(problems) > 0 {
			t.Errorf("%+v", problems)
		}
		var lines []string
		for key, row := range peers {
			name := fmt.Sprintf("n%d", key[1])
			if key[0] == 2 {
				name += "b"
			}
			end := ""
			if row.Endpoint.IsValid() {
				end = row.Endpoint.String()
			}
			lines = append(lines, fmt.Sprintf("%s endpoint=%s allowed=%s\n", name, end, row.Allowed))
		}
		slices.Sort(lines)
		if got := strings.Join(lines, ""); got != c.want {
			t.Errorf("node %d of cluster %d has peers\n%swant\n%s", c.n+1, c.at+1, got, c.want)
		}
		// A node that is no gateway reaches its own neighbours as ever.
		_, direct := routes[RouteKey{MakePrefix(netip.MustParsePrefix("10.1.4.0/24")), RouteDirect}]
		if want := c.at == 0 && c.n == 2; direct != want {
			t.Errorf("node %d of cluster %d: direct route to n4 %v, want %v", c.n+1, c.at+1, direct, want)
		}
	}
}

// Where another CNI carries what goes between pods of the cluster, a gateway takes
// the pods' packets from its nodes and has no routes to them.
func TestPlanGatewayChained(t *testing.T) {
	gw, inner := chainedNodeOf(1, 1, "10.255.0.1", "10.1.7.1"), chainedNodeOf(1, 2, "10.255.0.2", "10.1.200.1", "10.1.3.9")
	gw.Gateway = true
	for _, n := range []*clustermesh.Node{gw, inner} {
		n.UnderlayAddresses = []netip.Addr{netip.MustParseAddr(fmt.Sprintf("192.168.0.%d", n.Number))}
	}
	in := PlanInput{OwnID: 1, Topology: clustermesh.TopologyGateway, OwnNodes: []*clustermesh.Node{gw, inner}, Chained: true,
		OwnPrefixes: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.255.0.0/24")},
		OnLink:      []netip.Prefix{netip.MustParsePrefix("192.168.0.0/24")}, Remote: []PlanCluster{planCluster(2, planNode(2, 1, "10.2.1.0/24"))}}
	for _, c := range []struct {
		own            *clustermesh.Node
		allowed, route string
	}{
		{gw, "10.1.3.9/32,10.1.200.1/32,10.255.0.2/32 10.2.1.0/24", "10.255.0.2/32"},
		{inner, "10.2.1.0/24,10.255.0.1/32", "10.255.0.1/32"},
	} {
		in.Own = c.own
		peers, routes, problems := Plan(in)
		var allowed, led []string
		for _, row := range peers {
			allowed = append(allowed, row.Allowed)
		}
		slices.Sort(allowed)
		for k := range routes {
			if k.Kind == RouteTunnel || k.Kind == RouteDirect {
				led = append(led, k.Prefix.Netip().String())
			}
		}
		slices.Sort(led)
		if got := strings.Join(allowed, " "); got != c.allowed || len(problems) > 0 {
			t.Errorf("%s: peers carry %q, want %q; %v", c.own.Name, got, c.allowed, problems)
		}
		if got := strings.Join(led, " "); got != "10.2.1.0/24 "+c.route {
			t.Errorf("%s: routes to %q", c.own.Name, got)
		}
	}
}

// Without a gateway nothing is sent, and that is said.
func TestPlanNoGateway(t *testing.T) {
	clusters := []PlanCluster{gatewayCluster(1, 0, 2), gatewayCluster(2, 1, 1)}
	for at, want := range []string{"no gateway leads to cluster c2", "cluster c1 has no gateway for 2 nodes"} {
		peers, routes, problems := planAt(clusters, at, 0, nil)
		if len(problems) != 1 || problems[0].What != want {
			t.Errorf("problems %+v, want %s", problems, want)
		}
		for k := range routes {
			if k.Kind == RouteTunnel && k.Prefix.Netip().Overlaps(clusters[1-at].PodPrefixes[0]) {
				t.Errorf("a tunnel route %v", k)
			}
		}
		if at == 0 && len(peers) > 0 {
			t.Errorf("peers:\n%s", PeerText.Print(peers))
		}
	}
	// Nobody can send first.
	clusters = []PlanCluster{gatewayCluster(1, 1, 1), gatewayCluster(2, 1, 1)}
	clusters[0].Nodes[0].WireGuardEndpoint, clusters[1].Nodes[0].WireGuardEndpoint = "", ""
	if _, _, problems := planAt(clusters, 0, 0, nil); len(problems) != 1 || !strings.Contains(problems[0].Why, "behind NAT") {
		t.Errorf("%+v", problems)
	}
}

// spot is a node by its place among clusters, and in its cluster.
type spot struct{ at, n int }

func where(clusters []PlanCluster, key PeerKey) spot {
	for at, c := range clusters {
		for n, node := range c.Nodes {
			if PeerKey(node.WireGuardKey) == key {
				return spot{at, n}
			}
		}
	}
	return spot{-1, -1}
}

func peerFor(peers map[PeerKey]PeerRow, a netip.Addr) (PeerKey, bool) {
	for key, row := range peers {
		for p := range allowedPrefixes(row) {
			if p.Contains(a) {
				return key, true
			}
		}
	}
	return PeerKey{}, false
}

// Whatever the clusters look like: a packet from any node to any node of another
// cluster comes there, each hop accepts it from the hop before (what WireGuard
// checks), over one gateway of each side at most and none that is down while
// another is up; a node behind gateways has only these as peers; every prefix of
// another cluster has a blackhole, and is allowed to one peer at most.
func TestPlanGatewayProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var clusters []PlanCluster
		down := map[NodeKey]bool{}
		for id := 1; id <= 3; id++ {
			c := gatewayCluster(id, rapid.IntRange(1, 3).Draw(t, "gateways"), rapid.IntRange(0, 3).Draw(t, "nodes"))
			if rapid.Bool().Draw(t, "mesh") {
				c.Topology = clustermesh.TopologyMesh // labels mean nothing then
			}
			for _, n := range c.Nodes {
				if rapid.IntRange(0, 3).Draw(t, "down") == 0 {
					down[NodeKey{uint16(id), n.Number}] = true
				}
			}
			clusters = append(clusters, c)
		}
		plans := map[spot]map[PeerKey]PeerRow{}
		for at, c := range clusters {
			for n, node := range c.Nodes {
				peers, routes, problems := planAt(clusters, at, n, down)
				if len(problems) > 0 {
					t.Fatalf("%+v", problems)
				}
				plans[spot{at, n}] = peers
				seen := map[netip.Prefix]bool{}
				for key, row := range peers {
					for p := range allowedPrefixes(row) {
						if seen[p] {
							t.Fatalf("%v twice", p)
						}
						seen[p] = true
					}
					if to := where(clusters, key); c.Topology == clustermesh.TopologyGateway && !node.Gateway && (to.at != at || !c.Nodes[to.n].Gateway) {
						t.Fatalf("node %d of cluster %d has node %d of cluster %d as a peer", n+1, at+1, to.n+1, to.at+1)
					}
				}
				for i, other := range clusters {
					for _, far := range other.Nodes {
						if _, ok := routes[RouteKey{MakePrefix(far.PodPrefixes[0]), RouteBlackhole}]; i != at && !ok {
							t.Fatalf("no blackhole for %v", far.PodPrefixes[0])
						}
					}
				}
			}
		}
		travel(t, clusters, plans, down)
	})
}

// travel sends a packet from every node to every node of other clusters.
func travel(t *rapid.T, clusters []PlanCluster, plans map[spot]map[PeerKey]PeerRow, down map[NodeKey]bool) {
	live := func(at int) bool {
		for _, g := range gatewaysOf(clusters[at].Nodes) {
			if !down[NodeKey{uint16(clusters[at].ID), g.Number}] {
				return true
			}
		}
		return false
	}
	for from := range plans {
		for to := range plans {
			if from.at == to.at {
				continue
			}
			src, dst := clusters[from.at].Nodes[from.n].TunnelAddresses[0], clusters[to.at].Nodes[to.n].TunnelAddresses[0]
			at, hops := from, 0
			for at != to {
				key, ok := peerFor(plans[at], dst)
				if hops++; !ok || hops > 3 {
					t.Fatalf("from %v to %v: stuck at %v after %d hops", from, to, at, hops)
				}
				next := where(clusters, key)
				sender := PeerKey(clusters[at.at].Nodes[at.n].WireGuardKey)
				if accepted, _ := peerFor(plans[next], src); accepted != sender {
					t.Fatalf("from %v to %v: %v does not take %v from %v", from, to, next, src, at)
				}
				if g := clusters[next.at].Nodes[next.n]; next != to && down[NodeKey{uint16(clusters[next.at].ID), g.Number}] && live(next.at) {
					t.Fatalf("from %v to %v by gateway %v, which is down", from, to, next)
				}
				at = next
			}
		}
	}
}

// A gateway that goes takes its own share along and moves nobody else's.
func TestGatewayShares(t *testing.T) {
	c := gatewayCluster(1, 4, 240)
	before := newCarriers(1, c.Nodes, nil)
	after := newCarriers(1, c.Nodes, map[NodeKey]bool{{1, 2}: true})
	share := map[string]int{}
	for _, n := range c.Nodes[4:] {
		was, is := before.of(n), after.of(n)
		share[was.Name]++
		if was.Number != 2 && was != is || is.Number == 2 {
			t.Errorf("%s was behind %s and is behind %s", n.Name, was.Name, is.Name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(share)) {
		if share[name] < 35 || share[name] > 85 {
			t.Errorf("%s carries %d of 240", name, share[name])
		}
	}
	all := map[NodeKey]bool{{1, 1}: true, {1, 2}: true, {1, 3}: true, {1, 4}: true}
	if got, want := newCarriers(1, c.Nodes, all).of(c.Nodes[9]), before.of(c.Nodes[9]); got != want {
		t.Errorf("all down: %s, want %s as if none were", got.Name, want.Name)
	}
}
