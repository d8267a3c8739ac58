package kvstore_test

import (
	"fmt"
	"testing"
	"time"

	. "github.com/tombolo-mesh/tombolo/kvstore"
)

func TestPublisherGuard(t *testing.T) {
	type list struct {
		after time.Duration // since the one before
		names int           // p/k/0 … p/k/names-1 are listed
		want  int           // keys in the store then
		held  int
	}
	cases := map[string][]list{
		"half is not more than half":  {{0, 40, 40, 0}, {0, 20, 20, 0}},
		"ten is not more than ten":    {{0, 15, 15, 0}, {0, 5, 5, 0}},
		"more than both is held":      {{0, 40, 40, 0}, {0, 19, 40, 21}},
		"a second list too early":     {{0, 40, 40, 0}, {0, 0, 40, 40}, {29 * time.Second, 0, 40, 40}},
		"a second list agrees":        {{0, 40, 40, 0}, {0, 0, 40, 40}, {30 * time.Second, 0, 0, 0}},
		"the early one does not help": {{0, 40, 40, 0}, {0, 0, 40, 40}, {20 * time.Second, 0, 40, 40}, {11 * time.Second, 0, 0, 0}},
		"a second list has them":      {{0, 40, 40, 0}, {0, 0, 40, 40}, {time.Second, 40, 40, 0}, {time.Hour, 0, 40, 40}},
		"a second list has most":      {{0, 40, 40, 0}, {0, 0, 40, 40}, {time.Second, 35, 35, 0}},
		"both lists must lack them":   {{0, 40, 40, 0}, {0, 15, 40, 25}, {time.Minute, 0, 15, 15}},
	}
	for name, lists := range cases {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				m := NewMemory(MemoryOptions{})
				commit(t, m, "p/other/a", "")
				p := NewPublisher(PublishConfig{Store: m, Prefixes: []string{"p/"}, Kind: kindOf})
				publish(t, p)
				for i, l := range lists {
					time.Sleep(l.after)
					p.Relist()
					p.Set("p/other/a", nil)
					for j := range l.names {
						p.Set(fmt.Sprintf("p/k/%02d", j), nil)
					}
					p.Listed()
					waitIdle(t, p)
					held := 0
					for _, h := range p.Held() {
						held += h.Keys
					}
					if n := len(stored(t, m, "p/k/")); n != l.want || held != l.held {
						t.Errorf("list %d: %d keys and %d held, want %d and %d", i, n, held, l.want, l.held)
					}
				}
			})
		})
	}
}

// The case the guard is for: a fresh process whose source lists nothing.
func TestPublisherGuardAfterRestart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := NewMemory(MemoryOptions{})
		for i := range 100 {
			commit(t, m, fmt.Sprintf("p/pod/%d", i), "", fmt.Sprintf("p/svc/%d", i%5), "")
		}
		p := NewPublisher(PublishConfig{Store: m, Prefixes: []string{"p/"}, Kind: kindOf, Marker: "p/marker",
			MarkerValue: func(bool, []byte) []byte { return []byte("M") }})
		p.Listed()
		publish(t, p)
		waitIdle(t, p)
		if n := len(stored(t, m, "p/pod/")); n != 100 {
			t.Fatalf("%d pods, want all 100 held", n)
		}
		if n := len(stored(t, m, "p/svc/")); n != 0 {
			t.Errorf("%d services, want 0: five are few enough to sweep", n)
		}
		held := p.Held()
		if len(held) != 1 || held[0].Kind != "pod" || held[0].Keys != 100 || held[0].Of != 100 || len(held[0].Sample) != 5 {
			t.Fatalf("held %+v", held)
		}
		time.Sleep(time.Hour)
		p.Listed() // only asks for the marker anew: no second list
		waitIdle(t, p)
		if n := len(stored(t, m, "p/pod/")); n != 100 {
			t.Fatalf("%d pods, want all 100 still held", n)
		}
		p.Delete("p/pod/7") // one by one is what the source means
		waitIdle(t, p)
		if n := len(stored(t, m, "p/pod/")); n != 99 {
			t.Errorf("%d pods after one delete, want 99", n)
		}
		if n := p.Confirm("pod"); n != 99 {
			t.Errorf("confirmed %d, want 99", n)
		}
		waitIdle(t, p)
		wantStored(t, "confirmed", m, "", "p/marker", "M")
		if p.Confirm("pod") != 0 || len(p.Held()) != 0 {
			t.Error("something is still held")
		}
	})
}

// What is held and gone from the store is not held any more.
func TestPublisherHoldsNoGhosts(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m, next := NewMemory(MemoryOptions{}), NewMemory(MemoryOptions{})
		for i := range 20 {
			commit(t, m, fmt.Sprintf("p/k/%02d", i), "", fmt.Sprintf("r/k/%02d", i), "")
		}
		f := healthy(m)
		p := NewPublisher(PublishConfig{Store: f, Prefixes: []string{"p/", "r/"}, Kind: kindOf})
		publish(t, p)
		p.Listed()
		waitIdle(t, p)
		if held := p.Held(); len(held) != 1 || held[0].Keys != 40 {
			t.Fatalf("held %+v", held)
		}
		for i := range 10 {
			commit(t, m, fmt.Sprintf("p/k/%02d", i), "-")
		}
		p.Set("p/k/19", make([]byte, MaxValue+1)) // refused, and so neither wanted nor swept
		time.Sleep(time.Second)
		if held := p.Held(); len(held) != 1 || held[0].Keys != 29 {
			t.Errorf("after ten were deleted and one refused, held %+v", held)
		}
		f.Swap(next)
		time.Sleep(2 * time.Minute)
		if held := p.Held(); len(held) != 0 {
			t.Errorf("in an empty store, held %+v", held)
		}
	})
}

func TestPublisherFillsAnotherStore(t *testing.T) {
	bubble(t, func(t *testing.T) {
		old, next := NewMemory(MemoryOptions{}), NewMemory(MemoryOptions{})
		f := healthy(old)
		var asked []string
		p := NewPublisher(PublishConfig{Store: f, Prefixes: []string{"p/", "r/"}, Marker: "p/marker",
			MarkerValue: func(empty bool, old []byte) []byte {
				asked = append(asked, fmt.Sprint(empty, string(old)))
				if old != nil {
					return old
				}
				return fmt.Appendf(nil, "i%d", len(asked))
			}})
		publish(t, p)
		p.Set("p/a", []byte("1"))
		p.Set("r/b", []byte("1"))
		p.Listed()
		waitIdle(t, p)
		f.Swap(next)
		time.Sleep(2 * time.Minute)
		waitIdle(t, p)
		wantStored(t, "the new store", next, "", "p/a", "1", "r/b", "1", "p/marker", "i2")
		p.Set("p/a", []byte("2"))
		waitIdle(t, p)
		wantStored(t, "the new store", next, "", "p/a", "2", "r/b", "1", "p/marker", "i2")
		if fmt.Sprint(asked) != "[true true]" {
			t.Errorf("the marker's value was asked for with %v", asked)
		}
	})
}
