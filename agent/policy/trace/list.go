package trace

import "github.com/tombolo-mesh/tombolo/agent/policy"

// PolicyList is the policies in the order of evaluation. Fields are only added.
type PolicyList struct {
	APIVersion string          `json:"apiVersion"`
	Kind       string          `json:"kind"` // PolicyList
	Items      []PolicySummary `json:"items"`
}

// PolicySummary is one policy.
type PolicySummary struct {
	Namespace    string   `json:"namespace,omitempty"` // none: a ClusterNetworkPolicy
	Name         string   `json:"name"`
	Tier         string   `json:"tier"`
	Priority     *int     `json:"priority,omitempty"`
	Selects      string   `json:"selects,omitempty"` // which pods; none if that cannot be told
	Pods         int      `json:"pods"`              // it selects, of those that are looked at
	Isolates     []string `json:"isolates,omitempty"`
	IngressRules int      `json:"ingressRules"`
	EgressRules  int      `json:"egressRules"`
	Refused      bool     `json:"refused"`
	Problems     []string `json:"problems,omitempty"`
}

// List makes a PolicyList of what an engine says.
func List(from []policy.Summary) PolicyList {
	out := PolicyList{APIVersion: "tombolo.io/v1", Kind: "PolicyList", Items: []PolicySummary{}}
	for _, s := range from {
		p := PolicySummary{
			Namespace: s.Namespace, Name: s.Name.Name, Tier: s.Tier.String(), Selects: s.Selects, Pods: s.Pods,
			IngressRules: s.Rules[policy.Ingress], EgressRules: s.Rules[policy.Egress], Refused: s.Refused != "",
		}
		if s.Tier != policy.TierNetworkPolicy {
			n := s.Priority
			p.Priority = &n
		}
		for d, is := range s.Isolates {
			if is {
				p.Isolates = append(p.Isolates, policy.Direction(d).String())
			}
		}
		if s.Refused != "" {
			p.Problems = append(p.Problems, s.Instead+": "+s.Refused)
		}
		for _, partly := range s.Partly {
			p.Problems = append(p.Problems, "in part: "+partly)
		}
		out.Items = append(out.Items, p)
	}
	return out
}
