package judge

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	npav1alpha1 "sigs.k8s.io/network-policy-api/apis/v1alpha1"
	npav1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

func (g generator) selector(pool map[string][]string) metav1.LabelSelector {
	s := metav1.LabelSelector{}
	if g.chance(25) {
		return s // selects all
	}
	keys := []string{"app", "role", "tier"}
	if _, ok := pool["team"]; ok {
		keys = []string{"team", "env"}
	}
	if _, ok := pool["zone"]; ok {
		keys = []string{"zone", "gpu"}
	}
	for range 1 + g.IntN(2) {
		key := pick(g, keys...)
		if g.chance(50) {
			if s.MatchLabels == nil {
				s.MatchLabels = map[string]string{}
			}
			s.MatchLabels[key] = pick(g, pool[key]...)
			continue
		}
		e := metav1.LabelSelectorRequirement{Key: key, Operator: pick(g, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist)}
		if e.Operator == metav1.LabelSelectorOpIn || e.Operator == metav1.LabelSelectorOpNotIn {
			e.Values = pool[key][:1+g.IntN(len(pool[key]))]
		}
		s.MatchExpressions = append(s.MatchExpressions, e)
	}
	return s
}

// peerSelector may range over clusters.
func (g generator) peerSelector(pool map[string][]string) *metav1.LabelSelector {
	s := g.selector(pool)
	if g.o.clusters > 1 && g.chance(40) {
		e := metav1.LabelSelectorRequirement{Key: clustermesh.LabelCluster, Operator: metav1.LabelSelectorOpExists}
		if g.chance(70) {
			e.Operator = pick(g, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn)
			e.Values = []string{pick(g, "here", "there", "yonder")}
		}
		s.MatchExpressions = append(s.MatchExpressions, e)
	}
	return &s
}

func (g generator) networkPolicy(w *world, i int) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: pick(g, w.namespaces...).Name, Name: fmt.Sprintf("np%d", i)}}
	p.Spec.PodSelector = g.selector(podPool)
	for range g.IntN(4) {
		p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{Ports: g.ports(), From: g.peers()})
	}
	for range g.IntN(4) {
		p.Spec.Egress = append(p.Spec.Egress, networkingv1.NetworkPolicyEgressRule{Ports: g.ports(), To: g.peers()})
	}
	if g.chance(20) {
		p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{}
	}
	in, out := networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress
	p.Spec.PolicyTypes = pick(g, nil, []networkingv1.PolicyType{in}, []networkingv1.PolicyType{out}, []networkingv1.PolicyType{in, out}, []networkingv1.PolicyType{in, out})
	if g.o.bothTypes {
		p.Spec.PolicyTypes = []networkingv1.PolicyType{in, out}
	}
	return p
}

func (g generator) ports() []networkingv1.NetworkPolicyPort {
	if g.chance(25) {
		return pick(g, nil, []networkingv1.NetworkPolicyPort{})
	}
	var out []networkingv1.NetworkPolicyPort
	for range 1 + g.IntN(3) {
		p := networkingv1.NetworkPolicyPort{}
		if g.chance(70) {
			proto := pick(g, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
			p.Protocol = &proto
		}
		switch g.IntN(4) {
		case 0:
		case 1:
			named := intstr.FromString(pick(g, names...))
			p.Port = &named
		case 2:
			lo, hi := g.portRange()
			p.Port, p.EndPort = &intstr.IntOrString{IntVal: lo}, &hi
		default:
			p.Port = &intstr.IntOrString{IntVal: int32(pick(g, numbers...))}
		}
		out = append(out, p)
	}
	return out
}

func (g generator) portRange() (lo, hi int32) {
	a, b := int32(pick(g, numbers...)), int32(pick(g, numbers...))
	if g.chance(30) {
		b = int32(1 + g.IntN(65535))
	}
	return min(a, b), max(a, b)
}

func (g generator) peers() []networkingv1.NetworkPolicyPeer {
	if g.chance(15) {
		return pick(g, nil, []networkingv1.NetworkPolicyPeer{})
	}
	var out []networkingv1.NetworkPolicyPeer
	for range 1 + g.IntN(3) {
		switch g.IntN(4) {
		case 0:
			out = append(out, networkingv1.NetworkPolicyPeer{PodSelector: g.peerSelector(podPool)})
		case 1:
			out = append(out, networkingv1.NetworkPolicyPeer{NamespaceSelector: g.peerSelector(nsPool)})
		case 2:
			out = append(out, networkingv1.NetworkPolicyPeer{PodSelector: g.peerSelector(podPool), NamespaceSelector: g.peerSelector(nsPool)})
		default:
			out = append(out, networkingv1.NetworkPolicyPeer{IPBlock: g.ipBlock()})
		}
	}
	return out
}

func (g generator) ipBlock() *networkingv1.IPBlock {
	b := &networkingv1.IPBlock{CIDR: pick(g, g.networks()...)}
	outer := netip.MustParsePrefix(b.CIDR)
	for _, n := range g.networks() {
		inner := netip.MustParsePrefix(n)
		if inner.Bits() > outer.Bits() && outer.Contains(inner.Addr()) && g.chance(40) {
			b.Except = append(b.Except, n)
		}
	}
	return b
}

func (g generator) namespacedPod() *npav1alpha2.NamespacedPod {
	return &npav1alpha2.NamespacedPod{NamespaceSelector: *g.peerSelector(nsPool), PodSelector: *g.peerSelector(podPool)}
}

// clusterPolicy: the first is the only one of the Baseline tier where simple.
func (g generator) clusterPolicy(w *world, i int) *npav1alpha2.ClusterNetworkPolicy {
	p := &npav1alpha2.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("cnp%d", i)}}
	p.Spec.Tier, p.Spec.Priority = npav1alpha2.AdminTier, int32(g.IntN(4))
	if i == 0 || !g.o.simple && g.chance(40) {
		p.Spec.Tier = npav1alpha2.BaselineTier
	}
	if g.chance(50) {
		s := g.selector(nsPool)
		p.Spec.Subject.Namespaces = &s
	} else {
		p.Spec.Subject.Pods = &npav1alpha2.NamespacedPod{NamespaceSelector: g.selector(nsPool), PodSelector: g.selector(podPool)}
	}
	for range g.IntN(4) {
		r := npav1alpha2.ClusterNetworkPolicyIngressRule{Action: g.action(p), Protocols: g.protocols()}
		for range 1 + g.IntN(2) {
			peer := npav1alpha2.ClusterNetworkPolicyIngressPeer{}
			if g.chance(50) {
				peer.Namespaces = g.peerSelector(nsPool)
			} else {
				peer.Pods = g.namespacedPod()
			}
			r.From = append(r.From, peer)
		}
		p.Spec.Ingress = append(p.Spec.Ingress, r)
	}
	for range g.IntN(4) {
		r := npav1alpha2.ClusterNetworkPolicyEgressRule{Action: g.action(p), Protocols: g.protocols()}
		for range 1 + g.IntN(2) {
			r.To = append(r.To, g.egressPeer())
		}
		p.Spec.Egress = append(p.Spec.Egress, r)
	}
	return p
}

func (g generator) egressPeer() npav1alpha2.ClusterNetworkPolicyEgressPeer {
	kinds := 5
	if g.o.simple {
		kinds = 3
	}
	switch g.IntN(kinds) {
	case 0:
		return npav1alpha2.ClusterNetworkPolicyEgressPeer{Namespaces: g.peerSelector(nsPool)}
	case 1:
		return npav1alpha2.ClusterNetworkPolicyEgressPeer{Pods: g.namespacedPod()}
	case 2:
		p := npav1alpha2.ClusterNetworkPolicyEgressPeer{}
		for range 1 + g.IntN(2) {
			p.Networks = append(p.Networks, npav1alpha2.CIDR(pick(g, g.networks()...)))
		}
		return p
	case 3:
		s := g.selector(nodePool)
		return npav1alpha2.ClusterNetworkPolicyEgressPeer{Nodes: &s}
	}
	if g.chance(80) {
		return g.egressPeer()
	}
	return npav1alpha2.ClusterNetworkPolicyEgressPeer{DomainNames: []npav1alpha2.DomainName{"example.org"}}
}

func (g generator) action(p *npav1alpha2.ClusterNetworkPolicy) npav1alpha2.ClusterNetworkPolicyRuleAction {
	if g.o.simple && p.Spec.Tier == npav1alpha2.BaselineTier {
		return pick(g, npav1alpha2.ClusterNetworkPolicyRuleActionAccept, npav1alpha2.ClusterNetworkPolicyRuleActionDeny)
	}
	return pick(g, npav1alpha2.ClusterNetworkPolicyRuleActionAccept, npav1alpha2.ClusterNetworkPolicyRuleActionDeny, npav1alpha2.ClusterNetworkPolicyRuleActionPass)
}

func (g generator) protocols() []npav1alpha2.ClusterNetworkPolicyProtocol {
	if g.chance(30) {
		return nil
	}
	var out []npav1alpha2.ClusterNetworkPolicyProtocol
	for range 1 + g.IntN(2) {
		if !g.o.simple && g.chance(25) {
			out = append(out, npav1alpha2.ClusterNetworkPolicyProtocol{DestinationNamedPort: pick(g, names...)})
			continue
		}
		port := &npav1alpha2.Port{Number: int32(pick(g, numbers...))}
		if g.chance(40) {
			if lo, hi := g.portRange(); lo < hi {
				port = &npav1alpha2.Port{Range: &npav1alpha2.PortRange{Start: lo, End: hi}}
			}
		}
		switch g.IntN(3) {
		case 0:
			out = append(out, npav1alpha2.ClusterNetworkPolicyProtocol{TCP: &npav1alpha2.ClusterNetworkPolicyProtocolTCP{DestinationPort: port}})
		case 1:
			out = append(out, npav1alpha2.ClusterNetworkPolicyProtocol{UDP: &npav1alpha2.ClusterNetworkPolicyProtocolUDP{DestinationPort: port}})
		default:
			out = append(out, npav1alpha2.ClusterNetworkPolicyProtocol{SCTP: &npav1alpha2.ClusterNetworkPolicyProtocolSCTP{DestinationPort: port}})
		}
	}
	return out
}

// alpha1 says a simple policy in the API before, which the evaluator knows.
func alpha1(p *npav1alpha2.ClusterNetworkPolicy) any {
	subject := npav1alpha1.AdminNetworkPolicySubject{Namespaces: p.Spec.Subject.Namespaces, Pods: (*npav1alpha1.NamespacedPod)(p.Spec.Subject.Pods)}
	actions := map[npav1alpha2.ClusterNetworkPolicyRuleAction]npav1alpha1.AdminNetworkPolicyRuleAction{
		"Accept": npav1alpha1.AdminNetworkPolicyRuleActionAllow, "Deny": npav1alpha1.AdminNetworkPolicyRuleActionDeny, "Pass": npav1alpha1.AdminNetworkPolicyRuleActionPass,
	}
	admin := &npav1alpha1.AdminNetworkPolicy{ObjectMeta: p.ObjectMeta}
	admin.Spec.Priority, admin.Spec.Subject = p.Spec.Priority, subject
	basic := &npav1alpha1.BaselineAdminNetworkPolicy{ObjectMeta: p.ObjectMeta}
	basic.Spec.Subject = subject
	for _, r := range p.Spec.Ingress {
		var from []npav1alpha1.AdminNetworkPolicyIngressPeer
		for _, x := range r.From {
			from = append(from, npav1alpha1.AdminNetworkPolicyIngressPeer{Namespaces: x.Namespaces, Pods: (*npav1alpha1.NamespacedPod)(x.Pods)})
		}
		ports := alpha1Ports(r.Protocols)
		admin.Spec.Ingress = append(admin.Spec.Ingress, npav1alpha1.AdminNetworkPolicyIngressRule{Action: actions[r.Action], From: from, Ports: ports})
		basic.Spec.Ingress = append(basic.Spec.Ingress, npav1alpha1.BaselineAdminNetworkPolicyIngressRule{Action: npav1alpha1.BaselineAdminNetworkPolicyRuleAction(actions[r.Action]), From: from, Ports: ports})
	}
	for _, r := range p.Spec.Egress {
		var to []npav1alpha1.AdminNetworkPolicyEgressPeer
		var basicTo []npav1alpha1.BaselineAdminNetworkPolicyEgressPeer
		for _, x := range r.To {
			var cidrs []npav1alpha1.CIDR
			for _, n := range x.Networks {
				cidrs = append(cidrs, npav1alpha1.CIDR(n))
			}
			to = append(to, npav1alpha1.AdminNetworkPolicyEgressPeer{Namespaces: x.Namespaces, Pods: (*npav1alpha1.NamespacedPod)(x.Pods), Networks: cidrs})
			basicTo = append(basicTo, npav1alpha1.BaselineAdminNetworkPolicyEgressPeer{Namespaces: x.Namespaces, Pods: (*npav1alpha1.NamespacedPod)(x.Pods), Networks: cidrs})
		}
		ports := alpha1Ports(r.Protocols)
		admin.Spec.Egress = append(admin.Spec.Egress, npav1alpha1.AdminNetworkPolicyEgressRule{Action: actions[r.Action], To: to, Ports: ports})
		basic.Spec.Egress = append(basic.Spec.Egress, npav1alpha1.BaselineAdminNetworkPolicyEgressRule{Action: npav1alpha1.BaselineAdminNetworkPolicyRuleAction(actions[r.Action]), To: basicTo, Ports: ports})
	}
	if p.Spec.Tier == npav1alpha2.BaselineTier {
		return basic
	}
	return admin
}

func alpha1Ports(list []npav1alpha2.ClusterNetworkPolicyProtocol) *[]npav1alpha1.AdminNetworkPolicyPort {
	if list == nil {
		return nil
	}
	out := []npav1alpha1.AdminNetworkPolicyPort{}
	for _, p := range list {
		proto, port := corev1.ProtocolTCP, (*npav1alpha2.Port)(nil)
		switch {
		case p.TCP != nil:
			port = p.TCP.DestinationPort
		case p.UDP != nil:
			proto, port = corev1.ProtocolUDP, p.UDP.DestinationPort
		default:
			proto, port = corev1.ProtocolSCTP, p.SCTP.DestinationPort
		}
		if port.Range != nil {
			out = append(out, npav1alpha1.AdminNetworkPolicyPort{PortRange: &npav1alpha1.PortRange{Protocol: proto, Start: port.Range.Start, End: port.Range.End}})
		} else {
			out = append(out, npav1alpha1.AdminNetworkPolicyPort{PortNumber: &npav1alpha1.Port{Protocol: proto, Port: port.Number}})
		}
	}
	return &out
}
