package kvstore

import (
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"
)

// The first few failures of a replica with one text are heard; another text is
// news again, and so is the same text after the store had answered.
func TestFollowLogsARepeatedFailureQuietly(t *testing.T) {
	f := &follower{said: make([]saidError, 2), behind: make([]time.Time, 2)}
	refused, denied := errors.New("connection refused"), errors.New("permission denied")
	heard := func(err error, times int) (n int) {
		for range times {
			if f.level(err) == slog.LevelInfo {
				n++
			}
		}
		return n
	}
	for i, c := range []struct {
		err          error
		times, heard int
		store        int
		before       func()
	}{
		{refused, 1000, saidAloud, 0, nil},
		{refused, 10, saidAloud, 1, nil}, // the other replica speaks for itself
		{refused, 10, 0, 0, nil},
		{denied, 10, saidAloud, 0, nil},
		{fmt.Errorf("permission %s", "denied"), 10, 0, 0, nil}, // the text counts
		{denied, 10, saidAloud, 0, f.heard},
	} {
		f.store = c.store
		if c.before != nil {
			c.before()
		}
		if got := heard(c.err, c.times); got != c.heard {
			t.Errorf("step %d: %d of %d lines heard, want %d", i, got, c.times, c.heard)
		}
	}
}
