package apiserver

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

// A leading part runs on one replica at a time, another part on each; when the
// leader stops, the other replica's begins after this one's has ended.
func TestPartsFollowTheLeader(t *testing.T) {
	store := kvstore.NewMemory(kvstore.MemoryOptions{})
	defer store.Close()
	var leading, everywhere, most atomic.Int32
	parts := []Part{
		{Name: "writer", Leading: true, Run: func(ctx context.Context, on *Running) error {
			most.Store(max(most.Load(), leading.Add(1)))
			defer leading.Add(-1)
			<-ctx.Done()
			return nil
		}},
		{Name: "reader", Run: func(ctx context.Context, on *Running) error {
			everywhere.Add(1)
			<-ctx.Done()
			everywhere.Add(-1)
			return nil
		}},
	}
	empty := func() Source {
		s := &staticSource{changes: make(chan Objects, 1)}
		s.changes <- Objects{Complete: true, At: time.Now()}
		return s
	}
	a := startPublishing(t, Config{Source: empty(), LeaseTTL: 2 * time.Second, Parts: parts}, store)
	eventually(t, "the first leads", func() bool { return leading.Load() == 1 })
	b := startPublishing(t, Config{Source: empty(), LeaseTTL: 2 * time.Second, Parts: parts}, store)
	eventually(t, "both have a reader", func() bool { return everywhere.Load() == 2 })
	a.stop()
	eventually(t, "the other leads", func() bool { return leading.Load() == 1 && everywhere.Load() == 1 })
	b.stop()
	if leading.Load() != 0 || everywhere.Load() != 0 || most.Load() != 1 {
		t.Errorf("%d writers and %d readers are left, at most %d writers ran", leading.Load(), everywhere.Load(), most.Load())
	}
}

// A part that fails is a problem and is run again; the problem goes with it.
func TestPartFails(t *testing.T) {
	store := kvstore.NewMemory(kvstore.MemoryOptions{})
	defer store.Close()
	runs := make(chan int, 2)
	n := 0
	p := startPublishing(t, Config{Source: &staticSource{changes: make(chan Objects)}, Parts: []Part{{
		Name: "writer", Leading: true, Run: func(ctx context.Context, _ *Running) error {
			if n++; n == 1 {
				runs <- n
				return errors.New("no such luck")
			}
			runs <- n
			<-ctx.Done()
			return nil
		},
	}}}, store)
	<-runs
	eventually(t, "the failure is a problem", func() bool { return strings.Contains(p.problemText(), "writer: does not run: no such luck") })
	<-runs
	eventually(t, "the problem is over", func() bool { return !strings.Contains(p.problemText(), "writer") })
}
