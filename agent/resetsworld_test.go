package agent_test

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
)

// edges is a prober that answers but for one address, and a resetter.
type edges struct {
	mu    sync.Mutex
	dead  netip.Addr
	reset []string
}

func (e *edges) Probe(_ context.Context, _, to netip.Addr, _ time.Duration) (time.Duration, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.dead.IsValid() && (to == e.dead || to.Is6()) {
		return 0, errors.New("no answer")
	}
	return time.Millisecond, nil
}

func (e *edges) Reset(_ context.Context, backends []agent.BackendKey) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, b := range backends {
		e.reset = append(e.reset, b.String())
	}
	return nil
}

func (e *edges) take(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.reset) != len(want) || len(want) > 0 && e.reset[0] != want[0] {
		t.Fatalf("reset %v, want %v", e.reset, want)
	}
	e.reset = nil
}

// Sockets to a node that falls silent are reset 5 s after the verdict and once;
// those to a backend that is deleted at once.
func TestSocketsAreReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &edges{}
		w := newWorld(t)
		w.cfg.Prober, w.cfg.Resets, w.cfg.Health = e, e, agent.HealthConfig{Interval: 100 * time.Millisecond}
		w.start()
		defer w.stop()
		time.Sleep(time.Second)
		e.take(t)
		e.mu.Lock()
		e.dead = gcp.Tunnel(2)
		e.mu.Unlock()
		for w.kernel(agent.TableNodeHealth) == "" {
			time.Sleep(50 * time.Millisecond)
			synctest.Wait()
		}
		time.Sleep(4 * time.Second)
		e.take(t)
		time.Sleep(2 * time.Second)
		e.take(t, "10.2.2.10:8080/tcp")
		time.Sleep(time.Minute)
		e.take(t)

		w.mesh.Put(t, "gcp", export, gcp.Slice("checkout", [2]int{2, 10}))
		e.take(t) // it has its address still
		w.mesh.Delete(t, "gcp", export, gcp.Address(1, 10, 5))
		e.take(t, "10.2.1.10:8080/tcp")
	})
}
