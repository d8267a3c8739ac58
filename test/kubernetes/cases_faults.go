package main

import (
	"errors"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

var lifeCases = []Case{
	{Name: "agent-restart", Claim: "agents restart under load without a lost connection", Run: agentRestart},
	{Name: "apiserver-restart", Claim: "the mesh API servers restart under load without a lost connection", Run: meshRestart},
	{Name: "rolling-upgrade", Claim: "an upgrade to another version, and back, loses no connection", Run: rollingUpgrade},
}

var faultCases = []Case{
	{Name: "kube-apiserver-down", Claim: "without its kube-apiserver a cluster's traffic goes on, and what changed meanwhile is there afterwards", Needs: []Need{NeedsLab}, Run: apiDown},
	{Name: "partition", Claim: "a partition between clusters is left within seconds, and healed by itself", Needs: []Need{NeedsLab}, Run: partition},
	{Name: "node-power-cut", Claim: "a node without power is left within seconds, and is back when booted", Needs: []Need{NeedsLab, NeedsMain, NeedsTwoNodes}, Run: nodePowerCut},
	{Name: "cluster-power-cut", Claim: "a whole cluster without power is left within seconds, and comes back by itself: no bootstrap cycle", Needs: []Need{NeedsLab, NeedsMain}, Run: clusterPowerCut},
}

// loads are of a client on each cluster's first node: on a pod across nodes, and on
// a global service.
func (t *T) loads(ns string) (loads []*Load, starts []Total) {
	pods, services := t.Everywhere(ns, "web", 2, Global())
	for i, c := range t.Clusters {
		far := pods[i][len(pods[i])-1]
		other := pods[1-i][0]
		loads = append(loads,
			c.Load(t, ns, "load-pod", c.Nodes[0], hostPort(far.Status.PodIP, 9000)),
			c.Load(t, ns, "load-service", c.Nodes[0], hostPort(services[i].Spec.ClusterIP, 9000)),
			c.Load(t, ns, "load-other", c.Nodes[0], hostPort(other.Status.PodIP, 9000)))
	}
	for _, l := range loads {
		starts = append(starts, l.Start(t))
	}
	return loads, starts
}

func whole(t *T, loads []*Load, starts []Total) {
	for i, l := range loads {
		l.Whole(t, starts[i])
	}
}

func agentRestart(t *T) {
	loads, starts := t.loads(t.Namespace())
	for _, c := range t.Clusters {
		for _, n := range c.Nodes {
			p, err := c.agentOn(t.ctx, n)
			t.OK(err, "agent")
			t.OK(p.Delete(t.ctx), "delete %s", p)
		}
		c.Rolled(t)
	}
	whole(t, loads, starts)
}

func meshRestart(t *T) {
	loads, starts := t.loads(t.Namespace())
	for _, c := range t.Clusters {
		p, err := c.systemPod(t.ctx, "tombolo-apiserver", "")
		t.OK(err, "mesh API server")
		t.OK(p.Delete(t.ctx), "delete %s", p)
		c.Rolled(t)
	}
	whole(t, loads, starts)
}

// rollingUpgrade changes each pod of Tombolo by the chart. The other version is the
// same programs under another name: what is tested is the change, not the difference.
func rollingUpgrade(t *T) {
	other := t.other
	if other == "" {
		other = t.bin
		t.Note("the settings change, and not the programs (-other names those of another version)")
	}
	loads, starts := t.loads(t.Namespace())
	for _, to := range []struct{ bin, level string }{{other, "debug"}, {t.bin, "info"}} {
		for _, c := range t.Clusters {
			args := append([]string{"upgrade"}, c.values()...)
			_, err := c.tomboloOf(t.ctx, to.bin, append(args, "--set", "agent.logLevel="+to.level, "--set", "apiserver.logLevel="+to.level)...)
			t.OK(err, "upgrade")
			c.Rolled(t)
		}
		whole(t, loads, starts)
		version, err := exec.CommandContext(t.ctx, filepath.Join(to.bin, "tombolo"), "version").Output()
		t.OK(err, "version")
		t.Note("with %s", strings.TrimSpace(strings.SplitN(string(version), "\n", 2)[0]))
	}
}

func apiDown(t *T) {
	ns := t.Namespace()
	loads, starts := t.loads(ns)
	a, b := t.Clusters[0], t.Clusters[1]
	t.Lab.Stop(t, a.Name+"-cp", "kube-apiserver")
	t.Cleanup(func() { t.Lab.Start(t, a.Name+"-cp", "kube-apiserver") })
	t.Within(10*time.Second, "kube-apiserver is down", func() error {
		if _, err := a.Client.Discovery().ServerVersion(); err == nil {
			return errors.New("it answers")
		}
		return nil
	})
	// What the other cluster changes reaches this one all the same.
	client := b.Pod(t, ns, "client", On(b.Nodes[0]))
	b.Scale(t, ns, "web", 1)
	t.pause(10 * time.Second)
	t.Lab.Start(t, a.Name+"-cp", "kube-apiserver")
	t.Within(time.Minute, "kube-apiserver is back", func() error {
		_, err := a.Client.Discovery().ServerVersion()
		return err
	})
	svc, err := a.service(t.ctx, ns, "web")
	t.OK(err, "service")
	// The load on pods of the scaled deployment may end; that on the own cluster's may not.
	loads[0].Whole(t, starts[0])
	again := a.Pod(t, ns, "again", On(a.Nodes[0]))
	again.answeredBy(t, 30*time.Second, svc.Spec.ClusterIP, a.Name, b.Name)
	a.Scale(t, ns, "web", 0)
	client.answeredBy(t, 30*time.Second, mustService(t, b, ns, "web"), b.Name)
}

func partition(t *T) {
	ns := t.Namespace()
	a, b := t.Clusters[0], t.Clusters[1]
	_, services := t.Everywhere(ns, "web", 2, Global())
	client := a.Clients(t, ns)[0]
	ip := services[0].Spec.ClusterIP
	client.answeredBy(t, settle, ip, a.Name, b.Name)
	t.Lab.Partition(t)
	t.Cleanup(func() { t.Lab.Heal(t) })
	t.Note("left after %.1f s", client.answeredBy(t, 10*time.Second, ip, a.Name).Seconds())
	t.Lab.Heal(t)
	t.Note("healed: back after %.1f s", client.answeredBy(t, 30*time.Second, ip, a.Name, b.Name).Seconds())
}

func nodePowerCut(t *T) {
	ns := t.Namespace()
	a, b := t.Clusters[0], t.Clusters[1]
	_, services := t.Everywhere(ns, "web", 2, Global())
	client := a.Pod(t, ns, "client", On(a.Nodes[0]))
	remote := b.Pod(t, ns, "client", On(b.Nodes[0]))
	victim := a.Nodes[1].Name
	dead := ""
	for _, p := range a.Ready(t, ns, "web", 2) {
		if p.Spec.NodeName == victim {
			dead = p.Name
		}
	}
	if dead == "" {
		t.Fatalf("no pod of web on %s", victim)
	}
	t.Lab.Crash(t, victim)
	booted := false
	t.Cleanup(func() {
		if !booted {
			t.Lab.Boot(t, victim)
		}
	})
	for i, p := range []*Pod{client, remote} {
		took := t.Within(10*time.Second, p.String()+" is answered by none of the dead node's", func() error {
			got, err := p.Ask(t.ctx, 24, "get", url(services[i].Spec.ClusterIP, 80))
			if err == nil && slices.Contains(hostsOf(got), dead) {
				err = errors.New("it was answered by it")
			}
			return err
		})
		t.Note("%s: every request is answered after %.1f s", p, took.Seconds())
	}
	begin := time.Now()
	t.Lab.Boot(t, victim)
	booted = true
	t.Note("booted: Tombolo and its pods are ready after %.1f s", a.Booted(t, begin, a.Nodes[1], systemNamespace, ns).Seconds())
	for _, server := range a.Ready(t, ns, "web", 2) {
		for _, p := range []*Pod{client, remote} {
			p.Reaches(t, server.String(), server.IPs(), 8080, 9000)
		}
	}
}

func clusterPowerCut(t *T) {
	ns := t.Namespace()
	a, b := t.Clusters[0], t.Clusters[1]
	_, services := t.Everywhere(ns, "web", 2, Global())
	remote := b.Pod(t, ns, "client", On(b.Nodes[0]))
	own := a.Clients(t, ns)
	remote.answeredBy(t, settle, services[1].Spec.ClusterIP, a.Name, b.Name)
	machines := []string{a.Name + "-cp"}
	for _, n := range a.Nodes {
		machines = append(machines, n.Name)
	}
	t.Lab.Crash(t, machines...)
	booted := false
	t.Cleanup(func() {
		if !booted {
			t.Lab.Boot(t, machines...)
		}
	})
	t.Note("left after %.1f s", remote.answeredBy(t, 10*time.Second, services[1].Spec.ClusterIP, b.Name).Seconds())
	begin := time.Now()
	t.Lab.Boot(t, machines...)
	booted = true
	t.Within(time.Minute, "kube-apiserver is back", func() error {
		_, err := a.Client.Discovery().ServerVersion()
		return err
	})
	for _, n := range a.Nodes {
		a.Booted(t, begin, n, systemNamespace)
	}
	t.Note("booted: Tombolo is ready after %.1f s", time.Since(begin).Seconds())
	for _, n := range a.Nodes {
		a.Booted(t, begin, n, "kube-system", ns)
	}
	a.NodesReady(t, time.Minute)
	a.Ready(t, ns, "web", 2)
	for _, p := range own {
		p.wait(t)
		p.answeredBy(t, time.Minute, services[0].Spec.ClusterIP, a.Name, b.Name)
	}
	remote.answeredBy(t, time.Minute, services[1].Spec.ClusterIP, a.Name, b.Name)
	t.Note("and serves the mesh again after %.1f s", time.Since(begin).Seconds())
}
