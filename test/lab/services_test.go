package lab

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// shop is a dual-stack Service over TCP and UDP with whatever else spec says.
func shop(name string, third int, spec Object) string {
	o := Object{
		"clusterIPs": []string{fmt.Sprintf("172.20.1.%d", third), fmt.Sprintf("fd00:172:20:1::%d", third)},
		"selector":   Object{"app": "shop"}, "type": "LoadBalancer", "ipFamilyPolicy": "RequireDualStack",
		"ports": []Object{
			{"name": "http", "port": 80, "targetPort": checkoutPort, "protocol": "TCP", "nodePort": 30000 + third},
			{"name": "query", "port": 53, "targetPort": checkoutPort, "protocol": "UDP", "nodePort": 30000 + third},
		},
	}
	status := spec["status"]
	delete(spec, "status")
	for k, v := range spec {
		o[k] = v
	}
	out := Object{"apiVersion": "v1", "kind": "Service", "metadata": Object{"name": name, "namespace": "default"}, "spec": o}
	if status != nil {
		out["status"] = status
	}
	return Manifest(out)
}

func ingress(ips ...string) Object {
	var list []Object
	for _, ip := range ips {
		list = append(list, Object{"ip": ip})
	}
	return Object{"loadBalancer": Object{"ingress": list}}
}

// Everything a Service can be dialled at, from everywhere, in both families, by
// TCP and UDP, translated per packet: what kube-proxy does.
func TestServicesPerPacket(t *testing.T) {
	t.Parallel()
	r := newCluster(t)
	one := r.server("shop-1", 0, map[string]string{"app": "shop"})
	client := must(r.a.Nodes[0].AddPod(r.ctx, PodSpec{Name: "client"}))(t)
	far := must(r.a.Nodes[1].AddPod(r.ctx, PodSpec{Name: "far"}))(t)
	friend := must(r.a.AddOutsider("friend"))(t)
	stranger := must(r.a.AddOutsider("stranger"))(t)
	n1, n2 := r.a.Nodes[0], r.a.Nodes[1]

	external := []string{"198.51.100.7", "2001:db8:7::7"}
	balanced := []string{"198.51.100.8", "2001:db8:7::8"}
	ranges := []string{friend.Addresses[0].String() + "/32", friend.Addresses[1].String() + "/128"}
	noError(t, r.a.Apply("shop", shop("shop", 10, Object{"externalIPs": external})))
	noError(t, r.a.Apply("balanced", shop("balanced", 11, Object{"loadBalancerSourceRanges": ranges, "status": ingress(balanced...)})))
	noError(t, r.a.Apply("near", shop("near", 12, Object{"externalTrafficPolicy": "Local"})))
	noError(t, r.a.Apply("here", shop("here", 13, Object{"internalTrafficPolicy": "Local"})))
	noError(t, r.a.Apply("empty", shop("empty", 14, Object{"selector": Object{"app": "nobody"}})))

	for _, o := range []*Outsider{friend, stranger} {
		for i, ip := range append(slices.Clone(external), balanced...) {
			host := ip + map[bool]string{true: "/128", false: "/32"}[strings.Contains(ip, ":")]
			_, err := o.Run(r.ctx, "ip", "route", "add", host, "via", n2.underlays()[i%2].String())
			noError(t, err)
		}
	}

	r.families(func(r *rig, pick func([]netip.Addr) netip.Addr) {
		to := func(list []netip.Addr, port int) netip.AddrPort { return netip.AddrPortFrom(pick(list), uint16(port)) }
		vip := func(third int) []netip.Addr {
			return addrs(fmt.Sprintf("172.20.1.%d", third), fmt.Sprintf("fd00:172:20:1::%d", third))
		}
		for _, p := range []struct {
			network string
			port    int
		}{{"tcp", 80}, {"udp", 53}} {
			r.t.Run(p.network, func(t *testing.T) {
				r := r.in(t)
				check := func(what string, at place, to netip.AddrPort, from netip.Addr) {
					t.Helper()
					got := r.allowed(at, p.network, to)
					if got.who != "shop-1" || from.IsValid() && got.from != from {
						t.Errorf("%s: %s asked %s: answered by %s, which saw %s, want %s", what, at.name, to, got.who, got.from, from)
					}
				}
				check("cluster IP", atPod(client), to(vip(10), p.port), pick(client.Addresses))
				check("cluster IP from another node", atPod(far), to(vip(10), p.port), pick(far.Addresses))
				check("itself by its service", atPod(one), to(vip(10), p.port), netip.Addr{})
				check("external IP from inside", atPod(client), to(addrs(external...), p.port), pick(client.Addresses))
				check("load balancer from inside, whatever its ranges", atPod(client), to(addrs(balanced...), p.port), pick(client.Addresses))
				check("node port from a pod", atPod(client), to(n1.underlays(), 30010), pick(client.Addresses))
				check("internal policy Local", atPod(client), to(vip(13), p.port), pick(client.Addresses))
				check("external policy Local from inside", atPod(far), to(n2.underlays(), 30012), pick(far.Addresses))

				// From outside: where the backend is the source stays, elsewhere it is the node's.
				check("node port", atOutsider(friend), to(n1.underlays(), 30010), pick(friend.Addresses))
				check("node port of another node", atOutsider(friend), to(n2.underlays(), 30010), netip.Addr{})
				check("external policy Local", atOutsider(friend), to(n1.underlays(), 30012), pick(friend.Addresses))
				check("external IP", atOutsider(stranger), to(addrs(external...), p.port), netip.Addr{})
				check("load balancer", atOutsider(friend), to(addrs(balanced...), p.port), netip.Addr{})

				for what, c := range map[string]struct {
					at place
					to netip.AddrPort
				}{
					"outside the source ranges":             {atOutsider(stranger), to(addrs(balanced...), p.port)},
					"external policy Local without backend": {atOutsider(friend), to(n2.underlays(), 30012)},
					"internal policy Local without backend": {atPod(far), to(vip(13), p.port)},
					"cluster IP from outside":               {atOutsider(friend), to(vip(10), p.port)},
					"no backend at all":                     {atPod(client), to(vip(14), p.port)},
				} {
					if got, err := c.at.call(p.network, c.to, deadTimeout); err == nil {
						t.Errorf("%s: answered by %s", what, got.who)
					}
				}
			})
		}
		// No backend is said at once, not by silence.
		begin := time.Now()
		if _, err := atPod(client).call("tcp", to(vip(14), 80), callTimeout); !errors.Is(err, syscall.ECONNREFUSED) {
			r.t.Errorf("a service without backends: %v after %v, want connection refused", err, time.Since(begin))
		}
	})

	t.Run("health check port", func(t *testing.T) {
		noError(t, r.a.Apply("near", shop("near", 12, Object{"externalTrafficPolicy": "Local", "healthCheckNodePort": 31999})))
		for n, want := range map[*Node]int{n1: 200, n2: 503} {
			r.in(t).eventually(15*time.Second, fmt.Sprintf("%s answers %d at its health check port", n.Name, want), func() error {
				tr := &http.Transport{DialContext: friend.host.dial, DisableKeepAlives: true}
				res, err := (&http.Client{Transport: tr, Timeout: deadTimeout}).Get(fmt.Sprintf("http://%s:31999/", n.Underlay()))
				if err != nil {
					return err
				}
				defer res.Body.Close()
				body, _ := io.ReadAll(res.Body)
				if res.StatusCode != want {
					return fmt.Errorf("%d %s", res.StatusCode, body)
				}
				return nil
			})
		}
	})
}

// Pods reach the world by their node's address, and it them by answers alone; two
// pods with one source port do not meet. Pods of one cluster see each other's own
// addresses.
func TestMasquerade(t *testing.T) {
	t.Parallel()
	r := newCluster(t)
	client := must(r.a.Nodes[0].AddPod(r.ctx, PodSpec{Name: "client"}))(t)
	other := r.server("other", 0, nil)
	far := r.server("far", 1, nil)
	world := must(r.a.AddOutsider("world"))(t)
	must(world.Exec("server", nil, ServeArgv("world", checkoutPort)...))(t)
	r.families(func(r *rig, pick func([]netip.Addr) netip.Addr) {
		to := netip.AddrPortFrom(pick(world.Addresses), checkoutPort)
		for _, network := range []string{"tcp", "udp"} {
			if got := r.allowed(atPod(client), network, to); got.from != pick(r.a.Nodes[0].underlays()) {
				r.t.Errorf("%s: the world saw %s, want the node's address", network, got.from)
			}
			for _, p := range []*Pod{other, far} {
				if got := r.allowed(atPod(client), network, netip.AddrPortFrom(pick(p.Addresses), checkoutPort)); got.from != pick(client.Addresses) {
					r.t.Errorf("%s: %s saw %s, want the pod's own address", network, p.Name, got.from)
				}
			}
		}
		noError(r.t, func() error {
			_, err := client.Run(r.ctx, "ping", "-n", "-q", "-c", "2", "-W", "2", pick(world.Addresses).String())
			return err
		}())
		// A port that nobody listens at is said by an ICMP error, translated back.
		_, err := atPod(client).call("udp", netip.AddrPortFrom(pick(world.Addresses), 9), callTimeout)
		if !errors.Is(err, syscall.ECONNREFUSED) {
			r.t.Errorf("UDP to a closed port of the world: %v, want connection refused", err)
		}
	})
}

// The address of a pod that is gone answers at once, here and from other nodes.
func TestDeletedPodIsUnreachable(t *testing.T) {
	t.Parallel()
	r := newCluster(t)
	gone := r.server("gone", 0, nil)
	near := must(r.a.Nodes[0].AddPod(r.ctx, PodSpec{Name: "near"}))(t)
	far := must(r.a.Nodes[1].AddPod(r.ctx, PodSpec{Name: "far"}))(t)
	r.families(func(r *rig, pick func([]netip.Addr) netip.Addr) {
		r.allowed(atPod(near), "tcp", netip.AddrPortFrom(pick(gone.Addresses), checkoutPort))
		r.allowed(atPod(far), "tcp", netip.AddrPortFrom(pick(gone.Addresses), checkoutPort))
	})
	noError(t, gone.Remove(r.ctx))
	r.families(func(r *rig, pick func([]netip.Addr) netip.Addr) {
		for _, p := range []*Pod{near, far} {
			r.eventually(10*time.Second, p.Name+" is told that the pod is gone", func() error {
				_, err := atPod(p).call("tcp", netip.AddrPortFrom(pick(gone.Addresses), checkoutPort), callTimeout)
				if errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.ECONNREFUSED) {
					return nil
				}
				return fmt.Errorf("want unreachable, got %w", err)
			})
		}
	})
}
