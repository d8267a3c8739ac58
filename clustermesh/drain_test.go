package clustermesh

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestDrainLeft: a weight falls from what it was to nothing, or rises to all of
// it, in steps that Next foretells, and never the other way.
func TestDrainLeft(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := &Drain{
			Start: Origin(rapid.Int64Range(1, 1<<60).Draw(t, "start")).Time(), Over: time.Duration(rapid.Int64Range(0, int64(MaxDrain)).Draw(t, "over")),
			From: rapid.Uint16().Draw(t, "from"), Back: rapid.Bool().Draw(t, "back"),
		}
		end := uint16(0)
		if d.Back {
			end = ShareAll
		}
		at, last, steps := d.Start.Add(-time.Hour), d.From, 0
		if d.Over == 0 {
			last = end // however far behind the clock is
		}
		if got := d.Left(at); got != last {
			t.Fatalf("before: %d, want %d", got, last)
		}
		for next := d.Next(at); !next.IsZero(); next = d.Next(at) {
			if steps++; steps > drainSteps {
				t.Fatalf("more than %d steps", drainSteps)
			}
			if !next.After(at) || steps > 1 && d.Over >= drainSteps*drainStep && next.Sub(at) < drainStep {
				t.Fatalf("step %d: from %v to %v", steps, at, next)
			}
			if early := d.Left(next.Add(-1)); early != last {
				t.Fatalf("step %d: %d a moment too early, %d was left", steps, early, last)
			}
			now := d.Left(next)
			if d.Back && now < last || !d.Back && now > last {
				t.Fatalf("step %d: from %d to %d", steps, last, now)
			}
			at, last = next, now
		}
		if last != end || at.After(d.Done()) {
			t.Fatalf("ends with %d at %v, want %d by %v", last, at, end, d.Done())
		}
		if got := d.Left(at.Add(1000 * time.Hour)); got != end {
			t.Fatalf("later: %d", got)
		}
	})
}

func TestDrainLeftByHand(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	out, back := &Drain{Start: at, Over: 10 * time.Second, From: ShareAll}, &Drain{Start: at, Over: 4 * time.Second, From: 13107, Back: true}
	for _, test := range []struct {
		drain   *Drain
		seconds float64
		want    uint16
	}{
		{out, -5, ShareAll}, {out, 0.9, ShareAll}, {out, 1, 58982}, {out, 5.5, 32768}, {out, 9.99, 6554}, {out, 10, 0}, {out, 1e6, 0},
		{back, 0, 13107}, {back, 2, 39321}, {back, 4, ShareAll},
		{&Drain{Start: at, From: ShareAll}, 0, 0}, {&Drain{Start: at, From: ShareAll}, -120, 0}, {&Drain{Start: at, From: 7, Back: true}, -120, ShareAll},
		{back, -120, 13107}, {&Drain{Start: at, From: 7, Back: true}, 0, ShareAll},
	} {
		if got := test.drain.Left(at.Add(time.Duration(test.seconds * float64(time.Second)))); got != test.want {
			t.Errorf("%+v after %v s: %d, want %d", test.drain, test.seconds, got, test.want)
		}
	}
}

// TestMergeDrained: where traffic goes that a cluster has no weight left for.
func TestMergeDrained(t *testing.T) {
	local := func(s *Service) { s.Affinity = AffinityLocal }
	zero := func(s *Service) { s.HasWeight = true }
	tests := []struct {
		name     string
		own      func(*Service)
		others   map[string]func(*Service)
		clusters string
		left     map[string]uint16
		want     string
	}{
		{"nothing", nil, nil, "abc", map[string]uint16{}, "a(1) b(1) c(1)"},
		{"half of one", nil, nil, "abc", map[string]uint16{"b": 32768}, "a*65535(1) b*32768(1) c*65535(1)"},
		{"all of one", nil, nil, "abc", map[string]uint16{"b": 0}, "a(1) c(1) | b*0(1)"},
		{"the own one", nil, nil, "abc", map[string]uint16{"a": 0}, "b(1) c(1) | a*0(1)"},
		{"half of the first tier", local, nil, "abc", map[string]uint16{"a": 32767}, "32767:a(1) | b(1) c(1)"},
		{"the first tier", local, nil, "abc", map[string]uint16{"a": 0}, "b(1) c(1) | a*0(1)"},
		{"half of the only one", nil, nil, "a", map[string]uint16{"a": 32767}, "a(1)"},
		{"the only one", nil, nil, "a", map[string]uint16{"a": 0}, "a(1)"},
		{"all", local, nil, "abc", map[string]uint16{"a": 0, "b": 0, "c": 0}, "a(1) | b(1) c(1)"},
		{"all alike", nil, nil, "abc", map[string]uint16{"a": 9, "b": 9, "c": 9}, "a(1) b(1) c(1)"},
		{"two tiers alike", local, nil, "ab", map[string]uint16{"a": 20000, "b": 20000}, "32767:a(1) | b(1)"},
		{"all but one of weight 0", nil, map[string]func(*Service){"c": zero}, "abc", map[string]uint16{"a": 0, "b": 0}, "c(1) | a*0(1) b*0(1)"},
		{"one beside one of weight 0", nil, map[string]func(*Service){"c": zero}, "abc", map[string]uint16{"b": 0}, "a(1) c*0(1) | b*0(1)"},
		{"with four tiers", func(s *Service) { s.Affinity, s.Failover = AffinityLocal, []string{"b", "c"} }, nil, "abcde", map[string]uint16{"e": 0}, "a(1) | b(1) | c(1) | d(1) e*0(1)"},
		{"a hair is not nothing", nil, nil, "ab", map[string]uint16{"b": 1}, "a*65535(1) b(1)"},
		{"not global", func(s *Service) { s.Global = false }, nil, "ab", map[string]uint16{"a": 0}, "a(1)"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var names []string
			for _, c := range test.clusters {
				names = append(names, string(c))
			}
			m := newMesh(t, names...)
			for _, name := range names {
				s := checkout()
				if name == "a" && test.own != nil {
					test.own(s)
				}
				if set := test.others[name]; set != nil {
					set(s)
				}
				m.put(m.Views[name], s)
				m.backends(name, "r")
			}
			m.Left = func(c string) uint16 {
				if left, is := test.left[c]; is {
					return left
				}
				return ShareAll
			}
			if got := show(Merge(m.MergeInput)); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

// Without a backend elsewhere a drained cluster serves on.
func TestMergeDrainedAlone(t *testing.T) {
	m := newMesh(t, "a", "b")
	m.put(m.Views["a"], checkout())
	m.put(m.Views["b"], checkout())
	m.backends("b", "rr")
	m.backends("a", "nn")
	m.Left = func(c string) uint16 {
		if c == "b" {
			return 0
		}
		return ShareAll
	}
	if got := show(Merge(m.MergeInput)); got != "b(2)" {
		t.Error(got)
	}
}
