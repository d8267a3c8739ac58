package policy

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// parseCluster reads a ClusterNetworkPolicy (v1alpha2, v1beta1). Rules that cannot
// be followed are closed one by one, as the API asks of implementations that meet
// a field they do not know. One whose frame is bad but that says whom it is for
// denies those everything.
func parseCluster(n Name, text json.RawMessage, s scope) parsed {
	var spec clusterPolicySpec
	if err := decode("spec", text, &spec); err != nil {
		return parsed{err: err}
	}
	p := &policy{name: n}
	var err error
	if p.subject, err = clusterSubject(spec.Subject); err != nil {
		return parsed{err: fmt.Errorf("spec.subject: %w", err)}
	}
	var errs []error
	if p.tier, err = tierOf(spec.Tier); err != nil {
		errs = append(errs, err)
	}
	if p.priority, err = priorityOf(spec.Priority); err != nil {
		errs = append(errs, err)
	}
	out := parsed{policy: p}
	for d, field := range [2]json.RawMessage{spec.Ingress, spec.Egress} {
		var rules []json.RawMessage
		if err := decode("spec."+Direction(d).String(), field, &rules); err != nil {
			errs = append(errs, err)
		}
		for i, text := range rules {
			r, unsupported, err := clusterRuleOf(Direction(d), text, s)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s[%d]: %w", Direction(d), i, err))
			}
			if unsupported != nil {
				out.warn = append(out.warn, fmt.Sprintf("%s[%d]: %v: %s", Direction(d), i, unsupported, closedText(r)))
			}
			if r != nil {
				r.finish(ruleName(n, Direction(d), i))
				p.rules[d] = append(p.rules[d], r)
			}
		}
	}
	if out.err = errors.Join(errs...); out.err != nil && !frameKnown(p, errs) {
		p.tier, p.priority = TierAdmin, 0
		for d := range p.rules {
			r := closed(Deny, "the policy cannot be read")
			r.finish(ruleName(n, Direction(d), 0))
			p.rules[d] = []*rule{r}
		}
	}
	return out
}

// errFrame marks errors that leave no order or action to go by.
var errFrame = errors.New("")

func frameKnown(p *policy, errs []error) bool {
	for _, err := range errs {
		if errors.Is(err, errFrame) {
			return false
		}
	}
	return true
}

func closedText(r *rule) string {
	if r.verdict == Accept {
		return "the rule matches nothing"
	}
	return "the rule denies everything"
}

func clusterSubject(text json.RawMessage) (*selector, error) {
	var s clusterPolicySubject
	if err := decode("spec.subject", text, &s); err != nil {
		return nil, err
	}
	switch {
	case s.Namespaces != nil && s.Pods != nil:
		return nil, errors.New("both namespaces and pods")
	case s.Namespaces != nil:
		return subjectSelector(nil, s.Namespaces, "")
	case s.Pods != nil:
		return subjectSelector(s.Pods.PodSelector, s.Pods.NamespaceSelector, "")
	}
	return nil, errors.New("neither namespaces nor pods")
}

func tierOf(text json.RawMessage) (Tier, error) {
	var tier string
	if err := decode("spec.tier", text, &tier); err != nil {
		return 0, fmt.Errorf("%w%w", err, errFrame)
	}
	switch tier {
	case "Admin":
		return TierAdmin, nil
	case "Baseline":
		return TierBaseline, nil
	}
	return 0, fmt.Errorf("tier %q is neither Admin nor Baseline%w", tier, errFrame)
}

func priorityOf(text json.RawMessage) (int, error) {
	n := -1
	if err := decode("spec.priority", text, &n); err != nil {
		return 0, fmt.Errorf("%w%w", err, errFrame)
	}
	if n < 0 || n > 1000 {
		return 0, fmt.Errorf("priority %d: it must be there and be 0 to 1000%w", n, errFrame)
	}
	return n, nil
}

// clusterRuleOf reads a rule. unsupported: it is well made, but asks for what is
// not followed here; err: it is bad. With either, the rule is the closed one, or
// nil if not even its action is known.
func clusterRuleOf(d Direction, text json.RawMessage, s scope) (r *rule, unsupported, err error) {
	var from clusterPolicyRule
	if err := decode("rule", text, &from); err != nil {
		return nil, nil, fmt.Errorf("%w%w", err, errFrame)
	}
	r = &rule{}
	switch from.Action {
	case "Accept":
		r.verdict = Accept
	case "Deny":
		r.verdict = Deny
	case "Pass":
		r.verdict = Pass
	default:
		return nil, nil, fmt.Errorf("action %q is not Accept, Deny or Pass%w", from.Action, errFrame)
	}
	if err := r.addProtocols(from.Protocols); err != nil {
		return closed(r.verdict, err.Error()), nil, err
	}
	unsupported, err = r.addClusterPeers(d, from, s)
	if err := errors.Join(unsupported, err); err != nil {
		r = closed(r.verdict, err.Error())
	}
	return r, unsupported, err
}

func (r *rule) addProtocols(text json.RawMessage) error {
	var list []clusterPolicyProtocol
	if err := decode("protocols", text, &list); err != nil {
		return err
	}
	r.all = len(list) == 0
	for i, p := range list {
		set := 0
		for proto, ports := range map[clustermesh.Protocol]*clusterPolicyPorts{
			clustermesh.TCP: p.TCP, clustermesh.UDP: p.UDP, clustermesh.SCTP: p.SCTP,
		} {
			if ports == nil {
				continue
			}
			set++
			if err := r.addDestination(proto, ports); err != nil {
				return fmt.Errorf("protocols[%d]: %w", i, err)
			}
		}
		if p.DestinationNamedPort != "" {
			set++
			r.named = append(r.named, portName{name: p.DestinationNamedPort})
		}
		if set != 1 {
			return fmt.Errorf("protocols[%d]: one of tcp, udp, sctp and destinationNamedPort must be there, %d are", i, set)
		}
	}
	return nil
}

func (r *rule) addDestination(proto clustermesh.Protocol, p *clusterPolicyPorts) error {
	port := p.DestinationPort
	switch {
	case port == nil:
		return fmt.Errorf("%s without destinationPort", protoName(proto))
	case port.Range == nil:
		return r.addRange(proto, port.Number, port.Number)
	case port.Number != 0:
		return errors.New("both number and range")
	}
	return r.addRange(proto, port.Range.Start, port.Range.End)
}

func (r *rule) addClusterPeers(d Direction, from clusterPolicyRule, s scope) (unsupported, err error) {
	field, text := "from", from.From
	if d == Egress {
		field, text = "to", from.To
	}
	var peers []clusterPolicyPeer
	if err := decode(field, text, &peers); err != nil {
		return nil, err
	}
	if len(peers) == 0 {
		return nil, fmt.Errorf("%s is empty", field)
	}
	for i, p := range peers {
		if d == Ingress {
			p.Nodes, p.Networks, p.DomainNames = nil, nil, nil // not in this version of the API
		}
		if len(p.DomainNames) > 0 {
			unsupported = fmt.Errorf("%s[%d]: domainNames are not supported", field, i)
			continue
		}
		if err := r.addClusterPeer(p, s); err != nil {
			return nil, fmt.Errorf("%s[%d]: %w", field, i, err)
		}
	}
	return unsupported, nil
}

func (r *rule) addClusterPeer(p clusterPolicyPeer, s scope) error {
	set := 0
	for _, is := range []bool{p.Namespaces != nil, p.Pods != nil, p.Nodes != nil, p.Networks != nil} {
		if is {
			set++
		}
	}
	if set != 1 {
		return fmt.Errorf("a peer has one kind of those this version knows, this one has %d", set)
	}
	switch {
	case p.Nodes != nil:
		reqs, err := requirements(p.Nodes)
		if err != nil {
			return fmt.Errorf("nodes: %w", err)
		}
		sel := selector{reqs: reqs}
		sel.finish()
		b := &block{text: "nodes" + sel.text[len("pods"):], nodes: sel.reqs, isNode: true, unknown: r.verdict == Deny}
		if b.unknown && len(b.nodes) > 0 {
			b.text += " or unknown"
		}
		r.blocks = append(r.blocks, b)
		return nil
	case p.Networks != nil:
		for _, text := range p.Networks {
			prefix, err := parsePrefix(text)
			if err != nil {
				return fmt.Errorf("networks: %w", err)
			}
			r.blocks = append(r.blocks, newBlock(prefix, nil))
		}
		return nil
	}
	pods, namespaces := (*labelSelector)(nil), p.Namespaces
	if p.Pods != nil {
		pods, namespaces = p.Pods.PodSelector, p.Pods.NamespaceSelector
	}
	sel, err := s.peerSelector(pods, namespaces, "")
	if err != nil {
		return err
	}
	r.selectors = append(r.selectors, sel)
	return nil
}
