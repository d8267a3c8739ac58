package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// killPoints kills an agent before one step after the other, each time on what the
// last one left behind: system calls that change maps, programs, links, routes,
// peers or files. Endpoints change meanwhile.
func killPoints(ctx context.Context, s *suite) (err error) {
	m, err := s.newMesh(ctx, meshOptions{nodes: 2, services: s.services[0], affinity: "none"})
	if err != nil {
		return err
	}
	defer s.done(m, &err)
	g, err := m.guarded(ctx)
	if err != nil {
		return err
	}
	n := m.home.Nodes[0]
	n.Agent().Kill()
	counted, err := n.LaunchAgentUntil(ctx, 0)
	if err != nil {
		return err
	}
	if err := n.Ready(ctx); err != nil {
		return err
	}
	whole := counted.Count() * 5 / 4 // its start, and some of what comes after
	points := min(whole, 10*s.trials)
	kept, err := m.keepers(10, never)
	if err != nil {
		return err
	}
	probes, err := m.streams(ctx, never)
	if err != nil {
		return err
	}
	defer probes.stop()
	stop, err := m.churn(ctx)
	if err != nil {
		return err
	}
	if err := g.follow(ctx, m); err != nil {
		return errors.Join(err, stopped(stop))
	}
	begin, before := time.Now(), map[string]int{}
	for i := range points {
		n.Agent().Kill()
		steps, err := n.LaunchAgentUntil(ctx, 1+i*whole/points)
		if err == nil {
			var at string
			at, err = steps.Killed(ctx)
			before[at]++
		}
		if err != nil {
			return errors.Join(fmt.Errorf("point %d of %d: %w", i+1, points, err), stopped(stop))
		}
	}
	changes, err := stop()
	if err != nil {
		return err
	}
	s.say("killed before %v, %d times in %s; %d changes of endpoints", before, points, seconds(time.Since(begin)), changes)
	s.noneFails(fmt.Sprintf("killed before %d of %d steps: no new connection fails", points, whole), probes, begin)
	s.noneFails("no established connection is lost", kept, begin)
	s.noneFails("no new connection to the changing endpoints fails", streams{g.moving}, begin)
	s.nonePasses(g, begin)
	back := time.Now()
	if err := n.StartAgent(ctx); err != nil {
		return err
	}
	if err := m.nodeAtRest(ctx, n); err != nil {
		return err
	}
	s.figure("the first agent that lives has everything in the kernel after", seconds(time.Since(back)))
	return nil
}
