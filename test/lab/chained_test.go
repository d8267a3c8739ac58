package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// chainedRig is two joined clusters of two nodes each, whose pods the reference
// plugin ptp connects:
//
//	aws: host-local, a range of each node, here and there in the cluster's prefix
//	gcp: static: whatever address of the cluster's prefix a pod is given
//
// What goes between nodes of one cluster the test's routes carry, as the other CNI
// would. Every node has the rules in its way that other CNIs and kube-proxy bring:
// pods are masqueraded outside of their cluster, and what conntrack takes for invalid
// is dropped.
func chainedRig(t *testing.T) *rig {
	t.Helper()
	for _, p := range []string{"ptp", "host-local", "static"} {
		if _, err := os.Stat(filepath.Join(CNIDir, p)); err != nil {
			t.Skipf("needs the reference CNI plugins: %v (Debian: containernetworking-plugins)", err)
		}
	}
	r := newEmptyRig(t, Options{})
	r.a, r.b = must(r.AddCluster("aws", 2))(t), must(r.AddCluster("gcp", 2))(t)
	noError(t, r.a.Chain(func(p *Pod) Object {
		var ranges [][]Object
		for _, prefix := range rangesOf(p.node) {
			ranges = append(ranges, []Object{{"subnet": prefix.String()}})
		}
		return ptp(Object{"type": "host-local", "dataDir": filepath.Join(p.node.Dir, "host-local"), "ranges": ranges})
	}))
	given := map[string]int{}
	noError(t, r.b.Chain(func(p *Pod) Object {
		if given[p.Name] == 0 {
			given[p.Name] = len(given) + 1
		}
		var list []Object
		for _, a := range staticAddresses(given[p.Name]) {
			pods, _ := p.node.cluster.ChainedPrefixes()
			prefix := pods[0] // ptp routes to all of it by the host's end, which has its first address
			if a.Is6() {
				prefix = pods[1]
			}
			list = append(list, Object{"address": netip.PrefixFrom(a, prefix.Bits()).String(), "gateway": prefix.Addr().Next().String()})
		}
		return ptp(Object{"type": "static", "addresses": list})
	}))
	for _, c := range r.Clusters() {
		for _, n := range c.Nodes {
			r.obstruct(n)
		}
	}
	for _, n := range r.a.Nodes {
		for _, other := range r.a.Nodes {
			if n != other {
				for _, prefix := range rangesOf(other) {
					r.routeTo(n, prefix, other)
				}
			}
		}
	}
	errs := make(chan error, 2)
	for _, c := range r.Clusters() {
		go func() { errs <- c.Start(r.ctx) }()
	}
	noError(t, errors.Join(<-errs, <-errs))
	_, _, err := r.b.Join(r.ctx, r.a)
	noError(t, err)
	return r
}

func ptp(ipam Object) Object {
	ipam["routes"] = []Object{{"dst": "0.0.0.0/0"}, {"dst": "::/0"}}
	return Object{"type": "ptp", "mtu": 1500, "ipam": ipam}
}

// rangesOf are a node's in aws: no prefix of the node's that anybody is told of.
func rangesOf(n *Node) []netip.Prefix {
	id, nr := byte(n.cluster.ID), byte(n.Number)
	return []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, id, 77 * nr, 64}), 26), netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0, 0, id, 0, 0, 0x77, nr}), 64)}
}

// staticAddresses are those of the i-th pod of gcp.
func staticAddresses(i int) []netip.Addr {
	return []netip.Addr{netip.AddrFrom4([4]byte{10, 2, byte(59 * i), byte(101 * i)}), netip.AddrFrom16([16]byte{0xfd, 0, 0, 2, 0, 0, 0, byte(59 * i), 15: byte(i)})}
}

func (r *rig) nodeRuns(n *Node, argv ...string) {
	r.t.Helper()
	_, err := n.host.run(r.ctx, nil, "", argv...)
	noError(r.t, err)
}

func (r *rig) routeTo(n *Node, prefix netip.Prefix, other *Node) {
	r.t.Helper()
	via := other.Underlay()
	if prefix.Addr().Is6() {
		via = other.Underlay6()
	}
	r.nodeRuns(n, "ip", "route", "add", prefix.String(), "via", via.String())
}

// obstruct puts a node's stack into the state in which others leave it.
func (r *rig) obstruct(n *Node) {
	r.t.Helper()
	pods, _ := n.cluster.ChainedPrefixes()
	_, err := n.host.run(r.ctx, nil, fmt.Sprintf(`
table inet other {
	chain postrouting {
		type nat hook postrouting priority srcnat;
		ip saddr %[1]s ip daddr != %[1]s masquerade
		ip6 saddr %[2]s ip6 daddr != %[2]s masquerade
	}
	chain forward {
		type filter hook forward priority filter;
		ct state invalid drop
	}
}`, pods[0], pods[1]), "nft", "-f", "-")
	noError(r.t, err)
}

// chainedServer adds a pod to a node, and where its cluster has no routes for
// ranges of nodes, routes to its addresses.
func (r *rig) chainedServer(n *Node, name string, labels map[string]string) *Pod {
	r.t.Helper()
	p := must(n.AddPod(r.ctx, PodSpec{Name: name, Labels: labels, Port: checkoutPort, Argv: ServeArgv(n.cluster.Name+"/"+name, checkoutPort)}))(r.t)
	if n.cluster != r.b {
		return p
	}
	for _, other := range n.cluster.Nodes {
		for _, a := range p.Addresses {
			if other != n {
				r.routeTo(other, netip.PrefixFrom(a, a.BitLen()), n)
			}
		}
	}
	return p
}

// Everything there is, with another CNI in charge of interfaces and addresses.
func TestChained(t *testing.T) {
	t.Parallel()
	r := chainedRig(t)
	shop := map[string]string{"app": "checkout"}
	client, near := r.chainedServer(r.a.Nodes[0], "client", map[string]string{"role": "client"}), r.chainedServer(r.a.Nodes[0], "near", shop)
	far := r.chainedServer(r.a.Nodes[1], "far", shop)
	there, beside := r.chainedServer(r.b.Nodes[0], "there", shop), r.chainedServer(r.b.Nodes[1], "beside", map[string]string{"role": "client"})
	for _, c := range r.Clusters() {
		noError(t, c.Apply("service-checkout", checkoutObject(nil)))
	}
	for _, p := range []*Pod{client, near, far, there, beside} {
		noError(t, p.CNI(r.ctx, "CHECK"))
	}
	n1 := r.a.Nodes[0]
	r.families(func(r *rig, pick func([]netip.Addr) netip.Addr) {
		at := func(p *Pod) netip.AddrPort { return netip.AddrPortFrom(pick(p.Addresses), checkoutPort) }
		for _, network := range []string{"tcp", "udp"} {
			for _, c := range []struct {
				from, to *Pod
			}{{client, near}, {client, far}, {far, client}, {client, there}, {client, beside}, {there, client}, {beside, far}, {there, beside}} {
				if got := r.allowed(atPod(c.from), network, at(c.to)); got.who != c.to.node.cluster.Name+"/"+c.to.Name || got.from != pick(c.from.Addresses) {
					r.t.Errorf("%s from %s to %s: answered by %s, which saw %s", network, c.from.Name, c.to.Name, got.who, got.from)
				}
			}
		}
		// Segments of the pods' MTU do not fit the tunnel, whose MTU is smaller.
		for _, to := range []*Pod{near, far, there} {
			r.eventually(15*time.Second, "a long answer of "+to.Name, func() error { return long(client, at(to)) })
		}
		service := netip.AddrPortFrom(pick(addrs(checkout4, checkout6)), 80)
		r.everybody(atPod(client), service, 3) // per packet
		r.hostReaches(n1, []*Pod{near, far, there}, pick, service, 3)
		r.t.Run("sockets", func(t *testing.T) {
			r := r.in(t)
			c := must(client.Client("pod-client", ClientOptions{Target: service.String(), Interval: 20 * time.Millisecond}))(t)
			seen := map[string]bool{}
			for len(seen) < 3 {
				res := must(c.Await(r.ctx, "all three backends", time.Now(), func(res Result) bool { return res.OK() && !seen[res.Who] }))(t)
				seen[res.Who] = true
			}
			c.Process.Kill()
		})
	})
	r.chainedPolicy(client, near, far, there, beside)
	r.chainedRestart(client, there)
	r.chainedEnd(client, near, there)
}

// everybody asks until n different pods have answered.
func (r *rig) everybody(at place, to netip.AddrPort, n int) {
	r.t.Helper()
	seen := map[string]bool{}
	r.eventually(20*time.Second, fmt.Sprintf("%s is answered by %d pods at %s", at.name, n, to), func() error {
		for range 20 {
			got, err := at.call("tcp", to, callTimeout)
			if err != nil {
				return err
			}
			seen[got.who] = true
		}
		if len(seen) < n {
			return fmt.Errorf("so far by %v", seen)
		}
		return nil
	})
}

// long asks with a line of many segments, and reads it back.
func long(from *Pod, to netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	conn, err := from.Dial(ctx, "tcp", to.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(callTimeout))
	line := strings.Repeat("x", 40_000)
	if _, err := fmt.Fprintln(conn, line); err != nil {
		return err
	}
	text, err := bufio.NewReaderSize(conn, 1<<16).ReadString('\n')
	if err == nil && !strings.Contains(text, line) {
		err = fmt.Errorf("%d bytes of another answer", len(text))
	}
	return err
}

// Policy goes by identities, on the same node, across nodes and across clusters.
func (r *rig) chainedPolicy(client, near, far, there, beside *Pod) {
	r.t.Run("policy", func(t *testing.T) {
		r := r.in(t)
		noError(t, r.a.Apply("policy", Manifest(Object{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": Object{"name": "shop", "namespace": "default"},
			"spec": Object{"podSelector": Object{"matchLabels": Object{"app": "checkout"}}, "policyTypes": []string{"Ingress"},
				"ingress": []Object{{"from": []Object{{"podSelector": Object{"matchLabels": Object{"role": "client", "tombolo.io/cluster": "gcp"}}}}}}}})))
		var list []expectation
		for _, to := range []*Pod{near, far} {
			for _, a := range to.Addresses {
				at := netip.AddrPortFrom(a, checkoutPort)
				list = append(list, expectation{atPod(client), "tcp", at, false}, expectation{atPod(there), "tcp", at, false}, expectation{atPod(beside), "tcp", at, true},
					expectation{atNode(to.node), "tcp", at, true}) // a node and its own pods
			}
		}
		r.expect(list)
		noError(t, r.a.Unapply("policy"))
		r.allowed(atPod(client), "tcp", netip.AddrPortFrom(near.Addresses[0], checkoutPort))
	})
}

// An agent that was killed keeps what there is: connections live on meanwhile, and
// its successor knows the pods.
func (r *rig) chainedRestart(client, there *Pod) {
	r.t.Run("restart", func(t *testing.T) {
		r := r.in(t)
		n := client.node
		c := must(client.Client("kept", ClientOptions{Target: netip.AddrPortFrom(there.Addresses[0], checkoutPort).String(), Interval: 20 * time.Millisecond, Keep: true}))(t)
		must(c.AwaitMore(r.ctx, time.Now(), 5))(t)
		begin := time.Now()
		n.Agent().Kill()
		noError(t, n.StartAgent(r.ctx))
		must(c.AwaitMore(r.ctx, time.Now(), 20))(t)
		if lost := Failed(c.Since(begin)); lost != 0 {
			t.Errorf("%d requests failed while the agent was away", lost)
		}
		c.Process.Kill()
		noError(t, client.CNI(r.ctx, "CHECK"))
		r.allowed(atPod(there), "tcp", netip.AddrPortFrom(client.Addresses[0], checkoutPort))
		if out := must(n.host.run(r.ctx, nil, "", "ip", "link"))(t); strings.Count(out, "tombolo-chained ") != 2 {
			t.Errorf("two devices should be marked:\n%s", out)
		}
	})
}

// Pods that end take their addresses out of the mesh, and a new one is in it at once.
func (r *rig) chainedEnd(client, near, there *Pod) {
	r.t.Run("end", func(t *testing.T) {
		r := r.in(t)
		gone := near.Addresses[0]
		noError(t, near.Remove(r.ctx))
		n := there.node
		r.eventually(10*time.Second, "the other cluster has no way to the pod that is gone", func() error {
			if peers := r.table(n, "peers"); strings.Contains(peers, gone.String()+"/32") {
				return errors.New(peers)
			}
			return nil
		})
		if routes := r.table(client.node, "routes"); strings.Contains(routes, "unreachable") || strings.Contains(routes, " pod ") || strings.Contains(routes, " pod\n") {
			t.Errorf("routes that are the other CNI's:\n%s", routes)
		}
		begin := time.Now()
		fresh := r.chainedServer(client.node, "fresh", nil)
		added := time.Now()
		got := r.allowed(atPod(there), "tcp", netip.AddrPortFrom(fresh.Addresses[0], checkoutPort))
		t.Logf("ADD took %s, reachable from the other cluster after %s more", added.Sub(begin), time.Since(added))
		if got.who != "aws/fresh" || !slices.Contains(there.Addresses, got.from) {
			t.Errorf("%+v", got)
		}
		if n := strings.Count(r.table(client.node, "endpoints"), "\n"); n != 4 {
			t.Errorf("%d endpoints, want those of two pods, dual stack:\n%s", n, r.table(client.node, "endpoints"))
		}
	})
}
