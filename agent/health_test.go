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

func TestHealthThresholds(t *testing.T) {
	now := time.Unix(1000, 0)
	h := newHealth(HealthConfig{})
	h.setTargets(targets("10.1.0.1", 2), now)
	a, b := NodeKey{2, 1}, NodeKey{2, 2}
	for _, step := range []struct {
		node     NodeKey
		ok       bool
		nodes    int
		clusters int
	}{
		{a, false, 0, 0}, {a, false, 0, 0}, {a, true, 0, 0}, // misses must be in a row
		{a, false, 0, 0}, {a, false, 0, 0}, {a, false, 1, 0},
		{b, false, 1, 0}, {b, false, 1, 0}, {b, false, 2, 1}, // the whole cluster
		{b, true, 2, 1}, {b, true, 2, 1}, {b, false, 2, 1}, // answers must be in a row
		{b, true, 2, 1}, {b, true, 2, 1}, {b, true, 1, 0}, // up as soon as one is
	} {
		now = now.Add(time.Second)
		h.result(step.node, step.ok, time.Millisecond, now)
		nodes, clusters := h.rows()
		if len(nodes) != step.nodes || len(clusters) != step.clusters {
			t.Fatalf("at %v: %d nodes and %d clusters down, want %d and %d", now.Unix(), len(nodes), len(clusters), step.nodes, step.clusters)
		}
	}
}

func TestHealthBoundsProbes(t *testing.T) {
	for _, n := range []int{1, 10, 150, 5000} {
		now := time.Unix(1000, 0)
		h := newHealth(HealthConfig{})
		h.setTargets(targets("10.1.0.1", n), now)
		probes, end := 0, now.Add(60*time.Second)
		for now.Before(end) {
			due, next := h.due(now)
			for _, k := range due {
				probes++
				h.result(k, true, time.Millisecond, now)
			}
			if next.IsZero() {
				_, next = h.due(now)
			}
			now = next
		}
		perSecond := float64(probes) / 60
		want := min(float64(n)/0.3, 500)
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
	if nodes, clusters := h.rows(); len(nodes)+len(clusters) != 0 {
		t.Errorf("verdicts about nodes that do not exist: %v %v", nodes, clusters)
	}
}
