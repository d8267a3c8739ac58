package agent

import (
	"log/slog"
	"sync"
	"time"
)

// quietEvery is how often a failure that goes on is logged again.
const quietEvery = 30 * time.Second

// quietLog logs what fails again and again: at once when it begins, then at most
// once in quietEvery with how often it happened meanwhile, and when it is over.
// It remembers only what is failing. Safe for concurrent use.
type quietLog struct {
	log *slog.Logger

	mu      sync.Mutex
	failing map[string]*repeated
}

type repeated struct {
	began, logged time.Time
	unsaid        int // failures since the last line
}

func newQuietLog(log *slog.Logger) *quietLog {
	return &quietLog{log: log, failing: map[string]*repeated{}}
}

// failed notes a failure of what key names: one text, whatever the error.
func (q *quietLog) failed(key, text string, err error, args ...any) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	r := q.failing[key]
	if r == nil {
		q.failing[key] = &repeated{began: now, logged: now}
		q.log.Warn(text, append(args, "err", err)...)
		return
	}
	r.unsaid++
	if now.Sub(r.logged) < quietEvery {
		return
	}
	q.log.Warn(text+", still", append(args, "err", err, "times", r.unsaid, "since", r.began)...)
	r.logged, r.unsaid = now, 0
}

// works notes that what key names did not fail.
func (q *quietLog) works(key, text string, args ...any) {
	q.mu.Lock()
	defer q.mu.Unlock()
	r := q.failing[key]
	if r == nil {
		return
	}
	delete(q.failing, key)
	q.log.Info(text, append(args, "after", time.Since(r.began).Round(time.Millisecond))...)
}

// forget drops what concerns nobody any more.
func (q *quietLog) forget(key string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.failing, key)
}
