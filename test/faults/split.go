package main

import (
	"context"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
)

// parts are where the time from a failure to the kernel went, by the agents' own
// account; one value for each agent and each node that it gave up.
type parts struct {
	silence   []time.Duration // from the failure to the first probe that was not answered
	detection []time.Duration // from then to the verdict
	spreading []time.Duration // of that, from the first word of another agent
	write     []time.Duration // from the verdict to the kernel
}

// account adds what the agents of home say of verdicts since begin.
func (p *parts) account(ctx context.Context, m *mesh, begin time.Time) error {
	for _, n := range m.home.Nodes {
		var st agent.Status
		if err := n.GetJSON(ctx, "/v1/status", &st); err != nil {
			return err
		}
		for _, v := range st.Health.Verdicts {
			if !v.Down || v.Decided.Before(begin) || v.Written == nil {
				continue
			}
			if v.Silent != nil && v.Silent.After(begin) {
				p.silence = append(p.silence, v.Silent.Sub(begin))
				p.detection = append(p.detection, v.Decided.Sub(*v.Silent))
			}
			if v.Accused != nil && v.Accused.After(begin) && len(v.By) > 0 {
				p.spreading = append(p.spreading, v.Decided.Sub(*v.Accused))
			}
			p.write = append(p.write, v.Written.Sub(v.Decided))
		}
	}
	return nil
}

func (s *suite) tell(p parts) {
	for _, part := range []struct {
		what string
		took []time.Duration
	}{
		{"of that: until a probe is not answered", p.silence},
		{"then until the verdict", p.detection},
		{"of that, since another agent's first word", p.spreading},
		{"then until the kernel has it", p.write},
	} {
		s.figure(part.what, spread(part.took))
	}
}
