package lab

import (
	"fmt"
	"testing"
	"time"
)

// An agent dies before one step after the other of its start, each time on what the
// last one left behind. Traffic does not notice, and the first that lives finishes.
func TestKillPoints(t *testing.T) {
	t.Parallel()
	r := newMesh(t, rigOptions{})
	n := r.a.Nodes[0]
	n.Agent().Kill()
	counted := must(n.LaunchAgentUntil(r.ctx, 0))(t)
	noError(t, n.Ready(r.ctx))
	whole := counted.Count()
	c := must(r.client.Client("watch", patient(tcp(checkout4))))(t)
	defer c.Process.Kill()
	begin := time.Now()
	const points = 12
	seen := map[string]int{}
	for i := range points {
		n.Agent().Kill()
		s := must(n.LaunchAgentUntil(r.ctx, 1+i*whole/points))(t)
		at := must(s.Killed(r.ctx))(t)
		seen[at]++
	}
	t.Logf("%d steps to readiness; killed before %s", whole, fmt.Sprint(seen))
	if whole < 100 || seen["bpf"] == 0 {
		t.Errorf("an agent's start is more than that")
	}
	noError(t, n.StartAgent(r.ctx))
	r.eventually(20*time.Second, "all nodes are at rest", r.atRest)
	r.allOK(must(c.AwaitMore(r.ctx, time.Now(), 50))(t), "")
	r.allOK(c.Since(begin), "")
}
