package apiserver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/tombolo-mesh/tombolo/kvstore"
	"github.com/tombolo-mesh/tombolo/kvstore/kvtest"
)

func testNumbers(store kvstore.Store, most uint32) *numbers {
	return newNumbers(numbersConfig{Store: store, Prefix: "/n/", Max: most, Cooldown: 24 * time.Hour})
}

// The same text has the same number across restarts and replicas.
func TestNumbersAreKept(t *testing.T) {
	ctx := t.Context()
	store := kvstore.NewMemory(kvstore.MemoryOptions{})
	a, b := testNumbers(store, 1000), testNumbers(store, 1000)
	var texts []string
	for i := range 300 {
		texts = append(texts, fmt.Sprint("text", i))
	}
	if _, err := a.ensure(ctx, texts[:200]); err != nil {
		t.Fatal(err)
	}
	if _, err := b.ensure(ctx, texts[100:]); err != nil {
		t.Fatal(err)
	}
	if _, err := a.ensure(ctx, texts); err != nil {
		t.Fatal(err)
	}
	fresh := testNumbers(store, 1000)
	if _, err := fresh.ensure(ctx, texts); err != nil {
		t.Fatal(err)
	}
	seen := make(map[uint32]string)
	for _, text := range texts {
		n, ok := fresh.lookup(text)
		if !ok || n < 1 || n > 1000 {
			t.Fatalf("%s has number %d, %v", text, n, ok)
		}
		if other, twice := seen[n]; twice {
			t.Fatalf("%s and %s both have number %d", text, other, n)
		}
		seen[n] = text
		if m, _ := a.lookup(text); m != n {
			t.Errorf("%s: one replica says %d, a fresh one %d", text, m, n)
		}
	}
}

// No number means something else within the cooldown, also after a restart.
func TestNumbersCooldown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		store := kvstore.NewMemory(kvstore.MemoryOptions{})
		n := testNumbers(store, 1)
		must := func(_ []string, err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		must(n.ensure(ctx, []string{"a"}))
		must(n.free(ctx, []string{"a"}))
		n = testNumbers(store, 1)
		time.Sleep(24*time.Hour - time.Second)
		if _, err := n.ensure(ctx, []string{"b"}); !errors.Is(err, errNumbersUsedUp) {
			t.Fatalf("within the cooldown: %v", err)
		}
		must(n.ensure(ctx, []string{"a"})) // its own text takes it back at any time
		must(n.free(ctx, []string{"a"}))
		time.Sleep(24*time.Hour + time.Second)
		must(n.ensure(ctx, []string{"b"}))
		if got, _ := n.lookup("b"); got != 1 {
			t.Fatalf("b has number %d", got)
		}
	})
}

// Against a model: whatever two replicas do, no number has two texts, none
// changes its text within the cooldown, and a text in use keeps its number.
func TestNumbersProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		store := kvstore.NewMemory(kvstore.MemoryOptions{})
		defer store.Close()
		replicas := []*numbers{testNumbers(store, 6), testNumbers(store, 6)}
		meaning := make(map[uint32]string)
		texts := []string{"a", "b", "c", "d", "e", "f", "g", "h"}
		inUse := make(map[string]uint32)
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			r := rapid.IntRange(0, 1).Draw(t, "replica")
			some := rapid.SliceOfNDistinct(rapid.SampledFrom(texts), 1, 3, rapid.ID[string]).Draw(t, "texts")
			switch rapid.IntRange(0, 2).Draw(t, "what") {
			case 0:
				_, err := replicas[r].ensure(ctx, some)
				if err != nil && !errors.Is(err, errNumbersUsedUp) {
					t.Fatal(err)
				}
				for _, text := range some {
					n, ok := replicas[r].lookup(text)
					if !ok {
						continue
					}
					if was, used := inUse[text]; used && was != n {
						t.Fatalf("%s had %d and has %d", text, was, n)
					}
					if was, known := meaning[n]; known && was != text {
						t.Fatalf("number %d meant %s and means %s", n, was, text)
					}
					meaning[n], inUse[text] = text, n
				}
			case 1:
				done, err := replicas[r].free(ctx, some)
				if err != nil {
					t.Fatal(err)
				}
				for _, text := range done {
					delete(inUse, text)
				}
			case 2:
				replicas[r] = testNumbers(store, 6) // a restart
			}
			// A replica that lags must not be asked: bring both up to date, as the watch does.
			for _, n := range replicas {
				n.writing <- struct{}{}
				err := n.load(ctx)
				<-n.writing
				if err != nil {
					t.Fatal(err)
				}
				all := n.texts()
				slices.Sort(all)
				if len(all) != len(inUse) {
					t.Fatalf("in use: %v, expected %v", all, inUse)
				}
			}
		}
	})
}

// A store that lost its numbers gives out none before they are put back, or could be.
func TestNumbersOfAStoreThatLostThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fresh := func(id uint64) *kvstore.Memory { return kvstore.NewMemory(kvstore.MemoryOptions{StoreID: id}) }
		store := kvtest.NewFaulty(fresh(1), 1, kvtest.Faults{})
		n := newNumbers(numbersConfig{Store: store, Prefix: "n/", Max: 10, Cooldown: time.Hour})
		ensure := func(text string) error { _, err := n.ensure(t.Context(), []string{text}); return err }
		if err := errors.Join(ensure("a"), ensure("b")); err != nil {
			t.Fatal(err)
		}
		store.Swap(fresh(2))
		for range 3 {
			if err := ensure("c"); !errors.Is(err, errNumbersLost) {
				t.Fatalf("an emptied store gave a number: %v", err)
			}
		}
		if one, ok := n.lookup("a"); !ok || one != 1 {
			t.Errorf("a has number %d %v, it had 1", one, ok)
		}
		n.accept()
		if err := ensure("c"); err != nil {
			t.Errorf("accepted: %v", err)
		}
		store.Swap(fresh(3))
		if err := ensure("d"); !errors.Is(err, errNumbersLost) {
			t.Fatalf("an emptied store gave a number: %v", err)
		}
		time.Sleep(lostMost)
		if err := ensure("d"); err != nil {
			t.Errorf("after %v: %v", lostMost, err)
		}
	})
}
