package linux

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/agent/cni"
)

// clock is a clock that a test sets.
type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

func newClock() *clock { return &clock{at: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)} }

// uids are the pods that have a record, connected or not.
func (p *Pods) uids() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for uid := range p.pods {
		out = append(out, uid)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// Without DEL and without GC: what tells of a pod's end is its link, and what the
// cluster says.
func TestPodSweep(t *testing.T) {
	ctx := context.Background()
	everyone := func(PodName) bool { return true }
	without := func(uids ...string) func(PodName) bool {
		return func(p PodName) bool { return !slices.Contains(uids, p.UID) }
	}
	for _, c := range []struct {
		name      string
		cutLink   bool
		before    func(PodName) bool // what the cluster says first
		after     func(PodName) bool
		later     time.Duration // between two rounds after that
		connected bool
		left      string
	}{
		{"nothing happens", false, everyone, everyone, 2 * goneFor, true, "uid-a"},
		{"link gone, the cluster has the pod", true, everyone, everyone, goneFor / 3, false, "uid-a"},
		{"link gone for long", true, everyone, everyone, goneFor, false, ""},
		{"link gone, the cluster has the pod no more", true, everyone, without("uid-a"), time.Second, false, ""},
		{"link gone, the cluster is silent", true, everyone, nil, goneFor / 3, false, "uid-a"},
		{"link gone, the cluster never had it", true, without("uid-a"), without("uid-a"), goneFor / 3, false, "uid-a"},
		{"the cluster has it no more", false, everyone, without("uid-a"), goneFor / 3, true, "uid-a"},
		{"the cluster has it no more for long", false, everyone, without("uid-a"), goneFor, false, ""},
		{"the cluster never had it", false, without("uid-a"), without("uid-a"), 2 * goneFor, true, "uid-a"},
		{"the cluster is silent for long", false, everyone, nil, 2 * goneFor, true, "uid-a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			node, pod, clk, dir := newNS(t), newNS(t), newClock(), t.TempDir()
			p := openPods(t, node, dir, clk.now)
			defer func() { p.Close() }()
			if _, err := p.Add(ctx, request(pod, "uid-a", "c1")); err != nil {
				t.Fatal(err)
			}
			if err := p.Sweep(c.before); err != nil {
				t.Fatal(err)
			}
			if c.cutLink {
				pod.ip("link", "del", "eth0")
			}
			// A restart in between forgets nothing.
			p.Close()
			p = openPods(t, node, dir, clk.now)
			for range 2 {
				if err := p.Sweep(c.after); err != nil {
					t.Fatal(err)
				}
				clk.at = clk.at.Add(c.later)
			}
			if err := p.Sweep(c.after); err != nil {
				t.Fatal(err)
			}
			if list, _ := p.List(ctx); (len(list) == 1) != c.connected || p.uids() != c.left {
				t.Errorf("connected %+v, records %q", list, p.uids())
			}
		})
	}
}

// A link that goes while the agent runs is noticed, and the pod comes back with its
// addresses.
func TestPodSweepTellsOfLostLinks(t *testing.T) {
	ctx := context.Background()
	node, pod := newNS(t), newNS(t)
	p := openPods(t, node, t.TempDir(), nil)
	defer p.Close()
	var told [][]agent.LocalPod
	p.cfg.Changed = func(l []agent.LocalPod) { told = append(told, l) }
	first, err := p.Add(ctx, request(pod, "uid-a", "c1"))
	if err != nil {
		t.Fatal(err)
	}
	pod.ip("link", "del", "eth0")
	if err := p.Sweep(nil); err != nil {
		t.Fatal(err)
	}
	if len(told) != 2 || len(told[1]) != 0 {
		t.Errorf("told %+v", told)
	}
	again, err := p.Add(ctx, request(pod, "uid-a", "c2"))
	if err != nil || !slices.Equal(addresses(again), addresses(first)) {
		t.Errorf("%v %v, had %v", addresses(again), err, addresses(first))
	}
}

func TestPodCollectLeavesOthers(t *testing.T) {
	ctx := context.Background()
	node, one, two, three, stray := newNS(t), newNS(t), newNS(t), newNS(t), newNS(t)
	dir := t.TempDir()
	p := openPods(t, node, dir, nil)
	defer p.Close()
	for i, pod := range []*ns{one, two, three} {
		r := request(pod, "uid-"+string(rune('a'+i)), "c"+string(rune('1'+i)))
		r.Network = []string{"tombolo", "tombolo", "other"}[i]
		if _, err := p.Add(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	// A device of ours whose record was lost.
	lost := newPodLink("uid-lost", "eth0", nil, 1420)
	if _, err := lost.connect(p.nl, p.node, stray.file, nil); err != nil {
		t.Fatal(err)
	}
	node.ip("link", "add", "stranger", "type", "veth", "peer", "name", "stranger2")
	if err := p.Collect(ctx, agent.CollectRequest{}); err == nil {
		t.Error("a collection without a network was done")
	}
	if err := p.Collect(ctx, agent.CollectRequest{Network: "tombolo", Valid: []agent.Attachment{{ContainerID: "c2", IfName: "eth0"}, {ContainerID: "c1", IfName: "net1"}}}); err != nil {
		t.Fatal(err)
	}
	if p.uids() != "uid-b uid-c" {
		t.Errorf("left: %s", p.uids())
	}
	links := node.ip("link", "show")
	if strings.Contains(links, lost.HostIf) || strings.Contains(links, hostIfName("uid-a")) || !strings.Contains(links, "stranger") || !strings.Contains(links, hostIfName("uid-c")) {
		t.Errorf("devices: %s", links)
	}
	// What was collected is gone from the disk as well.
	p.Close()
	p = openPods(t, node, dir, nil)
	if p.uids() != "uid-b uid-c" {
		t.Errorf("after a restart: %s", p.uids())
	}
}

// One pod has one connection; what is meant for another interface changes nothing.
func TestPodSecondInterface(t *testing.T) {
	ctx := context.Background()
	node, pod := newNS(t), newNS(t)
	p := openPods(t, node, t.TempDir(), nil)
	defer p.Close()
	first := request(pod, "uid-a", "c1")
	if _, err := p.Add(ctx, first); err != nil {
		t.Fatal(err)
	}
	second := first
	second.IfName = "net1"
	if _, err := p.Add(ctx, second); err == nil || !strings.Contains(err.Error(), "is connected by eth0 already") {
		t.Errorf("second interface: %v", err)
	}
	if err := p.Check(ctx, second); err == nil {
		t.Error("CHECK of another interface passed")
	}
	if err := p.Del(ctx, second); err != nil {
		t.Error(err)
	}
	if err := p.Check(ctx, first); err != nil {
		t.Error(err)
	}
}

// A note that is no note stops neither the others nor the next round.
func TestCarryOutBadNote(t *testing.T) {
	ctx := context.Background()
	node, pod, dir := newNS(t), newNS(t), t.TempDir()
	p := openPods(t, node, t.TempDir(), nil)
	defer p.Close()
	if err := p.CarryOut(filepath.Join(dir, "none")); err != nil {
		t.Error(err)
	}
	r := request(pod, "uid-a", "c1")
	if _, err := p.Add(ctx, r); err != nil {
		t.Fatal(err)
	}
	if err := cni.Defer(dir, r); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"0.json": "{", "1.json": `{"version":7,"pod":{"containerID":"c1"}}`, "2.json": strings.Repeat("x", 1<<20)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.CarryOut(dir); err != nil {
		t.Error(err)
	}
	if p.uids() != "" {
		t.Errorf("left: %s", p.uids())
	}
	files, _ := cni.Deferred(dir)
	bad, _ := filepath.Glob(filepath.Join(dir, "*.bad"))
	if len(files) != 0 || len(bad) != 3 {
		t.Errorf("notes %v, set aside %v", files, bad)
	}
}
