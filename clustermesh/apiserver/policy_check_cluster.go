package apiserver

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"

	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"
)

// Limits of a ClusterNetworkPolicy, as its CRD has them.
const (
	maxPolicyRules    = 25 // a direction, and of every list in a rule
	maxPolicyRuleName = 100
	maxPolicyPriority = 1000
)

// clusterPolicy is a ClusterNetworkPolicy, and which required fields its text
// lacks: once decoded a missing priority looks like 0, and a missing selector
// like one that selects everything.
type clusterPolicy struct {
	*v1alpha2.ClusterNetworkPolicy
	lacks []*field.Path
}

// lacking are the required fields that the text of a ClusterNetworkPolicy does
// not have.
func lacking(text []byte) (paths []*field.Path) {
	type object = map[string]json.RawMessage
	fields := func(text json.RawMessage) object {
		var o object
		_ = json.Unmarshal(text, &o) // text has been decoded before
		return o
	}
	needs := func(at *field.Path, o object, names ...string) {
		for _, name := range names {
			if o[name] == nil || string(o[name]) == "null" {
				paths = append(paths, at.Child(name))
			}
		}
	}
	pods := func(at *field.Path, o object) {
		if p := o["pods"]; p != nil {
			needs(at.Child("pods"), fields(p), "podSelector")
		}
	}
	at := field.NewPath("spec")
	spec := fields(fields(text)["spec"])
	needs(at, spec, "tier", "priority", "subject")
	pods(at.Child("subject"), fields(spec["subject"]))
	for _, way := range [][2]string{{"ingress", "from"}, {"egress", "to"}} {
		direction, peers := way[0], way[1]
		var rules []object
		_ = json.Unmarshal(spec[direction], &rules)
		for i, rule := range rules {
			var list []object
			_ = json.Unmarshal(rule[peers], &list)
			for j, peer := range list {
				pods(at.Child(direction).Index(i).Child(peers).Index(j), peer)
			}
		}
	}
	return paths
}

// validateClusterPolicy reports what the CRD of ClusterNetworkPolicy refuses.
func validateClusterPolicy(p *clusterPolicy) error {
	var e policyErrors
	for _, path := range p.lacks {
		e.add(field.Required(path, ""))
	}
	spec, at := p.Spec, field.NewPath("spec")
	if len(e.list) == 0 && spec.Tier != v1alpha2.AdminTier && spec.Tier != v1alpha2.BaselineTier {
		e.add(field.NotSupported(at.Child("tier"), spec.Tier, []v1alpha2.Tier{v1alpha2.AdminTier, v1alpha2.BaselineTier}))
	}
	if spec.Priority < 0 || spec.Priority > maxPolicyPriority {
		e.add(field.Invalid(at.Child("priority"), spec.Priority, fmt.Sprintf("must be from 0 to %d", maxPolicyPriority)))
	}
	e.clusterPeer(at.Child("subject"), v1alpha2.ClusterNetworkPolicyEgressPeer{Namespaces: spec.Subject.Namespaces, Pods: spec.Subject.Pods}, false)
	e.atMost(at.Child("ingress"), len(spec.Ingress))
	for i, r := range spec.Ingress {
		peers := make([]v1alpha2.ClusterNetworkPolicyEgressPeer, len(r.From))
		for j, from := range r.From {
			peers[j] = v1alpha2.ClusterNetworkPolicyEgressPeer{Namespaces: from.Namespaces, Pods: from.Pods}
		}
		e.clusterRule(at.Child("ingress").Index(i), "from", clusterRule{r.Name, r.Action, peers, r.Protocols})
	}
	e.atMost(at.Child("egress"), len(spec.Egress))
	for i, r := range spec.Egress {
		e.clusterRule(at.Child("egress").Index(i), "to", clusterRule{r.Name, r.Action, r.To, r.Protocols})
	}
	return e.err()
}

// clusterRule is a rule of either direction: the peers of one that may come in
// are a part of those that may be gone to.
type clusterRule struct {
	name      string
	action    v1alpha2.ClusterNetworkPolicyRuleAction
	peers     []v1alpha2.ClusterNetworkPolicyEgressPeer
	protocols []v1alpha2.ClusterNetworkPolicyProtocol
}

func (e *policyErrors) atMost(at *field.Path, n int) {
	if n > maxPolicyRules {
		e.add(field.TooMany(at, n, maxPolicyRules))
	}
}

func (e *policyErrors) clusterRule(at *field.Path, peersName string, r clusterRule) {
	if len(r.name) > maxPolicyRuleName {
		e.add(field.TooLong(at.Child("name"), r.name, maxPolicyRuleName))
	}
	switch r.action {
	case v1alpha2.ClusterNetworkPolicyRuleActionAccept, v1alpha2.ClusterNetworkPolicyRuleActionDeny, v1alpha2.ClusterNetworkPolicyRuleActionPass:
	default:
		e.add(field.NotSupported(at.Child("action"), r.action, []string{"Accept", "Deny", "Pass"}))
	}
	if len(r.peers) == 0 {
		e.add(field.Required(at.Child(peersName), "at least one; a rule for everybody names all namespaces, {namespaces: {}}"))
	}
	e.atMost(at.Child(peersName), len(r.peers))
	nameless := false // ends that have no named ports
	for i, p := range r.peers {
		path := at.Child(peersName).Index(i)
		e.clusterPeer(path, p, r.action == v1alpha2.ClusterNetworkPolicyRuleActionAccept)
		nameless = nameless || p.Nodes != nil || p.Networks != nil || p.DomainNames != nil
	}
	if r.protocols != nil && len(r.protocols) == 0 {
		e.add(field.Required(at.Child("protocols"), "at least one; leave it out for all"))
	}
	e.atMost(at.Child("protocols"), len(r.protocols))
	for i, p := range r.protocols {
		path := at.Child("protocols").Index(i)
		e.clusterProtocol(path, p)
		if nameless && p.DestinationNamedPort != "" {
			e.add(field.Forbidden(path.Child("destinationNamedPort"), "nodes, networks and domainNames have no named ports"))
		}
	}
}

// domainName is what the CRD allows.
var domainName = regexp.MustCompile(`^(\*\.)?([a-zA-Z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.)+[a-zA-Z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.?$`)

func (e *policyErrors) clusterPeer(at *field.Path, p v1alpha2.ClusterNetworkPolicyEgressPeer, accept bool) {
	n := 0
	for _, given := range []bool{p.Namespaces != nil, p.Pods != nil, p.Nodes != nil, p.Networks != nil, p.DomainNames != nil} {
		if given {
			n++
		}
	}
	if n != 1 { // none is what a field of a newer version leaves
		e.add(field.Invalid(at, fmt.Sprintf("%d fields", n), "must have exactly one of the fields that this version knows"))
	}
	e.selector(at.Child("namespaces"), p.Namespaces)
	if p.Pods != nil {
		e.selector(at.Child("pods", "namespaceSelector"), &p.Pods.NamespaceSelector)
		e.selector(at.Child("pods", "podSelector"), &p.Pods.PodSelector)
	}
	e.selector(at.Child("nodes"), p.Nodes)
	e.networks(at.Child("networks"), p.Networks)
	e.domainNames(at.Child("domainNames"), p.DomainNames, accept)
}

func (e *policyErrors) networks(at *field.Path, list []v1alpha2.CIDR) {
	if list != nil && len(list) == 0 {
		e.add(field.Required(at, "at least one"))
	}
	e.atMost(at, len(list))
	seen := make(map[v1alpha2.CIDR]bool)
	for i, text := range list {
		p, ok := e.prefix(at.Index(i), string(text))
		switch {
		case !ok:
		case p != netip.MustParsePrefix(string(text)):
			e.add(field.Invalid(at.Index(i), text, fmt.Sprintf("has bits set beyond its length; it should be %s", p)))
		case seen[text]:
			e.add(field.Duplicate(at.Index(i), text))
		}
		seen[text] = true
	}
}

func (e *policyErrors) domainNames(at *field.Path, list []v1alpha2.DomainName, accept bool) {
	if list == nil {
		return
	}
	if len(list) == 0 {
		e.add(field.Required(at, "at least one"))
	}
	if !accept {
		e.add(field.Forbidden(at, "goes with action Accept alone"))
	}
	e.atMost(at, len(list))
	for i, name := range list {
		if !domainName.MatchString(string(name)) {
			e.add(field.Invalid(at.Index(i), name, "must be a domain name such as example.com or *.example.com"))
		}
	}
}

func (e *policyErrors) clusterProtocol(at *field.Path, p v1alpha2.ClusterNetworkPolicyProtocol) {
	n := 0
	ports := func(name string, port *v1alpha2.Port) {
		n++
		path := at.Child(name, "destinationPort")
		if port == nil {
			e.add(field.Required(path, "leave protocols out for all of them"))
			return
		}
		e.clusterPort(path, port)
	}
	if p.TCP != nil {
		ports("tcp", p.TCP.DestinationPort)
	}
	if p.UDP != nil {
		ports("udp", p.UDP.DestinationPort)
	}
	if p.SCTP != nil {
		ports("sctp", p.SCTP.DestinationPort)
	}
	if p.DestinationNamedPort != "" {
		n++
	}
	if n != 1 {
		e.add(field.Invalid(at, fmt.Sprintf("%d fields", n), "must have exactly one of tcp, udp, sctp, destinationNamedPort"))
	}
}

func (e *policyErrors) clusterPort(at *field.Path, p *v1alpha2.Port) {
	switch {
	case (p.Number != 0) == (p.Range != nil):
		e.add(field.Invalid(at, p.Number, "must have exactly one of number, range"))
	case p.Range == nil:
		e.portNumber(at.Child("number"), p.Number)
	default:
		e.portNumber(at.Child("range", "start"), p.Range.Start)
		e.portNumber(at.Child("range", "end"), p.Range.End)
		if p.Range.Start >= p.Range.End {
			e.add(field.Invalid(at.Child("range"), p.Range.Start, fmt.Sprintf("start must be below end %d", p.Range.End)))
		}
	}
}
