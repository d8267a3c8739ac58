package install

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// check looks, before or after, and prints what it finds.
func (c *call) check(ctx context.Context) error {
	var found []Finding
	if c.Pre {
		f, err := c.facts(ctx)
		if err != nil {
			return err
		}
		found = preflight(f)
	} else {
		var err error
		if found, err = c.running(ctx); err != nil {
			return err
		}
	}
	if c.JSON {
		text, err := json.MarshalIndent(map[string]any{"apiVersion": "tombolo.io/v1", "kind": "Check", "findings": found}, "", "  ")
		if err != nil {
			return err
		}
		fmt.Fprintln(c.out, string(text))
	} else {
		for _, f := range found {
			fmt.Fprintf(c.out, "%-8s%s", f.Level, f.What)
			if f.Why != "" {
				fmt.Fprintf(c.out, ": %s", f.Why)
			}
			fmt.Fprintln(c.out)
			if f.Fix != "" {
				fmt.Fprintf(c.out, "        fix: %s\n", f.Fix)
			}
		}
	}
	if slices.ContainsFunc(found, func(f Finding) bool { return f.Level == levelError }) {
		return ErrAnswered
	}
	return nil
}

// running says of each part whether it runs everywhere.
func (c *call) running(ctx context.Context) ([]Finding, error) {
	there, err := c.present()
	if err != nil {
		return nil, err
	}
	if !there {
		return nil, fmt.Errorf("there is no Tombolo in namespace %s: install it with 'tombolo install', or name its namespace with -n", c.Namespace)
	}
	sets, err := c.cluster.Client.AppsV1().DaemonSets(c.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/part-of=tombolo"})
	if err != nil {
		return nil, err
	}
	servers, err := c.cluster.Client.AppsV1().StatefulSets(c.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/part-of=tombolo"})
	if err != nil {
		return nil, err
	}
	return parts(c.Namespace, servers.Items, sets.Items), nil
}

func parts(ns string, servers []appsv1.StatefulSet, sets []appsv1.DaemonSet) (out []Finding) {
	add := func(kind, name string, ready, want int32) {
		f := Finding{What: name, Level: levelOK, Why: fmt.Sprintf("%d of %d ready", ready, want)}
		if ready < want || want == 0 {
			f.Level, f.Fix = levelError, fmt.Sprintf("kubectl -n %s describe %s/%s, and kubectl -n %s logs %s/%s", ns, kind, name, ns, kind, name)
		}
		out = append(out, f)
	}
	for _, s := range servers {
		want := int32(1)
		if s.Spec.Replicas != nil {
			want = *s.Spec.Replicas
		}
		add("statefulset", s.Name, s.Status.ReadyReplicas, want)
	}
	for _, s := range sets {
		add("daemonset", s.Name, s.Status.NumberReady, s.Status.DesiredNumberScheduled)
	}
	if len(servers) == 0 || len(sets) == 0 {
		out = append(out, Finding{What: "installation", Level: levelError, Why: "parts are missing: a mesh API server and agents belong to it", Fix: "tombolo upgrade"})
	}
	return out
}
