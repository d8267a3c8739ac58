package agent

import (
	"net/http"
	"time"

	"github.com/tombolo-mesh/tombolo/agent/policy"
)

// EndpointList is JSON of GET /v1/endpoints.
type EndpointList struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"` // EndpointList
	Node       string            `json:"node"`
	Items      []EndpointSummary `json:"items"`
	Unmanaged  []UnmanagedPod    `json:"unmanagedPods"`
}

// EndpointSummary is an endpoint and how its policy judges.
type EndpointSummary struct {
	EndpointStatus
	Identity string               `json:"identity,omitempty"` // cluster:number; absent: it has no row
	Labels   map[string]string    `json:"labels,omitempty"`   // what the identity stands for; absent: not known
	Ingress  EndpointPolicyStatus `json:"ingress"`
	Egress   EndpointPolicyStatus `json:"egress"`
}

// How an endpoint's connections in one direction are judged.
const (
	PolicyOpen     = "open"     // no policy selects it: everything may pass
	PolicyRules    = "rules"    // Admin or Baseline rules are asked first, what they leave may pass
	PolicyIsolated = "isolated" // what no rule allows is forbidden
	PolicyClosed   = "closed"   // nothing passes: its policy is not known or not in the kernel
)

// EndpointPolicyStatus is one direction.
type EndpointPolicyStatus struct {
	Mode     string   `json:"mode"`
	Policies []string `json:"policies,omitempty"` // that apply, in the order of evaluation
}

// endpointList lists the endpoints of this node; owner goroutine.
func (a *Agent) endpointList(now time.Time) EndpointList {
	out := EndpointList{APIVersion: APIVersion, Kind: "EndpointList", Node: a.cfg.Node, Items: []EndpointSummary{}, Unmanaged: a.unmanaged(now)}
	for _, e := range a.endpointStatus() {
		e.Namespace, e.Name, e.UID = Escape(e.Namespace), Escape(e.Name), Escape(e.UID)
		sum := EndpointSummary{EndpointStatus: e}
		a.state.judgedEndpoint(&sum)
		out.Items = append(out.Items, sum)
	}
	return out
}

// judgedEndpoint says what the kernel does with an endpoint's connections. All its
// addresses have one identity and one policy; one that is closed is told of all.
func (s *State) judgedEndpoint(e *EndpointSummary) {
	e.Ingress.Mode, e.Egress.Mode = PolicyClosed, PolicyClosed
	closed := len(e.Addresses) == 0
	for _, addr := range e.Addresses {
		row, there := s.t.endpoints.Actual(MakeAddr(addr))
		closed = closed || !there || row.Closed || row.Subject != 0 && !s.t.inForce(SubjectKey(row.Subject))
		pod, known := s.policy.pods[addr]
		if !known {
			closed = true
			continue
		}
		e.Identity = formatIdentity(uint32(pod.identity))
		e.Labels = s.identityLabels(pod.identity)
		for d, side := range map[policy.Direction]*EndpointPolicyStatus{policy.Ingress: &e.Ingress, policy.Egress: &e.Egress} {
			side.Mode, side.Policies = policyMode(s.policy.engine.Applied(pod.name, d))
		}
	}
	if closed {
		e.Ingress.Mode, e.Egress.Mode = PolicyClosed, PolicyClosed
	}
}

func policyMode(a policy.Applied) (string, []string) {
	var names []string
	for _, name := range a.Policies {
		names = append(names, Escape(name))
	}
	switch {
	case !a.Known:
		return PolicyClosed, names
	case a.Isolated:
		return PolicyIsolated, names
	case len(names) > 0:
		return PolicyRules, names
	}
	return PolicyOpen, nil
}

func (a *Agent) serveEndpoints(w http.ResponseWriter, r *http.Request) {
	var list EndpointList
	if a.asked(w, r, func() { list = a.endpointList(time.Now()) }) {
		answer(w, http.StatusOK, list)
	}
}
