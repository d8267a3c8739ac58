package judge

import (
	"cmp"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	npav1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// twin reads the policies anew for each question, as the texts of the APIs say.
type twin struct{ w *world }

func (t twin) allows(q query) bool {
	return (!q.from.own() || t.side(q, q.from.pod, q.to, false)) && (!q.to.own() || t.side(q, q.to.pod, q.from, true))
}

// side is one direction: what the policies of pod say of peer.
func (t twin) side(q query, pod *pod, peer party, ingress bool) bool {
	if v := t.tier(npav1alpha2.AdminTier, q, pod, peer, ingress); v == "Accept" || v == "Deny" {
		return v == "Accept"
	}
	if isolated, allowed := t.networkPolicies(q, pod, peer, ingress); isolated {
		return allowed
	}
	return t.tier(npav1alpha2.BaselineTier, q, pod, peer, ingress) != "Deny"
}

func (t twin) networkPolicies(q query, pod *pod, peer party, ingress bool) (isolated, allowed bool) {
	for _, p := range t.w.policies {
		if p.Namespace != pod.Namespace || !t.selects(&p.Spec.PodSelector, pod.Labels, pod) {
			continue
		}
		if !slices.Contains(policyTypes(p), map[bool]networkingv1.PolicyType{true: "Ingress", false: "Egress"}[ingress]) {
			continue
		}
		isolated = true
		if ingress {
			for _, r := range p.Spec.Ingress {
				allowed = allowed || t.anyPort(r.Ports, q) && t.anyPeer(r.From, p.Namespace, peer)
			}
		} else {
			for _, r := range p.Spec.Egress {
				allowed = allowed || t.anyPort(r.Ports, q) && t.anyPeer(r.To, p.Namespace, peer)
			}
		}
	}
	return isolated, allowed
}

func policyTypes(p *networkingv1.NetworkPolicy) []networkingv1.PolicyType {
	if len(p.Spec.PolicyTypes) > 0 {
		return p.Spec.PolicyTypes
	}
	if len(p.Spec.Egress) > 0 {
		return []networkingv1.PolicyType{"Ingress", "Egress"}
	}
	return []networkingv1.PolicyType{"Ingress"}
}

// selects a label selector; the label of the cluster is everybody's.
func (t twin) selects(s *metav1.LabelSelector, have map[string]string, of *pod) bool {
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		panic(err)
	}
	set := labels.Set{clustermesh.LabelCluster: clusterNames[of.cluster]}
	for k, v := range have {
		set[k] = v
	}
	return sel.Matches(set)
}

func mentionsCluster(s *metav1.LabelSelector) bool {
	if s == nil {
		return false
	}
	_, ok := s.MatchLabels[clustermesh.LabelCluster]
	return ok || slices.ContainsFunc(s.MatchExpressions, func(e metav1.LabelSelectorRequirement) bool { return e.Key == clustermesh.LabelCluster })
}

// pods says whether a pair of selectors selects a pod as peer; nil: not asked.
func (t twin) pods(pods, namespaces *metav1.LabelSelector, of *pod) bool {
	if of == nil || of.Spec.HostNetwork {
		return false
	}
	if of.cluster != ownCluster && !t.w.allClusters && !mentionsCluster(pods) && !mentionsCluster(namespaces) {
		return false
	}
	return (pods == nil || t.selects(pods, of.Labels, of)) &&
		(namespaces == nil || t.selects(namespaces, t.w.namespace(of.Namespace).Labels, of))
}

func (t twin) anyPeer(list []networkingv1.NetworkPolicyPeer, home string, peer party) bool {
	for _, p := range list {
		switch {
		case p.IPBlock != nil:
			if inside(p.IPBlock.CIDR, peer.address) && !slices.ContainsFunc(p.IPBlock.Except, func(e string) bool { return inside(e, peer.address) }) {
				return true
			}
		case p.NamespaceSelector == nil:
			if peer.pod != nil && peer.pod.Namespace == home && t.pods(p.PodSelector, nil, peer.pod) {
				return true
			}
		default:
			if t.pods(p.PodSelector, p.NamespaceSelector, peer.pod) {
				return true
			}
		}
	}
	return len(list) == 0
}

func inside(cidr string, a netip.Addr) bool { return netip.MustParsePrefix(cidr).Contains(a) }

// named ports are those of the pod that is connected to; one on the network of
// its host has none that policy knows.
func (q query) namedPorts() []clustermesh.NamedPort {
	if q.to.pod == nil || q.to.pod.Spec.HostNetwork {
		return nil
	}
	return q.to.pod.ports
}

func (t twin) anyPort(list []networkingv1.NetworkPolicyPort, q query) bool {
	for _, p := range list {
		proto := corev1.ProtocolTCP
		if p.Protocol != nil {
			proto = *p.Protocol
		}
		if kubeProtocols[q.proto] != proto {
			continue
		}
		switch {
		case p.Port == nil:
			return true
		case p.Port.StrVal != "":
			for _, n := range q.namedPorts() {
				if n.Name == p.Port.StrVal && n.Protocol == q.proto && n.Port == q.port {
					return true
				}
			}
		case p.EndPort != nil:
			if int32(q.port) >= p.Port.IntVal && int32(q.port) <= *p.EndPort {
				return true
			}
		case int32(q.port) == p.Port.IntVal:
			return true
		}
	}
	return len(list) == 0
}

// tier is the verdict of a tier, or "" if no rule matches.
func (t twin) tier(tier npav1alpha2.Tier, q query, pod *pod, peer party, ingress bool) npav1alpha2.ClusterNetworkPolicyRuleAction {
	list := slices.Clone(t.w.clusterPolicies)
	slices.SortStableFunc(list, func(a, b *npav1alpha2.ClusterNetworkPolicy) int {
		return cmp.Or(cmp.Compare(a.Spec.Priority, b.Spec.Priority), cmp.Compare(a.Name, b.Name))
	})
	for _, p := range list {
		if p.Spec.Tier != tier || !t.subject(p.Spec.Subject, pod) {
			continue
		}
		if ingress {
			for _, r := range p.Spec.Ingress {
				if t.anyProtocol(r.Protocols, q) && slices.ContainsFunc(r.From, func(x npav1alpha2.ClusterNetworkPolicyIngressPeer) bool {
					return t.clusterPeer(npav1alpha2.ClusterNetworkPolicyEgressPeer{Namespaces: x.Namespaces, Pods: x.Pods}, peer)
				}) {
					return r.Action
				}
			}
			continue
		}
		for _, r := range p.Spec.Egress {
			if slices.ContainsFunc(r.To, func(x npav1alpha2.ClusterNetworkPolicyEgressPeer) bool { return x.DomainNames != nil }) {
				// Not supported: fails closed.
				if r.Action == "Accept" {
					continue
				}
				return "Deny"
			}
			if t.anyProtocol(r.Protocols, q) && slices.ContainsFunc(r.To, func(x npav1alpha2.ClusterNetworkPolicyEgressPeer) bool { return t.clusterPeer(x, peer) }) {
				return r.Action
			}
		}
	}
	return ""
}

func (t twin) subject(s npav1alpha2.ClusterNetworkPolicySubject, pod *pod) bool {
	if s.Namespaces != nil {
		return t.selects(s.Namespaces, t.w.namespace(pod.Namespace).Labels, pod)
	}
	return t.selects(&s.Pods.NamespaceSelector, t.w.namespace(pod.Namespace).Labels, pod) && t.selects(&s.Pods.PodSelector, pod.Labels, pod)
}

func (t twin) clusterPeer(p npav1alpha2.ClusterNetworkPolicyEgressPeer, peer party) bool {
	switch {
	case p.Namespaces != nil:
		return t.pods(nil, p.Namespaces, peer.pod)
	case p.Pods != nil:
		return t.pods(&p.Pods.PodSelector, &p.Pods.NamespaceSelector, peer.pod)
	case p.Nodes != nil:
		sel, err := metav1.LabelSelectorAsSelector(p.Nodes)
		if err != nil {
			panic(err)
		}
		for _, n := range t.w.nodes {
			if sel.Matches(labels.Set(n.Labels)) && slices.ContainsFunc(n.Status.Addresses, func(a corev1.NodeAddress) bool { return mustAddr(a.Address) == peer.address }) {
				return true
			}
		}
		return false
	}
	return slices.ContainsFunc(p.Networks, func(c npav1alpha2.CIDR) bool { return inside(string(c), peer.address) })
}

func (t twin) anyProtocol(list []npav1alpha2.ClusterNetworkPolicyProtocol, q query) bool {
	for _, p := range list {
		var port *npav1alpha2.Port
		switch {
		case p.DestinationNamedPort != "":
			for _, n := range q.namedPorts() {
				if n.Name == p.DestinationNamedPort && n.Protocol == q.proto && n.Port == q.port {
					return true
				}
			}
			continue
		case p.TCP != nil && q.proto == clustermesh.TCP:
			port = p.TCP.DestinationPort
		case p.UDP != nil && q.proto == clustermesh.UDP:
			port = p.UDP.DestinationPort
		case p.SCTP != nil && q.proto == clustermesh.SCTP:
			port = p.SCTP.DestinationPort
		default:
			continue
		}
		if port.Range == nil && int32(q.port) == port.Number || port.Range != nil && int32(q.port) >= port.Range.Start && int32(q.port) <= port.Range.End {
			return true
		}
	}
	return len(list) == 0
}
