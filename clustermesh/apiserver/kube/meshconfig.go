package kube

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver"
)

// MeshConfig keeps the ConfigMap that tells the cluster's agents where the mesh
// API servers are and by which CA bundle they are verified. The kubelet brings it
// to the nodes; nothing on that way needs a Service, DNS, or a pod address.
type MeshConfig struct {
	Client *Client
	Name   string // of the ConfigMap, in the client's namespace
	// Port is that of the mesh port in each replica's pod, which is on its node's
	// network. Advertise are further addresses, after those.
	Port      string
	Advertise []string
}

// replicaSelector finds the pods of all replicas.
const replicaSelector = "app.kubernetes.io/name=tombolo-apiserver"

// Part is the work of the leading replica.
func (m MeshConfig) Part() apiserver.Part {
	return apiserver.Part{Name: "mesh-config", Leading: true, Run: m.run}
}

func (m MeshConfig) run(ctx context.Context, on *apiserver.Running) error {
	var followers sync.WaitGroup
	defer followers.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stir := make(chan struct{}, 1)
	pods := newLatest[*corev1.Pod](stir)
	own := newLatest[*corev1.ConfigMap](stir)
	podClient := must(Resource(m.Client, corev1.SchemeGroupVersion.WithResource("pods"), m.Client.Namespace,
		func() *corev1.Pod { return &corev1.Pod{} }, func() *corev1.PodList { return &corev1.PodList{} }))
	followers.Go(func() {
		reflectInto(ctx, pods, metav1.ListOptions{LabelSelector: replicaSelector},
			func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return podClient.List(ctx, o) }, podClient.Watch)
	})
	maps := m.Client.ConfigMaps(m.Client.Namespace)
	followers.Go(func() {
		reflectInto(ctx, own, metav1.ListOptions{FieldSelector: "metadata.name=" + m.Name},
			func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return maps.List(ctx, o) }, maps.Watch)
	})
	const area = "mesh-config"
	defer on.Problems.Set(area, nil)
	// The bundle changes without a word when a CA rolls over.
	look := time.NewTicker(10 * time.Second)
	defer look.Stop()
	wait := time.Duration(0)
	for {
		var again <-chan time.Time
		if pods.known() && own.known() {
			want := meshConfigData(on.Cluster, pods.all(), m.Port, m.Advertise, on.Bundle())
			err := m.bring(ctx, own.all(), want)
			if ctx.Err() == nil {
				on.Problems.Set(area, m.problems(err))
			}
			if wait = 0; err != nil {
				wait = min(max(2*wait, time.Second), 30*time.Second)
				again = time.After(wait)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-stir:
		case <-look.C:
		case <-again:
		}
	}
}

func (m MeshConfig) problems(err error) []apiserver.Problem {
	if err == nil {
		return nil
	}
	return []apiserver.Problem{{
		Object: "ConfigMap " + m.Client.Namespace + "/" + m.Name, What: "is not kept", Why: reason(err),
		Fix: "give the mesh API server's ServiceAccount the right to get, list, watch, create and update configmaps in its namespace; nodes go on with the last one",
	}}
}

// meshConfigData is what the ConfigMap is to hold. Pure.
func meshConfigData(cluster string, pods []*corev1.Pod, port string, advertise []string, bundle []byte) map[string]string {
	var replicas []netip.Addr
	for _, p := range pods {
		if p.DeletionTimestamp != nil || p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded {
			continue
		}
		for _, ip := range p.Status.PodIPs {
			if a, err := netip.ParseAddr(ip.IP); err == nil {
				replicas = append(replicas, a)
			}
		}
	}
	slices.SortFunc(replicas, netip.Addr.Compare)
	var lines []string
	for _, a := range slices.Compact(replicas) {
		lines = append(lines, net.JoinHostPort(a.String(), port))
	}
	for _, a := range advertise {
		if host, _, err := net.SplitHostPort(a); err == nil && host != "" && !slices.Contains(lines, a) {
			lines = append(lines, a)
		}
	}
	if len(lines) == 0 || len(bundle) == 0 {
		return nil
	}
	return map[string]string{"cluster": cluster, "addresses": strings.Join(lines, "\n") + "\n", "ca-bundle.pem": string(bundle)}
}

// bring makes the ConfigMap hold what is wanted; other keys are left alone.
func (m MeshConfig) bring(ctx context.Context, have []*corev1.ConfigMap, want map[string]string) error {
	if want == nil {
		return errors.New("no address of a mesh API server is known: no pod with the label " + replicaSelector + " has one, and --advertise names none")
	}
	ctx, cancel := context.WithTimeout(ctx, RequestTime)
	defer cancel()
	client := m.Client.ConfigMaps(m.Client.Namespace)
	if len(have) == 0 {
		_, err := client.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{
			Namespace: m.Client.Namespace, Name: m.Name, Labels: map[string]string{"app.kubernetes.io/part-of": "tombolo"},
		}, Data: want}, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			return nil // the watch will say so
		}
		return err
	}
	now := have[0]
	next := now.DeepCopy()
	if next.Data == nil {
		next.Data = make(map[string]string)
	}
	maps.Copy(next.Data, want)
	if maps.Equal(next.Data, now.Data) {
		return nil
	}
	_, err := client.Update(ctx, next, metav1.UpdateOptions{})
	if apierrors.IsConflict(err) {
		return nil // somebody changed it: the watch will say so
	}
	return err
}

// latest is the store of a reflector: the present objects of a few, and a sign
// when they change.
type latest[T object] struct {
	stir chan<- struct{}

	mu     sync.Mutex
	synced bool
	items  map[string]T
}

func newLatest[T object](stir chan<- struct{}) *latest[T] {
	return &latest[T]{stir: stir, items: make(map[string]T)}
}

func (l *latest[T]) known() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.synced
}

func (l *latest[T]) all() []T {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []T
	for _, name := range slices.Sorted(maps.Keys(l.items)) {
		all = append(all, l.items[name])
	}
	return all
}

func (l *latest[T]) change(f func()) {
	l.mu.Lock()
	f()
	l.mu.Unlock()
	select {
	case l.stir <- struct{}{}:
	default:
	}
}

// Add, Update, Delete, Replace and Resync implement cache.ReflectorStore.
func (l *latest[T]) Add(obj any) error { return l.Update(obj) }
func (l *latest[T]) Update(obj any) error {
	o, ok := obj.(T)
	if !ok {
		return fmt.Errorf("%T is not expected here", obj)
	}
	l.change(func() { l.items[o.GetNamespace()+"/"+o.GetName()] = o })
	return nil
}

func (l *latest[T]) Delete(obj any) error {
	if o, ok := obj.(T); ok {
		l.change(func() { delete(l.items, o.GetNamespace()+"/"+o.GetName()) })
	}
	return nil
}

func (l *latest[T]) Replace(list []any, _ string) error {
	l.change(func() {
		l.synced = true
		clear(l.items)
		for _, obj := range list {
			if o, ok := obj.(T); ok {
				l.items[o.GetNamespace()+"/"+o.GetName()] = o
			}
		}
	})
	return nil
}

func (l *latest[T]) Resync() error { return nil }

// reflectInto keeps a store as what narrow selects, until ctx ends.
func reflectInto(ctx context.Context, store cache.ReflectorStore, narrow metav1.ListOptions, list cache.ListWithContextFunc, watches func(context.Context, metav1.ListOptions) (watch.Interface, error)) {
	with := func(o metav1.ListOptions) metav1.ListOptions {
		o.LabelSelector, o.FieldSelector = narrow.LabelSelector, narrow.FieldSelector
		if o.ResourceVersion == "0" {
			o.ResourceVersion = ""
		}
		return o
	}
	cache.NewReflectorWithOptions(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return list(ctx, with(o)) },
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return watches(ctx, with(o))
		},
	}, nil, store, cache.ReflectorOptions{Name: "tombolo", Backoff: backoff()}).RunWithContext(ctx)
}
