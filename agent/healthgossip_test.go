package agent_test

import (
	"maps"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
)

// talk is a Gossip whose other members are the test.
type talk struct {
	mu      sync.Mutex
	view    agent.GossipView
	peers   map[string][]netip.Addr
	said    map[agent.NodeKey]uint8
	changed chan struct{}
}

func newTalk() *talk { return &talk{changed: make(chan struct{}, 1)} }

func (g *talk) SetPeers(p map[string][]netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.peers = maps.Clone(p)
}

func (g *talk) Report(missing map[agent.NodeKey]uint8) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.said = maps.Clone(missing)
}

func (g *talk) View() agent.GossipView {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.view
}

func (g *talk) Changed() <-chan struct{} { return g.changed }

func (g *talk) see(v agent.GossipView) {
	g.mu.Lock()
	g.view = v
	g.mu.Unlock()
	select {
	case g.changed <- struct{}{}:
	default:
	}
	time.Sleep(50 * time.Millisecond) // words are not taken one by one
}

func (g *talk) says(k agent.NodeKey) uint8 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.said[k]
}

func (g *talk) sought() map[string][]netip.Addr {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.peers
}

// What agents find together is a row of the kernel at once, and what this one's
// probes find it tells the others; alone, it keeps silent and judges by itself.
func TestGossipReachesTheKernel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p, g := &reachable{dark: map[netip.Addr]bool{}}, newTalk()
		w.cfg.Prober, w.cfg.Gossip = p, g
		w.start()
		defer func() { w.stop() }()
		node := agent.NodeKey{Cluster: 2, Node: 1}
		if peers := g.sought(); len(peers) != 1 || len(peers["aws-n2"]) == 0 || peers["aws-n2"][0] != netip.MustParseAddr("192.168.1.2") {
			t.Errorf("other agents are sought at %v", peers)
		}

		p.set(true, gcp.Node(1).TunnelAddresses...)
		time.Sleep(15 * time.Second)
		if g.says(node) != 0 {
			t.Error("an agent that sees nobody speaks")
		}
		both := agent.GossipView{Alive: []string{"aws-n1", "aws-n2"}}
		g.see(both)
		if got := g.says(node); got != 40 {
			t.Errorf("others are told of %d misses, want 40", got)
		}
		if s := w.cluster("gcp"); len(s.NodesDown) != 1 {
			t.Fatalf("down: %v", s.NodesDown)
		}
		by := func() []string {
			s := w.status()
			if g := s.Health.Gossip; g == nil || g.Members != 2 || g.Nodes != 2 || !g.Verdicts {
				t.Errorf("gossip in the status: %+v", g)
			}
			if len(s.Health.Down) == 1 && s.Health.Down[0].Node == "gcp-n1" {
				return s.Health.Down[0].By
			}
			t.Fatalf("down in the status: %+v", s.Health.Down)
			return nil
		}
		if by := by(); len(by) != 0 {
			t.Errorf("by %v, want by this node's own probes alone", by)
		}
		both.Missing = map[string]map[agent.NodeKey]uint8{"aws-n2": {node: 20}}
		g.see(both)
		if by := strings.Join(by(), " "); by != "aws-n1 aws-n2" {
			t.Errorf("by %q, want by both", by)
		}
		p.set(false, gcp.Node(1).TunnelAddresses...)
		time.Sleep(3500 * time.Millisecond)
		w.expect(agent.TableNodeHealth, "")
		if g.says(node) != 0 {
			t.Error("others are told that it is missed, and it answers")
		}
	})
}
