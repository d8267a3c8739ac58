package agent_test

import (
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/agent/agenttest"
	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// A gateway that is judged down hands its nodes to the standby, of the own cluster
// and of another, and an agent that starts then does not go back to it first.
func TestGatewayStandby(t *testing.T) {
	for name, f := range map[string]agenttest.Facts{"the own cluster's": aws, "another cluster's": gcp} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.mesh.Put(t, f.Name, export, gateway(f.Node(2)), gateway(f.Node(3)), f.Node(4),
					with(f.Cluster(uint64(f.ID)*100), func(c *clustermesh.Cluster) { c.Topology = clustermesh.TopologyGateway }))
				prober := &reachable{dark: map[netip.Addr]bool{}}
				w.cfg.Prober = prober
				w.start()
				// carries is the node of f that has what goes over gateways.
				carries := func() (int, string) {
					synctest.Wait()
					text := w.kernel(agent.TablePeers)
					over := gcp.Node(1).PodPrefixes[0].String() // what aws-n1 reaches by its gateway
					if f.Name == gcp.Name {
						over = gcp.Node(4).PodPrefixes[0].String()
					}
					for line := range strings.Lines(text) {
						for n := 2; n <= 3; n++ {
							if strings.Contains(line, over) && strings.Contains(line, f.Node(n).PodPrefixes[0].String()) {
								return n, text
							}
						}
					}
					t.Fatalf("nobody carries %s:\n%s", over, text)
					return 0, ""
				}
				first, before := carries()
				prober.set(true, f.Node(first).TunnelAddresses...)
				time.Sleep(20 * time.Second)
				if second, text := carries(); second != 5-first {
					t.Fatalf("gateway %d is dead, and %d carries\n%s", first, second, text)
				}
				w.stop()
				w.start()
				if second, text := carries(); second != 5-first {
					t.Fatalf("after a restart %d carries\n%s", second, text)
				}
				prober.set(false, f.Node(first).TunnelAddresses...)
				time.Sleep(time.Minute)
				if _, text := carries(); text != before {
					t.Errorf("all is well, and not as before:\n%swant\n%s", text, before)
				}
				w.stop()
			})
		})
	}
}

// A gateway that says that it reaches nobody of another cluster is left for what goes
// there, as the far end leaves it; if none reaches it, nothing changes.
func TestGatewayAstray(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.mesh.Put(t, "aws", export, gateway(aws.Node(2)), gateway(aws.Node(3)),
			with(aws.Cluster(100), func(c *clustermesh.Cluster) { c.Topology = clustermesh.TopologyGateway }))
		g := newTalk()
		w.cfg.Gossip = g
		w.start()
		defer func() { w.stop() }()
		before := w.kernel(agent.TablePeers)
		uplink := func() string {
			w.t.Helper()
			for _, c := range w.status().Clusters {
				if c.Name == "gcp" {
					return c.Gateway
				}
			}
			return ""
		}
		first := uplink()
		other := map[string]string{"aws-n2": "aws-n3", "aws-n3": "aws-n2"}[first]
		one, two := agent.NodeKey{Cluster: 2, Node: 1}, agent.NodeKey{Cluster: 2, Node: 2}
		for _, step := range []struct {
			what    string
			missing map[string]map[agent.NodeKey]uint8
			want    string
		}{
			{"one of two nodes", map[string]map[agent.NodeKey]uint8{first: {one: 40}}, first},
			{"both, one not for long", map[string]map[agent.NodeKey]uint8{first: {one: 40, two: 14}}, first},
			{"both", map[string]map[agent.NodeKey]uint8{first: {one: 40, two: 20}}, other},
			{"both, and so does the other gateway", map[string]map[agent.NodeKey]uint8{first: {one: 40, two: 20}, other: {one: 20, two: 20}}, first},
			{"this node misses both", map[string]map[agent.NodeKey]uint8{"aws-n1": {one: 40, two: 20}}, first},
			{"both, again", map[string]map[agent.NodeKey]uint8{first: {one: 40, two: 20}}, other},
			{"nobody", nil, first},
		} {
			g.see(agent.GossipView{Alive: []string{"aws-n1", "aws-n2", "aws-n3"}, Missing: step.missing})
			time.Sleep(time.Second)
			synctest.Wait()
			if got := uplink(); got != step.want {
				t.Errorf("%s missed: by %s, want %s", step.what, got, step.want)
			}
			if now := w.kernel(agent.TablePeers); (now == before) != (step.want == first) {
				t.Errorf("%s missed: peers\n%s", step.what, now)
			}
		}
	})
}

// Verdicts that cannot be read keep peers and routes back for some seconds, not for
// good, and it is said.
func TestGatewayVerdictsUnread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.mesh.Put(t, "gcp", export, gateway(gcp.Node(2)),
			with(gcp.Cluster(200), func(c *clustermesh.Cluster) { c.Topology = clustermesh.TopologyGateway }))
		broken := agent.NewFaulty(w.tables.NodeHealth, func(agent.FaultOp, int, int) agent.Fault { return agent.Fault{Err: agent.ErrInjected} })
		w.tables.NodeHealth = broken
		w.start()
		defer func() { w.stop() }()
		said := func() bool {
			_, text := w.get("/v1/status")
			return strings.Contains(text, "were down before the agent started is not known") && strings.Contains(text, agent.ErrInjected.Error())
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if text := w.kernel(agent.TablePeers); strings.Contains(text, "10.2.") || said() {
			t.Errorf("after 2 s: said %v, peers\n%s", said(), text)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if text := w.kernel(agent.TablePeers); !strings.Contains(text, "10.2.") || !said() {
			t.Errorf("after 4 s: said %v, peers\n%s", said(), text)
		}
		broken.SetSchedule(agent.NoFaults)
		time.Sleep(time.Second)
		synctest.Wait()
		if text := w.kernel(agent.TablePeers); !strings.Contains(text, "10.2.") || said() {
			t.Errorf("read again: said %v, peers\n%s", said(), text)
		}
	})
}
