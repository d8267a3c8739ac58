package install

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/kube"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const cleanupName = "tombolo-cleanup"

// uninstall takes Tombolo off the nodes first, and then out of the cluster: the
// chart with cleanup.enabled has, instead of agents, pods with the same rights
// that undo what agents did.
func (c *call) uninstall(ctx context.Context) error {
	there, err := c.present()
	if err != nil {
		return err
	}
	if !there {
		return fmt.Errorf("there is no Tombolo in namespace %s: name its namespace with -n", c.Namespace)
	}
	if c.DryRun {
		fmt.Fprintln(c.out, "every node would be cleaned, and then the release removed")
		return nil
	}
	if err := c.clean(ctx); err != nil {
		if !c.Force {
			return fmt.Errorf("%w\nfix: bring these nodes back and run it again; or, if they are gone for good, add --force", err)
		}
		fmt.Fprintln(c.err, "warning: "+err.Error())
	}
	un := action.NewUninstall(c.helm)
	un.Timeout, un.WaitStrategy, un.DeletionPropagation = c.Timeout, kube.StatusWatcherStrategy, "foreground"
	if _, err := un.Run(ReleaseName); err != nil {
		return err
	}
	fmt.Fprintf(c.out, "Tombolo is gone from every node and from namespace %s.\n", c.Namespace)
	fmt.Fprintf(c.err, `What stays, as it may be somebody's:
  the namespace, and in it the Secret of the cluster's CA:  kubectl delete namespace %s
  the definitions of resources:                             kubectl delete crd meshpeers.tombolo.io
Pods that Tombolo gave an interface have no network until another CNI plugin makes them anew.
`, c.Namespace)
	return nil
}

// clean puts the cleaning pods in the agents' place and waits until each node is done.
func (c *call) clean(ctx context.Context) error {
	ch, err := Chart(c.Version)
	if err != nil {
		return err
	}
	up := action.NewUpgrade(c.helm)
	up.Namespace, up.Timeout, up.MaxHistory = c.Namespace, c.Timeout, 10
	up.WaitStrategy, up.ResetThenReuseValues = kube.HookOnlyStrategy, true
	_, err = up.RunWithContext(ctx, ReleaseName, ch, map[string]any{"cleanup": map[string]any{"enabled": true, "keepState": c.KeepState}})
	if err != nil {
		return explain(err)
	}
	fmt.Fprintln(c.err, "cleaning the nodes …")
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	return c.cleaned(ctx)
}

// cleaned waits, and says which nodes are not done when time is up. It asks again
// and again, as it is about the pods and their DaemonSet at once.
func (c *call) cleaned(ctx context.Context) error {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		left, err := c.uncleaned(ctx)
		if err == nil && len(left) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			if len(left) == 0 {
				return fmt.Errorf("whether the nodes are cleaned is not known: %w", err)
			}
			return fmt.Errorf("not cleaned: %s", strings.Join(left, ", "))
		case <-tick.C:
		}
	}
}

// uncleaned are the nodes whose pod is not ready, with what it says.
func (c *call) uncleaned(ctx context.Context) (left []string, err error) {
	ds, err := c.cluster.Client.AppsV1().DaemonSets(c.Namespace).Get(ctx, cleanupName, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	pods, err := c.cluster.Client.CoreV1().Pods(c.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + cleanupName})
	if err != nil {
		return nil, err
	}
	done := 0
	for _, p := range pods.Items {
		if slices.ContainsFunc(p.Status.Conditions, func(s corev1.PodCondition) bool { return s.Type == corev1.PodReady && s.Status == corev1.ConditionTrue }) {
			done++
			continue
		}
		left = append(left, orDefault(p.Spec.NodeName, p.Name)+podReason(&p))
	}
	if want := int(ds.Status.DesiredNumberScheduled); len(left) == 0 && (ds.Status.ObservedGeneration < ds.Generation || done < want || want == 0) {
		left = append(left, fmt.Sprintf("%d of %d nodes", max(want-done, 0), want))
	}
	slices.Sort(left)
	return left, nil
}

// podReason is what the kubelet says of a pod that is not ready.
func podReason(p *corev1.Pod) string {
	for _, s := range p.Status.ContainerStatuses {
		switch {
		case s.LastTerminationState.Terminated != nil && s.LastTerminationState.Terminated.Message != "":
			return ": " + strings.TrimSpace(s.LastTerminationState.Terminated.Message)
		case s.State.Waiting != nil:
			return ": " + s.State.Waiting.Reason + " " + s.State.Waiting.Message
		}
	}
	if len(p.Status.ContainerStatuses) == 0 {
		return ": the node does not start its pod"
	}
	return ""
}

func orDefault(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
