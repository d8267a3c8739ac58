package apiserver

import (
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"
)

// Problems collects what is wrong at present, by area: each area replaces its
// own list as a whole, so nothing lingers. It is safe for concurrent use.
type Problems struct {
	log   *slog.Logger
	mu    sync.Mutex
	areas map[string][]Problem
}

// NewProblems makes an empty collection. Each problem is logged once, when it
// appears; log may be nil.
func NewProblems(log *slog.Logger) *Problems {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Problems{log: log, areas: make(map[string][]Problem)}
}

// Set replaces the problems of one area. A problem that was there before keeps
// its Since.
func (p *Problems) Set(area string, problems []Problem) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := make(map[Problem]time.Time, len(p.areas[area]))
	for _, q := range p.areas[area] {
		since := q.Since
		q.Since = time.Time{}
		old[q] = since
	}
	fresh := make([]Problem, 0, len(problems))
	for _, q := range problems {
		since := q.Since
		q.Since = time.Time{}
		if at, known := old[q]; known {
			since = at
		} else {
			p.log.Warn(q.What, "object", q.Object, "why", q.Why, "fix", q.Fix)
		}
		if since.IsZero() {
			since = time.Now()
		}
		q.Since = since
		fresh = append(fresh, q)
	}
	sortProblems(fresh)
	if len(fresh) == 0 {
		delete(p.areas, area)
		return
	}
	p.areas[area] = fresh
}

// All is every present problem, sorted.
func (p *Problems) All() []Problem {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []Problem
	for _, area := range slices.Sorted(maps.Keys(p.areas)) {
		all = append(all, p.areas[area]...)
	}
	sortProblems(all)
	return all
}
