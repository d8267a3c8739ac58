// Package sim runs whole control planes and agents of up to twenty clusters in one
// process, in virtual time, with changes and faults from a schedule, and checks the
// design's invariants after every step (invariants_test.go lists them). A schedule
// is made from a seed; one that fails is made smaller and printed, and can be run
// again:
//
//	go test ./test/sim -seeds 10000                             many seeds
//	go test ./test/sim -run TestSimulation -seed 7              this one
//	go test ./test/sim -run TestSchedule -schedule failed.txt   this schedule
//
// Schedules that found a fault are kept in testdata and run with every go test.
package sim

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/clustermesh"
)

var (
	seedFlag     = flag.Uint64("seed", 0, "run this seed only (0 = all)")
	seedsFlag    = flag.Uint64("seeds", 500, "how many seeds to run")
	firstFlag    = flag.Uint64("first", 1, "the first of them")
	scheduleFlag = flag.String("schedule", "", "a file with a schedule for TestSchedule")
)

func TestMain(m *testing.M) {
	debug.SetGCPercent(400) // worlds are small and short-lived
	goleak.VerifyTestMain(m)
}

// sim is one run of one schedule.
type sim struct {
	t     *testing.T
	sched schedule
	plant string
	dir   string
	begin time.Time
	begun atomic.Bool // everything was there once
	net   *network

	clusters []*cluster
	stops    []func()

	mu      sync.Mutex
	r       *rand.Rand
	log     []string
	failure *failure
	dues    []due

	countedAt time.Time // of commits
	counted   int

	pathsMu sync.Mutex
	paths   paths
	rested  time.Duration
}

// failure is the first invariant that did not hold.
type failure struct {
	invariant, what string
}

// due is something that happens later by itself.
type due struct {
	at time.Time
	do func()
}

// run runs a schedule. It returns what happened, and nil if all invariants held.
func run(t *testing.T, sched schedule) (f *failure, log []string) {
	dir := scratch(t)
	defer os.RemoveAll(dir)
	synctest.Test(t, func(t *testing.T) {
		s := &sim{t: t, sched: sched, plant: sched.Plant, dir: dir, begin: time.Now(), r: rand.New(rand.NewPCG(sched.Seed, 7))}
		s.paths = paths{map[[2]site]time.Time{}, map[[2]site]time.Time{}}
		s.net = newNetwork(s)
		defer s.close()
		s.build()
		for _, st := range sched.Steps {
			if s.failed() {
				break
			}
			s.step(st)
		}
		if !s.failed() {
			s.rest()
		}
		f, log = s.failure, s.log
	})
	return f, log
}

// scratch is a directory for what programs keep on disk; in memory where that can be.
func scratch(t *testing.T) string {
	dir := os.TempDir()
	if _, err := os.Stat("/dev/shm"); err == nil {
		dir = "/dev/shm"
	}
	dir, err := os.MkdirTemp(dir, "tombolo-sim-")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// build makes the world and waits until it is at rest.
func (s *sim) build() {
	for i := range s.sched.Clusters {
		s.clusters = append(s.clusters, newCluster(s, i))
	}
	for _, c := range s.clusters {
		c.found(s.sched.Nodes)
		for _, v := range c.servers {
			v.start()
		}
		c.runRegistrations()
		for n := 1; n <= s.sched.Agents; n++ {
			c.agents = append(c.agents, newNode(s, c, n))
		}
		s.net.changed = append(s.net.changed, c.hub.look)
	}
	for _, c := range s.clusters {
		for _, n := range c.agents {
			n.start()
		}
	}
	s.net.changed = append(s.net.changed, s.notePaths)
	s.notePaths()
	s.rest()
	s.begun.Store(true)
}

func (s *sim) close() {
	for _, c := range s.clusters {
		for _, n := range c.agents {
			n.stalled.Store(0)
			n.stop(false)
		}
	}
	for _, stop := range s.stops {
		stop()
	}
	for _, c := range s.clusters {
		for _, v := range c.servers {
			v.stop(true)
		}
		c.store().Close()
	}
	time.Sleep(time.Minute) // what waits for time to pass by ends
}

// step waits until a step's time has come, does it, and checks what must hold.
func (s *sim) step(st step) {
	s.until(s.begin.Add(st.At + s.rested))
	done := verbs[st.Do].do(s, st)
	s.note("%s%s", strings.TrimSpace(st.String()), map[bool]string{true: "", false: " (nothing to do)"}[done])
	s.notePaths()
	synctest.Wait()
	s.check()
}

// until lets time pass, with what becomes due meanwhile.
func (s *sim) until(end time.Time) {
	for {
		next := end
		for _, d := range s.dues {
			if d.at.Before(next) {
				next = d.at
			}
		}
		// Long waits are looked into: what goes wrong heals by itself sometimes.
		if left := time.Until(next); left > 5*time.Second {
			next = time.Now().Add(5 * time.Second)
		}
		time.Sleep(time.Until(next))
		synctest.Wait()
		s.doDue()
		s.notePaths()
		s.check()
		if !time.Now().Before(end) {
			return
		}
	}
}

func (s *sim) later(after time.Duration, do func()) {
	s.dues = append(s.dues, due{time.Now().Add(after), do})
}

func (s *sim) doDue() {
	var now []func()
	left := s.dues[:0]
	for _, d := range s.dues {
		if time.Now().Before(d.at) {
			left = append(left, d)
		} else {
			now = append(now, d.do)
		}
	}
	s.dues = left
	for _, do := range now {
		do()
	}
}

// rest ends all faults and lets time pass until every store and every kernel is
// what it should be. Liars go on lying.
func (s *sim) rest() {
	began := time.Now()
	s.net.healAll()
	for _, c := range s.clusters {
		for _, v := range c.servers {
			v.start()
			v.door.slow(0)
			v.door.fail(0)
		}
		for _, n := range c.agents {
			n.heal()
			n.start()
		}
	}
	const most = 6 * time.Minute
	invariant, what := "", ""
	for time.Since(began) < most && !s.failed() {
		s.until(time.Now().Add(15 * time.Second))
		if invariant, what = s.wrong(); invariant == "" {
			break
		}
	}
	if invariant != "" {
		s.fail(invariant, "%v after the last fault, %s", most, what)
	}
	for _, c := range s.clusters {
		c.settle()
		for _, n := range c.agents {
			n.drifted.Store(false)
		}
	}
	took := time.Since(began)
	s.rested += took
	s.note("at rest after %v", took.Round(time.Second))
}

// fail notes the first invariant that does not hold.
func (s *sim) fail(invariant, format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	what := fmt.Sprintf(format, args...)
	if s.failure == nil {
		s.log = append(s.log, s.clock()+"VIOLATED "+invariant+": "+what)
		s.failure = &failure{invariant: invariant, what: what}
	}
}

func (s *sim) failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failure != nil
}

func (s *sim) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, s.clock()+fmt.Sprintf(format, args...))
}

func (s *sim) clock() string { return fmt.Sprintf("%9.3f  ", time.Since(s.begin).Seconds()) }

// draw is a number of the run's own.
func (s *sim) draw() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.r.Uint64()
}

func (s *sim) named(name string) *cluster {
	for _, c := range s.clusters {
		if c.Name == name {
			return c
		}
	}
	return nil
}

func (s *sim) byID(id clustermesh.ID) *cluster {
	if id < 1 || int(id) > len(s.clusters) {
		return nil
	}
	return s.clusters[id-1]
}

// probeEvery is how often a node is probed: less often than in earnest where there
// are many, as each probe costs real time here.
func (s *sim) probeEvery() time.Duration {
	if s.sched.Clusters > 5 {
		return 3 * time.Second
	}
	return time.Second
}

// numbered is the node that has a number.
func (s *sim) numbered(k agent.NodeKey) (site, bool) {
	c := s.byID(clustermesh.ID(k.Cluster))
	if c == nil {
		return site{}, false
	}
	for i := 1; i <= maxNodes; i++ {
		if n, is := c.numberOf(i); is && n == k {
			return site{int(c.ID), i}, true
		}
	}
	return site{}, false
}

// of is the cluster whose pod prefixes hold an address; nil = none's.
func (s *sim) of(a netip.Addr) *cluster {
	for _, c := range s.clusters {
		if inside(c.prefixes, a) {
			return c
		}
	}
	return nil
}
