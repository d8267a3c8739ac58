package apiserver

import (
	"fmt"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// startGuard holds a first publication back when the source has lost most pods
// while no server ran: there are no objects yet to keep in force, so all that
// the store holds stays as it is, for as long as the guard waits.
//
// It belongs to the core's goroutine.
type startGuard struct {
	over  bool
	since time.Time // zero = not held
	lacks int       // pods that the store tells of and the source lacks
	of    int
}

// holds judges the source's pods by those that the store tells of.
func (s *startGuard) holds(stored, present int, delay time.Duration, now time.Time) bool {
	if s.over {
		return false
	}
	s.lacks, s.of = stored-present, stored
	if s.since.IsZero() {
		s.since = now
	}
	if s.lacks <= guardCount || 2*s.lacks <= stored || now.Sub(s.since) >= delay {
		s.over = true
	}
	return !s.over
}

// release ends the hold; it returns how many deletes that lets through.
func (s *startGuard) release() int {
	if s.over || s.since.IsZero() {
		return 0
	}
	s.over = true
	return s.lacks
}

func (s *startGuard) problems() []Problem {
	if s.over || s.since.IsZero() {
		return nil
	}
	return []Problem{{
		Object: "objects of kind pod", What: "a mass delete is held, and nothing else is published meanwhile", Since: s.since,
		Why: fmt.Sprintf("the source lacks %d of %d pods that were published before this server started", s.lacks, s.of),
		Fix: "if it is meant: tombolo mesh confirm-deletes pod; it goes ahead by itself when a second list agrees",
	}}
}

// holdStart says whether the first publication of this process is to wait.
func (c *core) holdStart() bool {
	if c.start.over {
		return false
	}
	stored := len(c.storedUnder(clustermesh.KindPrefix(clustermesh.ScopeLocal, c.cfg.Cluster, clustermesh.KindWorkload)))
	return c.start.holds(stored, len(c.d.pods), c.cfg.Guard, time.Now())
}
