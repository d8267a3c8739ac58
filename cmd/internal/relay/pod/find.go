package pod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
)

// Program is one of Tombolo's that has a socket.
type Program struct {
	Label     string // app.kubernetes.io/name of its pods
	Container string
	Command   []string // that relays
	Text      string   // for people
}

// The two programs with sockets.
var (
	APIServer = Program{Label: "tombolo-apiserver", Container: "apiserver", Command: []string{"tombolo-apiserver", "relay"}, Text: "mesh API server"}
	Agent     = Program{Label: "tombolo-agent", Container: "agent", Command: []string{"tombolo-agent", "relay"}, Text: "agent"}
)

const nameLabel = "app.kubernetes.io/name"

// Target is a container to run the relay in.
type Target struct {
	Program Program
	Pod     string
	Node    string
	Ready   bool
}

// findTimeout bounds a list of pods.
const findTimeout = 10 * time.Second

// Find lists the program's pods whose container runs, those that are ready
// first. With a node, only the one there. It is an error if there is none: it
// says which pods there are, and why they do not do.
func (c *Cluster) Find(ctx context.Context, p Program, node string) ([]Target, error) {
	pods, err := c.list(ctx, p, c.cfg.Namespace)
	if err != nil {
		return nil, err
	}
	if len(pods) == 0 {
		return nil, c.noPods(ctx, p)
	}
	targets, others := choose(p, pods, node)
	if len(targets) > 0 {
		return targets, nil
	}
	what := fmt.Sprintf("no %s of context %q runs", p.Text, c.cfg.Context)
	if node != "" {
		what = fmt.Sprintf("no %s runs on node %q of context %q", p.Text, node, c.cfg.Context)
	}
	if len(others) == 0 {
		return nil, fmt.Errorf("%s\nfix: give one of the nodes %s", what, strings.Join(nodes(pods), ", "))
	}
	return nil, fmt.Errorf("%s\ncause: %s\nfix: see kubectl --context %s describe pod -n %s -l %s=%s", what, strings.Join(others, "; "), c.cfg.Context, c.cfg.Namespace, nameLabel, p.Label)
}

// choose sorts out which pods will do, and says of the others why not.
func choose(p Program, pods []corev1.Pod, node string) (targets []Target, others []string) {
	for i := range pods {
		pod := &pods[i]
		if node != "" && pod.Spec.NodeName != node {
			continue
		}
		if why := notRunning(pod, p.Container); why != "" {
			others = append(others, fmt.Sprintf("pod %s %s", pod.Name, why))
			continue
		}
		targets = append(targets, Target{Program: p, Pod: pod.Name, Node: pod.Spec.NodeName, Ready: ready(pod)})
	}
	slices.SortFunc(targets, func(a, b Target) int {
		if a.Ready != b.Ready {
			if a.Ready {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.Pod, b.Pod)
	})
	return targets, others
}

// notRunning says why nothing can be run in the pod's container; "" = it can.
// That it is not ready is no reason: then people want to look most.
func notRunning(pod *corev1.Pod, container string) string {
	if pod.DeletionTimestamp != nil {
		return "is being deleted"
	}
	for _, s := range pod.Status.ContainerStatuses {
		switch {
		case s.Name != container:
		case s.State.Running != nil:
			return ""
		case s.State.Waiting != nil:
			return "waits: " + reason(s.State.Waiting.Reason, s.State.Waiting.Message)
		case s.State.Terminated != nil:
			return fmt.Sprintf("ended with status %d: %s", s.State.Terminated.ExitCode, reason(s.State.Terminated.Reason, s.State.Terminated.Message))
		}
	}
	for _, s := range pod.Status.Conditions {
		if s.Type == corev1.PodScheduled && s.Status != corev1.ConditionTrue {
			return "is on no node: " + reason(s.Reason, s.Message)
		}
	}
	if !slices.ContainsFunc(pod.Spec.Containers, func(s corev1.Container) bool { return s.Name == container }) {
		return fmt.Sprintf("has no container %q", container)
	}
	return "is " + cmp.Or(string(pod.Status.Phase), "of no phase yet")
}

func reason(short, long string) string {
	if long == "" {
		return cmp.Or(short, "no reason is given")
	}
	return strings.TrimPrefix(short+": ", ": ") + long
}

func ready(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(s corev1.PodCondition) bool {
		return s.Type == corev1.PodReady && s.Status == corev1.ConditionTrue
	})
}

func nodes(pods []corev1.Pod) []string {
	names := map[string]bool{}
	for i := range pods {
		if n := pods[i].Spec.NodeName; n != "" {
			names[n] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// list reads the program's pods of a namespace; "" = of all.
func (c *Cluster) list(ctx context.Context, p Program, namespace string) ([]corev1.Pod, error) {
	ctx, cancel := context.WithTimeout(quiet(ctx), findTimeout)
	defer cancel()
	req := c.client.Get().Resource("pods").Param("labelSelector", labels.Set{nameLabel: p.Label}.String())
	if namespace != "" {
		req = req.Namespace(namespace)
	}
	var list corev1.PodList
	if err := req.Do(ctx).Into(&list); err != nil {
		return nil, c.kubeError(err, fmt.Sprintf("list pods in namespace %s", namespace), "get and list of pods")
	}
	return list.Items, nil
}

// noPods says where the pods are that are not where they were looked for.
func (c *Cluster) noPods(ctx context.Context, p Program) error {
	what := fmt.Sprintf("namespace %s of context %q has no pod of the %s (label %s=%s)", c.cfg.Namespace, c.cfg.Context, p.Text, nameLabel, p.Label)
	elsewhere := map[string]bool{}
	if all, err := c.list(ctx, p, ""); err == nil { // who may not look everywhere is not told
		for i := range all {
			elsewhere[all[i].Namespace] = true
		}
	}
	if len(elsewhere) > 0 {
		return fmt.Errorf("%s\nfix: there are some in other namespaces, give -n with one of %s", what, strings.Join(slices.Sorted(maps.Keys(elsewhere)), ", "))
	}
	return fmt.Errorf("%s\nfix: install Tombolo there, or give another context or namespace (--context, -n)", what)
}

// kubeError puts a refusal of the kube-apiserver into words.
func (c *Cluster) kubeError(err error, what, needs string) error {
	head := fmt.Sprintf("cannot %s of context %q", what, c.cfg.Context)
	var status apierrors.APIStatus
	switch {
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%s: %s\nfix: the user of this context needs a role in namespace %s with %s", head, oneLine(err), c.cfg.Namespace, needs)
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("%s: %s\nfix: the credentials of this context are not taken (expired?): sign in again", head, oneLine(err))
	case errors.As(err, &status):
		return fmt.Errorf("%s: %s", head, oneLine(err))
	}
	return fmt.Errorf("%s: the Kubernetes API server %s does not answer: %w", head, c.rest.Host, err)
}

// oneLine is what the kube-apiserver said, on one line.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
