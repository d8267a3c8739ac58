package agent

import (
	"net/netip"
	"testing"
	"time"
)

func targets(from string, n int) HealthTargets {
	t := HealthTargets{From: []netip.Addr{netip.MustParseAddr(from)}, Own: 1, Nodes: map[NodeKey][]netip.Addr{}, Known: map[ClusterKey]bool{1: true, 2: true}, Peers: true}
	for i := range n {
		t.Nodes[NodeKey{2, uint16(i + 1)}] = []netip.Addr{netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)})}
	}
	return t
}

// Losses must be in a row to count, and so must answers; a cluster is down when all
// its nodes are, and up as soon as one is.
func TestHealthThresholds(t *testing.T) {
	a, b := NodeKey{2, 1}, NodeKey{2, 2}
	r := &councilRig{h: newHealth(HealthConfig{}), now: time.Unix(1000, 0)}
	r.h.setTargets(targets("10.1.0.1", 2), r.now)
	dark := map[NodeKey]bool{}
	answers := func(k NodeKey) bool { return !dark[k] }
	for i, step := range []struct {
		a, b     bool // dark
		lasts    time.Duration
		nodes    int
		clusters int
	}{
		{false, false, time.Second, 0, 0},
		{true, false, 400 * time.Millisecond, 0, 0}, // fewer than 24 losses
		{false, false, 300 * time.Millisecond, 0, 0},
		{true, false, 400 * time.Millisecond, 0, 0},
		{false, false, 300 * time.Millisecond, 0, 0},
		{true, false, 800 * time.Millisecond, 1, 0},
		{true, true, 400 * time.Millisecond, 1, 0},
		{true, true, 400 * time.Millisecond, 2, 1},  // the whole cluster
		{true, false, 350 * time.Millisecond, 2, 1}, // one answer, or two
		{true, true, 400 * time.Millisecond, 2, 1},
		{true, false, 900 * time.Millisecond, 2, 1}, // it answers, but has not settled
		{true, false, 800 * time.Millisecond, 1, 0},
	} {
		dark[a], dark[b] = step.a, step.b
		r.run(step.lasts, answers)
		nodes, clusters := r.h.rows()
		if len(nodes) != step.nodes || len(clusters) != step.clusters {
			t.Fatalf("after step %d: %d nodes and %d clusters down, want %d and %d", i, len(nodes), len(clusters), step.nodes, step.clusters)
		}
	}
}

func TestHealthBoundsProbes(t *testing.T) {
	for _, n := range []int{1, 10, 150, 5000} {
		r := &councilRig{h: newHealth(HealthConfig{}), now: time.Unix(1000, 0)}
		r.h.setTargets(targets("10.1.0.1", n), r.now)
		r.run(60*time.Second, all)
		perSecond := float64(r.h.probes) / 60
		want := min(float64(n)/0.2, 500)
		if perSecond > want*1.02+1 || perSecond < want*0.95-1 {
			t.Errorf("%d nodes: %.0f probes/s, want about %.0f", n, perSecond, want)
		}
	}
}

func TestHealthUnknownIsNotDown(t *testing.T) {
	now := time.Unix(1000, 0)
	h := newHealth(HealthConfig{})
	h.restore(map[NodeKey]HealthRow{{2, 1}: {Since: 5}, {3, 1}: {Since: 6}}, map[ClusterKey]HealthRow{2: {Since: 5}})
	h.setTargets(HealthTargets{Own: 1, Known: map[ClusterKey]bool{1: false}}, now) // nothing is known yet
	if nodes, clusters := h.rows(); len(nodes) != 2 || nodes[NodeKey{2, 1}].Since != 5 || len(clusters) == 0 {
		t.Errorf("verdicts did not outlive the restart: %v %v", nodes, clusters)
	}
	if due, _ := h.due(now); len(due) > 0 {
		t.Error("probes without an address of this node")
	}
	h.setTargets(targets("10.1.0.1", 0), now) // cluster 2 has no nodes, cluster 3 is no peer
	h.judge(now)
	if nodes, clusters := h.rows(); len(nodes)+len(clusters) != 0 {
		t.Errorf("verdicts about nodes that do not exist: %v %v", nodes, clusters)
	}
}
