package judge

import (
	"context"
	"net"
	"reflect"
	"testing"
	"unsafe"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/kube-network-policies/pkg/networkpolicy"
	npav1alpha1 "sigs.k8s.io/network-policy-api/apis/v1alpha1"
	npaclient "sigs.k8s.io/network-policy-api/pkg/client/clientset/versioned"
	npainformers "sigs.k8s.io/network-policy-api/pkg/client/informers/externalversions"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// kubePacket has the layout of the evaluator's packet.
type kubePacket struct {
	_       uint32          // id
	_       corev1.IPFamily // family
	srcIP   net.IP
	dstIP   net.IP
	proto   corev1.Protocol
	srcPort int
	dstPort int
	_       []byte // payload
}

// evaluatePacket is what its controller asks for each new connection. It is not
// exported, and taking it out would make it a copy of ours.
//
//go:linkname evaluatePacket sigs.k8s.io/kube-network-policies/pkg/networkpolicy.(*Controller).evaluatePacket
func evaluatePacket(c *networkpolicy.Controller, ctx context.Context, p kubePacket) bool

// kube is the evaluator with a world of ours in its caches. Nothing runs.
type kube struct {
	c                                               *networkpolicy.Controller
	policies, namespaces, pods, nodes, admin, basic cache.Indexer
	byIP                                            map[string]*corev1.Pod
}

func newKube(t testing.TB) *kube {
	config := &rest.Config{Host: "http://127.0.0.1:1"}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	npa, err := npaclient.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	f, g := informers.NewSharedInformerFactory(client, 0), npainformers.NewSharedInformerFactory(npa, 0)
	policies, core, tiers := f.Networking().V1().NetworkPolicies(), f.Core().V1(), g.Policy().V1alpha1()
	k := &kube{
		policies: policies.Informer().GetIndexer(), namespaces: core.Namespaces().Informer().GetIndexer(),
		pods: core.Pods().Informer().GetIndexer(), nodes: core.Nodes().Informer().GetIndexer(),
		admin: tiers.AdminNetworkPolicies().Informer().GetIndexer(), basic: tiers.BaselineAdminNetworkPolicies().Informer().GetIndexer(),
	}
	k.c, err = networkpolicy.NewController(client, policies, core.Namespaces(), core.Pods(), core.Nodes(), npa,
		tiers.AdminNetworkPolicies(), tiers.BaselineAdminNetworkPolicies(),
		networkpolicy.Config{NodeName: "judge", NRIdisabled: true, AdminNetworkPolicy: true, BaselineAdminNetworkPolicy: true})
	if err != nil {
		t.Fatal(err)
	}
	// Without the container runtime's word it panics at addresses of no pod.
	f2 := reflect.ValueOf(k.c).Elem().FieldByName("getPodAssignedToIP")
	reflect.NewAt(f2.Type(), unsafe.Pointer(f2.UnsafeAddr())).Elem().Set(reflect.ValueOf(func(ip string) *corev1.Pod { return k.byIP[ip] }))
	return k
}

// take makes the world the one of the evaluator.
func (k *kube) take(t testing.TB, w *world) {
	t.Helper()
	k.byIP = map[string]*corev1.Pod{}
	var namespaces, pods, policies, admin, basic []any
	for _, ns := range w.namespaces {
		namespaces = append(namespaces, ns)
	}
	for _, p := range w.pods {
		if p.cluster != ownCluster {
			t.Fatal("the evaluator knows one cluster")
		}
		pods = append(pods, p.Pod)
		if !p.Spec.HostNetwork {
			for _, a := range p.addresses {
				k.byIP[a.String()] = p.Pod
			}
		}
	}
	for _, p := range w.policies {
		policies = append(policies, forKube(p))
	}
	for _, p := range w.clusterPolicies {
		switch p := alpha1(p).(type) {
		case *npav1alpha1.AdminNetworkPolicy:
			admin = append(admin, p)
		default:
			basic = append(basic, p)
		}
	}
	for _, l := range []struct {
		into cache.Indexer
		list []any
	}{{k.namespaces, namespaces}, {k.pods, pods}, {k.policies, policies}, {k.admin, admin}, {k.basic, basic}} {
		if err := l.into.Replace(l.list, ""); err != nil {
			t.Fatal(err)
		}
	}
}

// forKube fills in what the API server would, and says an empty list of rules as
// none: the evaluator reads the former as "allow all".
func forKube(p *networkingv1.NetworkPolicy) *networkingv1.NetworkPolicy {
	p = p.DeepCopy()
	if len(p.Spec.PolicyTypes) == 0 {
		p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(p.Spec.Egress) > 0 {
			p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
	}
	tcp := corev1.ProtocolTCP
	fill := func(ports []networkingv1.NetworkPolicyPort) {
		for i := range ports {
			if ports[i].Protocol == nil {
				ports[i].Protocol = &tcp // a nil one makes it panic
			}
		}
	}
	for _, r := range p.Spec.Ingress {
		fill(r.Ports)
	}
	for _, r := range p.Spec.Egress {
		fill(r.Ports)
	}
	if len(p.Spec.Ingress) == 0 {
		p.Spec.Ingress = nil
	}
	if len(p.Spec.Egress) == 0 {
		p.Spec.Egress = nil
	}
	return p
}

// allows is its verdict. Protocols without ports have none in its packets.
func (k *kube) allows(q query) bool {
	p := kubePacket{srcIP: q.from.address.AsSlice(), dstIP: q.to.address.AsSlice(), srcPort: 40000, dstPort: int(q.port)}
	switch q.proto {
	case clustermesh.TCP:
		p.proto = corev1.ProtocolTCP
	case clustermesh.UDP:
		p.proto = corev1.ProtocolUDP
	case clustermesh.SCTP:
		p.proto = corev1.ProtocolSCTP
	}
	return evaluatePacket(k.c, context.Background(), p)
}
