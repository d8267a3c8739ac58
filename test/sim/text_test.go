package sim

import (
	"reflect"
	"slices"
	"testing"
	"time"
)

// A schedule is what its text says, and a seed's is always the same.
func TestText(t *testing.T) {
	for seed := uint64(1); seed <= 200; seed++ {
		s := generate(seed)
		s.Plant = []string{"", plantOrder}[seed%2]
		read, err := parseSchedule("# why\n\n" + s.String())
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if !reflect.DeepEqual(s, read) {
			t.Fatalf("seed %d: %s\nwas read as\n%s", seed, s, read)
		}
		if again := generate(seed); again.String() != generate(seed).String() || len(again.Steps) != len(s.Steps) {
			t.Fatalf("seed %d gives different schedules", seed)
		}
	}
	for _, bad := range []string{"", "world clusters=21 nodes=1 replicas=1", "world moons=1", "world clusters=1 nodes=1 replicas=1\n1s fly", "world clusters=1 nodes=1 replicas=1\nsoon rest", "world clusters=1 nodes=1 replicas=1\n1s rest now"} {
		if _, err := parseSchedule(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// Every verb is drawn by some seed: none is forgotten.
func TestEveryVerbIsDrawn(t *testing.T) {
	drawn := map[string]bool{}
	for seed := uint64(1); seed <= 500; seed++ {
		for _, st := range generate(seed).Steps {
			drawn[st.Do] = true
		}
	}
	for name := range verbs {
		if !drawn[name] {
			t.Errorf("500 seeds never do %q", name)
		}
	}
}

func TestShrink(t *testing.T) {
	s := schedule{Seed: 1, Clusters: 7, Nodes: 3, Agents: 2, Replicas: 2}
	for i := range 40 {
		s.Steps = append(s.Steps, step{At: time.Duration(i) * time.Second, Do: "pod", Args: []int{1 + i%7, 1, i}})
	}
	runs := 0
	fails := func(s schedule) bool { // it takes these three, in two clusters of two nodes
		runs++
		has := func(i int) bool { return slices.ContainsFunc(s.Steps, func(st step) bool { return st.arg(2) == i }) }
		return has(7) && has(22) && has(35) && s.Clusters >= 2 && s.Nodes >= 2
	}
	least := shrink(s, fails, 1000)
	if len(least.Steps) != 3 || least.Clusters != 2 || least.Nodes != 2 || least.Agents != 1 || least.Replicas != 1 {
		t.Errorf("after %d runs:\n%s", runs, least)
	}
	if runs > 100 {
		t.Errorf("%d runs, want at most 100", runs)
	}
	runs = 0
	if shrink(s, fails, 10); runs > 10 {
		t.Errorf("%d runs with a budget of 10", runs)
	}
}
