package lab

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
)

// natBefore puts a cluster's tunnels behind NAT: what its nodes send from their
// WireGuard port to other clusters comes from the router's address, and nobody
// reaches them who was not sent to before.
func (c *Cluster) natBefore(r *rig) error {
	v4, _ := underlayPrefixes(c.ID)
	rules := fmt.Sprintf(`table ip nat_before_%[1]s {
	chain leaving { type nat hook postrouting priority srcnat; ip saddr %[2]s ip daddr != %[2]s udp sport %[3]d masquerade; }
	chain entering { type filter hook forward priority filter; ip saddr != %[2]s ip daddr %[2]s udp dport %[3]d ct state new drop; }
}`, c.Name, v4, WireGuardPort)
	_, err := r.under.run(r.ctx, nil, rules, "nft", "-f", "-")
	return err
}

// longest is the longest time without an answer since at, by when requests began.
func longest(results []Result, at time.Time) (gap time.Duration) {
	last := at
	for _, res := range results {
		if res.OK() && res.Begin().After(last) {
			gap = max(gap, res.Begin().Sub(last))
			last = res.Begin()
		}
	}
	return gap
}

// newGatewayMesh is a cluster with gateways n1 and n2, a node behind them, and NAT
// in front, and one whose nodes are peers themselves.
func newGatewayMesh(t *testing.T) *rig {
	t.Helper()
	r := newEmptyRig(t, Options{})
	r.a, r.b = must(r.AddCluster("aws", 3))(t), must(r.AddCluster("gcp", 2))(t)
	noError(t, r.a.natBefore(r))
	for i, n := range r.a.Nodes {
		o := NodeObject(n.Name, n.PodPrefixes())
		if i < 2 {
			o["metadata"] = Object{"name": n.Name, "labels": Object{"tombolo.io/gateway": "true"}, "annotations": Object{"tombolo.io/wireguard-endpoint": "none"}}
		}
		noError(t, r.a.Apply("node-"+n.Name, Manifest(o)))
	}
	r.a.extra = []string{"--topology", "gateway"}
	errs := make(chan error, 2)
	for _, c := range r.Clusters() {
		go func() { errs <- c.Start(r.ctx) }()
	}
	for range r.Clusters() {
		noError(t, <-errs)
	}
	_, _, err := r.b.Join(r.ctx, r.a)
	noError(t, err)
	r.awaitTunnels()
	return r
}

// A node behind gateways that are behind NAT reaches another cluster's, and is
// reached, never in clear, and by a gateway alone. The gateway dies: the standby
// takes over; it comes back, and has its share again.
func TestGateways(t *testing.T) {
	t.Parallel()
	r := newGatewayMesh(t)
	inner, far := r.a.Nodes[2], r.b.Nodes[0]
	const mark = "in-clear-7a44"
	capture := must(r.Capture(mark))(t)
	here := must(inner.AddPod(r.ctx, PodSpec{Name: "here", Port: checkoutPort, Argv: ServeArgv("aws/here", checkoutPort)}))(t)
	there := must(far.AddPod(r.ctx, PodSpec{Name: "there", Port: checkoutPort, Argv: ServeArgv("gcp/there", checkoutPort)}))(t)
	to := func(a netip.Addr, network string) ClientOptions {
		return ClientOptions{Target: net.JoinHostPort(a.String(), fmt.Sprint(checkoutPort)), Network: network, Mark: mark, Timeout: 300 * time.Millisecond}
	}
	for i := range there.Addresses {
		for _, network := range []string{"tcp", "udp"} {
			r.awaitPath(here, to(there.Addresses[i], network))
			r.allOK(r.ask(here, 20, to(there.Addresses[i], network)), "gcp")
			r.awaitPath(there, to(here.Addresses[i], network))
			r.allOK(r.ask(there, 20, to(here.Addresses[i], network)), "aws")
		}
	}
	// What fits into one tunnel fits into two.
	_, err := inner.host.run(r.ctx, nil, "", "ping", "-n", "-q", "-c", "1", "-W", "2", "-M", "do", "-s", fmt.Sprint(underlayMTU-80-28), far.PodPrefixes()[0].Addr().Next().String())
	noError(t, err)
	first := r.behind(inner)
	if peers := r.table(inner, agent.TablePeers); strings.Count(peers, "\n") != 2 || strings.Contains(peers, "10.102.") {
		t.Errorf("%s has peers other than the two gateways:\n%s", inner.Name, peers)
	}
	for _, n := range r.b.Nodes {
		if peers := r.table(n, agent.TablePeers); strings.Contains(peers, inner.Underlay().String()) || strings.Contains(peers, "10.101.") {
			t.Errorf("%s/%s knows more of aws than its gateways' keys:\n%s", r.b.Name, n.Name, peers)
		}
	}

	out := to(there.Addresses[0], "udp")
	out.Interval, out.Open = 10*time.Millisecond, true
	in := to(here.Addresses[0], "udp")
	in.Interval, in.Open = 10*time.Millisecond, true
	outward, inward := must(here.Client("outward", out))(t), must(there.Client("inward", in))(t)
	must(outward.AwaitMore(r.ctx, time.Now(), 20))(t)
	must(inward.AwaitMore(r.ctx, time.Now(), 20))(t)
	dead := r.a.Nodes[0]
	if first == r.a.Nodes[1].Name {
		dead = r.a.Nodes[1]
	}
	begin := time.Now()
	noError(t, dead.PowerOff())
	r.eventually(20*time.Second, "the standby takes over", func() error {
		if now := r.behind(inner); now == first {
			return fmt.Errorf("still behind %s", now)
		}
		return nil
	})
	for name, c := range map[string]*Client{"outward": outward, "inward": inward} {
		res := must(c.Await(r.ctx, name+" goes on", begin.Add(500*time.Millisecond), Result.OK))(t)
		must(c.AwaitMore(r.ctx, res.End, 100))(t)
	}
	t.Logf("gateway %s died: without an answer for %.2f s outward, %.2f s inward", first, longest(outward.Since(begin), begin).Seconds(), longest(inward.Since(begin), begin).Seconds())

	// It comes back. A return is damped, and each end finds it by itself.
	begin = time.Now()
	noError(t, dead.PowerOn(r.ctx))
	r.eventually(40*time.Second, "the gateway has its share again", func() error {
		if now := r.behind(inner); now != first {
			return fmt.Errorf("behind %s", now)
		}
		return nil
	})
	back := time.Now()
	r.awaitUp()
	for _, c := range []*Client{outward, inward} {
		must(c.Await(r.ctx, "goes on", time.Now(), Result.OK))(t)
	}
	must(outward.AwaitMore(r.ctx, time.Now(), 200))(t)
	t.Logf("gateway %s came back: behind it after %.2f s; without an answer for %.2f s outward, %.2f s inward", first, back.Sub(begin).Seconds(),
		longest(outward.Since(begin), begin).Seconds(), longest(inward.Since(begin), begin).Seconds())
	for _, c := range []*Client{outward, inward} {
		c.Process.Kill()
	}
	packets, marked, missed := capture.Count()
	if packets == 0 || marked+capture.Inside() > 0 || missed > 0 {
		t.Errorf("%d packets on the underlay; with the mark in clear %d between clusters, %d within one; %d missed", packets, marked, capture.Inside(), missed)
	}
	t.Logf("%d packets on the underlay, none in clear", packets)
}

// behind is the gateway that a node's agent says it is behind.
func (r *rig) behind(n *Node) string {
	r.t.Helper()
	return r.clusterStatus(n, n.cluster.Name).Gateway
}
