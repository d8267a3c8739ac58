package main

import (
	"encoding/json"
	"fmt"
	"time"
)

var installCases = []Case{
	{Name: "install", Claim: "one command installs Tombolo from its chart, as the only CNI and service proxy, or chained beside others", Always: true, Run: install},
	{Name: "nodes-ready", Claim: "all nodes are Ready", Always: true, Run: nodesReady},
	{Name: "join", Claim: "two clusters join by an invitation and a token, one command a side", Always: true, Run: join},
	{Name: "kube-system", Claim: "what the cluster itself runs is ready: its DNS", Run: kubeSystem},
}

func install(t *T) {
	if t.installed {
		t.Note("it was there already")
		return
	}
	if t.chained {
		connectBefore(t)
	}
	for _, c := range t.Clusters {
		begin := time.Now()
		c.Install(t)
		t.Note("%s: %.1f s until all of it was ready", c.Name, time.Since(begin).Seconds())
	}
}

func nodesReady(t *T) {
	for _, c := range t.Clusters {
		c.NodesReady(t, time.Minute)
	}
}

func join(t *T) {
	a, b := t.Clusters[0], t.Clusters[1]
	if !t.installed {
		out, err := a.Tombolo(t.ctx, "mesh", "invite", "-o", "json")
		t.OK(err, "invite")
		var answer struct{ Token string }
		t.OK(json.Unmarshal([]byte(out), &answer), "the invitation %q", out)
		_, err = b.Tombolo(t.ctx, "mesh", "join", answer.Token)
		t.OK(err, "join")
	}
	took := t.Joined(30 * time.Second)
	t.Note("%.1f s after the command", took.Seconds())
}

func kubeSystem(t *T) {
	for _, c := range t.Clusters {
		t.Within(2*time.Minute, c.Name+": cluster DNS is ready", func() error {
			d, err := c.deployment(t.ctx, "kube-system", "coredns")
			if err == nil && d.Status.ReadyReplicas < 1 {
				err = fmt.Errorf("%d of %d ready", d.Status.ReadyReplicas, *d.Spec.Replicas)
			}
			return err
		})
	}
}
