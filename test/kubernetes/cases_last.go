package main

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var lastCases = []Case{
	{Name: "mesh-peer", Claim: "clusters join by MeshPeers, a token Secret and kubectl wait, as GitOps does, and part when a MeshPeer is deleted", Run: meshPeer},
	{Name: "go-tests", Claim: "the Go tests that want a real kube-apiserver pass on this one", Run: goTests},
	{Name: "idle-cost", Claim: "what Tombolo costs when nothing happens: memory, CPU and watches, per node and per control plane", Needs: []Need{NeedsLab}, Run: idleCost},
	{Name: "uninstall", Claim: "uninstalled, a node is as it was: no programs, maps, devices, routes, rules, files", Needs: []Need{NeedsLab, NeedsMain}, Run: uninstall},
	{Name: "uninstall-chained", Claim: "uninstalled beside another CNI plugin, that one's configuration is as it was, and pods keep addresses and network", Needs: []Need{NeedsLab, NeedsChained}, Run: uninstallChained},
	{Name: "idle-yardstick", Claim: "what kube-proxy and the reference CNI plugins cost in the same cluster, Tombolo being gone", Needs: []Need{NeedsLab, NeedsMain, NeedsUninstalled}, Run: idleYardstick},
}

// NeedsUninstalled is for cases that put something else in Tombolo's place.
func NeedsUninstalled(w *World) string {
	if !w.uninstalled {
		return "needs the case uninstall to have passed"
	}
	return ""
}

// goTests runs what is skipped elsewhere.
func goTests(t *T) {
	cmd := exec.CommandContext(t.ctx, "go", "test", "-count=1", "-v", "-run", "Real|ServerTakes|Release", "./clustermesh/apiserver/kube/...", "./deploy/install", "./cmd/internal/relay/pod")
	path, err := t.Clusters[0].minimalKubeconfig()
	t.OK(err, "kubeconfig")
	t.Cleanup(func() { os.Remove(path) })
	cmd.Env = append(os.Environ(), "TOMBOLO_TEST_KUBECONFIG="+path)
	if t.Lab != nil {
		cmd.Env = append(cmd.Env, "TOMBOLO_TEST_LAB="+t.Lab.Dir) // its kube-apiserver may be stopped
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ran := 0
	for line := range strings.Lines(string(out)) {
		switch line = strings.TrimSpace(line); {
		case strings.HasPrefix(line, "--- PASS"):
			ran++
		case strings.HasPrefix(line, "--- SKIP"):
			t.Note("%s", line)
		}
	}
	if ran == 0 {
		t.Fatalf("no test ran:\n%s", out)
	}
	t.Note("%d tests passed", ran)
}

func uninstall(t *T) { uninstalls(t, nil) }

// uninstalls takes Tombolo away; others are the devices of somebody else.
func uninstalls(t *T, others []string) {
	for _, c := range t.Clusters {
		_, err := c.Tombolo(t.ctx, "uninstall")
		t.OK(err, "uninstall")
	}
	for _, c := range t.Clusters {
		for _, n := range c.Nodes {
			t.Within(time.Minute, n.Name+" is as it was", func() error {
				left := slices.DeleteFunc(t.Lab.leftOn(t, n.Name), func(line string) bool {
					return slices.ContainsFunc(others, func(dev string) bool {
						return strings.HasPrefix(line, "device "+dev) || strings.HasPrefix(line, "route ") && strings.Contains(line, " dev "+dev)
					})
				})
				if len(left) > 0 {
					return errors.New(strings.Join(left, "; "))
				}
				return nil
			})
		}
	}
	t.uninstalled = true
}

// leftOn names what is Tombolo's on a machine.
func (l *Lab) leftOn(t *T, machine string) []string {
	var left []string
	for what, script := range map[string]string{
		"device":     `ip -o link | awk -F': ' '{print $2}' | grep -v -e '^lo$' -e '^eth0' || true`,
		"route":      `for f in -4 -6; do ip $f route show table all | grep -v -e 'table local' -e 'dev eth0' -e 'dev lo' -e unreachable.default || true; done`,
		"rule":       `for f in -4 -6; do ip $f rule | grep -v -e 'lookup local' -e 'lookup main' -e 'lookup default' || true; done`,
		"pin":        `find /sys/fs/bpf -mindepth 1 -not -name maps.debug -not -name progs.debug`,
		"file":       `find /etc/cni/net.d /opt/cni/bin /run/tombolo /var/lib/tombolo -iname '*tombolo*' 2>/dev/null || true`,
		"mark":       `ip -o link | grep -o 'alias tombolo.*' || true`,
		"nft table":  `nft list tables 2>/dev/null | grep -i tombolo || true`,
		"tc program": `tc filter show dev eth0 ingress; tc filter show dev eth0 egress; tc qdisc show dev eth0 | grep clsact || true`,
		"namespace":  `ls /run/netns 2>/dev/null | grep -i tombolo || true`,
		"wg socket":  `ls /var/run/wireguard 2>/dev/null || true`,
		"process":    `for p in /proc/[0-9]*; do tr '\0' ' ' < $p/cmdline 2>/dev/null | grep -o '^[^ ]*tombolo-[a-z]*' || true; done`,
	} {
		out, err := l.Run(t.ctx, machine, "sh", "-c", script)
		t.OK(err, "look at %s of %s: %s", what, machine, out)
		for line := range strings.Lines(out) {
			if line = strings.TrimSpace(line); line != "" {
				left = append(left, what+" "+line)
			}
		}
	}
	slices.Sort(left)
	return left
}

// idleTime is how long an idle lab is looked at.
const idleTime = 20 * time.Second

func idleCost(t *T) {
	t.idle(func(program string) bool { return strings.HasPrefix(program, "tombolo") })
}

// idle notes what programs cost, and the watches that all together hold.
func (t *T) idle(of func(program string) bool) {
	t.pause(5 * time.Second)
	usage, err := t.Lab.usage(t.ctx, idleTime)
	t.OK(err, "usage")
	found := false
	for _, u := range usage {
		if of(u.program) {
			found = true
			t.Note("%-6s %-18s %5.1f MiB (PSS), %4.1f %% of a core", u.machine, u.program, float64(u.pss)/(1<<20), u.cpu)
		}
	}
	if !found {
		t.Fatalf("none of the programs runs that were to be measured")
	}
	for _, c := range t.Clusters {
		n, err := c.watches(t.ctx)
		t.OK(err, "watches")
		t.Note("%s: %d watches on kube-apiserver, of all programs", c.Name, n)
	}
}

// idleYardstick gives the clusters the usual parts in Tombolo's place: the reference
// plugins ptp, host-local and portmap, which are no longer there once a pod is
// connected, and kube-proxy.
func idleYardstick(t *T) {
	for _, c := range t.Clusters {
		n, err := c.watches(t.ctx)
		t.OK(err, "watches")
		t.Note("%s: %d watches on kube-apiserver without either", c.Name, n)
		t.Lab.do(t, "network.sh", c.Name)
		for _, node := range c.Nodes {
			t.Lab.Start(t, node.Name, "kube-proxy")
		}
	}
	for _, c := range t.Clusters {
		c.NodesReady(t, 2*time.Minute)
		// Pods that Tombolo connected have no network any more: they are made anew.
		pods, err := c.Client.CoreV1().Pods("kube-system").List(t.ctx, metav1.ListOptions{LabelSelector: "k8s-app=kube-dns"})
		t.OK(err, "pods of the cluster's DNS")
		for _, p := range pods.Items {
			t.OK(c.Client.CoreV1().Pods(p.Namespace).Delete(t.ctx, p.Name, metav1.DeleteOptions{}), "delete %s", p.Name)
		}
	}
	kubeSystem(t)
	t.idle(func(program string) bool { return program == "kube-proxy" })
}
