package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Namespace makes one of the same name in every cluster, gone when the case ends.
func (t *T) Namespace() string {
	name := t.name + "-" + t.ID
	for _, c := range t.Clusters {
		_, err := c.Client.CoreV1().Namespaces().Create(t.ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
			Name: name, Labels: map[string]string{runLabel: t.ID},
		}}, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			continue // a second of the same case
		}
		t.OK(err, "%s: make a namespace", c.Name)
		t.Cleanup(func() {
			if t.keep {
				return
			}
			now := int64(0)
			err := c.Client.CoreV1().Namespaces().Delete(t.ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &now})
			t.OK(err, "%s: remove namespace %s", c.Name, name)
		})
		t.Within(30*time.Second, c.Name+": the namespace's service account", func() error {
			_, err := c.Client.CoreV1().ServiceAccounts(name).Get(t.ctx, "default", metav1.GetOptions{})
			return err
		})
	}
	return name
}

// PodSpec changes what Deploy and Pod make.
type PodSpec func(*corev1.PodTemplateSpec)

// On binds pods to a node.
func On(node Node) PodSpec {
	return func(p *corev1.PodTemplateSpec) {
		p.Spec.NodeSelector = map[string]string{"kubernetes.io/hostname": node.Name}
	}
}

// Args are those of the workloads' program.
func Args(args ...string) PodSpec {
	return func(p *corev1.PodTemplateSpec) {
		p.Spec.Containers[0].Args = args
		if args[0] != "serve" {
			p.Spec.Containers[0].ReadinessProbe = nil
		}
	}
}

// OnHost gives pods the node's network.
func OnHost() PodSpec {
	return func(p *corev1.PodTemplateSpec) {
		p.Spec.HostNetwork = true
		p.Spec.DNSPolicy = corev1.DNSClusterFirstWithHostNet
	}
}

func Label(key, value string) PodSpec {
	return func(p *corev1.PodTemplateSpec) { p.Labels[key] = value }
}

func (c *Cluster) template(app string, specs []PodSpec) corev1.PodTemplateSpec {
	now := int64(1)
	p := corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": app}},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &now,
			Containers: []corev1.Container{{
				Name: "echo", Image: c.world.echoImage, Args: []string{"serve"}, ImagePullPolicy: corev1.PullIfNotPresent,
				Env: []corev1.EnvVar{
					{Name: "CLUSTER", Value: c.Name},
					{Name: "NODE", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "spec.nodeName"}}},
				},
				ReadinessProbe: &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{
					HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromInt32(8080)},
				}},
			}},
		},
	}
	for _, s := range specs {
		s(&p)
	}
	return p
}

// Deploy makes a Deployment of echo servers, spread over the nodes, and waits for it.
func (c *Cluster) Deploy(t *T, ns, app string, replicas int32, specs ...PodSpec) []*Pod {
	template := c.template(app, specs)
	template.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{
		MaxSkew: 1, TopologyKey: "kubernetes.io/hostname", WhenUnsatisfiable: corev1.ScheduleAnyway,
		LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}},
	}}
	// At most this many are away during a change: the loads of the cases ask for no gap.
	surge := intstr.FromInt32(1)
	none := intstr.FromInt32(0)
	_, err := c.Client.AppsV1().Deployments(ns).Create(t.ctx, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: app},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Template: template, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}},
			Strategy: appsv1.DeploymentStrategy{RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &surge, MaxUnavailable: &none}},
		},
	}, metav1.CreateOptions{})
	t.OK(err, "%s: deploy %s", c.Name, app)
	return c.Ready(t, ns, app, int(replicas))
}

// Scale changes how many there are, and waits for that.
func (c *Cluster) Scale(t *T, ns, app string, replicas int32) []*Pod {
	patch := fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas)
	_, err := c.Client.AppsV1().Deployments(ns).Patch(t.ctx, app, types.MergePatchType, patch, metav1.PatchOptions{}, "scale")
	t.OK(err, "%s: scale %s", c.Name, app)
	return c.Ready(t, ns, app, int(replicas))
}

// Ready waits until there are exactly so many pods of an app, all of them ready.
func (c *Cluster) Ready(t *T, ns, app string, n int) []*Pod {
	var pods []*Pod
	t.Within(90*time.Second, fmt.Sprintf("%s: %d pods of %s/%s are ready", c.Name, n, ns, app), func() error {
		list, err := c.Client.CoreV1().Pods(ns).List(t.ctx, metav1.ListOptions{LabelSelector: "app=" + app})
		if err != nil {
			return err
		}
		pods = pods[:0]
		for i := range list.Items {
			p := &list.Items[i]
			if !isReady(p) {
				return fmt.Errorf("%s is %s: %s", p.Name, p.Status.Phase, notReady(p))
			}
			pods = append(pods, &Pod{Pod: p, cluster: c})
		}
		if len(pods) != n {
			return fmt.Errorf("there are %d", len(pods))
		}
		return nil
	})
	slices.SortFunc(pods, func(a, b *Pod) int { return strings.Compare(a.Spec.NodeName, b.Spec.NodeName) })
	return pods
}

func isReady(p *corev1.Pod) bool {
	return p.DeletionTimestamp == nil && slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// notReady says why a pod is not.
func notReady(p *corev1.Pod) string {
	var why []string
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		switch {
		case s.State.Waiting != nil:
			why = append(why, fmt.Sprintf("%s waits: %s %s", s.Name, s.State.Waiting.Reason, s.State.Waiting.Message))
		case s.State.Terminated != nil:
			why = append(why, fmt.Sprintf("%s ended: %d %s", s.Name, s.State.Terminated.ExitCode, s.State.Terminated.Message))
		}
	}
	for _, c := range p.Status.Conditions {
		if c.Status != corev1.ConditionTrue && c.Message != "" {
			why = append(why, c.Message)
		}
	}
	return strings.Join(why, "; ")
}

// Pod makes one pod and waits for it; by default it does nothing but wait for Exec.
func (c *Cluster) Pod(t *T, ns, name string, specs ...PodSpec) *Pod {
	p := c.StartPod(t, ns, name, specs...)
	p.wait(t)
	return p
}

// StartPod makes one and does not wait.
func (c *Cluster) StartPod(t *T, ns, name string, specs ...PodSpec) *Pod {
	template := c.template(name, append([]PodSpec{Args("pause")}, specs...))
	made, err := c.Client.CoreV1().Pods(ns).Create(t.ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: template.Labels}, Spec: template.Spec,
	}, metav1.CreateOptions{})
	t.OK(err, "%s: make pod %s", c.Name, name)
	return &Pod{Pod: made, cluster: c}
}

// Clients are one idle pod on each node of a cluster.
func (c *Cluster) Clients(t *T, ns string, specs ...PodSpec) []*Pod {
	var out []*Pod
	for i, n := range c.Nodes {
		out = append(out, c.StartPod(t, ns, fmt.Sprintf("client-%d", i+1), append([]PodSpec{On(n), Label("role", "client")}, specs...)...))
	}
	for _, p := range out {
		p.wait(t)
	}
	return out
}

// wait is for a pod that StartPod made.
func (p *Pod) wait(t *T) {
	t.Within(60*time.Second, fmt.Sprintf("%s: pod %s is ready", p.cluster.Name, p.Name), func() error {
		got, err := p.cluster.Client.CoreV1().Pods(p.Namespace).Get(t.ctx, p.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if p.Pod = got; !isReady(got) {
			return errors.New(notReady(got))
		}
		return nil
	})
}

// ServiceSpec changes what Service makes.
type ServiceSpec func(*corev1.Service)

// Global is the annotation that makes one service of those of the same name.
func Global() ServiceSpec { return Annotated("tombolo.io/global", "true") }

func Annotated(key, value string) ServiceSpec {
	return func(s *corev1.Service) { metav1.SetMetaDataAnnotation(&s.ObjectMeta, key, value) }
}

// NodePort opens it on every node.
func NodePort() ServiceSpec {
	return func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort }
}

// Service makes the service of an app: HTTP on 80, TCP and UDP on 9000.
func (c *Cluster) Service(t *T, ns, app string, specs ...ServiceSpec) *corev1.Service {
	families := corev1.IPFamilyPolicyPreferDualStack
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: app},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": app}, IPFamilyPolicy: &families,
			Ports: []corev1.ServicePort{
				{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)},
				{Name: "tcp", Port: 9000},
				{Name: "udp", Port: 9000, Protocol: corev1.ProtocolUDP},
			},
		},
	}
	for _, f := range specs {
		f(s)
	}
	made, err := c.Client.CoreV1().Services(ns).Create(t.ctx, s, metav1.CreateOptions{})
	t.OK(err, "%s: make service %s", c.Name, app)
	return made
}

// Everywhere deploys an app and its service in each cluster.
func (t *T) Everywhere(ns, app string, replicas int32, specs ...ServiceSpec) (pods [][]*Pod, services []*corev1.Service) {
	for _, c := range t.Clusters {
		services = append(services, c.Service(t, ns, app, specs...))
		pods = append(pods, c.Deploy(t, ns, app, replicas))
	}
	return pods, services
}

// Delete deletes one at once.
func (p *Pod) Delete(ctx context.Context) error {
	now := int64(0)
	return p.cluster.Client.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: &now})
}

func (c *Cluster) service(ctx context.Context, ns, name string) (*corev1.Service, error) {
	return c.Client.CoreV1().Services(ns).Get(ctx, name, metav1.GetOptions{})
}

// mustService is a service's first cluster IP.
func mustService(t *T, c *Cluster, ns, name string) string {
	s, err := c.service(t.ctx, ns, name)
	t.OK(err, "%s: service %s", c.Name, name)
	return s.Spec.ClusterIP
}
