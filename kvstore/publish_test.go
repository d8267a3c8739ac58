package kvstore_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	. "github.com/tombolo-mesh/tombolo/kvstore"
	"github.com/tombolo-mesh/tombolo/kvstore/kvtest"
)

// stored is what is in s under a prefix.
func stored(t testing.TB, s Store, prefix string) map[string]string {
	t.Helper()
	m := map[string]string{}
	_, err := s.List(context.Background(), prefix, Position{}, func(kvs []KV) error {
		for _, kv := range kvs {
			m[kv.Key] = string(kv.Value)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func wantStored(t testing.TB, step string, s Store, prefix string, kv ...string) {
	t.Helper()
	want := map[string]string{}
	for i := 0; i < len(kv); i += 2 {
		want[kv[i]] = kv[i+1]
	}
	if got := stored(t, s, prefix); !maps.Equal(got, want) {
		t.Errorf("%s: the store holds %v, want %v", step, got, want)
	}
}

// publish runs a publisher until the test ends; the result of Run is sent.
func publish(t *testing.T, p *Publisher) <-chan error {
	ctx, cancel := context.WithCancel(context.Background())
	result, done := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(done)
		result <- p.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return result
}

// kindOf is the part of "p/kind/name" between the slashes.
func kindOf(key string) string {
	if parts := strings.Split(key, "/"); len(parts) > 2 {
		return parts[1]
	}
	return ""
}

func waitIdle(t testing.TB, p *Publisher) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	if err := p.WaitIdle(ctx); err != nil {
		t.Fatalf("not idle after an hour: %+v", p.Status())
	}
}

func TestPublisherWritesOnlyWhatDiffers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := NewMemory(MemoryOptions{})
		commit(t, m, "p/same", "1", "p/equal", "B", "p/stale", "1", "p/extra", "1", "q/other", "1")
		before := m.Position().Revision
		var committed []Position
		p := NewPublisher(PublishConfig{
			Store: m, Prefixes: []string{"p/"},
			Same:      func(_ string, a, b []byte) bool { return strings.EqualFold(string(a), string(b)) },
			Committed: func(at Position) { committed = append(committed, at) },
		})
		publish(t, p)
		p.Set("p/same", []byte("1"))
		p.Set("p/equal", []byte("b"))
		p.Set("p/stale", []byte("2"))
		p.Set("p/new", []byte("1"))
		waitIdle(t, p)
		wantStored(t, "before Listed nothing is swept", m, "p/", "p/same", "1", "p/equal", "B", "p/stale", "2", "p/new", "1", "p/extra", "1")
		if n := m.Position().Revision - before; n != 1 {
			t.Errorf("%d commits, want 1", n)
		}
		p.Listed()
		waitIdle(t, p)
		wantStored(t, "after", m, "", "p/same", "1", "p/equal", "B", "p/stale", "2", "p/new", "1", "q/other", "1")
		if n := len(committed); n == 0 || committed[n-1] != m.Position() {
			t.Errorf("told of commits %v, the store is at %v", committed, m.Position())
		}
		p.Delete("p/new")
		p.Delete("p/none")
		p.Delete("q/other")
		waitIdle(t, p)
		wantStored(t, "deleted", m, "", "p/same", "1", "p/equal", "B", "p/stale", "2", "q/other", "1")
	})
}

// slow is a store whose commits take a while.
type slow struct {
	Store
	takes  time.Duration
	mu     sync.Mutex
	flying int
	most   int
	sizes  []int
}

func (s *slow) Commit(ctx context.Context, ops ...Op) (Position, error) {
	s.mu.Lock()
	s.flying++
	s.most = max(s.most, s.flying)
	s.sizes = append(s.sizes, len(ops))
	s.mu.Unlock()
	time.Sleep(s.takes)
	s.mu.Lock()
	s.flying--
	s.mu.Unlock()
	return s.Store.Commit(ctx, ops...)
}

func TestPublisherCoalesces(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := &slow{Store: NewMemory(MemoryOptions{}), takes: time.Second}
		p := NewPublisher(PublishConfig{Store: s, Prefixes: []string{"p/"}})
		publish(t, p)
		p.Listed()
		waitIdle(t, p)
		p.Set("p/a", []byte("0"))
		synctest.Wait()
		if len(s.sizes) != 1 {
			t.Fatalf("an idle publisher began %d commits at once, want 1", len(s.sizes))
		}
		for i := range 50 {
			p.Set("p/a", fmt.Appendf(nil, "%d", i))
			p.Set("p/b", fmt.Appendf(nil, "%d", i))
			time.Sleep(10 * time.Millisecond)
		}
		p.Set("p/c", nil)
		p.Delete("p/c")
		waitIdle(t, p)
		wantStored(t, "end", s, "", "p/a", "49", "p/b", "49")
		if fmt.Sprint(s.sizes) != "[1 2]" {
			t.Errorf("commits of %v operations, want [1 2]", s.sizes)
		}
	})
}

func TestPublisherFirstPublication(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := NewMemory(MemoryOptions{})
		s := &slow{Store: m, takes: 10 * time.Millisecond}
		var asked []string
		p := NewPublisher(PublishConfig{
			Store: s, Prefixes: []string{"p/"}, Marker: "p/marker", InFlight: 3,
			Fence: func() ([]Op, error) { return []Op{IfModRevision("leader", 0)}, nil },
			MarkerValue: func(empty bool, old []byte) []byte {
				asked = append(asked, fmt.Sprintf("%v %q %d", empty, old, m.Len()))
				if old != nil {
					return old
				}
				return []byte("incarnation 1")
			},
		})
		publish(t, p)
		const n = 1000
		for i := range n {
			p.Set(fmt.Sprintf("p/%04d", i), make([]byte, 20<<10))
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if _, ok := stored(t, m, "p/")["p/marker"]; ok || m.Len() != n {
			t.Fatalf("before Listed: %d keys, marker %v", m.Len(), ok)
		}
		p.Listed()
		waitIdle(t, p)
		if got := stored(t, m, "p/marker")["p/marker"]; got != "incarnation 1" {
			t.Errorf("marker %q", got)
		}
		if fmt.Sprint(asked) != fmt.Sprintf(`[true "" %d]`, n) {
			t.Errorf("the marker's value was asked for with %v", asked)
		}
		if s.most != 3 {
			t.Errorf("%d commits at a time, want 3", s.most)
		}
		for _, size := range s.sizes {
			if size > 60 { // 52 values of 20 KiB are more than 1 MiB
				t.Errorf("a commit of %d operations is too many bytes", size)
			}
		}
		p.Listed()
		waitIdle(t, p)
		if len(asked) != 2 || !strings.HasPrefix(asked[1], `false "incarnation 1"`) {
			t.Errorf("the marker's value was asked for with %v", asked)
		}
		// A second process finds everything in place and writes nothing.
		at := m.Position()
		q := NewPublisher(PublishConfig{Store: m, Prefixes: []string{"p/"}, Marker: "p/marker",
			MarkerValue: func(empty bool, old []byte) []byte {
				if empty {
					t.Error("the store is not empty")
				}
				return old
			}})
		publish(t, q)
		for i := range n {
			q.Set(fmt.Sprintf("p/%04d", i), make([]byte, 20<<10))
		}
		q.Listed()
		waitIdle(t, q)
		if m.Position() != at {
			t.Errorf("a restart moved the store from %v to %v", at, m.Position())
		}
	})
}

func TestPublisherMarkerOutsideItsPrefixes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := NewMemory(MemoryOptions{})
		commit(t, m, "marker2", "mine", "p/old", "")
		p := NewPublisher(PublishConfig{Store: m, Prefixes: []string{"p/", "p/sub/"}, Marker: "marker",
			MarkerValue: func(empty bool, _ []byte) []byte { return fmt.Appendf(nil, "empty=%v", empty) }})
		publish(t, p)
		p.Set("marker", []byte("no"))
		p.Set("elsewhere", []byte("no"))
		p.Listed()
		waitIdle(t, p)
		wantStored(t, "end", m, "", "marker", "empty=false", "marker2", "mine")
		commit(t, m, "marker", "-")
		time.Sleep(time.Second)
		waitIdle(t, p)
		wantStored(t, "somebody deleted the marker", m, "", "marker", "empty=false", "marker2", "mine")
		if r := p.Refused(); len(r) != 2 || r[0].Key != "elsewhere" || r[1].Key != "marker" {
			t.Errorf("refused %v, want elsewhere and marker", r)
		}
	})
}

func TestPublisherFence(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := NewMemory(MemoryOptions{})
		token := commit(t, m, "leader", "me")
		p := NewPublisher(PublishConfig{Store: m, Prefixes: []string{"p/"},
			Fence: func() ([]Op, error) { return []Op{IfCreateRevision("leader", token.Revision)}, nil }})
		result := publish(t, p)
		p.Set("p/a", []byte("1"))
		waitIdle(t, p)
		commit(t, m, "leader", "-")
		commit(t, m, "leader", "another")
		p.Set("p/a", []byte("2"))
		if err := <-result; !errors.Is(err, ErrConflict) {
			t.Errorf("Run ended with %v, want ErrConflict", err)
		}
		wantStored(t, "fenced off", m, "p/", "p/a", "1")
		// Elected again, the same publisher goes on with what is wanted now.
		token = commit(t, m, "leader", "-")
		token = commit(t, m, "leader", "me")
		publish(t, p)
		waitIdle(t, p)
		wantStored(t, "leader again", m, "p/", "p/a", "2")
	})
}

func TestPublisherEndsWithTheErrorOfItsFence(t *testing.T) {
	bubble(t, func(t *testing.T) {
		mine := errors.New("not the leader")
		p := NewPublisher(PublishConfig{Store: NewMemory(MemoryOptions{}), Prefixes: []string{"p/"},
			Fence: func() ([]Op, error) { return nil, mine }})
		result := publish(t, p)
		p.Set("p/a", nil)
		if err := <-result; !errors.Is(err, mine) {
			t.Errorf("Run ended with %v", err)
		}
	})
}

// Run that ends in the middle of a commit waits for it, and a later Run finds
// out what became of it.
func TestPublisherStopsAndGoesOn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := NewMemory(MemoryOptions{})
		s := &slow{Store: m, takes: 20 * time.Second}
		p := NewPublisher(PublishConfig{Store: s, Prefixes: []string{"p/"}})
		p.Set("p/a", []byte("1"))
		p.Set("p/refused", make([]byte, MaxValue+1))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- p.Run(ctx) }()
		time.Sleep(time.Second)
		if st := p.Status(); !st.Running || !st.Loaded || st.InFlight != 1 || st.Wanted != 1 || st.Refused != 1 || p.Idle() {
			t.Errorf("in the middle: %+v", st)
		}
		if err := p.Run(ctx); err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("a second Run at a time: %v", err)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
		if st := p.Status(); st.Running || st.InFlight != 0 || p.Idle() {
			t.Errorf("stopped: %+v", st)
		}
		waiting, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		if err := p.WaitIdle(waiting); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("waiting for a publisher that does not run: %v", err)
		}
		publish(t, p)
		p.Relist()
		p.Set("p/a", []byte("2"))
		p.Listed()
		waitIdle(t, p)
		wantStored(t, "gone on", m, "", "p/a", "2")
		if r := p.Refused(); len(r) != 0 {
			t.Errorf("still refused, though the last list lacks it: %v", r)
		}
	})
}

func TestPublisherEndsWhenItMayNotWrite(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := NewReplica(MemoryOptions{})
		must := func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		}
		must(r.Sink().Begin(Position{StoreID: 1, Revision: 1}, nil))
		r.Sink().Synced(Position{StoreID: 1, Revision: 1})
		p := NewPublisher(PublishConfig{Store: r, Prefixes: []string{"p/"}})
		p.Set("p/a", nil)
		if err := <-publish(t, p); !errors.Is(err, ErrReadOnly) {
			t.Errorf("Run ended with %v, want ErrReadOnly", err)
		}
	})
}

func TestPublisherUndoesForeignChanges(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := NewMemory(MemoryOptions{})
		p := NewPublisher(PublishConfig{Store: m, Prefixes: []string{"p/"}, Marker: "p/marker",
			MarkerValue: func(bool, []byte) []byte { return []byte("M") }})
		publish(t, p)
		p.Set("p/a", []byte("1"))
		p.Set("p/b", []byte("1"))
		p.Listed()
		waitIdle(t, p)
		commit(t, m, "p/a", "-", "p/b", "forged", "p/c", "planted", "p/marker", "forged", "q", "theirs")
		time.Sleep(time.Second)
		waitIdle(t, p)
		wantStored(t, "repaired", m, "", "p/a", "1", "p/b", "1", "p/marker", "M", "q", "theirs")
	})
}

func TestPublisherRefusesOneValue(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := NewMemory(MemoryOptions{})
		commit(t, m, "p/kept", "last good")
		p := NewPublisher(PublishConfig{Store: m, Prefixes: []string{"p/"}})
		publish(t, p)
		p.Set("p/a", []byte("1"))
		p.Set("p/kept", make([]byte, MaxValue+1))
		p.Listed()
		waitIdle(t, p)
		wantStored(t, "refused", m, "", "p/a", "1", "p/kept", "last good")
		p.Set("p/a", make([]byte, MaxValue+1))
		waitIdle(t, p)
		wantStored(t, "refused", m, "", "p/a", "1", "p/kept", "last good")
		if r := p.Refused(); len(r) != 2 || !strings.Contains(r[0].Err.Error(), "at most 65536") {
			t.Errorf("refused %v", r)
		}
		p.Set("p/kept", []byte("good again"))
		p.Delete("p/a")
		waitIdle(t, p)
		wantStored(t, "accepted", m, "", "p/kept", "good again")
		if r := p.Refused(); len(r) != 0 {
			t.Errorf("still refused %v", r)
		}
	})
}

// tight is a store that takes little at a time.
type tight struct{ Store }

func (s tight) Commit(ctx context.Context, ops ...Op) (Position, error) {
	size := 0
	for _, op := range ops {
		op.Decode(func(_ string, value []byte, _ int64) { size += len(value) }, func(string) {},
			func(string, int64) {}, func(string, int64) {})
	}
	if size > 1000 {
		return Position{}, ErrTooLarge
	}
	return s.Store.Commit(ctx, ops...)
}

func TestPublisherCutsCommitsThatAreTooLarge(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := NewMemory(MemoryOptions{})
		p := NewPublisher(PublishConfig{Store: tight{m}, Prefixes: []string{"p/"}})
		for i := range 500 {
			p.Set(fmt.Sprintf("p/%d", i), make([]byte, 100))
		}
		p.Set("p/huge", make([]byte, 2000))
		publish(t, p)
		p.Listed()
		waitIdle(t, p)
		if r := p.Refused(); m.Len() != 500 || len(r) != 1 || r[0].Key != "p/huge" {
			t.Errorf("%d keys, refused %v", m.Len(), r)
		}
	})
}

// Under any mixture of faults, when they stop the store holds what is wanted
// and nothing else; and no marker is seen before what it vouches for.
func TestPublisherUnderAllFaults(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			bubble(t, func(t *testing.T) { publishUnderFaults(t, seed) })
		})
	}
}

func publishUnderFaults(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 9))
	m := NewMemory(MemoryOptions{History: 30})
	f := kvtest.NewFaulty(m, seed, kvtest.Faults{List: 0.1, ListChunk: 0.1, Cut: 0.1, Commit: 0.2, Lost: 0.2, Delay: 0.3, MaxDelay: time.Second})
	p := NewPublisher(PublishConfig{Store: f, Prefixes: []string{"p/"}, Marker: "p/marker", Kind: kindOf,
		MarkerValue: func(_ bool, old []byte) []byte { return []byte("M") }})
	publish(t, p)
	wanted := map[string]string{}
	for step := range 200 {
		key := fmt.Sprintf("p/%d/%d", r.IntN(2), r.IntN(12))
		switch r.IntN(12) {
		case 0:
			f.Break(errors.New("down"))
		case 1, 2, 3:
			f.Break(nil)
		case 4:
			m.Compact(m.Position().Revision)
		case 5:
			commit(t, m, key, []string{"-", "foreign"}[r.IntN(2)])
		case 6, 7:
			p.Delete(key)
			delete(wanted, key)
		case 8:
			if step == 60 {
				p.Listed()
			}
		default:
			wanted[key] = fmt.Sprint(step % 5)
			p.Set(key, []byte(wanted[key]))
		}
		time.Sleep(time.Duration(r.IntN(2000)) * time.Millisecond)
	}
	f.Set(kvtest.Faults{})
	f.Break(nil)
	p.Listed()
	time.Sleep(2 * time.Minute)
	waitIdle(t, p)
	wanted["p/marker"] = "M"
	if got := stored(t, m, ""); !maps.Equal(got, wanted) {
		t.Errorf("at rest the store holds %v\nwant %v\n%+v %v", got, wanted, p.Status(), p.Held())
	}
}
