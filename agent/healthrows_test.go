package agent_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
)

// reachable is a Prober for which some addresses are dark.
type reachable struct {
	mu   sync.Mutex
	dark map[netip.Addr]bool

	roundTrip time.Duration // of the others
}

func (r *reachable) Probe(ctx context.Context, from, to netip.Addr, timeout time.Duration) (time.Duration, error) {
	r.mu.Lock()
	dark := r.dark[to]
	r.mu.Unlock()
	if !dark {
		return r.roundTrip, nil
	}
	select {
	case <-ctx.Done():
	case <-time.After(timeout):
	}
	return 0, errors.New("no answer")
}

func (r *reachable) set(dark bool, addrs ...netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range addrs {
		r.dark[a] = dark
	}
}

func TestHealthRows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := &reachable{dark: map[netip.Addr]bool{}}
		w.cfg.Prober = p
		w.start()
		time.Sleep(5 * time.Second)
		w.expect(agent.TableNodeHealth, "")
		one, two := gcp.Node(1).TunnelAddresses, gcp.Node(2).TunnelAddresses
		p.set(true, one[0])
		time.Sleep(5 * time.Second)
		w.expect(agent.TableNodeHealth, "") // its other address answers
		p.set(true, one...)
		time.Sleep(1500 * time.Millisecond)
		if got := w.kernel(agent.TableNodeHealth); !strings.HasPrefix(got, "2/1 since=") {
			t.Errorf("node_health after 1.5 s: %q", got)
		}
		w.expect(agent.TableClusterHealth, "")
		p.set(true, two...)
		time.Sleep(1500 * time.Millisecond)
		if got := w.kernel(agent.TableClusterHealth); !strings.HasPrefix(got, "2 since=") {
			t.Errorf("cluster_health: %q", got)
		}
		before := w.all()
		w.stop() // verdicts outlive the agent
		if got := w.all(); got != before {
			t.Errorf("stopping changed something:\n%s", got)
		}
		w.start()
		defer func() { w.stop() }()
		if got := w.all(); got != before {
			t.Errorf("restarting changed something:\n%s", got)
		}
		time.Sleep(10 * time.Second)
		if got := w.all(); got != before {
			t.Errorf("a while after the restart:\n%s", got)
		}
		p.set(false, two...)
		time.Sleep(1500 * time.Millisecond)
		if got := w.all(); got != before {
			t.Errorf("it answers, but its pods may not yet:\n%s", got)
		}
		time.Sleep(2 * time.Second)
		w.expect(agent.TableClusterHealth, "")
		if got := w.kernel(agent.TableNodeHealth); !strings.HasPrefix(got, "2/1 since=") || strings.Contains(got, "2/2") {
			t.Errorf("node_health: %q", got)
		}
	})
}

func TestStatusShowsThePath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := &reachable{dark: map[netip.Addr]bool{}, roundTrip: 2 * time.Millisecond}
		w.cfg.Prober = p
		w.start()
		defer func() { w.stop() }()
		check := func(when, cluster string, state agent.PathState, least, most float64) {
			t.Helper()
			s := w.cluster(cluster).Path
			if s.State != state || s.RoundTripMS == nil || *s.RoundTripMS != 2 || s.LossPercent == nil || *s.LossPercent < least || *s.LossPercent > most {
				body, _ := json.Marshal(s)
				t.Errorf("%s: cluster %s: %s, want %s with 2 ms and a loss of %v–%v %%", when, cluster, body, state, least, most)
			}
		}
		time.Sleep(2 * time.Minute)
		check("all answer", "gcp", agent.PathUp, 0, 0)
		check("all answer", "aws", agent.PathUp, 0, 0)
		p.set(true, gcp.Node(1).TunnelAddresses...)
		time.Sleep(30 * time.Second)
		check("one of two is dark for half a minute", "gcp", agent.PathDegraded, 15, 35)
		check("one of two is dark for half a minute", "aws", agent.PathUp, 0, 0)
		p.set(true, gcp.Node(2).TunnelAddresses...)
		time.Sleep(2 * time.Minute)
		check("dark", "gcp", agent.PathDown, 100, 100)
		p.set(false, append(gcp.Node(1).TunnelAddresses, gcp.Node(2).TunnelAddresses...)...)
		time.Sleep(2 * time.Minute)
		check("back", "gcp", agent.PathUp, 0, 0)
	})
}
