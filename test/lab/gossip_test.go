package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
)

// gossiping waits until each of the nodes' agents sees n agents of its cluster.
func (r *rig) gossiping(n int, within time.Duration, nodes ...*Node) {
	r.t.Helper()
	r.eventually(within, fmt.Sprintf("%d agents gossip", n), func() error {
		for _, node := range nodes {
			if g := r.agentStatus(node).Health.Gossip; g == nil || g.Members != n {
				return fmt.Errorf("%s/%s: %+v", node.cluster.Name, node.Name, g)
			}
		}
		return nil
	})
}

// An agent that is killed is missed by the others and its node is not given up: the
// kernel goes on. A node without power is left by all, and several agree on it. The
// key of the gossip is turned over under all that, and nobody is lost.
func TestGossip(t *testing.T) {
	t.Parallel()
	r := newMesh(t, rigOptions{nodes: 3})
	r.gossiping(3, 30*time.Second, append(slices.Clone(r.a.Nodes), r.b.Nodes...)...)

	// The agent dies.
	victim := r.a.Nodes[2]
	victim.agent.Kill()
	others := r.a.Nodes[:2]
	r.gossiping(2, 20*time.Second, others...)
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		for _, n := range others {
			if down := r.agentStatus(n).Health.Down; len(down) > 0 {
				t.Fatalf("%s holds %+v down: an agent is no data path", n.Name, down)
			}
		}
	}
	noError(t, victim.StartAgent(r.ctx))
	r.gossiping(3, 30*time.Second, r.a.Nodes...)

	r.turnKeys()

	// The node dies.
	dead := r.b.Nodes[1]
	noError(t, dead.PowerOff())
	begin := time.Now()
	r.eventually(20*time.Second, "all agents of aws agree that "+dead.Name+" is down", func() error {
		for _, n := range r.a.Nodes {
			down := r.agentStatus(n).Health.Down
			if !slices.ContainsFunc(down, func(d agent.DownStatus) bool {
				return d.Cluster == "gcp" && d.Node == dead.Name && len(d.By) >= 2
			}) {
				return fmt.Errorf("%s: %+v", n.Name, down)
			}
		}
		return nil
	})
	t.Logf("agreed after %.2f s", time.Since(begin).Seconds())
	r.gossiping(2, 20*time.Second, r.b.Nodes[0], r.b.Nodes[2])
	r.allOK(r.ask(r.client, 50, tcp(checkout4)), "")
}

// turnKeys has the mesh API server of aws turn its key over, and watches that every
// agent sees all others all the time.
func (r *rig) turnKeys() {
	r.t.Helper()
	keys := func(n *Node) (out []string) {
		var facts struct{ GossipKeys []string }
		text, err := os.ReadFile(filepath.Join(n.stateDir(), "cluster.json"))
		if err == nil {
			err = json.Unmarshal(text, &facts)
		}
		noError(r.t, err)
		return facts.GossipKeys
	}
	before := keys(r.a.Nodes[0])
	ctx, over := context.WithCancel(r.ctx)
	var watching sync.WaitGroup
	var lost string
	watching.Go(func() {
		for ctx.Err() == nil {
			for _, n := range r.a.Nodes {
				var s agent.Status
				if err := n.GetJSON(ctx, "/v1/status", &s); err == nil && (s.Health.Gossip == nil || s.Health.Gossip.Members != 3) {
					lost = fmt.Sprintf("%s sees %+v", n.Name, s.Health.Gossip)
				}
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
	r.a.KillControlPlane()
	noError(r.t, r.a.StartControlPlane(r.ctx, "--gossip-key-rotation", "5s"))
	r.eventually(40*time.Second, "all nodes have another key alone", func() error {
		for _, n := range r.a.Nodes {
			if now := keys(n); len(now) == 0 || slices.Contains(now, before[0]) {
				return fmt.Errorf("%s holds %d keys, the old one among them: %v", n.Name, len(now), slices.Contains(now, before[0]))
			}
		}
		return nil
	})
	over()
	watching.Wait()
	if lost != "" {
		r.t.Errorf("while the key was turned over, %s", lost)
	}
}

// Agents that do not reach one another judge by their own probes, as without gossip.
func TestGossipOutOfReach(t *testing.T) {
	t.Parallel()
	r := newMesh(t, rigOptions{nodes: 2})
	for i, n := range r.a.Nodes { // ports differ: nobody answers anybody
		n.agent.Kill()
		n.AgentFlags = append(n.AgentFlags, "--gossip-port", fmt.Sprint(9500+i))
		noError(t, n.StartAgent(r.ctx))
	}
	r.gossiping(1, 20*time.Second, r.a.Nodes...)
	for _, n := range r.a.Nodes {
		if g := r.agentStatus(n).Health.Gossip; g.Verdicts || g.Nodes != 2 {
			t.Errorf("%s: %+v", n.Name, g)
		}
	}
	noError(t, r.b.Nodes[1].PowerOff())
	r.eventually(20*time.Second, "each agent of aws finds the dead node by itself", func() error {
		for _, n := range r.a.Nodes {
			if down := r.agentStatus(n).Health.Down; len(down) != 1 || down[0].Node != r.b.Nodes[1].Name || len(down[0].By) > 0 {
				return fmt.Errorf("%s: %+v", n.Name, down)
			}
		}
		return nil
	})
	r.allOK(r.ask(r.client, 50, tcp(checkout4)), "")
}
