package agent

import (
	"cmp"
	"flag"
	"fmt"
	"slices"
	"testing"
	"time"
)

var healthSeeds = flag.Int("health-seeds", 0, "how many runs of ten minutes TestNoFalseVerdicts makes of each loss; 0 = one run of a minute")

// Agents and other nodes on paths of all lengths, and each direction loses as much:
// nobody is judged down.
func TestNoFalseVerdicts(t *testing.T) {
	for _, loss := range []float64{0.05, 0.1, 0.2} {
		t.Run(fmt.Sprintf("%.0f %%", 100*loss), func(t *testing.T) {
			for seed := range max(*healthSeeds, 1) {
				w := newHealthNet(t, uint64(seed), 6, 12)
				w.noFalse()
				trips := map[NodeKey]time.Duration{}
				for _, k := range w.sorted() {
					trips[k] = []time.Duration{1, 10, 60, 97, 150, 300}[w.rng.IntN(6)] * time.Millisecond
				}
				w.trip = func(_, to NodeKey) time.Duration {
					return trips[to] + time.Duration(w.rng.Int64N(int64(trips[to]/10)))
				}
				w.run(3 * time.Second) // first answers
				w.loss = loss
				if *healthSeeds == 0 {
					w.run(time.Minute)
				} else {
					w.run(10 * time.Minute)
				}
				if w.agents[0].h.probes < 1000 {
					t.Fatalf("%d probes prove nothing", w.agents[0].h.probes)
				}
			}
		})
	}
}

// The thresholds hold because they are what they are: with those of three losses and
// no more, the same loss gives false verdicts.
func TestLossWouldFoolLowThresholds(t *testing.T) {
	w := newHealthNet(t, 1, 1, 12)
	false3 := 0
	w.onNews = func(_ *netAgent, v HealthVerdict, _ time.Time) {
		if v.Down {
			false3++
		}
	}
	w.trip = func(_, _ NodeKey) time.Duration { return 97 * time.Millisecond }
	w.agents[0].h.cfg.Down = 3
	w.run(3 * time.Second)
	w.loss = 0.2
	w.run(time.Minute)
	if false3 == 0 {
		t.Error("three losses in a row never happened in a minute: the simulation loses nothing")
	}
}

// A path that becomes thirty times as long at once is no dead path: answers that come
// late are answers, and teach how long to wait.
func TestLongerPathIsNotDead(t *testing.T) {
	w := newHealthNet(t, 1, 3, 4)
	w.noFalse()
	trip := 10 * time.Millisecond
	w.trip = func(_, _ NodeKey) time.Duration { return trip }
	w.run(5 * time.Second)
	trip = 300 * time.Millisecond
	w.run(10 * time.Second)
	for _, n := range w.agents[0].h.nodes {
		if n.fast || n.evidence.RoundTrip < 250*time.Millisecond {
			t.Fatalf("10 s later: fast %v, round trip %v", n.fast, n.evidence.RoundTrip)
		}
	}
	trip = 10 * time.Millisecond
	w.run(5 * time.Second)

	// Longer than any doubt may last: down, but only until the answers come.
	down := map[NodeKey]bool{}
	w.onNews = func(a *netAgent, v HealthVerdict, _ time.Time) {
		if a == w.agents[0] {
			down[v.Node] = v.Down
		}
	}
	trip = 1500 * time.Millisecond
	w.run(20 * time.Second)
	for k, is := range down {
		if is {
			t.Errorf("%v answers after 1.5 s, and is still down", k)
		}
	}
}

// detection kills a node of cluster 2 at a random moment, so many times, and returns
// after how long the first and the last agent judged it down.
func detection(t testing.TB, trials, agents int, trip time.Duration) (first, last []time.Duration) {
	for trial := range trials {
		w := newHealthNet(t, uint64(trial), agents, 2)
		victim := NodeKey{2, 1}
		w.trip = func(_, _ NodeKey) time.Duration { return trip }
		w.run(4*time.Second + time.Duration(w.rng.Int64N(int64(time.Second))))
		died := w.now
		w.cut = func(from, to NodeKey, _ time.Time) bool { return from == victim || to == victim }
		var after []time.Duration
		w.onNews = func(_ *netAgent, v HealthVerdict, at time.Time) {
			if v.Node != victim || !v.Down {
				t.Errorf("trial %d: %+v", trial, v)
			}
			after = append(after, at.Sub(died))
		}
		w.run(3 * time.Second)
		if len(after) != agents {
			t.Fatalf("trial %d: %d of %d agents found it dead within 3 s", trial, len(after), agents)
		}
		first, last = append(first, slices.Min(after)), append(last, slices.Max(after))
	}
	return first, last
}

var detectionCases = []struct {
	agents int
	trip   time.Duration
}{{1, time.Millisecond}, {5, time.Millisecond}, {20, time.Millisecond}, {1, 150 * time.Millisecond}, {5, 150 * time.Millisecond}, {20, 150 * time.Millisecond}}

// A dead node is left within a second by all agents, in virtual time: what a busy
// machine adds is not in it.
func TestDetection(t *testing.T) {
	for _, c := range detectionCases {
		t.Run(fmt.Sprintf("%d agents, %v", c.agents, c.trip), func(t *testing.T) {
			first, last := detection(t, cmp.Or(20**healthSeeds, 10), c.agents, c.trip)
			if worst := slices.Max(last); worst >= time.Second {
				t.Errorf("the last agent left a dead node after %v", worst)
			}
			t.Logf("first agent: median %v, worst %v; last: median %v, worst %v", median(first), slices.Max(first), median(last), slices.Max(last))
		})
	}
}

func BenchmarkDetection(b *testing.B) {
	for _, c := range detectionCases {
		b.Run(fmt.Sprintf("agents=%d/trip=%v", c.agents, c.trip), func(b *testing.B) {
			first, last := detection(b, b.N, c.agents, c.trip)
			ms := func(d time.Duration, name string) { b.ReportMetric(float64(d)/1e6, name) }
			ms(median(first), "first-median-ms")
			ms(slices.Max(first), "first-worst-ms")
			ms(median(last), "last-median-ms")
			ms(slices.Max(last), "last-worst-ms")
			b.ReportMetric(0, "ns/op")
		})
	}
}
