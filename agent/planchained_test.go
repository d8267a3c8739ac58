package agent

import (
	"net/netip"
	"testing"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// chainedNodeOf has a tunnel address and the addresses of its pods.
func chainedNodeOf(cluster, n int, tunnel string, pods ...string) *clustermesh.Node {
	node := planNode(cluster, n)
	for _, a := range append([]string{tunnel}, pods...) {
		node.PodPrefixes = append(node.PodPrefixes, netip.PrefixFrom(netip.MustParseAddr(a), 32))
	}
	node.TunnelAddresses = []netip.Addr{netip.MustParseAddr(tunnel)}
	return node
}

// With another CNI in charge, pods of the own cluster have neither routes nor peers:
// tunnel addresses alone do. Another cluster's node has what it says, one by one.
func TestPlanChained(t *testing.T) {
	own := chainedNodeOf(1, 1, "10.255.0.1", "10.1.7.1")
	near := chainedNodeOf(1, 2, "10.255.0.2", "10.1.200.1", "10.1.3.9")
	near.UnderlayAddresses = []netip.Addr{netip.MustParseAddr("192.168.0.2")}
	far := chainedNodeOf(1, 3, "10.255.0.3", "10.1.7.2")
	remote := chainedNodeOf(2, 1, "10.254.0.1", "10.2.9.9", "10.2.0.7")
	in := PlanInput{Own: own, OwnNodes: []*clustermesh.Node{own, near, far}, Chained: true, UnderlayMTU: 1500,
		OwnPrefixes: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.255.0.0/24")},
		OnLink:      []netip.Prefix{netip.MustParsePrefix("192.168.0.0/24")},
		Remote: []PlanCluster{{Name: "gcp", ID: 2, Nodes: []*clustermesh.Node{remote},
			PodPrefixes: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16"), netip.MustParsePrefix("10.254.0.0/24")}}}}
	peers, routes, problems := Plan(in)
	if len(problems) != 0 {
		t.Errorf("%+v", problems)
	}
	if len(peers) != 2 || peers[far.WireGuardKey].Allowed != "10.255.0.3/32" || peers[remote.WireGuardKey].Allowed != "10.2.0.7/32,10.2.9.9/32,10.254.0.1/32" {
		t.Errorf("peers:\n%s", PeerText.Print(peers))
	}
	want := "10.2.0.0/16 blackhole\n" +
		"10.2.0.7/32 blackhole\n10.2.0.7/32 tunnel src=10.255.0.1 mtu=1420\n" +
		"10.2.9.9/32 blackhole\n10.2.9.9/32 tunnel src=10.255.0.1 mtu=1420\n" +
		"10.254.0.0/24 blackhole\n10.254.0.1/32 blackhole\n10.254.0.1/32 tunnel src=10.255.0.1 mtu=1420\n" +
		"10.255.0.2/32 direct via=192.168.0.2 src=10.255.0.1\n" +
		"10.255.0.3/32 blackhole\n10.255.0.3/32 tunnel src=10.255.0.1 mtu=1420\n"
	if got := RouteText.Print(routes); got != want {
		t.Errorf("routes:\n%swant:\n%s", got, want)
	}
	// Another cluster cannot take an address of this one.
	remote.PodPrefixes = append(remote.PodPrefixes, netip.MustParsePrefix("10.1.7.1/32"))
	if _, routes, problems := Plan(in); len(problems) != 1 || len(routes) != 11 {
		t.Errorf("%+v\n%s", problems, RouteText.Print(routes))
	}
}

// What the host has besides counts as the host, whenever it is said, and until it is
// said no more.
func TestHostAddressRows(t *testing.T) {
	gateway := netip.MustParsePrefix("10.1.9.1/32")
	here := rigNode("n1", 1, "a")
	r := newStateRig(t, func(c *Config) { c.Chained = true })
	want := func(when string, there bool) {
		t.Helper()
		row, ok := r.s.wantedIP(gateway)
		if ok != there || there && (row.Identity != uint32(clustermesh.IdentityHost) || row.Node != 1) {
			t.Errorf("%s: %+v %v", when, row, ok)
		}
	}
	r.s.SetHostAddresses([]netip.Addr{gateway.Addr()})
	want("said", true)
	r.s.SetPods(nil)
	want("pods were said", true)
	r.delete(here)
	want("without a node", false)
	r.put(here)
	want("the node is back", true)
	r.s.SetHostAddresses(nil)
	want("said no more", false)
}
