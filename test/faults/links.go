package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/test/lab"
)

var tunnels = lab.Fault{Proto: 17, Port: lab.WireGuardPort}

// loss: a bad path is no dead one.
func loss(ctx context.Context, s *suite) (err error) {
	m, err := s.newMesh(ctx, meshOptions{nodes: 3, services: s.services[0], affinity: "remote"})
	if err != nil {
		return err
	}
	defer s.done(m, &err)
	probes, err := m.streams(ctx, patience)
	if err != nil {
		return err
	}
	defer probes.stop()
	for i, rate := range []float64{0.05, 0.2} {
		before, err := m.verdicts(ctx)
		if err != nil {
			return err
		}
		f := tunnels
		f.Loss, f.Seed = rate, uint32(time.Now().UnixNano())+uint32(i)
		begin := time.Now()
		heal, err := m.Inject(f)
		if err != nil {
			return err
		}
		if err := errors.Join(sleep(ctx, s.lasts()), heal()); err != nil {
			return err
		}
		after, err := m.verdicts(ctx)
		if err != nil {
			return err
		}
		failed, all, _ := probes.failures(begin)
		s.never(fmt.Sprintf("no false verdict in %g minutes at %g %% each way", s.minutes, rate*100), int(after-before),
			fmt.Sprintf("%d; %.1f %% of %d connections took more than %s", after-before, 100*float64(failed)/float64(max(1, all)), all, seconds(patience)))
		if err := probes.calm(ctx, time.Now()); err != nil {
			return err
		}
	}
	return nil
}

// verdicts of all agents so far.
func (m *mesh) verdicts(ctx context.Context) (sum uint64, err error) {
	for _, c := range m.Clusters() {
		for _, n := range c.Nodes {
			written, _, err := verdicts(ctx, n)
			if err != nil {
				return 0, err
			}
			sum += written
		}
	}
	return sum, nil
}

// oneWay: what cannot answer is as dead as what cannot be asked.
func oneWay(ctx context.Context, s *suite) error {
	for _, way := range [][2]string{{home, away}, {away, home}} {
		var joined func() error
		err := s.outage(ctx, outage{
			promised: fmt.Sprintf("%s → %s cut: new connections avoid the cluster within 2 s", way[0], way[1]), limit: 2 * time.Second, trials: s.seldom(),
			fail: func(m *mesh, _ int) (err error) {
				joined, err = m.Inject(lab.Fault{From: way[0], To: way[1], Loss: 1})
				return err
			},
			heal: func(context.Context, *mesh, int) error { return joined() },
		}, s.services[0])
		if err != nil {
			return err
		}
	}
	return nil
}

// partial: one node of home misses one of away. It avoids it; the others, who reach
// it, do not.
func partial(ctx context.Context, s *suite) (err error) {
	m, err := s.newMesh(ctx, meshOptions{nodes: 3, services: s.services[0], affinity: "remote"})
	if err != nil {
		return err
	}
	defer s.done(m, &err)
	probes, err := m.streams(ctx, patience)
	if err != nil {
		return err
	}
	defer probes.stop()
	before := map[*lab.Node]uint64{}
	for _, n := range m.home.Nodes {
		if before[n], _, err = verdicts(ctx, n); err != nil {
			return err
		}
	}
	begin := time.Now()
	heal, err := m.Partition(home+"/n1", away+"/n2")
	if err != nil {
		return err
	}
	if err := probes.calm(ctx, begin); err != nil {
		return err
	}
	took, _, _ := probes.avoided(begin)
	s.within("the node that misses the other avoids it within 2 s", 2*time.Second, []time.Duration{took})
	if err := sleep(ctx, 5*time.Second); err != nil {
		return err
	}
	var wrong []string
	for _, n := range m.home.Nodes[1:] {
		written, down, err := verdicts(ctx, n)
		if err != nil {
			return err
		}
		if made := written - before[n]; made > 0 {
			wrong = append(wrong, fmt.Sprintf("%s gave %d verdicts, %v now", n.Name, made, down))
		}
	}
	s.never("the others, who reach it, keep it", len(wrong), list(wrong))
	return errors.Join(heal(), m.whole(ctx))
}

func list(words []string) string {
	if len(words) == 0 {
		return "none"
	}
	return fmt.Sprint(words)
}

// flapping: a link is cut for two seconds of every four. Its returns are damped, so
// that connections do not follow it.
func flapping(ctx context.Context, s *suite) (err error) {
	m, err := s.newMesh(ctx, meshOptions{nodes: 3, services: s.services[0], affinity: "remote"})
	if err != nil {
		return err
	}
	defer s.done(m, &err)
	probes, err := m.streams(ctx, patience)
	if err != nil {
		return err
	}
	defer probes.stop()
	before, err := m.verdicts(ctx)
	if err != nil {
		return err
	}
	begin := time.Now()
	for range 10 {
		heal, err := m.Partition(home, away)
		if err != nil {
			return err
		}
		if err := errors.Join(sleep(ctx, 2*time.Second), heal(), sleep(ctx, 2*time.Second)); err != nil {
			return err
		}
	}
	lasted := time.Since(begin)
	after, err := m.verdicts(ctx)
	if err != nil {
		return err
	}
	// Each agent has a row for each node of the other cluster, and one for the cluster.
	rows := uint64(len(m.home.Nodes)*(len(m.away.Nodes)+1)) * 2
	most := rows * uint64(lasted/(10*time.Second)+2)
	over := 0
	if after-before > most {
		over = 1
	}
	s.never(fmt.Sprintf("ten cuts in %s: a node returns at most once in 10 s", seconds(lasted)), over, fmt.Sprintf("%d rows of health written, %d at most", after-before, most))
	failed, all, _ := probes.failures(begin)
	s.figure("connections lost while it flapped", fmt.Sprintf("%.1f %% of %d", 100*float64(failed)/float64(max(1, all)), all))
	return m.whole(ctx)
}

// minority: a node that nobody hears is the one that is cut off. It says nothing of
// the others, keeps the backends that it knew, and serves those on itself.
func minority(ctx context.Context, s *suite) (err error) {
	m, err := s.newMesh(ctx, meshOptions{nodes: 3, services: s.services[0], affinity: "none"})
	if err != nil {
		return err
	}
	defer s.done(m, &err)
	alone := m.home.Nodes[2]
	before, err := alone.Get(ctx, "/v1/tables/slots")
	if err != nil {
		return err
	}
	c, err := m.client.Client("stream", lab.ClientOptions{Target: target, Interval: time.Millisecond, Timeout: patience, Mark: mark, Open: true})
	if err != nil {
		return err
	}
	probes := streams{c}
	defer probes.stop()
	begin := time.Now()
	if err := alone.Unplug(); err != nil {
		return err
	}
	if err := probes.calm(ctx, begin); err != nil {
		return err
	}
	took, _, _ := probes.avoided(begin)
	s.within("the others avoid it within 1 s", time.Second, []time.Duration{took})
	if err := sleep(ctx, 10*time.Second); err != nil {
		return err
	}
	wrong := 0
	for _, n := range m.home.Nodes[:2] {
		_, down, err := verdicts(ctx, n)
		if err != nil {
			return err
		}
		if len(down) != 1 {
			wrong++
			s.say("%s finds %v down", n.Name, down)
		}
	}
	s.never("the others believe nothing else of what it finds", wrong, fmt.Sprintf("%d agents do", wrong))
	after, err := alone.Get(ctx, "/v1/tables/slots")
	if err != nil {
		return err
	}
	lost := 0
	if string(after) != string(before) {
		lost = 1
	}
	s.never("it loses none of the backends it knew", lost, fmt.Sprintf("%d tables differ", lost))
	return errors.Join(alone.Plug(), m.whole(ctx))
}

// allLinks: nobody reaches anybody abroad. Everybody serves at home, and what was
// known of the others stays.
func allLinks(ctx context.Context, s *suite) (err error) {
	m, err := s.newMesh(ctx, meshOptions{nodes: 3, services: s.services[0], affinity: "remote"})
	if err != nil {
		return err
	}
	defer s.done(m, &err)
	probes, err := m.streams(ctx, patience)
	if err != nil {
		return err
	}
	defer probes.stop()
	begin := time.Now()
	heal, err := m.Inject(lab.Fault{Loss: 1})
	if err != nil {
		return err
	}
	if err := sleep(ctx, 5*time.Second); err != nil {
		return err
	}
	failed, all, _ := probes.failures(begin.Add(3 * time.Second))
	s.never("with no link at all, not even within a cluster, the own node's backends serve", failed, fmt.Sprintf("%d of %d connections failed", failed, all))
	var st agent.Status
	if err := m.home.Nodes[0].GetJSON(ctx, "/v1/status", &st); err != nil {
		return err
	}
	lost := 0
	for _, c := range st.Clusters {
		if c.Nodes != len(m.Cluster(c.Name).Nodes) {
			lost++
		}
	}
	s.never("no record is forgotten", lost, fmt.Sprintf("%d clusters lost some", lost))
	healed := time.Now()
	if err := errors.Join(heal(), probes.calm(ctx, healed)); err != nil {
		return err
	}
	took, _, _ := probes.avoided(healed)
	s.figure("all connections are answered again after the healing", seconds(took))
	return m.whole(ctx)
}
