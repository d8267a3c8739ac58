package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// keepEvidence writes down what the clusters say after a case has failed.
func (w *World) keepEvidence(name string) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	dir := filepath.Join(w.logs, w.ID, name)
	for _, c := range w.Clusters {
		if err := c.evidence(ctx, filepath.Join(dir, c.Name)); err != nil {
			fmt.Fprintf(w.out, "    evidence of %s: %v\n", c.Name, err)
		}
	}
	fmt.Fprintf(w.out, "    evidence is in %s\n", dir)
}

func (c *Cluster) evidence(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	pods, err := c.Client.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	var text strings.Builder
	for i := range pods.Items {
		p := &pods.Items[i]
		fmt.Fprintf(&text, "%s/%s %s %s %v ready=%v %s\n", p.Namespace, p.Name, p.Spec.NodeName, p.Status.Phase, p.Status.PodIPs, isReady(p), notReady(p))
		if p.Namespace == systemNamespace {
			c.podLogs(ctx, p, dir)
		}
	}
	events, err := c.Client.CoreV1().Events("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, e := range events.Items {
		fmt.Fprintf(&text, "event %s %s/%s %s: %s\n", e.LastTimestamp.Format(time.TimeOnly), e.InvolvedObject.Namespace, e.InvolvedObject.Name, e.Reason, e.Message)
	}
	return os.WriteFile(filepath.Join(dir, "cluster.txt"), []byte(text.String()), 0o644)
}

// podLogs writes the logs of each container, this one's and the one's before.
func (c *Cluster) podLogs(ctx context.Context, p *corev1.Pod, dir string) {
	for _, container := range p.Spec.Containers {
		for _, previous := range []bool{false, true} {
			b, err := c.Client.CoreV1().Pods(p.Namespace).GetLogs(p.Name, &corev1.PodLogOptions{Container: container.Name, Previous: previous}).DoRaw(ctx)
			if err != nil || len(b) == 0 {
				continue
			}
			suffix := map[bool]string{true: ".before"}[previous]
			os.WriteFile(filepath.Join(dir, p.Name+"."+container.Name+suffix+".log"), b, 0o644)
		}
	}
}
