package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/tombolo-mesh/tombolo/test/lab"
)

const (
	readerCount    = 500
	readerServices = 5000 // two records each: the service and its slice
	readerArg      = "lab-readers"
	readerMost     = 512 << 20 // of the server's memory: 1 MiB a reader
)

// readers: the mesh API server dies, and all who read it come back at once. Half of
// them know where they were, half begin anew.
func readers(ctx context.Context, s *suite) (err error) {
	l, err := lab.New(ctx, lab.Options{BinDir: s.binDir})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	c, err := l.AddCluster(home, 4)
	if err != nil {
		return err
	}
	m := &mesh{Lab: l, home: c, servers: map[*lab.Cluster][]*lab.Pod{}}
	if err := c.Start(ctx); err != nil {
		return err
	}
	if err := m.fill(ctx, c, meshOptions{services: readerServices, affinity: "none"}); err != nil {
		return err
	}
	r, err := startReaders(c)
	if err != nil {
		return err
	}
	defer r.process.Kill()
	first, err := r.synced(ctx, 2*readerServices)
	if err != nil {
		return err
	}
	if err := s.readerMemory(c, fmt.Sprintf("%d readers take in %d records as they are published", readerCount, first.Records)); err != nil {
		return err
	}
	if err := s.cutReaders(ctx, l, c, r); err != nil {
		return err
	}
	return s.restartReaders(ctx, c, r)
}

// cutReaders cuts all connections and lets them come back: half of the readers know
// where they were, and the server does, too.
func (s *suite) cutReaders(ctx context.Context, l *lab.Lab, c *lab.Cluster, r *readerProcess) error {
	heal, err := l.Inject(lab.Fault{Proto: 6, Port: lab.MeshPort, Loss: 1})
	if err != nil {
		return err
	}
	if _, err := r.tell(ctx, "lost"); err != nil {
		return err
	}
	if err := r.ask("half"); err != nil {
		return err
	}
	begin := time.Now()
	if err := heal(); err != nil {
		return err
	}
	again, err := r.synced(ctx, 2*readerServices)
	if err != nil {
		return err
	}
	s.within(fmt.Sprintf("after a cut, all %d are synced within 60 s", readerCount), time.Minute, []time.Duration{time.Since(begin)})
	s.lists(again)
	missed := max(0, readerCount/2-again.Resumed)
	s.never("who knows where he was needs no list", missed, fmt.Sprintf("%d of %d read one", missed, readerCount/2))
	return s.readerMemory(c, "a cut")
}

// restartReaders kills the server: its watch cache begins anew, and everybody lists.
func (s *suite) restartReaders(ctx context.Context, c *lab.Cluster, r *readerProcess) error {
	c.KillControlPlane()
	if err := r.ask("half"); err != nil {
		return err
	}
	begin := time.Now()
	if err := c.StartControlPlane(ctx); err != nil {
		return err
	}
	up := time.Since(begin)
	again, err := r.synced(ctx, 2*readerServices)
	if err != nil {
		return err
	}
	s.within(fmt.Sprintf("after the server's death, all %d are synced within 60 s of its start", readerCount), time.Minute, []time.Duration{time.Since(begin)})
	s.figure("of that, until the server answered", seconds(up))
	s.lists(again)
	return s.readerMemory(c, "a restart")
}

func (s *suite) lists(say readersSay) {
	s.never("each reads one list at most", say.Over, fmt.Sprintf("%d read more; %d resumed without any, %d read one", say.Over, say.Resumed, say.Listed))
}

// readerMemory checks what the server took for them.
func (s *suite) readerMemory(c *lab.Cluster, when string) error {
	m, err := memoryOf(c.ControlPlane().Pid())
	if err != nil {
		return err
	}
	over := 0
	if m.peak > readerMost {
		over = 1
	}
	s.never(fmt.Sprintf("%s: the server takes no more than %d MiB", when, readerMost>>20), over, fmt.Sprintf("peak %d MiB, then %d", m.peak>>20, m.now>>20))
	return nil
}

type memory struct{ now, peak int64 } // bytes

func memoryOf(pid int) (m memory, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(text)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &kib); n == 1 {
			m.peak = kib << 10
		}
		if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &kib); n == 1 {
			m.now = kib << 10
		}
	}
	return m, err
}
