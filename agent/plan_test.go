package agent

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

func planNode(cluster, n int, prefixes ...string) *clustermesh.Node {
	node := &clustermesh.Node{Name: fmt.Sprintf("n%d", n), Number: uint16(n), WireGuardKey: [32]byte{byte(cluster), byte(n)}, WireGuardEndpoint: fmt.Sprintf("192.0.2.%d:51820", n)}
	for _, p := range prefixes {
		prefix := netip.MustParsePrefix(p)
		node.PodPrefixes = append(node.PodPrefixes, prefix)
		node.TunnelAddresses = append(node.TunnelAddresses, prefix.Addr().Next())
	}
	return node
}

func TestPlanMistakes(t *testing.T) {
	own := planNode(1, 1, "10.1.1.0/24")
	twin := planNode(2, 2, "10.2.2.0/24")
	twin.WireGuardKey = planNode(2, 1).WireGuardKey
	thief := planNode(2, 3, "10.2.1.0/24")
	named := planNode(2, 4, "10.2.4.0/24")
	named.WireGuardEndpoint = "node4.example:51820"
	remote := []PlanCluster{{Name: "gcp", PodPrefixes: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16")},
		Nodes: []*clustermesh.Node{thief, twin, named, planNode(2, 1, "10.2.1.0/24")}}}
	peers, routes, problems := Plan(PlanInput{Own: own, OwnNodes: []*clustermesh.Node{own}, Remote: remote, UnderlayMTU: 1450})
	var text strings.Builder
	for _, p := range problems {
		fmt.Fprintln(&text, p.What)
	}
	for _, want := range []string{"node gcp/n2 has the WireGuard key of node gcp/n1", "pod prefix 10.2.1.0/24 belongs to node gcp/n1 and to node gcp/n3", `endpoint "node4.example:51820"`} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no problem says %q:\n%s", want, text.String())
		}
	}
	if len(peers) != 3 {
		t.Errorf("peers:\n%s", PeerText.Print(peers))
	}
	want := "10.1.1.0/24 unreachable\n10.2.0.0/16 blackhole\n10.2.1.0/24 blackhole\n10.2.1.0/24 tunnel src=10.1.1.1 mtu=1370\n10.2.2.0/24 blackhole\n10.2.4.0/24 blackhole\n10.2.4.0/24 tunnel src=10.1.1.1 mtu=1370\n"
	if got := RouteText.Print(routes); got != want {
		t.Errorf("routes:\n%s", got)
	}
}

// TestPlanProperties: whatever the nodes, no prefix is allowed to two peers, every
// tunnel route has its blackhole and a peer that carries it, and the order of
// the input does not matter.
func TestPlanProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var in PlanInput
		for c := range 3 {
			var nodes []*clustermesh.Node
			for n := range rapid.IntRange(0, 4).Draw(t, "nodes") {
				node := planNode(c, n+1, fmt.Sprintf("10.%d.%d.0/24", c, rapid.IntRange(0, 3).Draw(t, "prefix")))
				node.WireGuardKey[1] = byte(rapid.IntRange(0, 5).Draw(t, "key"))
				if rapid.Bool().Draw(t, "near") {
					node.UnderlayAddresses = []netip.Addr{netip.MustParseAddr(fmt.Sprintf("192.168.0.%d", n+1))}
				}
				nodes = append(nodes, node)
			}
			if c == 0 {
				in.OwnNodes = nodes
				if len(nodes) > 0 {
					in.Own = nodes[0]
				}
				continue
			}
			in.Remote = append(in.Remote, PlanCluster{Name: fmt.Sprint("c", c), PodPrefixes: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/16", c))}, Nodes: nodes})
		}
		in.OnLink = []netip.Prefix{netip.MustParsePrefix("192.168.0.0/24")}
		peers, routes, _ := Plan(in)
		allowed := map[netip.Prefix]bool{}
		for _, row := range peers {
			for p := range allowedPrefixes(row) {
				if allowed[p] {
					t.Fatalf("%v is allowed to two peers", p)
				}
				allowed[p] = true
			}
		}
		for k := range routes {
			if k.Kind != RouteTunnel {
				continue
			}
			if _, ok := routes[RouteKey{k.Prefix, RouteBlackhole}]; !ok || !allowed[k.Prefix.Netip()] {
				t.Fatalf("route %v: blackhole %v, allowed %v", k, ok, allowed[k.Prefix.Netip()])
			}
		}
		for i := range in.Remote {
			in.Remote[i].Nodes = rapid.Permutation(in.Remote[i].Nodes).Draw(t, "order")
		}
		in.Remote, in.OwnNodes = rapid.Permutation(in.Remote).Draw(t, "order"), rapid.Permutation(in.OwnNodes).Draw(t, "order")
		peers2, routes2, _ := Plan(in)
		if !maps.Equal(peers, peers2) || !maps.Equal(routes, routes2) {
			t.Fatal("another order gave another plan")
		}
	})
}
