package agent

import (
	"fmt"

	"github.com/tombolo-mesh/tombolo/agent/policy"
	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// ruleName is the name of a rule of an event. A policy that is gone has none.
func (s *State) ruleName(id uint32) string {
	if name, ok := s.policy.engine.RuleName(id); ok {
		return name
	}
	return fmt.Sprintf("rule %08x (of a policy that is gone)", id)
}

// isolating are the policies that isolate a pod in a direction.
func (s *State) isolating(namespace string, id clustermesh.Identity, direction string) []string {
	d := policy.Ingress
	if direction == policy.Egress.String() {
		d = policy.Egress
	}
	return s.policy.engine.Isolating(policy.Party{Identity: id, Namespace: namespace, Pod: true}, d)
}

func (s *State) identityLabels(id clustermesh.Identity) map[string]string {
	return s.policy.engine.Labels(id)
}
