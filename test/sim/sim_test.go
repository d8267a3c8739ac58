// Package sim runs three clusters and their agents in one process, in virtual
// time, with faults from a seed, and checks the design's invariants after every
// step. A failing seed prints how to run it again.
package sim

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/agent/agenttest"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "run this seed only (0 = all)")
	seedsFlag = flag.Uint64("seeds", 200, "how many seeds to run")
	stepsFlag = flag.Int("steps", 30, "steps of each run")
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// always is a Prober that everybody answers.
type always struct{}

func (always) Probe(context.Context, netip.Addr, netip.Addr, time.Duration) (time.Duration, error) {
	return time.Millisecond, nil
}

type sim struct {
	t        *testing.T
	seed     uint64
	r        *rand.Rand
	mesh     *agenttest.Mesh
	clusters []*cluster
	nodes    []*node
	log      []string
	failed   bool
	cut      map[string]bool
	kept     map[*node]map[string]map[string]bool // rows a cluster out of reach must not lose
	later    []delayed
}

// delayed is something that happens at a later step.
type delayed struct {
	at time.Time
	do func()
}

func TestSimulation(t *testing.T) {
	first, last := uint64(1), *seedsFlag
	if *seedFlag != 0 {
		first, last = *seedFlag, *seedFlag
	}
	if testing.Short() {
		last = min(last, first+19)
	}
	sem := make(chan struct{}, runtime.GOMAXPROCS(0))
	for seed := first; seed <= last; seed++ {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			t.Parallel()
			sem <- struct{}{}
			defer func() { <-sem }()
			dirs := []string{t.TempDir(), t.TempDir()}
			synctest.Test(t, func(t *testing.T) { run(t, seed, dirs) })
		})
	}
}

func run(t *testing.T, seed uint64, dirs []string) {
	s := &sim{t: t, seed: seed, r: rand.New(rand.NewPCG(seed, 7)), mesh: agenttest.NewMesh(), cut: map[string]bool{}, kept: map[*node]map[string]map[string]bool{}}
	defer s.close()
	for i, name := range []string{"aws", "gcp", "edge"} {
		c := &cluster{
			Facts: agenttest.Facts{Name: name, ID: clustermesh.ID(i + 1)}, s: s, r: s.r,
			want: map[string]clustermesh.Record{}, nodes: map[int]bool{}, pods: map[[2]int]bool{}, peers: map[string]bool{},
		}
		s.clusters = append(s.clusters, c)
		s.mesh.SetStore(name, kvstore.NewMemory(kvstore.MemoryOptions{StoreID: s.r.Uint64() | 1}))
	}
	for _, c := range s.clusters {
		c.start()
		c.found()
	}
	for i, c := range s.clusters[:2] {
		n := &node{s: s, of: c, n: 1, name: c.NodeName(1), dir: dirs[i], seen: map[string]bool{}}
		n.boot()
		n.start()
		s.nodes = append(s.nodes, n)
	}
	s.rest()
	for step := 1; step <= *stepsFlag && !s.failed; step++ {
		s.step(step)
		if step%10 == 0 {
			s.rest()
		}
	}
}

func (s *sim) close() {
	for _, n := range s.nodes {
		n.stop()
	}
	for _, c := range s.clusters {
		c.stop()
		s.mesh.Store(c.Name).Close()
	}
	if s.failed {
		s.t.Logf("what happened:\n%s", strings.Join(s.log, "\n"))
		s.t.Errorf("run it again: go test ./test/sim -run TestSimulation -seed %d", s.seed)
	}
}

func (s *sim) fail(format string, args ...any) {
	s.failed = true
	s.t.Errorf(format, args...)
}

func (s *sim) note(format string, args ...any) {
	s.log = append(s.log, time.Now().Format("04:05.000 ")+fmt.Sprintf(format, args...))
}

func (s *sim) named(name string) *cluster {
	for _, c := range s.clusters {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// step does one thing, waits a while, and checks what must always hold.
func (s *sim) step(n int) {
	c := s.clusters[s.r.IntN(len(s.clusters))]
	if s.r.IntN(3) > 0 {
		s.note("%d: %s", n, c.change())
	} else {
		s.note("%d: %s", n, s.fault(c))
	}
	time.Sleep(time.Duration(s.r.IntN(3000)) * time.Millisecond)
	synctest.Wait()
	s.due()
	s.check()
}

func (s *sim) due() {
	left := s.later[:0]
	for _, d := range s.later {
		if time.Now().Before(d.at) {
			left = append(left, d)
		} else {
			d.do()
		}
	}
	s.later = left
}

// fault lets one thing go wrong, or heals it.
func (s *sim) fault(c *cluster) string {
	n := s.nodes[s.r.IntN(len(s.nodes))]
	switch s.r.IntN(10) {
	case 0:
		s.mesh.Store(c.Name).CutWatches(errors.New("injected"))
		return c.Name + ": watches cut"
	case 1:
		store := s.mesh.Store(c.Name)
		store.Compact(store.Position().Revision)
		store.CutWatches(errors.New("injected"))
		return c.Name + ": compacted and cut"
	case 2, 3:
		if s.cut[c.Name] {
			s.heal(c)
			return c.Name + ": in reach again"
		}
		s.cutOff(c)
		return c.Name + ": out of reach"
	case 4, 5:
		n.stop()
		n.start()
		return n.name + ": agent restarted"
	case 6:
		seed := s.r.Uint64()
		for i, set := range n.faults {
			set(errorsOnly(agent.RandomFaults(seed+uint64(i), 0.3)))
		}
		return n.name + ": tables fail now and then"
	case 7:
		for _, set := range n.faults {
			set(agent.NoFaults)
		}
		return n.name + ": tables work"
	case 8:
		if c.r.IntN(2) == 0 {
			return c.save()
		}
		if c.backup == nil || s.mesh.Store(c.Name).Position().StoreID != c.copyID || !c.running() {
			return c.Name + ": nothing to restore"
		}
		c.replace(c.copyID, c.backup)
		s.later = append(s.later, delayed{time.Now().Add(20 * time.Second), c.start})
		return c.Name + ": store restored from a backup"
	default:
		if !c.running() {
			return c.Name + ": is starting"
		}
		c.replace(s.r.Uint64()|1, nil)
		s.later = append(s.later, delayed{time.Now().Add(2 * time.Second), c.start})
		return c.Name + ": store wiped"
	}
}

func errorsOnly(f agent.Schedule) agent.Schedule {
	return func(op agent.FaultOp, n, rows int) agent.Fault {
		fault := f(op, n, rows)
		fault.Drift = 0
		return fault
	}
}

// cutOff puts a cluster out of reach, and notes what must not be lost.
func (s *sim) cutOff(c *cluster) {
	s.cut[c.Name] = true
	s.mesh.Cut(c.Name, errors.New("out of reach"))
	synctest.Wait()
	for _, n := range s.nodes {
		if s.kept[n] == nil {
			s.kept[n] = map[string]map[string]bool{}
		}
		s.kept[n][c.Name] = n.remote(c)
	}
}

func (s *sim) heal(c *cluster) {
	delete(s.cut, c.Name)
	s.mesh.Cut(c.Name, nil)
	for _, kept := range s.kept {
		delete(kept, c.Name)
	}
}

// check is what must hold at every moment of quiet.
func (s *sim) check() {
	for _, n := range s.nodes {
		for k, row := range n.services.Rows() {
			n.checkSlots(k, row)
		}
		n.checkPaths("no peer")
		for k, row := range n.ips.Rows() {
			n.checkIP(k, row)
		}
		s.checkKept(n)
	}
}

// checkKept: a cluster out of reach has lost nothing, unless it is no peer any more.
func (s *sim) checkKept(n *node) {
	for name, rows := range s.kept[n] {
		c := s.named(name)
		if c != n.of && !n.of.peers[name] {
			delete(s.kept[n], name)
			continue
		}
		now := n.remote(c)
		for row := range rows {
			if !now[row] {
				s.fail("%s lost %q while cluster %s is out of reach", n.name, row, name)
			}
		}
	}
}

// rest ends all faults, waits until nothing is left to do, and compares every
// kernel with what the sources say.
func (s *sim) rest() {
	for _, c := range s.clusters {
		s.heal(c)
	}
	for _, n := range s.nodes {
		for _, set := range n.faults {
			set(agent.NoFaults)
		}
	}
	time.Sleep(25 * time.Second)
	synctest.Wait()
	s.due()
	time.Sleep(2 * time.Minute)
	synctest.Wait()
	s.check()
	for _, n := range s.nodes {
		if got, want := n.dump(), n.expected(); got != want {
			s.fail("%s at rest:\n%s", n.name, diff(got, want))
		}
	}
	s.note("at rest")
}

// diff are the lines that only one of two dumps has.
func diff(got, want string) string {
	var b strings.Builder
	have := map[string]bool{}
	for line := range strings.Lines(got) {
		have[line] = true
	}
	wanted := map[string]bool{}
	for line := range strings.Lines(want) {
		wanted[line] = true
		if !have[line] {
			b.WriteString("- " + line)
		}
	}
	for line := range strings.Lines(got) {
		if !wanted[line] {
			b.WriteString("+ " + line)
		}
	}
	return b.String()
}
