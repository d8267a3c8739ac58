package lab

import (
	"context"
	"fmt"

	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// netpol is a NetworkPolicy in namespace default.
func netpol(name string, spec Object) string {
	return Manifest(Object{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
		"metadata": Object{"name": name, "namespace": "default"}, "spec": spec})
}

func app(name string) Object { return Object{"matchLabels": Object{"app": name}} }

// Policies as packets: who may reach whom, in both directions, families and
// protocols; on one node, between nodes, between clusters and from outside.
func TestPolicyPackets(t *testing.T) {
	t.Parallel()
	r := newMesh(t, rigOptions{nodes: 2, bare: true})
	web := r.server("web", 0, map[string]string{"app": "web"})
	friend := must(r.a.Nodes[0].AddPod(r.ctx, PodSpec{Name: "friend", Labels: map[string]string{"app": "friend"}}))(t)
	stranger := must(r.a.Nodes[0].AddPod(r.ctx, PodSpec{Name: "stranger", Labels: map[string]string{"app": "stranger"}}))(t)
	far := must(r.a.Nodes[1].AddPod(r.ctx, PodSpec{Name: "far", Labels: map[string]string{"app": "friend"}}))(t)
	farStranger := must(r.a.Nodes[1].AddPod(r.ctx, PodSpec{Name: "far-stranger", Labels: map[string]string{"app": "stranger"}}))(t)
	abroad := must(r.b.Nodes[0].AddPod(r.ctx, PodSpec{Name: "abroad", Labels: map[string]string{"app": "friend"}}))(t)
	outside := must(r.a.AddOutsider("outside"))(t)
	blocked := must(r.a.AddOutsider("blocked"))(t)
	for _, o := range []*Outsider{outside, blocked} {
		for i, a := range web.Addresses {
			_, err := o.Run(r.ctx, "ip", "route", "add", a.String(), "via", r.a.Nodes[0].underlays()[i].String())
			noError(t, err)
		}
	}
	everyone := []place{atPod(friend), atPod(stranger), atPod(far), atPod(farStranger), atPod(abroad), atOutsider(outside), atNode(r.a.Nodes[0])}
	// list is what holds for a server pod's two addresses.
	list := func(may bool, networks string, at ...place) (out []expectation) {
		for _, a := range web.Addresses {
			for _, network := range strings.Fields(networks) {
				for _, p := range at {
					out = append(out, expectation{p, network, netip.AddrPortFrom(a, checkoutPort), may})
				}
			}
		}
		return out
	}
	each := func(r *rig, may func(place) bool) {
		r.t.Helper()
		var all []expectation
		for _, at := range everyone {
			all = append(all, list(may(at), "tcp udp", at)...)
		}
		r.expect(all)
	}
	step := func(name string, f func(r *rig)) {
		t.Helper()
		if !t.Failed() {
			t.Run(name, func(t *testing.T) { f(r.in(t)) })
		}
	}
	node := "node n1" // the kubelet's probes: always

	step("no policy", func(r *rig) { each(r, func(place) bool { return true }) })
	step("deny all ingress cuts what is open", func(r *rig) {
		conn := must(atPod(stranger).dial(r.ctx, "tcp", netip.AddrPortFrom(web.Addresses[0], checkoutPort).String()))(r.t)
		defer conn.Close()
		must(askOn(conn, callTimeout))(r.t)
		noError(r.t, r.a.Apply("deny", netpol("deny", Object{"podSelector": Object{}, "policyTypes": []string{"Ingress"}})))
		r.eventually(15*time.Second, "the open connection is cut", func() error {
			if _, err := askOn(conn, deadTimeout); err == nil {
				return fmt.Errorf("it still answers")
			}
			return nil
		})
		each(r, func(p place) bool { return p.name == node })
	})
	step("friends by label, of this cluster", func(r *rig) {
		noError(r.t, r.a.Apply("friends", netpol("friends", Object{"podSelector": app("web"), "policyTypes": []string{"Ingress"},
			"ingress": []Object{{"from": []Object{{"podSelector": app("friend")}}}}})))
		each(r, func(p place) bool { return p.name == node || p.name == "pod friend" || p.name == "pod far" })
	})
	step("friends of every cluster", func(r *rig) {
		noError(r.t, r.a.Apply("friends", netpol("friends", Object{"podSelector": app("web"), "policyTypes": []string{"Ingress"},
			"ingress": []Object{{"from": []Object{{"podSelector": Object{"matchLabels": Object{"app": "friend"},
				"matchExpressions": []Object{{"key": "tombolo.io/cluster", "operator": "Exists"}}}}}}}})))
		each(r, func(p place) bool {
			return p.name == node || p.name == "pod friend" || p.name == "pod far" || p.name == "pod abroad"
		})
	})
	step("a block of addresses with an exception", func(r *rig) {
		block := func(cidr, except string) Object {
			return Object{"ipBlock": Object{"cidr": cidr, "except": []string{except}}}
		}
		v4, v6 := underlayPrefixes(r.a.ID)
		noError(r.t, r.a.Apply("friends", netpol("friends", Object{"podSelector": app("web"), "policyTypes": []string{"Ingress"},
			"ingress": []Object{{"from": []Object{
				block(v4.Masked().String(), blocked.Addresses[0].String()+"/32"), block(v6.Masked().String(), blocked.Addresses[1].String()+"/128")}}}})))
		each(r, func(p place) bool { return p.name == node || p.name == "outsider outside" })
		r.expect(list(false, "tcp udp", atOutsider(blocked)))
	})
	step("a named port and a protocol", func(r *rig) {
		noError(r.t, r.a.Apply("friends", netpol("friends", Object{"podSelector": app("web"), "policyTypes": []string{"Ingress"},
			"ingress": []Object{{"ports": []Object{{"port": "http", "protocol": "TCP"}}}}})))
		r.expect(append(list(true, "tcp", atPod(stranger), atPod(farStranger)), list(false, "udp", atPod(stranger), atPod(farStranger))...))
	})
	step("egress", func(r *rig) {
		noError(r.t, r.a.Unapply("deny"))
		noError(r.t, r.a.Unapply("friends"))
		noError(r.t, r.a.Apply("leash", netpol("leash", Object{"podSelector": app("stranger"), "policyTypes": []string{"Egress"},
			"egress": []Object{{"to": []Object{{"podSelector": app("web")}}, "ports": []Object{{"port": checkoutPort, "protocol": "TCP"}}}}})))
		r.expect(slices.Concat(list(true, "tcp", atPod(stranger), atPod(farStranger)), list(false, "udp", atPod(stranger), atPod(farStranger)),
			list(true, "tcp udp", atPod(friend))))
	})
	step("of the whole cluster: deny before, accept after", func(r *rig) {
		noError(r.t, r.a.Unapply("leash"))
		noError(r.t, r.a.Apply("admin", Manifest(Object{"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
			"metadata": Object{"name": "no-strangers"}, "spec": Object{"tier": "Admin", "priority": 10,
				"subject": Object{"pods": Object{"namespaceSelector": Object{}, "podSelector": app("web")}},
				"ingress": []Object{{"name": "strangers", "action": "Deny",
					"from": []Object{{"pods": Object{"namespaceSelector": Object{}, "podSelector": app("stranger")}}}}}}})))
		r.expect(append(list(false, "tcp udp", atPod(stranger), atPod(farStranger)), list(true, "tcp udp", atPod(friend), atPod(far))...))
		noError(r.t, r.a.Unapply("admin"))
		r.allowed(atPod(stranger), "tcp", netip.AddrPortFrom(web.Addresses[0], checkoutPort))
	})
}

// While agents are killed and come back, again and again, nothing passes that
// policy forbids, and nothing is lost that it allows.
func TestPolicyThroughCrashes(t *testing.T) {
	t.Parallel()
	r := newCluster(t)
	web := r.server("web", 0, map[string]string{"app": "web"})
	friend := must(r.a.Nodes[1].AddPod(r.ctx, PodSpec{Name: "friend", Labels: map[string]string{"app": "friend"}}))(t)
	stranger := must(r.a.Nodes[0].AddPod(r.ctx, PodSpec{Name: "stranger", Labels: map[string]string{"app": "stranger"}}))(t)
	noError(t, r.a.Apply("friends", netpol("friends", Object{"podSelector": app("web"), "policyTypes": []string{"Ingress"},
		"ingress": []Object{{"from": []Object{{"podSelector": app("friend")}}}}})))
	to := netip.AddrPortFrom(web.Addresses[0], checkoutPort)
	r.expect([]expectation{{atPod(stranger), "tcp", to, false}, {atPod(friend), "tcp", to, true}})

	ctx, stop := context.WithCancel(r.ctx)
	defer stop()
	passed := make(chan string, 1)
	var tries atomic.Int64
	var attempts sync.WaitGroup
	for range 8 {
		attempts.Go(func() {
			for ctx.Err() == nil {
				if _, err := atPod(stranger).call("tcp", to, deadTimeout); err == nil {
					select {
					case passed <- fmt.Sprintf("attempt %d", tries.Load()):
					default:
					}
				}
				tries.Add(1)
			}
		})
	}
	client := must(friend.Client("steady", ClientOptions{Target: to.String(), Interval: 5 * time.Millisecond, Timeout: callTimeout}))(t)
	begin := time.Now()
	must(client.AwaitMore(r.ctx, begin, 20))(t)
	for range 4 {
		for _, n := range r.a.Nodes {
			n.Agent().Kill()
		}
		must(client.AwaitMore(r.ctx, time.Now(), 20))(t)
		for _, n := range r.a.Nodes {
			noError(t, n.StartAgent(r.ctx))
		}
		must(client.AwaitMore(r.ctx, time.Now(), 20))(t)
	}
	stop()
	attempts.Wait()
	n := tries.Load()
	select {
	case at := <-passed:
		t.Errorf("a forbidden connection came about (%s)", at)
	default:
	}
	results := must(client.AwaitMore(r.ctx, begin, 200))(t)
	client.Process.Kill()
	if f := Failed(results); f > 0 {
		t.Errorf("%d of %d allowed requests failed: %s", f, len(results), firstError(results))
	}
	t.Logf("8 agents killed and restarted: 0 of %d forbidden connections, %d of %d allowed requests", n, len(results)-Failed(results), len(results))
}

// With --encrypt=all nothing goes from node to node in clear, on one L2 or not,
// and pods still reach each other.
func TestEncryptAll(t *testing.T) {
	t.Parallel()
	r := newCluster(t, "--encrypt=all")
	const mark = "encrypt-me-if-you-can"
	web := r.server("web", 0, map[string]string{"app": "web"})
	far := must(r.a.Nodes[1].AddPod(r.ctx, PodSpec{Name: "far"}))(t)
	r.families(func(r *rig, pick func([]netip.Addr) netip.Addr) {
		r.allowed(atPod(far), "tcp", netip.AddrPortFrom(pick(web.Addresses), checkoutPort))
	})
	capture := must(r.Capture(mark))(t)
	defer capture.Close()
	for _, a := range web.Addresses {
		o := ClientOptions{Target: netip.AddrPortFrom(a, checkoutPort).String(), Mark: mark, Timeout: callTimeout}
		r.allOK(r.ask(far, 50, o), "")
	}
	packets, marked, missed := capture.Count()
	if packets == 0 || marked+capture.Inside() > 0 {
		t.Errorf("%d packets captured, %d with the marker in clear between clusters, %d within (%d missed)", packets, marked, capture.Inside(), missed)
	}
	t.Logf("%d packets captured, none with the marker in clear", packets)
}
