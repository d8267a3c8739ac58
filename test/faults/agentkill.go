package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/tombolo-mesh/tombolo/test/lab"
)

const (
	churnIP = "172.20.0.11"
	killing = 2 * time.Minute // how long agents are killed, unless -minutes is less
	killGap = 5 * time.Second // between two kills
)

// agentKill kills every agent of home again and again. Meanwhile a service's
// endpoints change a hundred times a second, and a policy changes with each kill.
func agentKill(ctx context.Context, s *suite) (err error) {
	m, err := s.newMesh(ctx, meshOptions{nodes: 2, services: s.services[0], affinity: "none"})
	if err != nil {
		return err
	}
	defer s.done(m, &err)
	g, err := m.guarded(ctx)
	if err != nil {
		return err
	}
	stop, err := m.churn(ctx)
	if err != nil {
		return err
	}
	kept, err := m.keepers(20, never)
	if err != nil {
		return errors.Join(err, stopped(stop))
	}
	probes, err := m.streams(ctx, never)
	if err != nil {
		return errors.Join(err, stopped(stop))
	}
	defer probes.stop()
	if err := g.follow(ctx, m); err != nil {
		return errors.Join(err, stopped(stop))
	}
	begin := time.Now()
	kills, took, err := m.killAgents(ctx, g, min(killing, s.lasts()))
	changes, churnErr := stop()
	if err := errors.Join(err, churnErr); err != nil {
		return err
	}
	s.say("%d agents killed, %d changes of endpoints in %s", kills, changes, seconds(time.Since(begin)))
	s.noneFails("no new connection fails", probes, begin)
	s.noneFails("no established connection is lost", kept, begin)
	s.noneFails("no new connection to the changing endpoints fails", streams{g.moving}, begin)
	s.nonePasses(g, begin)
	s.within("a policy that changed while no agent ran is in force 1 s after the agent's return", time.Second, took)
	return nil
}

func stopped(stop func() (int, error)) error {
	_, err := stop()
	return err
}

// guards are clients beside the streams.
type guards struct {
	db             *lab.Pod
	banned, guest  *lab.Client // of db: forbidden all the time; forbidden and allowed in turn
	moving         *lab.Client // of the service whose endpoints change
	guestIsAllowed bool
}

// guarded adds a pod that a policy isolates, and who asks it.
func (m *mesh) guarded(ctx context.Context) (g *guards, err error) {
	g = &guards{}
	n := m.home.Nodes[0]
	if g.db, err = n.AddPod(ctx, lab.PodSpec{Name: "db", Labels: map[string]string{"app": "db"}, Port: servePort, Argv: lab.ServeArgv(home+"/db", servePort)}); err != nil {
		return nil, err
	}
	if err := m.home.Apply("policy", isolate(false)); err != nil {
		return nil, err
	}
	at := net.JoinHostPort(g.db.Addresses[0].String(), fmt.Sprint(servePort))
	ask := func(name string) (*lab.Client, error) {
		p, err := m.home.Nodes[1].AddPod(ctx, lab.PodSpec{Name: name, Labels: map[string]string{"app": name}})
		if err != nil {
			return nil, err
		}
		return p.Client(name, lab.ClientOptions{Target: at, Interval: 10 * time.Millisecond, Timeout: patience, Open: true})
	}
	if g.guest, err = ask("guest"); err != nil {
		return nil, err
	}
	if g.banned, err = ask("banned"); err != nil {
		return nil, err
	}
	for _, c := range []*lab.Client{g.guest, g.banned} {
		if err := poll(ctx, "the policy is in force", func() error {
			results := c.Since(time.Now().Add(-time.Second))
			if len(results) == 0 || lab.Failed(results) < len(results) {
				return fmt.Errorf("%d of %d connections within a second were refused", lab.Failed(results), len(results))
			}
			return nil
		}); err != nil {
			return nil, err
		}
	}
	return g, nil
}

// follow begins to ask the service whose endpoints change.
func (g *guards) follow(ctx context.Context, m *mesh) (err error) {
	g.moving, err = m.client.Client("moving", lab.ClientOptions{Target: net.JoinHostPort(churnIP, "80"), Interval: 10 * time.Millisecond, Timeout: never, Open: true})
	if err != nil {
		return err
	}
	return streams{g.moving}.calm(ctx, time.Now())
}

// nonePasses is the promise that policy holds all the time.
func (s *suite) nonePasses(g *guards, since time.Time) {
	results := g.banned.Since(since)
	through := len(results) - lab.Failed(results)
	if len(results) < 100 {
		s.never("somebody tries what policy forbids", 1, fmt.Sprintf("%d tries", len(results)))
	}
	s.never("nothing passes that policy forbids", through, fmt.Sprintf("%d of %d connections", through, len(results)))
}

// isolate is db's policy: nobody may connect, or the guest alone.
func isolate(guest bool) string {
	who := "nobody"
	if guest {
		who = "guest"
	}
	app := func(name string) lab.Object { return lab.Object{"matchLabels": lab.Object{"app": name}} }
	return lab.Manifest(lab.Object{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": lab.Object{"name": "db", "namespace": "default"},
		"spec": lab.Object{"podSelector": app("db"), "policyTypes": []string{"Ingress"}, "ingress": []lab.Object{{"from": []lab.Object{{"podSelector": app(who)}}}}}})
}

// killAgents kills all agents of home every killGap, has the policy changed while
// none runs, starts them again, and says how long after its return an agent had the
// new one in force.
func (m *mesh) killAgents(ctx context.Context, g *guards, lasts time.Duration) (kills int, took []time.Duration, err error) {
	for end := time.Now().Add(lasts); time.Now().Before(end); {
		round := time.Now()
		for _, n := range m.home.Nodes {
			n.Agent().Kill()
			kills++
		}
		g.guestIsAllowed = !g.guestIsAllowed
		if err := m.home.Apply("policy", isolate(g.guestIsAllowed)); err != nil {
			return kills, took, err
		}
		for _, n := range m.home.Nodes {
			if err := n.LaunchAgent(ctx); err != nil {
				return kills, took, err
			}
		}
		for _, n := range m.home.Nodes {
			if err := n.Ready(ctx); err != nil {
				return kills, took, err
			}
		}
		back := time.Now()
		inForce, err := g.inForce(ctx, back)
		if err != nil {
			return kills, took, err
		}
		took = append(took, inForce)
		if err := sleep(ctx, time.Until(round.Add(killGap))); err != nil {
			return kills, took, err
		}
	}
	return kills, took, nil
}

// inForce is how long after back the guest was first treated as the new policy says,
// and from then on.
func (g *guards) inForce(ctx context.Context, back time.Time) (time.Duration, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("not within 30 s"))
	defer cancel()
	var since time.Time
	err := poll(ctx, "the new policy is in force", func() error {
		since = back
		n := 0
		for _, r := range g.guest.Since(back) {
			switch {
			case r.Begin().Before(back):
			case r.OK() != g.guestIsAllowed:
				since, n = r.Begin(), 0
			default:
				n++
			}
		}
		if n < 20 {
			return fmt.Errorf("%d connections in a row were treated by it (allowed: %v)", n, g.guestIsAllowed)
		}
		return nil
	})
	return since.Sub(back), err
}

// churn gives home a service without a selector, and changes its endpoints a hundred
// times a second among pods that all live on: one that is taken out serves on, as a
// terminating one does. stop says how often they changed.
func (m *mesh) churn(ctx context.Context) (stop func() (changes int, err error), err error) {
	object := lab.ServiceObject(lab.ServiceSpec{Name: "moving", ClusterIPs: []string{churnIP}, Port: 80, TargetPort: servePort})
	delete(object["spec"].(lab.Object), "selector")
	if err := m.home.Apply("service-moving", lab.Manifest(object)); err != nil {
		return nil, err
	}
	var ends []lab.Object
	for i, p := range m.servers[m.home] {
		ends = append(ends, lab.Object{"addresses": []netip.Addr{p.Addresses[0]}, "nodeName": m.home.Nodes[i].Name, "conditions": lab.Object{"ready": true}})
	}
	apply := func(change int) error {
		// Each of them leaves and returns in its turn; one at least is there.
		now := []lab.Object{ends[change%len(ends)]}
		if change%2 == 0 {
			now = ends
		}
		return m.home.Apply("slice-moving", lab.Manifest(lab.Object{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
			"metadata":    lab.Object{"name": "moving-1", "namespace": "default", "labels": lab.Object{"kubernetes.io/service-name": "moving"}},
			"addressType": "IPv4", "ports": []lab.Object{{"name": "http", "port": servePort, "protocol": "TCP"}}, "endpoints": now}))
	}
	if err := apply(0); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	changes, failure := 0, error(nil)
	running.Go(func() {
		for tick := time.NewTicker(10 * time.Millisecond); failure == nil; {
			select {
			case <-ctx.Done():
				tick.Stop()
				return
			case <-tick.C:
				changes++
				failure = apply(changes)
			}
		}
	})
	return func() (int, error) { cancel(); running.Wait(); return changes, failure }, nil
}
