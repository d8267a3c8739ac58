package main

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
)

var chainedCases = []Case{
	{Name: "chained", Claim: "beside another CNI plugin: that one connects pods and gives addresses, Tombolo takes them over; pods from before keep theirs", Needs: []Need{NeedsLab, NeedsChained}, Run: chained},
}

// podRanges are where the lab's pod network (lab/network.sh) has pods' addresses: in c1
// those of the nodes' podCIDRs, in c2 others, of which Kubernetes knows nothing.
var podRanges = map[string][]string{"c1": {"10.65.0.0/16", "fd10:1::/56"}, "c2": {"10.98.0.0/16", "fd11:2::/56"}}

// chainedValues are those of the chart for a cluster with another CNI plugin.
func (c *Cluster) chainedValues() []string {
	families := map[bool]int{false: 1, true: 2}[c.world.dual]
	tunnels := []string{fmt.Sprintf("10.250.%d.0/24", c.Number), fmt.Sprintf("fd40:%d::/112", c.Number)}
	return []string{
		"cni.mode=chained",
		"cluster.podPrefixes={" + strings.Join(podRanges[c.Name][:families], ",") + "}",
		"cluster.tunnelPrefixes={" + strings.Join(tunnels[:families], ",") + "}",
	}
}

// plainPods are what there was before Tombolo: echo servers of the other plugin's, and
// the nodes' network configurations.
type plainPods struct {
	namespace string
	servers   map[*Cluster][]*Pod
	conf      map[string]string // node → files with their content
}

const otherConfs = `cd /etc/cni/net.d && for f in *; do case $f in *tombolo*) ;; *) echo "== $f"; cat "$f";; esac; done`

// connectBefore has the other plugin connect pods, which stay for the whole run.
func connectBefore(t *T) {
	t.before = &plainPods{namespace: "before-" + t.ID, servers: map[*Cluster][]*Pod{}, conf: map[string]string{}}
	for _, c := range t.Clusters {
		c.NodesReady(t, time.Minute)
		c.Apply(t, "", "{apiVersion: v1, kind: Namespace, metadata: {name: %s}}", t.before.namespace)
		t.Within(settle, c.Name+": the namespace's service account", func() error {
			_, err := c.Get(t.ctx, "v1", "ServiceAccount", t.before.namespace, "default")
			return err
		})
		t.before.servers[c] = c.Deploy(t, t.before.namespace, "before", int32(len(c.Nodes)))
		for _, n := range c.Nodes {
			t.before.conf[n.Name] = t.Lab.look(t, n.Name, otherConfs)
		}
	}
}

// look runs a script in a machine.
func (l *Lab) look(t *T, machine, script string) string {
	out, err := l.Run(t.ctx, machine, "sh", "-c", script)
	t.OK(err, "%s: %s: %s", machine, script, out)
	return out
}

// check makes sure that pods from before, and the other plugin's configuration, are what they were.
func (b *plainPods) check(t *T) {
	if b == nil {
		t.Note("Tombolo was there already: nothing is known of before")
		return
	}
	for c, servers := range b.servers {
		now := c.Ready(t, b.namespace, "before", len(servers))
		for i, p := range now {
			if p.UID != servers[i].UID || !slices.Equal(p.IPs(), servers[i].IPs()) {
				t.Fatalf("%s with %v is %s with %v now", servers[i], servers[i].IPs(), p, p.IPs())
			}
			for _, r := range p.Status.ContainerStatuses {
				if r.RestartCount != 0 {
					t.Fatalf("%s was started again", p)
				}
			}
		}
		now[0].Reaches(t, now[len(now)-1].String()+", both from before", now[len(now)-1].IPs(), 8080, 9000)
	}
	for node, was := range b.conf {
		if is := t.Lab.look(t, node, otherConfs); is != was {
			t.Fatalf("%s: the other plugin's configuration was\n%s\nand is\n%s", node, was, is)
		}
	}
}

func chained(t *T) {
	ns := t.Namespace()
	t.before.check(t)
	var servers [2][]*Pod
	for i, c := range t.Clusters {
		servers[i] = c.Deploy(t, ns, "web", int32(len(c.Nodes)))
		for _, p := range servers[i] {
			c.connectedByOther(t, p)
		}
		if t.before == nil {
			continue
		}
		for _, old := range t.before.servers[c] { // Tombolo's pods and the other's reach each other
			servers[i][0].Reaches(t, old.String()+", from before", old.IPs(), 8080, 9000)
			old.Reaches(t, servers[i][0].String(), servers[i][0].IPs(), 8080, 9000)
		}
	}
	for i := range t.Clusters {
		for _, from := range servers[i] {
			for _, to := range servers[1-i] {
				from.Reaches(t, to.String(), to.IPs(), 8080, 9000)
				from.SeenAsItself(t, to)
			}
		}
	}
}

// connectedByOther checks that a pod is wired and addressed by the other plugin, and that
// Tombolo took it over.
func (c *Cluster) connectedByOther(t *T, p *Pod) {
	given := fields(t.Lab.look(t, p.Spec.NodeName, "ls /run/cni-ipam/lab"))
	var links []string
	for _, ip := range p.IPs() {
		addr := netip.MustParseAddr(ip)
		if !slices.ContainsFunc(podRanges[c.Name], func(r string) bool { return netip.MustParsePrefix(r).Contains(addr) }) || !slices.Contains(given, ip) {
			t.Fatalf("%s has %s, which host-local did not give: it gave %v", p, ip, given)
		}
		route := fields(t.Lab.look(t, p.Spec.NodeName, "ip -o route get "+ip))
		if i := slices.Index(route, "dev"); i < 0 || !strings.HasPrefix(route[i+1], "veth") {
			t.Fatalf("%s: its node's way to %s is %v, not by a veth of ptp's", p, ip, route)
		} else {
			links = append(links, route[i+1])
		}
	}
	for _, link := range slices.Compact(links) {
		if out := t.Lab.look(t, p.Spec.NodeName, "ip -o link show dev "+link); !strings.Contains(out, "alias tombolo-chained "+string(p.UID)) {
			t.Fatalf("%s: Tombolo did not take over %s: %s", p, link, out)
		}
	}
}

// uninstallChained: what the other plugin does goes on, and all pods with it, those
// that Tombolo had taken over too.
func uninstallChained(t *T) {
	ns := t.Namespace()
	was := map[*Cluster][]*Pod{}
	for _, c := range t.Clusters {
		was[c] = c.Deploy(t, ns, "web", int32(len(c.Nodes)))
	}
	uninstalls(t, []string{"veth"})
	t.before.check(t)
	for _, c := range slices.Collect(maps.Keys(was)) {
		c.NodesReady(t, time.Minute)
		is := c.Ready(t, ns, "web", len(was[c]))
		for i, p := range is {
			if p.UID != was[c][i].UID || !slices.Equal(p.IPs(), was[c][i].IPs()) {
				t.Fatalf("%s with %v is %s with %v now", was[c][i], was[c][i].IPs(), p, p.IPs())
			}
		}
		svc := c.Service(t, ns, "web")
		fresh := c.Clients(t, ns) // connected without Tombolo
		for _, from := range append(fresh, is...) {
			for _, to := range is {
				from.Reaches(t, to.String(), to.IPs(), 8080, 9000)
			}
			from.Reaches(t, "the service, by kube-proxy", svc.Spec.ClusterIPs, 80, 9000)
		}
		for _, n := range c.Nodes {
			if out := t.Lab.look(t, n.Name, "ls /etc/cni/net.d"); !slices.Equal(fields(out), []string{"10-lab.conflist"}) {
				t.OK(errors.New(out), "%s: network configurations", n.Name)
			}
		}
	}
}
