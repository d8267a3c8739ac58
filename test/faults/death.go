package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/tombolo-mesh/tombolo/test/lab"
)

// outage is one way to die, tried again and again.
type outage struct {
	promised string
	limit    time.Duration
	trials   int
	fail     func(m *mesh, trial int) error
	heal     func(ctx context.Context, m *mesh, trial int) error
}

func nodeLink(ctx context.Context, s *suite) error {
	return s.outages(ctx, outage{
		promised: "new connections avoid the node within 1 s", limit: time.Second, trials: s.trials,
		fail: func(m *mesh, trial int) error { return victim(m, trial).Unplug() },
		heal: func(_ context.Context, m *mesh, trial int) error { return victim(m, trial).Plug() },
	})
}

func nodePower(ctx context.Context, s *suite) error {
	return s.outages(ctx, outage{
		promised: "new connections avoid the node within 1 s", limit: time.Second, trials: s.seldom(),
		fail: func(m *mesh, trial int) error { return victim(m, trial).PowerOff() },
		heal: func(ctx context.Context, m *mesh, trial int) error { return victim(m, trial).PowerOn(ctx) },
	})
}

func clusterLink(ctx context.Context, s *suite) error {
	var joined func() error
	return s.outages(ctx, outage{
		promised: "new connections avoid the cluster within 2 s", limit: 2 * time.Second, trials: s.trials,
		fail: func(m *mesh, _ int) (err error) { joined, err = m.Partition(home, away); return err },
		heal: func(context.Context, *mesh, int) error { return joined() },
	})
}

func clusterPower(ctx context.Context, s *suite) error {
	return s.outages(ctx, outage{
		promised: "new connections avoid the cluster within 2 s", limit: 2 * time.Second, trials: s.seldom(),
		fail: func(m *mesh, _ int) error { return m.away.PowerOff() },
		heal: func(ctx context.Context, m *mesh, _ int) error { return m.away.PowerOn(ctx) },
	})
}

// seldom is how often power is cut: booting takes its time.
func (s *suite) seldom() int { return max(2, s.trials/10) }

// victim is the node of away that dies in a trial: each in its turn, as a node
// that returned a moment ago is not believed at once when it returns again.
func victim(m *mesh, trial int) *lab.Node { return m.away.Nodes[trial%len(m.away.Nodes)] }

// outages tries an outage among few and among many services.
func (s *suite) outages(ctx context.Context, o outage) error {
	for _, n := range s.services {
		if err := s.outage(ctx, o, n); err != nil {
			return err
		}
	}
	return nil
}

func (s *suite) outage(ctx context.Context, o outage, services int) (err error) {
	m, err := s.newMesh(ctx, meshOptions{nodes: 3, services: services, affinity: "remote"})
	if err != nil {
		return err
	}
	defer s.done(m, &err)
	probes, err := m.streams(ctx, patience)
	if err != nil {
		return err
	}
	defer probes.stop()
	var took []time.Duration
	var split parts
	for trial := range o.trials {
		d, err := s.trial(ctx, m, probes, o, trial, &split)
		if err != nil {
			return fmt.Errorf("trial %d of %d: %w", trial+1, o.trials, err)
		}
		took = append(took, d)
	}
	s.within(fmt.Sprintf("%s (%d services)", o.promised, services), o.limit, took)
	s.tell(split)
	return nil
}

// trial lets it happen once: how long new connections went to what is dead.
func (s *suite) trial(ctx context.Context, m *mesh, probes streams, o outage, trial int, split *parts) (took time.Duration, err error) {
	// Probes come every so often: the failure must not keep step with them.
	if err := sleep(ctx, time.Duration(rand.Int64N(int64(time.Second)))); err != nil {
		return 0, err
	}
	begin := time.Now()
	if err := o.fail(m, trial); err != nil {
		return 0, err
	}
	if err := probes.calm(ctx, begin); err != nil {
		return 0, err
	}
	took, failed, all := probes.avoided(begin)
	if failed == 0 {
		return 0, errors.New("no connection failed: nothing was broken")
	}
	if err := split.account(ctx, m, begin); err != nil {
		return 0, err
	}
	healed := time.Now()
	if err := o.heal(ctx, m, trial); err != nil {
		return 0, err
	}
	if err := m.whole(ctx); err != nil {
		return 0, err
	}
	s.say("%d: avoided after %s; %d of %d connections failed; all is up again %s after the healing", trial+1, seconds(took), failed, all, seconds(time.Since(healed)))
	return took, probes.calm(ctx, time.Now())
}

// whole waits until nobody is judged down by anybody.
func (m *mesh) whole(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Minute, errors.New("not within 2 minutes"))
	defer cancel()
	for _, c := range m.Clusters() {
		for _, n := range c.Nodes {
			if err := poll(ctx, c.Name+"/"+n.Name+" finds all nodes up", func() error {
				_, down, err := verdicts(ctx, n)
				if err == nil && len(down) > 0 {
					err = fmt.Errorf("it finds %v down", down)
				}
				return err
			}); err != nil {
				return err
			}
		}
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
