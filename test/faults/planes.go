package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/test/lab"
)

// controlPlanes: nobody publishes, nobody answers readers; traffic does not care.
func controlPlanes(ctx context.Context, s *suite) (err error) {
	m, err := s.newMesh(ctx, meshOptions{nodes: 2, services: s.services[0], affinity: "none"})
	if err != nil {
		return err
	}
	defer s.done(m, &err)
	kept, err := m.keepers(20, never)
	if err != nil {
		return err
	}
	probes, err := m.streams(ctx, never)
	if err != nil {
		return err
	}
	defer probes.stop()
	before, err := m.verdicts(ctx)
	if err != nil {
		return err
	}
	begin := time.Now()
	for _, c := range m.Clusters() {
		c.KillControlPlane()
	}
	const connections = 10_000
	if _, err := probes[0].AwaitMore(ctx, begin, connections); err != nil {
		return err
	}
	s.noneFails(fmt.Sprintf("none of %d new connections fails", connections), probes, begin)
	s.noneFails("none of 20 established connections is reset", kept, begin)
	after, err := m.verdicts(ctx)
	if err != nil {
		return err
	}
	s.never("nobody is judged down", int(after-before), fmt.Sprintf("%d verdicts", after-before))
	return nil
}

// keepers are clients that ask over one connection each.
func (m *mesh) keepers(n int, timeout time.Duration) (streams, error) {
	var all streams
	for i := range n {
		c, err := m.client.Client(fmt.Sprintf("keep-%d", i), lab.ClientOptions{Target: target, Interval: 50 * time.Millisecond, Timeout: timeout, Mark: mark, Keep: true})
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

// established: who talked to a node that died is told, so that he tries again, and
// does not wait for minutes.
func established(ctx context.Context, s *suite) (err error) {
	m, err := s.newMesh(ctx, meshOptions{nodes: 3, services: s.services[0], affinity: "remote"})
	if err != nil {
		return err
	}
	defer s.done(m, &err)
	kept, err := m.keepers(12, 30*time.Second)
	if err != nil {
		return err
	}
	defer kept.stop()
	dead := m.away.Nodes[1]
	server := away + "/" + m.servers[m.away][1].Name
	var there streams
	for _, c := range kept {
		results, err := c.AwaitMore(ctx, time.Time{}, 5)
		if err != nil {
			return err
		}
		if results[len(results)-1].Who == server {
			there = append(there, c)
		}
	}
	if len(there) == 0 {
		return errors.New("none of 12 connections went to the node that is to die")
	}
	begin := time.Now()
	if err := dead.PowerOff(); err != nil {
		return err
	}
	var told, served []time.Duration
	for _, c := range there {
		failure, err := c.Await(ctx, "the connection is ended", begin, func(r lab.Result) bool { return !r.OK() })
		if err != nil {
			return err
		}
		next, err := c.Await(ctx, "the client is served elsewhere", failure.End, lab.Result.OK)
		if err != nil {
			return err
		}
		told, served = append(told, failure.End.Sub(begin)), append(served, next.End.Sub(begin))
	}
	s.within("connections to it are ended within 8 s (5 s after the verdict)", 8*time.Second, told)
	s.within("their clients are served by others within 9 s", 9*time.Second, served)
	cut := 0
	for _, c := range kept {
		if f := lab.Failed(c.Since(begin)); f > 1 || f > 0 && !slices.Contains(there, c) {
			cut++
		}
	}
	s.never("connections to other nodes are left alone", cut, fmt.Sprintf("%d of %d were cut", cut, len(kept)-len(there)))
	return nil
}

// reboot: the nodes have nothing but their disks.
func reboot(ctx context.Context, s *suite) (err error) {
	m, err := s.newMesh(ctx, meshOptions{nodes: 2, services: s.services[0], affinity: "remote"})
	if err != nil {
		return err
	}
	defer s.done(m, &err)
	if err := sleep(ctx, 5*time.Second); err != nil { // snapshots are written behind the changes
		return err
	}
	before := m.addresses()
	for _, c := range m.Clusters() {
		c.KillControlPlane()
	}
	begin := time.Now()
	for _, c := range m.Clusters() {
		for _, n := range c.Nodes {
			if err := n.PowerOff(); err != nil {
				return err
			}
		}
	}
	for _, c := range m.Clusters() {
		for _, n := range c.Nodes {
			if err := n.Boot(ctx); err != nil {
				return err
			}
		}
	}
	for _, c := range m.Clusters() {
		for _, n := range c.Nodes {
			if err := poll(ctx, n.Name+" serves from its disk", func() error { return fromDisk(ctx, n) }); err != nil {
				return err
			}
			if err := n.BootPods(ctx); err != nil {
				return err
			}
		}
	}
	if err := m.answered(ctx); err != nil {
		return err
	}
	s.figure("nodes forward again after their power was cut", seconds(time.Since(begin)))
	changed := 0
	if now := m.addresses(); now != before {
		changed = 1
	}
	s.never("every pod has the address it had", changed, fmt.Sprintf("%d lists differ", changed))
	probes, err := m.streams(ctx, never)
	if err != nil {
		return err
	}
	defer probes.stop()
	calm := time.Now()
	if _, err := probes[0].AwaitMore(ctx, calm, 5000); err != nil {
		return err
	}
	s.noneFails("none of 5000 new connections fails then", probes, calm)
	return nil
}

func (m *mesh) addresses() string {
	var all []any
	for _, c := range m.Clusters() {
		for _, p := range m.servers[c] {
			all = append(all, p.Name, p.Addresses)
		}
	}
	return fmt.Sprint(append(all, m.client.Addresses)...)
}

// fromDisk reports whether an agent has written what its snapshot holds.
func fromDisk(ctx context.Context, n *lab.Node) error {
	var st agent.Status
	if err := n.GetJSON(ctx, "/v1/status", &st); err != nil {
		return err
	}
	for _, c := range st.Clusters {
		if !c.FromSnapshot {
			return fmt.Errorf("cluster %s is not known from the disk", c.Name)
		}
	}
	for _, t := range st.Tables {
		if t.Pending > 0 || t.Name == agent.TableServices && t.Wanted == 0 {
			return fmt.Errorf("table %s: %d rows, %d to be written", t.Name, t.Wanted, t.Pending)
		}
	}
	return nil
}
