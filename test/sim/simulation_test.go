package sim

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestSimulation runs the schedules of many seeds.
func TestSimulation(t *testing.T) {
	first, last := *firstFlag, *firstFlag+*seedsFlag-1
	if *seedFlag != 0 {
		first, last = *seedFlag, *seedFlag
	}
	if testing.Short() {
		last = min(last, first+19)
	}
	began := time.Now()
	var done atomic.Uint64
	sem := make(chan struct{}, runtime.GOMAXPROCS(0))
	for seed := first; seed <= last; seed++ {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			t.Parallel()
			sem <- struct{}{}
			defer func() { <-sem }()
			judge(t, generate(seed), true)
			if n := done.Add(1); n%500 == 0 && last-first >= 1000 {
				fmt.Printf("%d seeds of %d, %v each\n", n, last-first+1, (time.Since(began) / time.Duration(n)).Round(time.Millisecond))
			}
		})
	}
}

// TestSchedule runs the schedule of a file, by -schedule.
func TestSchedule(t *testing.T) {
	if *scheduleFlag == "" {
		return // nobody asks; TestFound runs those that are kept
	}
	judge(t, readSchedule(t, *scheduleFlag), false)
}

// TestFound runs the schedules that found a fault once. Each file says which.
func TestFound(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) { judge(t, readSchedule(t, file), false) })
	}
}

func readSchedule(t *testing.T, file string) schedule {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s, err := parseSchedule(string(content))
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return s
}

// judge runs a schedule and says what went wrong, with what happened and the
// smallest schedule that does it.
func judge(t *testing.T, s schedule, smaller bool) {
	t.Helper()
	f, log := run(t, s)
	if f == nil {
		t.Logf("the schedule:\n%s\nwhat happened:\n%s", s, strings.Join(log, "\n"))
		return
	}
	t.Errorf("violated: %s: %s\nwhat happened:\n%s", f.invariant, f.what, strings.Join(log, "\n"))
	if smaller {
		least, again := shrunk(t, s, f.invariant, 150)
		t.Logf("smallest schedule that does it (%s); run it by -run TestSchedule -schedule FILE:\n%s", again, least)
		t.Logf("run the whole one again: go test ./test/sim -run TestSimulation -seed %d", s.Seed)
	}
}

// shrunk is a smaller schedule with the same violation. What goroutines do first is
// not the seed's to say, so that a schedule may fail now and then only: each is
// tried three times.
func shrunk(t *testing.T, s schedule, invariant string, budget int) (least schedule, again string) {
	fails := func(s schedule) bool {
		for range 3 {
			if f, _ := run(t, s); f != nil && f.invariant == invariant {
				return true
			}
		}
		return false
	}
	if !fails(s) {
		return s, "it did not fail again: it depends on the order of goroutines"
	}
	least = shrink(s, fails, budget)
	return least, fmt.Sprintf("%d steps of %d", len(least.Steps), len(s.Steps))
}
