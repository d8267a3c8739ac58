package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// Unmatched is a rule that applies to the pod and did not match, and why.
type Unmatched struct {
	Rule    string `json:"rule"`
	Tier    string `json:"tier"`
	Verdict string `json:"verdict"`
	Why     string `json:"why"`
}

// Bystander is a policy that could concern the pod and does not select it.
type Bystander struct {
	Policy  string `json:"policy"`
	Selects string `json:"selects"`
}

// whyNot says why a rule does not match: the ports, the other end, or both.
func (e *Engine) whyNot(r *placed, d Direction, peer Party, q Query) string {
	if r.note != "" && r.verdict == Accept {
		return "it is closed: " + r.note
	}
	var parts []string
	if !e.onPort(r, d, peer, q) {
		parts = append(parts, "it is for "+portsText(r.all, r.ports, r.named))
	}
	if _, ok := e.matchedPeer(r, peer); !ok {
		word := "comes from "
		if d == Egress {
			word = "goes to "
		}
		parts = append(parts, "it is for what "+word+r.peersText())
	}
	return strings.Join(parts, ", and ")
}

// bystanders are the policies of the pod's namespace, and of the whole cluster,
// that do not select it. Those that have no say in the direction are left out.
func (e *Engine) bystanders(d Direction, pod Party) []Bystander {
	labels := e.identities[pod.Identity]
	ns, _ := labelOf(labels, clustermesh.LabelNamespace)
	var out []Bystander
	for _, in := range []map[Name]*policy{e.applied[ns], e.applied[""]} {
		for _, n := range slices.SortedFunc(maps.Keys(in), compareNames) {
			if p := in[n]; (p.isolates[d] || len(p.rules[d]) > 0) && !e.selects(p, pod.Identity, labels) {
				out = append(out, Bystander{n.String(), p.subject.text})
			}
		}
	}
	return out
}

// Isolating are the NetworkPolicies that isolate a pod in a direction.
func (e *Engine) Isolating(pod Party, d Direction) []string {
	s, _ := e.subjectFor(pod)
	if s == nil || !s.flags.isolated(d) {
		return nil
	}
	return isolating(s.policies[d])
}

func isolating(policies []string) []string {
	var out []string
	for _, p := range policies {
		if strings.HasPrefix(p, "NetworkPolicy ") {
			out = append(out, p)
		}
	}
	return out
}

// Applied says how a pod of SetPod is judged in one direction by what Apply last said.
type Applied struct {
	Known    bool     // false: its labels are not known, or nothing was said of it yet
	Isolated bool     // what no rule allows is forbidden
	Policies []string // that isolate it or have rules, in the order of evaluation
}

// Applied of a pod.
func (e *Engine) Applied(pod string, d Direction) Applied {
	st := e.pods[pod]
	switch {
	case st == nil || !st.known || st.said == SubjectUnknown:
		return Applied{}
	case st.subject == nil:
		return Applied{Known: true}
	}
	return Applied{Known: true, Isolated: st.subject.flags.isolated(d), Policies: st.subject.policies[d]}
}

// Summary of a policy.
type Summary struct {
	Name
	Tier     Tier
	Priority int    // within the tier; NetworkPolicies have none
	Selects  string // which pods; "" if that cannot be told
	Pods     int    // of those of SetPod
	Isolates [2]bool
	Rules    [2]int
	// Refused says why the newest version is not followed, and Instead what holds.
	Refused, Instead string
	Partly           []string // what is not followed in a policy that is
}

// Policies lists all policies in the order of evaluation.
func (e *Engine) Policies() []Summary {
	var out []Summary
	for n, st := range e.policies {
		s := Summary{Name: n, Tier: TierNetworkPolicy, Partly: st.parsed.warn}
		if err := st.parsed.err; err != nil {
			s.Refused, s.Instead = strings.ReplaceAll(err.Error(), "\n", "; "), st.consequence()
		}
		if p := st.applied; p != nil {
			s.Tier, s.Priority, s.Selects, s.Isolates = p.tier, p.priority, p.subject.text, p.isolates
			s.Rules = [2]int{len(p.rules[Ingress]), len(p.rules[Egress])}
			for _, pod := range e.pods {
				if e.selects(p, pod.Identity, e.identities[pod.Identity]) {
					s.Pods++
				}
			}
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b Summary) int {
		return cmp.Or(cmp.Compare(a.Tier, b.Tier), cmp.Compare(a.Priority, b.Priority), compareNames(a.Name, b.Name))
	})
	return out
}

// Order is tier and priority as people read it.
func (s Summary) Order() string {
	if s.Tier == TierNetworkPolicy {
		return s.Tier.String()
	}
	return fmt.Sprintf("%s %d", s.Tier, s.Priority)
}
