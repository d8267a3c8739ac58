package judge

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	npav1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

const ownCluster = clustermesh.ID(1)

var clusterNames = map[clustermesh.ID]string{1: "here", 2: "there", 3: "yonder"}

// world is what policies are about, and the policies.
type world struct {
	namespaces      []*corev1.Namespace // the same in each cluster
	pods            []*pod
	nodes           []*corev1.Node
	policies        []*networkingv1.NetworkPolicy
	clusterPolicies []*npav1alpha2.ClusterNetworkPolicy
	outside         []netip.Addr
	allClusters     bool
}

type pod struct {
	*corev1.Pod
	cluster   clustermesh.ID
	addresses []netip.Addr
	identity  clustermesh.Identity
	ports     []clustermesh.NamedPort
}

// party is one end of a connection: a pod, or nobody's address.
type party struct {
	pod     *pod
	address netip.Addr
}

type query struct {
	from, to party
	proto    clustermesh.Protocol
	port     uint16
}

func (q query) String() string {
	name := func(p party) string {
		if p.pod == nil {
			return p.address.String()
		}
		return fmt.Sprintf("%s/%s/%s %s", clusterNames[p.pod.cluster], p.pod.Namespace, p.pod.Name, p.address)
	}
	return fmt.Sprintf("%s -> %s %d/%d", name(q.from), name(q.to), q.proto, q.port)
}

// text is the whole world as JSON, for whoever has to look into a difference.
func (w *world) text() string {
	out := ""
	add := func(what any) {
		b, err := json.Marshal(what)
		if err != nil {
			panic(err)
		}
		out += string(b) + "\n"
	}
	for _, ns := range w.namespaces {
		out += fmt.Sprintf("namespace %s %v\n", ns.Name, ns.Labels)
	}
	for _, p := range w.pods {
		out += fmt.Sprintf("pod %s %s/%s host=%v %v %v identity %d ports %v\n", clusterNames[p.cluster], p.Namespace, p.Name,
			p.Spec.HostNetwork, p.Labels, p.addresses, p.identity, p.ports)
	}
	for _, n := range w.nodes {
		out += fmt.Sprintf("node %s %v %v\n", n.Name, n.Labels, n.Status.Addresses)
	}
	for _, p := range w.policies {
		add(p)
	}
	for _, p := range w.clusterPolicies {
		add(p)
	}
	return out
}

// options of a world: what its judge can judge.
type options struct {
	clusters    int  // how many
	np          int  // NetworkPolicies
	bothTypes   bool // all isolate both directions
	cnp         int  // ClusterNetworkPolicies
	simple      bool // of those, what AdminNetworkPolicy had, too
	allClusters bool
	pods        int      // how many, each on a network of its own; 0 = a dozen and more, some on their host's
	networks    []string // for blocks of addresses, with more and less of the world in them; nil = as newWorld's pods have it
}

type generator struct {
	*rand.Rand
	o options
}

func pick[T any](g generator, list ...T) T { return list[g.IntN(len(list))] }

func (g generator) chance(percent int) bool { return g.IntN(100) < percent }

func (g generator) labels(pool map[string][]string, percent int) map[string]string {
	out := map[string]string{}
	keys := make([]string, 0, len(pool))
	for k := range pool {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		if g.chance(percent) {
			out[k] = pick(g, pool[k]...)
		}
	}
	return out
}

var (
	podPool  = map[string][]string{"app": {"web", "db", "dns"}, "role": {"a", "b"}, "tier": {"front", ""}}
	nsPool   = map[string][]string{"team": {"red", "blue"}, "env": {"prod", "dev"}}
	nodePool = map[string][]string{"zone": {"a", "b"}, "gpu": {"yes"}}
	names    = []string{"http", "dns", "metrics"}
	numbers  = []uint16{53, 80, 443, 1000, 1023, 1024, 8080, 65535, 1}
	networks = []string{
		"10.0.0.0/8", "10.1.0.0/16", "10.1.0.0/30", "10.1.0.4/32", "10.2.0.0/16", "0.0.0.0/0", "192.0.2.0/24", "192.0.2.128/25",
		"fd00::/8", "fd00:1::/32", "fd00:1::4/128", "::/0", "2001:db8::/32", "10.1.0.0/29", "fd00:1::/125",
	}
)

func (g generator) networks() []string {
	if g.o.networks != nil {
		return g.o.networks
	}
	return networks
}

func newWorld(r *rand.Rand, o options) *world {
	g := generator{r, o}
	w := &world{allClusters: o.allClusters}
	for i := range 3 {
		name := fmt.Sprintf("ns%d", i)
		labels := g.labels(nsPool, 60)
		labels[corev1.LabelMetadataName] = name
		w.namespaces = append(w.namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}})
	}
	for i := range 2 {
		w.nodes = append(w.nodes, &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("node%d", i), Labels: g.labels(nodePool, 60)},
			Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
				{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("172.16.0.%d", i+1)},
				{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("fd00:99::%d", i+1)},
			}},
		})
	}
	for _, a := range []string{"192.0.2.1", "192.0.2.200", "8.8.8.8", "2001:db8::1", "2001:4860::8888", "10.200.0.1", "fd00:99::1", "172.16.0.1", "172.16.0.2"} {
		w.outside = append(w.outside, netip.MustParseAddr(a))
	}
	identities := map[string]clustermesh.Identity{}
	pods := o.pods
	if pods == 0 {
		pods = 12 + g.IntN(6)
	}
	for i := range pods {
		w.pods = append(w.pods, g.pod(w, i, identities))
	}
	for i := range o.np {
		w.policies = append(w.policies, g.networkPolicy(w, i))
	}
	for i := range o.cnp {
		w.clusterPolicies = append(w.clusterPolicies, g.clusterPolicy(w, i))
	}
	return w
}

func (g generator) pod(w *world, i int, identities map[string]clustermesh.Identity) *pod {
	cluster := ownCluster
	if g.o.clusters > 1 && g.chance(50) {
		cluster = clustermesh.ID(1 + g.IntN(g.o.clusters))
	}
	p := &pod{Pod: &corev1.Pod{}, cluster: cluster}
	ns := pick(g, w.namespaces...)
	p.Namespace, p.Name, p.Labels = ns.Name, fmt.Sprintf("p%d", i), g.labels(podPool, 60)
	p.Spec.HostNetwork = g.o.pods == 0 && g.chance(8)
	node := pick(g, w.nodes...)
	p.Spec.NodeName = node.Name
	if p.Spec.HostNetwork {
		// Each has an address of its own here, or the ends of a query were unclear.
		p.addresses = []netip.Addr{netip.AddrFrom4([4]byte{172, 17, 0, byte(i)})}
	} else {
		p.addresses = []netip.Addr{
			netip.AddrFrom4([4]byte{10, byte(cluster), byte(g.IntN(2)), byte(i)}),
			netip.MustParseAddr(fmt.Sprintf("fd00:%d::%d:%x", cluster, g.IntN(2), i)),
		}
	}
	container := corev1.Container{Name: "c"}
	for _, name := range names {
		if g.chance(50) {
			proto := pick(g, clustermesh.TCP, clustermesh.TCP, clustermesh.UDP, clustermesh.SCTP)
			n := clustermesh.NamedPort{Name: name, Protocol: proto, Port: pick(g, numbers...)}
			p.ports = append(p.ports, n)
			container.Ports = append(container.Ports, corev1.ContainerPort{Name: name, Protocol: kubeProtocols[proto], ContainerPort: int32(n.Port)})
		}
	}
	p.Spec.Containers = []corev1.Container{container}
	text := fmt.Sprint(p.securityLabels(w))
	if identities[text] == 0 {
		identities[text] = clustermesh.MakeIdentity(cluster, uint32(len(identities)+1))
	}
	p.identity = identities[text]
	return p
}

func (p *pod) securityLabels(w *world) []clustermesh.Label {
	return clustermesh.SecurityLabels(clusterNames[p.cluster], p.Namespace, "", p.Labels, w.namespace(p.Namespace).Labels)
}

func (w *world) namespace(name string) *corev1.Namespace {
	return w.namespaces[slices.IndexFunc(w.namespaces, func(ns *corev1.Namespace) bool { return ns.Name == name })]
}

var kubeProtocols = map[clustermesh.Protocol]corev1.Protocol{
	clustermesh.TCP: corev1.ProtocolTCP, clustermesh.UDP: corev1.ProtocolUDP, clustermesh.SCTP: corev1.ProtocolSCTP,
}

// query asks about two ends of one family, at least one of them a pod of ours.
func (g generator) query(w *world) query {
	for {
		q := query{from: g.party(w), to: g.party(w), proto: pick(g, clustermesh.TCP, clustermesh.TCP, clustermesh.UDP, clustermesh.SCTP, 1, 58), port: pick(g, numbers...)}
		if g.chance(25) {
			q.port = pick(g, uint16(2), 79, 81, 1025, 8081, 65534, 30000)
		}
		if q.to.pod != nil && len(q.to.pod.ports) > 0 && g.chance(40) { // or named ports were hardly ever asked about
			named := pick(g, q.to.pod.ports...)
			q.proto, q.port = named.Protocol, named.Port
		}
		if q.proto == 1 || q.proto == 58 {
			q.port = 0
		}
		if q.from.address.Is4() == q.to.address.Is4() && q.from.address != q.to.address && (q.from.own() || q.to.own()) {
			return q
		}
	}
}

func (p party) own() bool {
	return p.pod != nil && p.pod.cluster == ownCluster && !p.pod.Spec.HostNetwork
}

func (g generator) party(w *world) party {
	if g.chance(20) {
		return party{address: pick(g, w.outside...)}
	}
	p := pick(g, w.pods...)
	return party{p, pick(g, p.addresses...)}
}
