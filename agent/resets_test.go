package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fakeResetter notes what it was asked for, and fails as often as it is told.
type fakeResetter struct {
	mu    sync.Mutex
	calls [][]BackendKey
	fails int
}

func (f *fakeResetter) Reset(_ context.Context, backends []BackendKey) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, backends)
	if f.fails > 0 {
		f.fails--
		return errors.New("not today")
	}
	return nil
}

// asked is what it was asked for since the last time; it fails so often from now on.
func (f *fakeResetter) asked(fails int) (calls [][]BackendKey) {
	f.mu.Lock()
	defer f.mu.Unlock()
	calls, f.calls, f.fails = f.calls, nil, fails
	return calls
}

func someBackends(n int) (out []BackendKey) {
	for i := range n {
		out = append(out, BackendKey{Addr: MakeAddr(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})), Port: 80, Proto: 6})
	}
	return out
}

func TestResetLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeResetter{}
		l := newResetLoop(f, newQuietLog(slog.New(slog.DiscardHandler)))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); l.run(ctx) }()
		b := someBackends(resetBatch + 5)
		l.add(b)
		l.add(b[:2]) // each once
		time.Sleep(resetPause - 1)
		synctest.Wait()
		first := f.asked(0)
		if len(first) != 1 || len(first[0]) != resetBatch {
			t.Fatalf("%d calls before the pause is over", len(first))
		}
		time.Sleep(2 * resetPause)
		synctest.Wait()
		second := f.asked(1)
		if len(second) != 1 {
			t.Fatalf("%d calls after it", len(second))
		}
		got := map[BackendKey]bool{}
		for _, c := range append(first, second...) {
			for _, k := range c {
				got[k] = true
			}
		}
		if len(got) != len(b) {
			t.Fatalf("%d backends, want %d", len(got), len(b))
		}
		l.add(b[:1])
		synctest.Wait()
		time.Sleep(2 * resetRetry)
		synctest.Wait()
		if calls := f.asked(0); len(calls) != 2 || !slices.Equal(calls[1], b[:1]) {
			t.Fatalf("after a failure: %v", calls)
		}
		cancel()
		<-done
	})
}

func TestResetLoopIsBounded(t *testing.T) {
	l := newResetLoop(&fakeResetter{}, newQuietLog(slog.New(slog.DiscardHandler)))
	l.add(someBackends(maxResets + 3))
	if _, lost := l.counts(); lost != 3 || len(l.waiting) != maxResets {
		t.Errorf("%d lost, %d wait", lost, len(l.waiting))
	}
}

// A node is due once, when it has been down without a break for long enough.
func TestDownNodes(t *testing.T) {
	var d downNodes
	start := time.Unix(1000, 0)
	a, b := NodeKey{1, 1}, NodeKey{1, 2}
	down := func(keys ...NodeKey) map[NodeKey]HealthRow {
		out := map[NodeKey]HealthRow{}
		for _, k := range keys {
			out[k] = HealthRow{}
		}
		return out
	}
	at := func(after time.Duration, want string) {
		t.Helper()
		nodes, next := d.due(start.Add(after))
		text := fmt.Sprint(len(nodes), nodes[a], nodes[b])
		if !next.IsZero() {
			text += fmt.Sprint(" ", next.Sub(start))
		}
		if text != want {
			t.Errorf("after %v: %s, want %s", after, text, want)
		}
	}
	d.set(down(a), start)
	at(0, "0 false false 5s")
	d.set(down(a, b), start.Add(2*time.Second))
	at(4*time.Second, "0 false false 5s")
	at(5*time.Second, "1 true false 7s")
	d.set(down(a), start.Add(6*time.Second)) // b is back
	at(20*time.Second, "0 false false")
	d.set(down(a, b), start.Add(30*time.Second))
	at(34*time.Second, "0 false false 35s")
	at(36*time.Second, "1 false true")
}
