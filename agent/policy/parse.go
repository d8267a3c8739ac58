package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// parsed is a policy as far as it can be read. With err set, policy is what holds
// in its place as long as there was no better one (nil: not even whom it is for).
// warn is what is not followed in a policy that is.
type parsed struct {
	policy *policy
	err    error
	warn   []string
}

func parse(n Name, text []byte, s scope) parsed {
	var m manifest
	if err := decode("manifest", text, &m); err != nil {
		return parsed{err: err}
	}
	if n.Namespace == "" {
		return parseCluster(n, m.Spec, s)
	}
	return parseNetworkPolicy(n, m.Spec, s)
}

// parseNetworkPolicy reads a NetworkPolicy. A bad one that says whom it is for
// isolates those, and allows nothing.
func parseNetworkPolicy(n Name, text json.RawMessage, s scope) parsed {
	var spec networkPolicySpec
	if err := decode("spec", text, &spec); err != nil {
		return parsed{err: err}
	}
	p := &policy{name: n, tier: TierNetworkPolicy}
	pods := &labelSelector{}
	if err := decode("spec.podSelector", spec.PodSelector, pods); err != nil {
		return parsed{err: err}
	}
	var err error
	if p.subject, err = subjectSelector(pods, nil, n.Namespace); err != nil {
		return parsed{err: fmt.Errorf("spec.podSelector: %w", err)}
	}
	var errs []error
	egress := false // has rules, good or bad
	for d, field := range [2]json.RawMessage{spec.Ingress, spec.Egress} {
		var rules []json.RawMessage
		if err := decode("spec."+Direction(d).String(), field, &rules); err != nil {
			errs = append(errs, err)
			egress = egress || Direction(d) == Egress
			continue
		}
		egress = egress || Direction(d) == Egress && len(rules) > 0
		for i, text := range rules {
			r, err := networkPolicyRuleOf(n, Direction(d), text, s)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s[%d]: %w", Direction(d), i, err))
				continue
			}
			r.finish(ruleName(n, Direction(d), i))
			p.rules[d] = append(p.rules[d], r)
		}
	}
	if p.isolates, err = policyTypes(spec.PolicyTypes, egress); err != nil {
		errs = append(errs, err)
	}
	if len(errs) > 0 {
		p.rules = [2][]*rule{}
		return parsed{policy: p, err: errors.Join(errs...)}
	}
	for d := range p.rules {
		if !p.isolates[d] {
			p.rules[d] = nil
		}
	}
	return parsed{policy: p}
}

// policyTypes: which directions a policy isolates. Kubernetes fills them in; a
// folder of manifests does not.
func policyTypes(text json.RawMessage, egressRules bool) ([2]bool, error) {
	var types []string
	if err := decode("spec.policyTypes", text, &types); err != nil {
		return [2]bool{true, true}, err
	}
	if len(types) == 0 {
		return [2]bool{Ingress: true, Egress: egressRules}, nil
	}
	var out [2]bool
	for _, t := range types {
		switch t {
		case "Ingress":
			out[Ingress] = true
		case "Egress":
			out[Egress] = true
		default:
			return [2]bool{true, true}, fmt.Errorf("policyTypes: %q is neither Ingress nor Egress", t)
		}
	}
	return out, nil
}

func networkPolicyRuleOf(n Name, d Direction, text json.RawMessage, s scope) (*rule, error) {
	var from networkPolicyRule
	if err := decode("rule", text, &from); err != nil {
		return nil, err
	}
	r := &rule{verdict: Accept, all: len(from.Ports) == 0}
	for i, port := range from.Ports {
		if err := r.addPort(port); err != nil {
			return nil, fmt.Errorf("ports[%d]: %w", i, err)
		}
	}
	peers := from.From
	if d == Egress {
		peers = from.To
	}
	r.any = len(peers) == 0
	for i, peer := range peers {
		if err := r.addPeer(n, peer, s); err != nil {
			return nil, fmt.Errorf("peer %d: %w", i, err)
		}
	}
	return r, nil
}

func (r *rule) addPort(p networkPolicyPort) error {
	proto := clustermesh.TCP
	if p.Protocol != nil {
		switch *p.Protocol {
		case "TCP":
		case "UDP":
			proto = clustermesh.UDP
		case "SCTP":
			proto = clustermesh.SCTP
		default:
			return fmt.Errorf("protocol %q is not TCP, UDP or SCTP", *p.Protocol)
		}
	}
	switch {
	case p.Port == nil && p.EndPort != nil:
		return errors.New("endPort without port")
	case p.Port == nil:
		r.ports = append(r.ports, ports{proto, 0, 65535})
		return nil
	case p.Port.named && p.EndPort != nil:
		return fmt.Errorf("endPort with the named port %q", p.Port.name)
	case p.Port.named && p.Port.name == "":
		return errors.New("a port with an empty name")
	case p.Port.named:
		r.named = append(r.named, portName{p.Port.name, proto})
		return nil
	}
	end := p.Port.number
	if p.EndPort != nil {
		end = *p.EndPort
	}
	return r.addRange(proto, p.Port.number, end)
}

func (r *rule) addRange(proto clustermesh.Protocol, lo, hi int64) error {
	switch {
	case lo < 1 || lo > 65535 || hi > 65535:
		return fmt.Errorf("port %d-%d: ports are 1 to 65535", lo, hi)
	case hi < lo:
		return fmt.Errorf("the range ends at %d, before port %d", hi, lo)
	}
	r.ports = append(r.ports, ports{proto, uint16(lo), uint16(hi)})
	return nil
}

func (r *rule) addPeer(n Name, p networkPolicyPeer, s scope) error {
	selects := p.PodSelector != nil || p.NamespaceSelector != nil
	switch {
	case p.IPBlock != nil && selects:
		return errors.New("ipBlock together with a selector")
	case p.IPBlock != nil:
		b, err := ipBlock(p.IPBlock.CIDR, p.IPBlock.Except)
		if err != nil {
			return fmt.Errorf("ipBlock: %w", err)
		}
		r.blocks = append(r.blocks, b)
		return nil
	case !selects:
		return errors.New("neither selector nor ipBlock")
	}
	sel, err := s.peerSelector(p.PodSelector, p.NamespaceSelector, n.Namespace)
	if err != nil {
		return err
	}
	r.selectors = append(r.selectors, sel)
	return nil
}

func ipBlock(cidr string, excepts []string) (*block, error) {
	p, err := parsePrefix(cidr)
	if err != nil {
		return nil, err
	}
	except := make([]netip.Prefix, 0, len(excepts))
	for _, text := range excepts {
		e, err := parsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("except: %w", err)
		}
		if e.Bits() <= p.Bits() || !p.Contains(e.Addr()) {
			return nil, fmt.Errorf("except: %s does not lie within %s", e, p)
		}
		except = append(except, e)
	}
	return newBlock(p, slices.Clip(except)), nil
}
