package lab

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// hostReaches makes sure that processes of a node, in no pod, reach pods (as the
// kubelet's probes do) and a service, all n of its backends, by their sockets.
func (r *rig) hostReaches(n *Node, pods []*Pod, pick func([]netip.Addr) netip.Addr, service netip.AddrPort, backends int) {
	r.t.Helper()
	for _, p := range pods {
		to := netip.AddrPortFrom(pick(p.Addresses), checkoutPort)
		if got := r.allowed(atNode(n), "tcp", to); got.who != p.node.cluster.Name+"/"+p.Name {
			r.t.Errorf("%s at %s was answered by %s", p.Name, to, got.who)
		}
	}
	for _, network := range []string{"tcp", "udp"} {
		to := service
		if network == "udp" {
			to = netip.AddrPortFrom(service.Addr(), 53)
		}
		c := must(n.Client(fmt.Sprintf("host-%s-%d", network, service.Addr().BitLen()), ClientOptions{Target: to.String(), Network: network, Interval: 20 * time.Millisecond}))(r.t)
		seen := map[string]bool{}
		for len(seen) < backends {
			res := must(c.Await(r.ctx, fmt.Sprintf("one of %d backends but %v", backends, seen), time.Now(), func(res Result) bool { return res.OK() && !seen[res.Who] }))(r.t)
			seen[res.Who] = true
		}
		c.Process.Kill()
	}
}

// The kubelet and other processes of a host reach pods here, on another node and in
// another cluster, and ClusterIPs.
func TestHostReaches(t *testing.T) {
	t.Parallel()
	r := newMesh(t, rigOptions{nodes: 2})
	r.families(func(r *rig, pick func([]netip.Addr) netip.Addr) {
		pods := append(append([]*Pod{}, r.servers[r.a]...), r.servers[r.b]...)
		for _, n := range r.a.Nodes {
			r.hostReaches(n, pods, pick, netip.AddrPortFrom(pick(addrs(checkout4, checkout6)), 80), len(pods))
		}
	})
}
