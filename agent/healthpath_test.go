package agent

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// The window counts what a list of all probes would, slice by slice.
func TestRecentProbesAgainstTwin(t *testing.T) {
	type probe struct {
		at time.Time
		ok bool
	}
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(1_700_000_000, 0)
		var r recentProbes
		var all []probe
		for range rapid.IntRange(0, 60).Draw(t, "n") {
			now = now.Add(time.Duration(rapid.IntRange(0, 15000).Draw(t, "ms")) * time.Millisecond)
			p := probe{now, rapid.Bool().Draw(t, "ok")}
			all = append(all, p)
			r.note(p.ok, p.at)
		}
		now = now.Add(time.Duration(rapid.IntRange(0, 90).Draw(t, "later")) * time.Second)
		var sent, missed uint64
		oldest := now.Truncate(lossSlice).Add(-(lossSlices - 1) * lossSlice)
		for _, p := range all {
			if !p.at.Before(oldest) {
				sent++
				if !p.ok {
					missed++
				}
			}
		}
		if s, m := r.sum(now); s != sent || m != missed {
			t.Fatalf("%d of %d missed, want %d of %d", m, s, missed, sent)
		}
	})
}

func TestPathStatus(t *testing.T) {
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	for name, c := range map[string]struct {
		paths     []pathReport
		down      bool
		nodesDown int
		state     PathState
		rtt, loss float64 // -1 = absent
	}{
		"nobody to ask":     {nil, false, 0, PathUnknown, -1, -1},
		"nobody asked yet":  {[]pathReport{{}}, false, 0, PathUnknown, -1, -1},
		"one node":          {[]pathReport{{ms(4), 100, 0}}, false, 0, PathUp, 4, 0},
		"two nodes":         {[]pathReport{{ms(4), 100, 0}, {ms(10), 100, 50}}, false, 0, PathUp, 7, 25},
		"an outlier":        {[]pathReport{{ms(900), 10, 0}, {ms(1), 10, 0}, {ms(2), 10, 0}}, false, 0, PathUp, 2, 0},
		"one never answers": {[]pathReport{{ms(4), 50, 0}, {0, 50, 50}}, false, 1, PathDegraded, 4, 50},
		"all down":          {[]pathReport{{ms(4), 60, 60}}, true, 1, PathDown, 4, 100},
		"never in reach":    {[]pathReport{{0, 9, 9}}, true, 1, PathDown, -1, 100},
	} {
		s := pathStatus(c.paths, c.down, c.nodesDown)
		value := func(p *float64) float64 {
			if p == nil {
				return -1
			}
			return *p
		}
		if s.State != c.state || value(s.RoundTripMS) != c.rtt || value(s.LossPercent) != c.loss {
			t.Errorf("%s: %s, %v ms, %v%%", name, s.State, value(s.RoundTripMS), value(s.LossPercent))
		}
	}
}

func TestSmoothedRoundTrip(t *testing.T) {
	got := smooth(0, 8*time.Millisecond)
	if got != 8*time.Millisecond {
		t.Errorf("the first one: %v", got)
	}
	if got = smooth(got, 16*time.Millisecond); got != 9*time.Millisecond {
		t.Errorf("one outlier: %v", got)
	}
	for range 100 {
		got = smooth(got, 16*time.Millisecond)
	}
	if got < 15900*time.Microsecond || got > 16*time.Millisecond {
		t.Errorf("after a hundred: %v", got)
	}
}
