package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

var trafficCases = []Case{
	{Name: "pods-across-nodes", Claim: "pods reach pods of the other node, who see them by their own addresses", Needs: []Need{NeedsTwoNodes}, Run: podsAcrossNodes},
	{Name: "cluster-ip", Claim: "pods and programs of the host reach services at their cluster IPs, and both backends answer", Run: clusterIP},
	{Name: "dns", Claim: "pods find services by name and reach them", Run: clusterDNS},
	{Name: "pods-across-clusters", Claim: "pods reach pods of the other cluster, who see them by their own addresses", Run: podsAcrossClusters},
}

func podsAcrossNodes(t *T) {
	ns := t.Namespace()
	for _, c := range t.Clusters {
		servers := c.Deploy(t, ns, "web", int32(len(c.Nodes)))
		for _, client := range c.Clients(t, ns) {
			for _, s := range servers {
				t.families(s)
				client.Reaches(t, s.String(), s.IPs(), 8080, 9000)
				client.SeenAsItself(t, s)
			}
		}
	}
}

// families checks that a pod has an address of each family that the world has.
func (t *T) families(p *Pod) {
	if want := map[bool]int{false: 1, true: 2}[t.dual]; t.Lab != nil && len(p.IPs()) != want {
		t.Fatalf("%s has the addresses %v, want %d", p, p.IPs(), want)
	}
}

// SeenAsItself checks that the server sees the client's own address.
func (p *Pod) SeenAsItself(t *T, server *Pod) {
	for _, ip := range server.IPs() {
		got, err := p.Ask(t.ctx, 1, "tcp", hostPort(ip, 9000))
		t.OK(err, "%s asks %s", p, server)
		if !slices.Contains(p.IPs(), got[0].source()) {
			t.Fatalf("%s sees %s as %s, which is none of its addresses %v", server, p, got[0].From, p.IPs())
		}
	}
}

func clusterIP(t *T) {
	ns := t.Namespace()
	for _, c := range t.Clusters {
		svc := c.Service(t, ns, "web")
		servers := c.Deploy(t, ns, "web", 2)
		clients := append(c.Clients(t, ns), hostPods(t, c, ns)...)
		for _, client := range clients {
			client.Reaches(t, "the service", svc.Spec.ClusterIPs, 80, 9000)
			for _, ip := range svc.Spec.ClusterIPs {
				t.Within(settle, client.String()+" reaches both backends", func() error {
					got, err := client.Ask(t.ctx, 16, "get", url(ip, 80))
					if hosts := hostsOf(got); err == nil && len(hosts) != len(servers) {
						err = fmt.Errorf("16 requests were answered by %v", hosts)
					}
					return err
				})
			}
		}
	}
}

// hostPods are idle programs in each node's own network.
func hostPods(t *T, c *Cluster, ns string) []*Pod {
	var out []*Pod
	for i, n := range c.Nodes {
		out = append(out, c.StartPod(t, ns, fmt.Sprintf("host-%d", i+1), On(n), OnHost()))
	}
	for _, p := range out {
		p.wait(t)
	}
	return out
}

func clusterDNS(t *T) {
	ns := t.Namespace()
	for _, c := range t.Clusters {
		svc := c.Service(t, ns, "web")
		c.Deploy(t, ns, "web", 1)
		for _, client := range c.Clients(t, ns) {
			for _, name := range []string{"web", "web." + ns + ".svc.cluster.local", "kubernetes.default"} {
				t.Within(settle, client.String()+" resolves "+name, func() error {
					_, err := client.Exec(t.ctx, "resolve", name)
					return err
				})
			}
			t.Within(settle, client.String()+" reaches the service by its name", func() error {
				_, err := client.Ask(t.ctx, 1, "get", "http://web."+ns+".svc.cluster.local/")
				return err
			})
			out, err := client.Exec(t.ctx, "resolve", "web."+ns+".svc.cluster.local")
			t.OK(err, "resolve")
			for _, ip := range svc.Spec.ClusterIPs {
				if !slices.Contains(fields(out), netip.MustParseAddr(ip).String()) {
					t.Fatalf("%s: web resolves to %q, without %s", client, out, ip)
				}
			}
		}
	}
}

func podsAcrossClusters(t *T) {
	ns := t.Namespace()
	var servers, clients [2][]*Pod
	for i, c := range t.Clusters {
		servers[i] = c.Deploy(t, ns, "web", int32(len(c.Nodes)))
		clients[i] = c.Clients(t, ns)
	}
	for i := range t.Clusters {
		for _, client := range clients[i] {
			for _, s := range servers[1-i] {
				client.Reaches(t, s.String(), s.IPs(), 8080, 9000)
				client.SeenAsItself(t, s)
			}
		}
	}
}

var globalCases = []Case{
	{Name: "global-service", Claim: "a service annotated as global is answered by both clusters, from both", Run: globalService},
	{Name: "failover", Claim: "scaled to zero in one cluster it is answered by the other, and by both again when scaled back", Run: failover},
	{Name: "affinity-local", Claim: "with tombolo.io/affinity: local it is answered by the own cluster while that has backends", Run: affinityLocal},
}

// answeredBy waits until a client's requests are answered by just these clusters.
func (p *Pod) answeredBy(t *T, limit time.Duration, ip string, want ...string) time.Duration {
	return t.Within(limit, fmt.Sprintf("%s is answered by %v", p, want), func() error {
		got, err := p.Ask(t.ctx, 24, "get", url(ip, 80))
		if by := clustersOf(got); err == nil && !slices.Equal(by, want) {
			err = fmt.Errorf("24 requests were answered by %v", by)
		}
		return err
	})
}

func globalService(t *T) {
	ns := t.Namespace()
	_, services := t.Everywhere(ns, "web", 2, Global())
	for i, c := range t.Clusters {
		for _, client := range c.Clients(t, ns) {
			client.Reaches(t, "the global service", services[i].Spec.ClusterIPs, 80, 9000)
			for _, ip := range services[i].Spec.ClusterIPs {
				client.answeredBy(t, settle, ip, t.Clusters[0].Name, t.Clusters[1].Name)
			}
		}
	}
}

func failover(t *T) {
	ns := t.Namespace()
	a, b := t.Clusters[0], t.Clusters[1]
	_, services := t.Everywhere(ns, "web", 2, Global())
	client := a.Clients(t, ns)[0]
	ip := services[0].Spec.ClusterIP
	client.answeredBy(t, settle, ip, a.Name, b.Name)
	t.Within(settle, "a steady answer", func() error {
		_, err := client.Ask(t.ctx, 50, "tcp", hostPort(ip, 9000))
		return err
	})
	a.Scale(t, ns, "web", 0)
	t.Note("scaled to zero: only %s answers after %.1f s", b.Name, client.answeredBy(t, settle, ip, b.Name).Seconds())
	t.During(2*time.Second, "requests while scaled to zero", func() error {
		got, err := client.Ask(t.ctx, 10, "get", url(ip, 80))
		if by := clustersOf(got); err == nil && !slices.Equal(by, []string{b.Name}) {
			err = errors.New("answered by " + fmt.Sprint(by))
		}
		return err
	})
	a.Scale(t, ns, "web", 2)
	client.answeredBy(t, settle, ip, a.Name, b.Name)
}

func affinityLocal(t *T) {
	ns := t.Namespace()
	_, services := t.Everywhere(ns, "web", 1, Global(), Annotated("tombolo.io/affinity", "local"))
	for i, c := range t.Clusters {
		client := c.Clients(t, ns)[0]
		client.answeredBy(t, settle, services[i].Spec.ClusterIP, c.Name)
		c.Scale(t, ns, "web", 0)
		client.answeredBy(t, settle, services[i].Spec.ClusterIP, t.Clusters[1-i].Name)
		c.Scale(t, ns, "web", 1)
		client.answeredBy(t, settle, services[i].Spec.ClusterIP, c.Name)
	}
}
