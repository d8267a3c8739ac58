package policy

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// Party is one end of a connection that is asked about.
type Party struct {
	// Name is for the words alone.
	Name string
	// Address may be invalid: rules by address then match nothing.
	Address   netip.Addr
	Identity  clustermesh.Identity
	Namespace string                  // needed only while Identity has no labels
	Ports     []clustermesh.NamedPort // of its pod
	// Pod: a pod of the own cluster with a network of its own, which policy
	// applies to. Nodes, host-network pods, and the pods of others are not.
	Pod bool
}

// Query asks whether From may connect to To.
type Query struct {
	From, To Party
	Proto    clustermesh.Protocol
	Port     uint16
	// Brief leaves out what only people ask for: labels, and what did not match.
	Brief bool
}

// ExplanationVersion of the JSON form. Fields are only added.
const ExplanationVersion = 1

// Explanation of a verdict. Egress is what the policy of From says, Ingress that
// of To; nil where it was not asked, as none applies.
type Explanation struct {
	Version int    `json:"version"`
	Allowed bool   `json:"allowed"`
	Why     string `json:"why"`
	From    string `json:"from"`
	To      string `json:"to"`
	On      string `json:"on"`

	FromIdentity uint32            `json:"fromIdentity"`
	ToIdentity   uint32            `json:"toIdentity"`
	FromLabels   map[string]string `json:"fromLabels,omitempty"`
	ToLabels     map[string]string `json:"toLabels,omitempty"`

	Egress  *SideExplanation `json:"egress,omitempty"`
	Ingress *SideExplanation `json:"ingress,omitempty"`
}

// SideExplanation is one direction: what decided, and all rules that matched, in
// the order of evaluation.
type SideExplanation struct {
	Allowed  bool      `json:"allowed"`
	Subject  string    `json:"subject"`
	Policies []string  `json:"policies"` // that apply to the pod in this direction
	Isolated bool      `json:"isolated"`
	Reason   string    `json:"reason"` // a Reason
	Rule     string    `json:"rule,omitempty"`
	Matched  []Matched `json:"matched,omitempty"`

	ByAddress  bool        `json:"byAddress,omitempty"`  // rules by address apply to the pod
	Unmatched  []Unmatched `json:"unmatched,omitempty"`  // rules that apply to the pod, in order
	Bystanders []Bystander `json:"bystanders,omitempty"` // policies that do not select the pod
}

// Matched is a rule that matched, and by which of its peers.
type Matched struct {
	Rule    string `json:"rule"`
	Tier    string `json:"tier"`
	Verdict string `json:"verdict"`
	By      string `json:"by"`
}

type explainKey struct {
	id    clustermesh.Identity
	ns    string
	ports string
}

// Explain decides from the rules themselves, not from rows: they hold for any
// pod, on this node or not. What was set counts at once, Apply or not.
func (e *Engine) Explain(q Query) Explanation {
	x := Explanation{
		Version: ExplanationVersion, Allowed: true, Why: "no policy applies",
		From: q.From.text(), To: q.To.text(), On: fmt.Sprintf("%s/%d", protoName(q.Proto), q.Port),
		FromIdentity: uint32(q.From.Identity), ToIdentity: uint32(q.To.Identity),
	}
	if !q.Brief {
		x.FromLabels, x.ToLabels = e.labelMap(q.From.Identity), e.labelMap(q.To.Identity)
	}
	if q.From.Identity == clustermesh.IdentityHost || q.To.Identity == clustermesh.IdentityHost {
		x.Why = "between a pod and the host it runs on everything may pass"
		return x
	}
	if q.From.Pod {
		x.Egress = e.explainSide(Egress, q.From, q.To, q)
	}
	if q.To.Pod {
		x.Ingress = e.explainSide(Ingress, q.To, q.From, q)
	}
	x.Allowed = (x.Egress == nil || x.Egress.Allowed) && (x.Ingress == nil || x.Ingress.Allowed)
	x.Why = x.why()
	return x
}

func (p Party) text() string {
	switch {
	case p.Name != "":
		return p.Name
	case p.Address.IsValid():
		return p.Address.String()
	}
	return PeerOf(p.Identity).String()
}

func (x *Explanation) why() string {
	var parts []string
	for i, s := range []*SideExplanation{x.Egress, x.Ingress} {
		if s != nil && (s.Allowed == x.Allowed) {
			parts = append(parts, []string{"egress", "ingress"}[i]+" "+s.why())
		}
	}
	if parts == nil {
		return "no policy applies"
	}
	return strings.Join(parts, "; ")
}

func (s *SideExplanation) why() string {
	word := "denied"
	if s.Allowed {
		word = "allowed"
	}
	if s.Rule != "" {
		return word + " by " + s.Rule
	}
	return word + ": " + s.Words()
}

// Words is what decided, the verdict aside.
func (s *SideExplanation) Words() string {
	switch s.Reason {
	case ReasonNone.String():
		return "no policy selects the pod"
	case ReasonIsolated.String():
		names := isolating(s.Policies)
		if len(names) == 1 {
			return names[0] + " isolates the pod and no rule allows this"
		}
		return strings.Join(names, ", ") + " isolate the pod and no rule allows this"
	case ReasonDefault.String():
		if len(s.Policies) == 0 {
			return "no policy of the pod has a say in this direction"
		}
		return "no rule has a say"
	case ReasonNotLoaded.String():
		return "the labels of the pod are not known, and some policy might select it"
	}
	return s.Rule
}

// Labels are what an identity stands for; nil: not known.
func (e *Engine) Labels(id clustermesh.Identity) map[string]string { return e.labelMap(id) }

func (e *Engine) labelMap(id clustermesh.Identity) map[string]string {
	labels := e.identities[id]
	if len(labels) == 0 {
		return nil
	}
	out := make(map[string]string, len(labels))
	for _, l := range labels {
		out[l.Key] = l.Value
	}
	return out
}

// subjectFor is the subject of a pod, made once for each question about it.
func (e *Engine) subjectFor(p Party) (*subject, Subject) {
	var ports strings.Builder
	for _, n := range p.Ports {
		fmt.Fprintf(&ports, "%s/%d=%d;", n.Name, n.Protocol, n.Port)
	}
	key := explainKey{p.Identity, p.Namespace, ports.String()}
	if s, ok := e.explained[key]; ok {
		if s == nil {
			return nil, SubjectNone
		}
		return s, s.id
	}
	s, id, _ := e.decide(Pod{Namespace: p.Namespace, Identity: p.Identity, Ports: p.Ports})
	if id != SubjectUnknown {
		e.explained[key] = s
	}
	return s, id
}

func (e *Engine) explainSide(d Direction, pod, peer Party, q Query) *SideExplanation {
	s, id := e.subjectFor(pod)
	out := &SideExplanation{Subject: id.String()}
	if !q.Brief {
		out.Bystanders = e.bystanders(d, pod)
	}
	switch {
	case id == SubjectUnknown:
		out.Reason = ReasonNotLoaded.String()
		return out
	case s == nil:
		out.Allowed, out.Reason = true, ReasonNone.String()
		return out
	}
	out.Policies, out.Isolated, out.ByAddress = s.policies[d], s.flags.isolated(d), len(s.sides[d].byBlock) > 0
	var row Row
	for i := range s.sides[d].rules {
		r := &s.sides[d].rules[i]
		by, ok := e.matchedBy(r, d, peer, q)
		if !ok {
			if !q.Brief {
				out.Unmatched = append(out.Unmatched, Unmatched{r.name, r.tier.String(), r.verdict.String(), e.whyNot(r, d, peer, q)})
			}
			continue
		}
		r.into(&row)
		out.Matched = append(out.Matched, Matched{r.name, r.tier.String(), r.verdict.String(), by})
	}
	decision := decide(s.flags, d, row, Row{})
	out.Allowed, out.Reason = decision.Allow, decision.Reason.String()
	for _, r := range s.sides[d].rules {
		if r.id == decision.Rule {
			out.Rule = r.name
			break
		}
	}
	return out
}

// matchedBy says by which of its peers a rule matches.
func (e *Engine) matchedBy(r *placed, d Direction, peer Party, q Query) (string, bool) {
	if !e.onPort(r, d, peer, q) {
		return "", false
	}
	return e.matchedPeer(r, peer)
}

func (e *Engine) onPort(r *placed, d Direction, peer Party, q Query) bool {
	if r.on(q.Proto, q.Port) {
		return true
	}
	return d == Egress && len(r.named) > 0 && contains(resolve(r.named, peer.Ports), q.Proto, q.Port)
}

func (e *Engine) matchedPeer(r *placed, peer Party) (string, bool) {
	if r.any {
		return "anybody", true
	}
	labels := e.identities[peer.Identity]
	for _, s := range r.selectors {
		if s.matches(e.own, peer.Identity, labels) {
			return s.text, true
		}
	}
	if a := peer.Address.Unmap(); a.IsValid() {
		for _, b := range r.blocks {
			if b.has(a) || b.isNode && e.nodeBlockHas(b, a) {
				return b.text, true
			}
		}
	}
	return "", false
}

func (e *Engine) nodeBlockHas(b *block, a netip.Addr) bool {
	for _, n := range e.nodes {
		if b.hasNode(n.Labels) {
			for _, have := range n.Addresses {
				if have.Unmap() == a {
					return true
				}
			}
		}
	}
	return false
}
