package apiserver

import (
	"fmt"
	"net/netip"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// policyErrors collects what is wrong with a policy, by the path of the field,
// as a kube-apiserver would say it.
type policyErrors struct{ list field.ErrorList }

func (e *policyErrors) add(err *field.Error) { e.list = append(e.list, err) }

// err names the first and counts the rest: a line is read, a page is not.
func (e *policyErrors) err() error {
	switch len(e.list) {
	case 0:
		return nil
	case 1:
		return e.list[0]
	}
	return fmt.Errorf("%w (and %d more)", e.list[0], len(e.list)-1)
}

// selector checks labels and operators; nil = there is none.
func (e *policyErrors) selector(at *field.Path, s *metav1.LabelSelector) {
	if s != nil {
		e.list = append(e.list, metav1validation.ValidateLabelSelector(s, metav1validation.LabelSelectorValidationOptions{}, at)...)
	}
}

func (e *policyErrors) portNumber(at *field.Path, n int32) {
	for _, why := range validation.IsValidPortNum(int(n)) {
		e.add(field.Invalid(at, n, why))
	}
}

// prefix reads a CIDR. Bits beyond its length do not count: kube-apiserver took
// such ones for years, and stored policies have them.
func (e *policyErrors) prefix(at *field.Path, text string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(text)
	if err != nil || p.Addr().Is4In6() {
		e.add(field.Invalid(at, text, "must be a prefix such as 192.0.2.0/24 or 2001:db8::/32"))
		return p, false
	}
	return p.Masked(), true
}

// validateNetworkPolicy reports what a kube-apiserver would refuse.
func validateNetworkPolicy(p *networkingv1.NetworkPolicy) error {
	var e policyErrors
	spec := field.NewPath("spec")
	e.selector(spec.Child("podSelector"), &p.Spec.PodSelector)
	for i, rule := range p.Spec.Ingress {
		e.networkRule(spec.Child("ingress").Index(i), rule.Ports, "from", rule.From)
	}
	for i, rule := range p.Spec.Egress {
		e.networkRule(spec.Child("egress").Index(i), rule.Ports, "to", rule.To)
	}
	types := spec.Child("policyTypes")
	if len(p.Spec.PolicyTypes) > 2 {
		e.add(field.Invalid(types, p.Spec.PolicyTypes, "may not hold more than two"))
	}
	for i, t := range p.Spec.PolicyTypes {
		if t != networkingv1.PolicyTypeIngress && t != networkingv1.PolicyTypeEgress {
			e.add(field.NotSupported(types.Index(i), t, []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}))
		}
	}
	return e.err()
}

func (e *policyErrors) networkRule(at *field.Path, ports []networkingv1.NetworkPolicyPort, peersName string, peers []networkingv1.NetworkPolicyPeer) {
	for i, p := range ports {
		e.networkPort(at.Child("ports").Index(i), p)
	}
	for i, p := range peers {
		e.networkPeer(at.Child(peersName).Index(i), p)
	}
}

func (e *policyErrors) networkPort(at *field.Path, p networkingv1.NetworkPolicyPort) {
	if p.Protocol != nil {
		if _, err := protocolOf(*p.Protocol); err != nil || *p.Protocol == "" {
			e.add(field.NotSupported(at.Child("protocol"), *p.Protocol, []string{"TCP", "UDP", "SCTP"}))
		}
	}
	end := at.Child("endPort")
	switch {
	case p.Port == nil:
		if p.EndPort != nil {
			e.add(field.Invalid(end, *p.EndPort, "may not be given without port"))
		}
	case p.Port.Type == intstr.String:
		for _, why := range validation.IsValidPortName(p.Port.StrVal) {
			e.add(field.Invalid(at.Child("port"), p.Port.StrVal, why))
		}
		if p.EndPort != nil {
			e.add(field.Invalid(end, *p.EndPort, "may not be given with a port that is a name"))
		}
	default:
		e.portNumber(at.Child("port"), p.Port.IntVal)
		if p.EndPort != nil {
			e.portNumber(end, *p.EndPort)
			if *p.EndPort < p.Port.IntVal {
				e.add(field.Invalid(end, *p.EndPort, fmt.Sprintf("must not be below port %d", p.Port.IntVal)))
			}
		}
	}
}

func (e *policyErrors) networkPeer(at *field.Path, p networkingv1.NetworkPolicyPeer) {
	e.selector(at.Child("podSelector"), p.PodSelector)
	e.selector(at.Child("namespaceSelector"), p.NamespaceSelector)
	selects := p.PodSelector != nil || p.NamespaceSelector != nil
	switch {
	case p.IPBlock == nil:
		if !selects {
			e.add(field.Required(at, "a podSelector, a namespaceSelector or an ipBlock"))
		}
		return
	case selects:
		e.add(field.Forbidden(at, "ipBlock does not go with a selector"))
	}
	block := at.Child("ipBlock")
	cidr, ok := e.prefix(block.Child("cidr"), p.IPBlock.CIDR)
	for i, text := range p.IPBlock.Except {
		path := block.Child("except").Index(i)
		if except, good := e.prefix(path, text); ok && good && (except.Bits() <= cidr.Bits() || !cidr.Contains(except.Addr())) {
			e.add(field.Invalid(path, text, fmt.Sprintf("must lie within cidr %s, and not be all of it", cidr)))
		}
	}
}
