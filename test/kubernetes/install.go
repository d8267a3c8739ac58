package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// systemNamespace is where Tombolo is.
const systemNamespace = "tombolo-system"

// Tombolo runs the command line against a cluster.
func (c *Cluster) Tombolo(ctx context.Context, args ...string) (string, error) {
	return c.tomboloOf(ctx, c.world.bin, args...)
}

// tomboloOf is Tombolo of the programs in a folder: each version brings its own chart.
func (c *Cluster) tomboloOf(ctx context.Context, bin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "tombolo"), append(args, "--context", c.Context)...)
	cmd.Env = c.env()
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: tombolo %s: %w: %s", c.Name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()+out.String()))
	}
	return out.String(), nil
}

// values are those of the chart for this cluster.
func (c *Cluster) values() []string {
	set := []string{"cluster.name=" + c.Name, "cluster.id=" + strconv.Itoa(c.Number)}
	if c.world.chained {
		set = append(set, c.chainedValues()...)
	}
	if c.world.set != "" {
		set = append(set, c.world.set)
	}
	var out []string
	for _, s := range set {
		out = append(out, "--set", s)
	}
	return out
}

// Install installs the chart and waits until all of it runs.
func (c *Cluster) Install(t *T) {
	out, err := c.Tombolo(t.ctx, append([]string{"install"}, c.values()...)...)
	t.OK(err, "install")
	for line := range strings.Lines(out) {
		t.Logf("%s: %s", c.Name, strings.TrimRight(line, "\n"))
	}
	c.Rolled(t)
}

// Rolled waits until Tombolo's pods are all ready, and on every node.
func (c *Cluster) Rolled(t *T) {
	t.Within(2*time.Minute, c.Name+": Tombolo runs", func() error {
		sets, err := c.Client.AppsV1().DaemonSets(systemNamespace).List(t.ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		seen := 0
		for _, ds := range sets.Items {
			s := ds.Status
			if s.ObservedGeneration < ds.Generation || s.DesiredNumberScheduled == 0 || s.NumberReady < s.DesiredNumberScheduled ||
				ds.Spec.UpdateStrategy.Type != "OnDelete" && s.UpdatedNumberScheduled < s.DesiredNumberScheduled {
				return fmt.Errorf("DaemonSet %s: %d of %d ready: %s", ds.Name, s.NumberReady, s.DesiredNumberScheduled, c.unready(t.ctx))
			}
			seen++
		}
		if seen < 2 {
			return fmt.Errorf("%d DaemonSets in %s, of the agent's and the tunnel's", seen, systemNamespace)
		}
		stateful, err := c.Client.AppsV1().StatefulSets(systemNamespace).List(t.ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, s := range stateful.Items {
			if s.Status.ObservedGeneration < s.Generation || s.Status.ReadyReplicas < *s.Spec.Replicas || s.Status.UpdatedReplicas < *s.Spec.Replicas {
				return fmt.Errorf("StatefulSet %s: %d of %d ready: %s", s.Name, s.Status.ReadyReplicas, *s.Spec.Replicas, c.unready(t.ctx))
			}
		}
		return nil
	})
}

// unready says which of Tombolo's pods are not, and why.
func (c *Cluster) unready(ctx context.Context) string {
	pods, err := c.Client.CoreV1().Pods(systemNamespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err.Error()
	}
	var out []string
	for i := range pods.Items {
		if p := &pods.Items[i]; !isReady(p) {
			out = append(out, p.Name+": "+notReady(p))
		}
	}
	return strings.Join(out, ", ")
}

// NodesReady waits until every node is.
func (c *Cluster) NodesReady(t *T, limit time.Duration) time.Duration {
	return t.Within(limit, c.Name+": all nodes are Ready", func() error {
		nodes, err := c.Client.CoreV1().Nodes().List(t.ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, n := range nodes.Items {
			for _, cond := range n.Status.Conditions {
				if cond.Type == corev1.NodeReady && cond.Status != corev1.ConditionTrue {
					return fmt.Errorf("%s is not: %s", n.Name, cond.Message)
				}
			}
		}
		return nil
	})
}

// Booted waits until all pods of these namespaces that are on a node were started after
// its boot, and are ready: until the kubelet is back, the API server knows of no power cut.
func (c *Cluster) Booted(t *T, since time.Time, node Node, namespaces ...string) time.Duration {
	t.Within(4*time.Minute, node.Name+": all pods have started again", func() error {
		for _, ns := range namespaces {
			pods, err := c.Client.CoreV1().Pods(ns).List(t.ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + node.Name})
			if err != nil {
				return err
			}
			for i := range pods.Items {
				p := &pods.Items[i]
				for _, s := range p.Status.ContainerStatuses {
					if s.State.Running == nil || s.State.Running.StartedAt.Before(&metav1.Time{Time: since.Truncate(time.Second)}) {
						return fmt.Errorf("%s/%s has not: %s", ns, p.Name, notReady(p))
					}
				}
				if !isReady(p) {
					return fmt.Errorf("%s/%s is not ready: %s", ns, p.Name, notReady(p))
				}
			}
		}
		return nil
	})
	return time.Since(since)
}

func (c *Cluster) deployment(ctx context.Context, ns, name string) (*appsv1.Deployment, error) {
	return c.Client.AppsV1().Deployments(ns).Get(ctx, name, metav1.GetOptions{})
}

// agentOn is the agent's pod of a node.
func (c *Cluster) agentOn(ctx context.Context, node Node) (*Pod, error) {
	return c.systemPod(ctx, "tombolo-agent", node.Name)
}

func (c *Cluster) systemPod(ctx context.Context, app, node string) (*Pod, error) {
	list, err := c.Client.CoreV1().Pods(systemNamespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + app})
	if err != nil {
		return nil, err
	}
	for i := range list.Items {
		if p := &list.Items[i]; p.DeletionTimestamp == nil && (node == "" || p.Spec.NodeName == node) {
			return &Pod{Pod: p, cluster: c}, nil
		}
	}
	return nil, errors.New(c.Name + ": no pod of " + app + " on node " + node)
}

// Joined waits until each cluster's agents follow the other.
func (t *T) Joined(limit time.Duration) time.Duration {
	return t.Within(limit, "the clusters follow each other", func() error {
		for i, c := range t.Clusters {
			out, err := c.Tombolo(t.ctx, "mesh", "list")
			if err != nil {
				return err
			}
			if other := t.Clusters[1-i].Name; !strings.Contains(out, other) {
				return fmt.Errorf("%s does not know %s: %s", c.Name, other, out)
			}
		}
		return nil
	})
}
