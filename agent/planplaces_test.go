package agent

import (
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// A remote pod prefix over the underlay takes no route of this node away.
func TestPlanKeepsTheUnderlayReachable(t *testing.T) {
	own, far := planNode(1, 1, "10.1.1.0/24"), planNode(1, 2, "10.1.2.0/24")
	own.UnderlayAddresses = []netip.Addr{netip.MustParseAddr("172.20.0.1"), netip.MustParseAddr("2001:db8::1")}
	far.WireGuardEndpoint = "198.51.100.2:51820" // not on this link: a tunnel of the own cluster
	remote := func(prefix string, nodes ...*clustermesh.Node) PlanCluster {
		return PlanCluster{Name: "gcp", ID: 2, PodPrefixes: []netip.Prefix{netip.MustParsePrefix(prefix)}, Nodes: nodes}
	}
	at := func(n *clustermesh.Node, endpoint string) *clustermesh.Node { n.WireGuardEndpoint = endpoint; return n }
	const ours = "10.1.2.0/24 blackhole\n10.1.2.0/24 tunnel src=10.1.1.1 mtu=1420\n"
	for name, c := range map[string]struct {
		remote  PlanCluster
		problem string
		routes  string
	}{
		"fine": {remote("10.2.0.0/16", planNode(2, 1, "10.2.1.0/24")), "",
			"10.2.0.0/16 blackhole\n10.2.1.0/24 blackhole\n10.2.1.0/24 tunnel src=10.1.1.1 mtu=1420\n"},
		"own node":       {remote("172.16.0.0/12"), "pod prefix 172.16.0.0/12 of cluster gcp contains 172.20.0.1, underlay address of node n1", ""},
		"own node, IPv6": {remote("2001:db8::/32"), "pod prefix 2001:db8::/32 of cluster gcp contains 2001:db8::1, underlay address of node n1", ""},
		"own tunnel":     {remote("198.51.100.0/24"), "pod prefix 198.51.100.0/24 of cluster gcp contains 198.51.100.2, WireGuard endpoint of node n2", ""},
		"own node, by a node": {remote("172.0.0.0/24", planNode(2, 1, "172.20.0.0/24")),
			"pod prefix 172.20.0.0/24 of node gcp/n1 contains 172.20.0.1", "172.0.0.0/24 blackhole\n"},
		// Its nodes among its pods: the tunnels to its pods stay, as none is over a node.
		"its own nodes": {remote("10.2.0.0/16", at(planNode(2, 1, "10.2.1.0/24"), "10.2.200.1:51820")),
			"pod prefix 10.2.0.0/16 of cluster gcp contains 10.2.200.1, WireGuard endpoint of node gcp/n1",
			"10.2.1.0/24 blackhole\n10.2.1.0/24 tunnel src=10.1.1.1 mtu=1420\n"},
		"its own node in its prefix": {remote("10.2.0.0/16", at(planNode(2, 1, "10.2.1.0/24"), "10.2.1.77:51820")),
			"pod prefix 10.2.1.0/24 of node gcp/n1 contains 10.2.1.77", "10.2.1.0/24 blackhole\n"},
	} {
		t.Run(name, func(t *testing.T) {
			// A third one that says its node is where gcp has pods changes nothing for gcp.
			liar := PlanCluster{Name: "liar", ID: 9, PodPrefixes: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}, Nodes: []*clustermesh.Node{at(planNode(9, 1), "10.2.1.5:51820")}}
			peers, routes, problems := Plan(PlanInput{Own: own, OwnNodes: []*clustermesh.Node{own, far}, Remote: []PlanCluster{liar, c.remote}})
			var text strings.Builder
			for _, p := range problems {
				if p.Why == "" || p.Fix == "" {
					t.Errorf("no why or fix: %v", p)
				}
				text.WriteString(p.What + "\n")
			}
			if !strings.Contains(text.String(), c.problem) || c.problem == "" && text.Len() > 0 {
				t.Errorf("problems:\n%swant %q", text.String(), c.problem)
			}
			got := RouteText.Print(routes)
			for _, known := range append(strings.SplitAfter(ours, "\n"), "10.9.0.0/16 blackhole\n", "10.1.1.0/24 unreachable\n") {
				if !strings.Contains(got, known) {
					t.Errorf("route %q is gone", known)
				}
				got = strings.Replace(got, known, "", 1)
			}
			if got != c.routes {
				t.Errorf("routes:\n%swant\n%s", got, c.routes)
			}
			for _, row := range peers {
				for p := range allowedPrefixes(row) {
					if p.Contains(own.UnderlayAddresses[0]) || p.Contains(own.UnderlayAddresses[1]) {
						t.Errorf("a peer may carry %v", p)
					}
				}
			}
		})
	}
}

// The search agrees with looking at every place.
func TestPlacesInPrefix(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(label string) netip.Addr {
			if rapid.Bool().Draw(t, label+" is IPv4") {
				return netip.AddrFrom4([4]byte{10, byte(rapid.IntRange(0, 3).Draw(t, label)), 0, byte(rapid.IntRange(0, 3).Draw(t, label))})
			}
			return netip.AddrFrom16([16]byte{0xfd, byte(rapid.IntRange(0, 3).Draw(t, label)), 15: byte(rapid.IntRange(0, 3).Draw(t, label))})
		}
		var ps places
		for range rapid.IntRange(0, 6).Draw(t, "places") {
			ps = append(ps, place{addr: draw("place")})
		}
		ps.sorted()
		prefix := netip.PrefixFrom(draw("prefix"), rapid.SampledFrom([]int{0, 8, 15, 16, 30, 32}).Draw(t, "bits"))
		_, got := ps.in(prefix)
		want := false
		for _, p := range ps {
			want = want || prefix.Contains(p.addr)
		}
		if got != want {
			t.Fatalf("%v in %v: %v", ps, prefix, got)
		}
	})
}
