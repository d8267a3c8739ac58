package kube_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/kube"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/kube/kubetest"
)

// client-go keeps connections to a real kube-apiserver for the life of the process.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("golang.org/x/net/http2.(*ClientConn).readLoop"))
}

// delivered keeps what a source delivers, and what was said of deletes.
type delivered struct {
	mu       sync.Mutex
	objects  map[apiserver.Ref]runtime.Object
	complete int
	named    []apiserver.Ref
	lacking  []apiserver.Ref
	upserts  int
	problems string
	origins  []time.Time
}

func (d *delivered) take(o apiserver.Objects) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if o.Complete {
		d.complete++
		d.objects = make(map[apiserver.Ref]runtime.Object)
	}
	for _, ref := range o.Deletes {
		delete(d.objects, ref)
		if o.DeletesNamed {
			d.named = append(d.named, ref)
		} else {
			d.lacking = append(d.lacking, ref)
		}
	}
	for ref, obj := range o.Upserts {
		d.objects[ref] = obj
		d.upserts++
		d.origins = append(d.origins, o.At)
	}
	var b strings.Builder
	for _, p := range o.Problems {
		fmt.Fprintln(&b, p.Text())
	}
	d.problems = b.String()
}

// has reports what is there, one a line.
func (d *delivered) has() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var names []string
	for ref := range d.objects {
		names = append(names, ref.String())
	}
	slices.Sort(names)
	return strings.Join(names, "\n")
}

func (d *delivered) get(kind, namespace, name string) runtime.Object {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.objects[apiserver.Ref{Kind: kind, Namespace: namespace, Name: name}]
}

func (d *delivered) problem() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.problems
}

func (d *delivered) counts() (complete, upserts, named, lacking int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.complete, d.upserts, len(d.named), len(d.lacking)
}

// follow runs a source on a server until the test ends.
func follow(t *testing.T, s *kubetest.Server, restored time.Duration) *delivered {
	t.Helper()
	client, err := kube.New(s.Config(), kube.Config{})
	if err != nil {
		t.Fatal(err)
	}
	source := kube.NewSource(kube.SourceConfig{Client: client, ServiceExports: true, Restored: restored, Forbidden: 200 * time.Millisecond, Log: slog.New(slog.DiscardHandler)})
	d := &delivered{objects: make(map[apiserver.Ref]runtime.Object)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- source.Run(ctx, d.take) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		client.CloseIdle()
	})
	return d
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not within 20 s: %s", what)
}

func node(name string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDRs: []string{"10.1.1.0/24"}}}
}

func service(name string, annotations map[string]string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Annotations: annotations},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.7", Selector: map[string]string{"app": name}, Ports: []corev1.ServicePort{{Port: 80}}},
	}
}

func pod(name, node string, phase corev1.PodPhase) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{"app": name}, Annotations: map[string]string{"noise": "x"},
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubelet"}}},
		Spec: corev1.PodSpec{NodeName: node, ServiceAccountName: "web", Containers: []corev1.Container{
			{Name: "c", Image: "big", Env: []corev1.EnvVar{{Name: "A", Value: "b"}}, Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80}}},
			{Name: "d", Image: "other"}}},
		Status: corev1.PodStatus{Phase: phase},
	}
}

func slice(name, svc string, more map[string]string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{}}, AddressType: discoveryv1.AddressTypeIPv4}
	if svc != "" {
		s.Labels[discoveryv1.LabelServiceName] = svc
	}
	for k, v := range more {
		s.Labels[k] = v
	}
	return s
}

// The first delivery is complete and filtered, objects are trimmed; changes
// follow, and a change of what nobody reads is none.
func TestSourceFollows(t *testing.T) {
	s := kubetest.New(t)
	s.Put(node("n1"), service("web", map[string]string{"tombolo.io/global": "true", "noise": "x"}), pod("web", "n1", corev1.PodRunning),
		pod("done", "n1", corev1.PodSucceeded), pod("waits", "", corev1.PodPending), slice("web-1", "web", nil), slice("stray", "", nil),
		slice("theirs", "web", map[string]string{"multicluster.kubernetes.io/source-cluster": "gcp"}),
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "other", Labels: map[string]string{"service.kubernetes.io/service-proxy-name": "x"}}})
	d := follow(t, s, 0)
	const want = "EndpointSlice shop/web-1\nNode n1\nPod shop/web\nService shop/web"
	eventually(t, "the first delivery", func() bool { return d.has() == want })
	p := d.get("Pod", "shop", "web").(*corev1.Pod)
	if len(p.Spec.Containers) != 1 || p.Spec.Containers[0].Image != "" || p.Annotations != nil || p.ManagedFields != nil || p.ResourceVersion != "" || p.UID == "" {
		t.Errorf("a pod is not trimmed: %+v", p)
	}
	if svc := d.get("Service", "shop", "web").(*corev1.Service); len(svc.Annotations) != 1 || svc.Spec.Selector != nil || svc.Spec.ClusterIP != "10.96.0.7" {
		t.Errorf("a service is not trimmed: %+v", svc)
	}
	_, before, _, _ := d.counts()
	noise := pod("web", "n1", corev1.PodRunning)
	noise.Annotations["noise"] = "y"
	s.Put(noise, pod("waits", "n1", corev1.PodPending))
	eventually(t, "a pod was scheduled", func() bool { return d.get("Pod", "shop", "waits") != nil })
	s.Put(pod("waits", "n1", corev1.PodFailed))
	eventually(t, "it failed", func() bool { return d.has() == want })
	complete, upserts, named, lacking := d.counts()
	if complete != 1 || upserts != before+1 || named != 1 || lacking != 0 {
		t.Errorf("%d complete deliveries, %d upserts after %d, %d named and %d other deletes", complete, upserts, before, named, lacking)
	}
}

// While a kind is not known nothing is complete, and the problem says which and
// what to do; once it is allowed all is well.
func TestSourceForbidden(t *testing.T) {
	s := kubetest.New(t)
	s.Put(node("n1"))
	s.Fail(func(r *http.Request) *kubetest.Fault {
		if strings.HasSuffix(r.URL.Path, "/networkpolicies") {
			return &kubetest.Fault{Code: 403, Reason: "Forbidden"}
		}
		return nil
	})
	d := follow(t, s, 0)
	eventually(t, "the problem", func() bool {
		return strings.Contains(d.problem(), "refuses to list or watch networkpolicies") &&
			strings.Contains(d.problem(), `get, list, watch of networkpolicies (API group "networking.k8s.io"); until then nothing is published anew`)
	})
	if complete, _, _, _ := d.counts(); complete != 0 || d.has() != "" {
		t.Errorf("something was delivered without the policies: %q", d.has())
	}
	s.Back()
	eventually(t, "all is well", func() bool { return d.has() == "Node n1" && d.problem() == "" })
}

// A kind that a feature may be without does not hold the rest up where it is
// forbidden, and is taken in once it is allowed; policies do, as without them more
// would pass than may.
func TestSourceForbiddenCustomResources(t *testing.T) {
	s := kubetest.New(t)
	s.Serve(kubetest.Kind{GroupVersionResource: exports, Name: "ServiceExport", Namespace: true}, kubetest.Kind{GroupVersionResource: policiesBeta, Name: "ClusterNetworkPolicy"})
	s.Put(node("n1"), definition("serviceexports.multicluster.x-k8s.io"), definition("clusternetworkpolicies.policy.networking.k8s.io"),
		object("multicluster.x-k8s.io/v1beta1", "ServiceExport", "shop", "web", nil), clusterPolicy("v1beta1", "p1", 5))
	forbid := func(resources ...string) {
		s.Fail(func(r *http.Request) *kubetest.Fault {
			for _, resource := range resources {
				if strings.HasSuffix(r.URL.Path, "/"+resource) {
					return &kubetest.Fault{Code: 403, Reason: "Forbidden"}
				}
			}
			return nil
		})
	}
	forbid("serviceexports", "clusternetworkpolicies")
	d := follow(t, s, 0)
	eventually(t, "policies hold all up, exports would not", func() bool {
		return strings.Contains(d.problem(), `get, list, watch of clusternetworkpolicies (API group "policy.networking.k8s.io"); until then nothing is published anew`) &&
			strings.Contains(d.problem(), `get, list, watch of serviceexports (API group "multicluster.x-k8s.io"); until then they have no effect, and all else is published`)
	})
	if d.has() != "" {
		t.Errorf("delivered without policies: %s", d.has())
	}
	forbid("serviceexports")
	eventually(t, "all but the exports", func() bool {
		return d.has() == "ClusterNetworkPolicy p1\nNode n1" && strings.Contains(d.problem(), "serviceexports") && !strings.Contains(d.problem(), "clusternetworkpolicies")
	})
	s.Back()
	eventually(t, "the exports, too", func() bool {
		return d.has() == "ClusterNetworkPolicy p1\nNode n1\nServiceExport shop/web" && d.problem() == ""
	})
	if complete, _, named, lacking := d.counts(); complete != 1 || named+lacking != 0 {
		t.Errorf("%d complete deliveries, %d deletes", complete, named+lacking)
	}
}

// An API server that is away changes nothing and is a problem; what happened
// meanwhile is learnt when it is back, also what a watch would have told.
func TestSourceAway(t *testing.T) {
	for _, history := range []string{"kept", "forgotten"} {
		t.Run(history, func(t *testing.T) {
			s := kubetest.New(t)
			s.Put(node("n1"), node("n2"), service("web", nil))
			d := follow(t, s, 0)
			eventually(t, "the first delivery", func() bool { return d.has() == "Node n1\nNode n2\nService shop/web" })
			s.Away()
			s.Delete(node("n2"))
			s.Put(node("n3"))
			if history == "forgotten" {
				s.Compact()
			}
			eventually(t, "the problem", func() bool {
				return strings.Contains(d.problem(), "does not answer about") && strings.Contains(d.problem(), "until then what is known stays in force")
			})
			if d.has() != "Node n1\nNode n2\nService shop/web" {
				t.Errorf("it changed while the API server was away: %s", d.has())
			}
			s.Back()
			eventually(t, "it is back", func() bool { return d.has() == "Node n1\nNode n3\nService shop/web" && d.problem() == "" })
			if complete, _, named, lacking := d.counts(); complete != 1 || named+lacking != 1 || history == "forgotten" && lacking != 1 {
				t.Errorf("%d complete deliveries, %d named deletes, %d by a list", complete, named, lacking)
			}
		})
	}
}

// Watches that end, one after the other, lose nothing and are no problem.
func TestSourceCutWatches(t *testing.T) {
	s := kubetest.New(t)
	d := follow(t, s, 0)
	for i := range 20 {
		s.Put(node(fmt.Sprint("n", i)))
		s.CutWatches()
		if i%5 == 4 {
			s.Compact()
		}
	}
	eventually(t, "all nodes", func() bool { return strings.Count(d.has(), "Node n") == 20 })
	if d.problem() != "" {
		t.Errorf("problem: %s", d.problem())
	}
}

// An object that has the name of a deleted one is told of as such, also if a list
// alone says so: what was good before is not its own.
func TestSourceTellsObjectsMadeAnew(t *testing.T) {
	s := kubetest.New(t)
	s.Put(service("web", nil))
	d := follow(t, s, 0)
	eventually(t, "the first delivery", func() bool { return d.has() == "Service shop/web" })
	before := d.get("Service", "shop", "web")

	s.Away()
	s.Delete(service("web", nil))
	s.Put(service("web", nil))
	s.Compact()
	s.Back()
	eventually(t, "another object", func() bool { o := d.get("Service", "shop", "web"); return o != nil && o != before })
	if _, _, named, lacking := d.counts(); named != 1 || lacking != 0 {
		t.Errorf("%d deletes by name, %d for want of it; want 1 and 0", named, lacking)
	}
	s.Put(service("web", map[string]string{"tombolo.io/global": "true"}))
	eventually(t, "a change", func() bool {
		return d.get("Service", "shop", "web").(*corev1.Service).Annotations["tombolo.io/global"] == "true"
	})
	if _, _, named, _ := d.counts(); named != 1 {
		t.Errorf("a change of the same object was told as %d deletes", named-1)
	}
}

// An API server that is behind another one must not bring back what was: it is
// not believed. One whose etcd was restored from a copy is, after a while.
func TestSourceNeverGoesBack(t *testing.T) {
	s := kubetest.New(t)
	s.Put(node("n1"))
	d := follow(t, s, time.Hour)
	eventually(t, "the first delivery", func() bool { return d.has() == "Node n1" })
	s.Freeze()
	s.Put(service("web", nil))
	s.Thaw()
	eventually(t, "a change", func() bool { return d.has() == "Node n1\nService shop/web" })

	s.Restore(func() { s.Put(node("n2")); eventually(t, "n2", func() bool { return strings.Contains(d.has(), "n2") }) })
	eventually(t, "the problem", func() bool { return strings.Contains(d.problem(), "tells of an older state of nodes") })
	if !strings.Contains(d.has(), "n2") {
		t.Errorf("an older state was believed: %s", d.has())
	}
	for i := range 10 { // the API server catches up
		s.Put(service(fmt.Sprint("s", i), nil))
	}
	s.Put(node("n2"))
	eventually(t, "it has caught up", func() bool { return strings.Contains(d.has(), "s9") && d.problem() == "" })
}

func TestSourceRestoredEtcd(t *testing.T) {
	s := kubetest.New(t)
	s.Put(node("n1"))
	d := follow(t, s, 500*time.Millisecond)
	eventually(t, "the first delivery", func() bool { return d.has() == "Node n1" })
	s.Restore(func() { s.Put(node("n2")); eventually(t, "n2", func() bool { return strings.Contains(d.has(), "n2") }) })
	eventually(t, "the older state is taken", func() bool { return d.has() == "Node n1" && d.problem() == "" })
	s.Put(node("n3"))
	eventually(t, "and goes on", func() bool { return d.has() == "Node n1\nNode n3" })
}

var (
	policies     = schema.GroupVersionResource{Group: "policy.networking.k8s.io", Version: "v1alpha2", Resource: "clusternetworkpolicies"}
	policiesBeta = schema.GroupVersionResource{Group: "policy.networking.k8s.io", Version: "v1beta1", Resource: "clusternetworkpolicies"}
	exports      = schema.GroupVersionResource{Group: "multicluster.x-k8s.io", Version: "v1beta1", Resource: "serviceexports"}
)

func object(apiVersion, kind, namespace, name string, spec map[string]any) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": apiVersion, "kind": kind, "spec": spec}}
	u.SetNamespace(namespace)
	u.SetName(name)
	return u
}

func definition(name string) *unstructured.Unstructured {
	return object("apiextensions.k8s.io/v1", "CustomResourceDefinition", "", name, map[string]any{})
}

func clusterPolicy(version, name string, priority int64) *unstructured.Unstructured {
	return object("policy.networking.k8s.io/"+version, "ClusterNetworkPolicy", "", name, map[string]any{
		"tier": "Admin", "priority": priority, "subject": map[string]any{"namespaces": map[string]any{}}})
}

// Custom resources may be absent, come later, change their version, and go.
func TestSourceCustomResources(t *testing.T) {
	s := kubetest.New(t)
	s.Put(node("n1"))
	d := follow(t, s, 0)
	eventually(t, "without custom resources", func() bool { return d.has() == "Node n1" })

	s.Serve(kubetest.Kind{GroupVersionResource: policies, Name: "ClusterNetworkPolicy"})
	s.Put(clusterPolicy("v1alpha2", "p1", 5), definition("clusternetworkpolicies.policy.networking.k8s.io"))
	eventually(t, "a policy", func() bool { return d.has() == "ClusterNetworkPolicy p1\nNode n1" })
	s.Put(clusterPolicy("v1alpha2", "p2", 6))
	eventually(t, "another", func() bool { return strings.Contains(d.has(), "p2") })

	s.Serve(kubetest.Kind{GroupVersionResource: exports, Name: "ServiceExport", Namespace: true})
	s.Put(definition("serviceexports.multicluster.x-k8s.io"), object("multicluster.x-k8s.io/v1beta1", "ServiceExport", "shop", "web", nil))
	eventually(t, "an export", func() bool { return strings.Contains(d.has(), "ServiceExport shop/web") })

	// Both versions are served for a while, then the newer one alone.
	s.Serve(kubetest.Kind{GroupVersionResource: policiesBeta, Name: "ClusterNetworkPolicy"})
	s.Put(clusterPolicy("v1beta1", "p1", 5), clusterPolicy("v1beta1", "p3", 5), definition("clusternetworkpolicies.policy.networking.k8s.io"))
	eventually(t, "the newer version", func() bool { return strings.Contains(d.has(), "p1\nClusterNetworkPolicy p3") })
	s.Unserve(policies)
	s.CutWatches()
	s.Put(clusterPolicy("v1beta1", "p4", 5))
	eventually(t, "without the older", func() bool { return strings.Contains(d.has(), "p4") && d.problem() == "" })

	s.Unserve(policiesBeta)
	s.Delete(definition("clusternetworkpolicies.policy.networking.k8s.io"))
	s.CutWatches()
	eventually(t, "no policies any more", func() bool { return d.has() == "Node n1\nServiceExport shop/web" && d.problem() == "" })
}

// A policy that cannot be read keeps what it said; a field nobody knows is told.
func TestSourcePolicyText(t *testing.T) {
	s := kubetest.New(t)
	s.Serve(kubetest.Kind{GroupVersionResource: policiesBeta, Name: "ClusterNetworkPolicy"})
	s.Put(definition("clusternetworkpolicies.policy.networking.k8s.io"), clusterPolicy("v1beta1", "p", 5))
	d := follow(t, s, 0)
	eventually(t, "the policy", func() bool { return d.has() == "ClusterNetworkPolicy p" })
	good := d.get("ClusterNetworkPolicy", "", "p")
	bad := clusterPolicy("v1beta1", "p", 5)
	bad.Object["spec"].(map[string]any)["priority"] = "high"
	s.Put(bad)
	eventually(t, "the problem", func() bool { return strings.Contains(d.problem(), "ClusterNetworkPolicy p: not read") })
	if d.get("ClusterNetworkPolicy", "", "p") != good {
		t.Error("the last good policy is not in force")
	}
	odd := clusterPolicy("v1beta1", "p", 7)
	odd.Object["spec"].(map[string]any)["colour"] = "red"
	s.Put(odd)
	eventually(t, "the unknown field", func() bool {
		return strings.Contains(d.problem(), "a field is not known and has no effect") && d.get("ClusterNetworkPolicy", "", "p") != good
	})
	s.Put(clusterPolicy("v1beta1", "p", 7))
	eventually(t, "no problem", func() bool { return d.problem() == "" })
}
