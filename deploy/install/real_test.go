package install

import (
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"helm.sh/helm/v4/pkg/kube"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/tombolo-mesh/tombolo/deploy"
	"github.com/tombolo-mesh/tombolo/deploy/request"
)

// realCluster is a kube-apiserver whose objects may be changed, and a namespace
// in it that goes with the test.
func realCluster(t *testing.T) (*Cluster, request.Request) {
	t.Helper()
	path := os.Getenv("TOMBOLO_TEST_KUBECONFIG")
	if path == "" {
		t.Skip("TOMBOLO_TEST_KUBECONFIG names no kubeconfig of a real cluster for tests")
	}
	r := request.Request{Kubeconfigs: []string{path}, Version: "v1.2.3"}
	c, err := Open(r)
	if err != nil {
		t.Fatal(err)
	}
	ns, err := c.Client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "tombolo-test-", Labels: podSecurity}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Client.CoreV1().Namespaces().Delete(context.WithoutCancel(t.Context()), ns.Name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	r.Namespace = ns.Name
	c, err = Open(r)
	if err != nil {
		t.Fatal(err)
	}
	return c, r
}

// warnings collects what a kube-apiserver warns of.
type warnings struct {
	mu  sync.Mutex
	all []string
}

func (w *warnings) HandleWarningHeader(_ int, _, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, text)
}

// others are kinds that come with another project, which is not on a bare cluster.
var others = []string{"cert-manager.io", "monitoring.coreos.com"}

// Every object of every rendering is one that a real kube-apiserver takes, strictly
// and without a warning. Nothing but a namespace is made.
func TestServerTakes(t *testing.T) {
	c, r := realCluster(t)
	var warned warnings
	cfg := rest.CopyConfig(c.rest)
	cfg.WarningHandler = &warned
	client, err := dynamic.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	mapper, err := c.ToRESTMapper()
	if err != nil {
		t.Fatal(err)
	}
	for name, set := range cases {
		manifest, _, err := Render(t.Context(), RenderOptions{Version: r.Version, Namespace: r.Namespace, Kubernetes: "v1.37.0"}, valuesOf(t, append(append([]string{}, base...), set...)...))
		if err != nil {
			t.Fatal(err)
		}
		taken := 0
		for what, o := range objects(t, manifest) {
			object := &unstructured.Unstructured{Object: o}
			kind := object.GroupVersionKind()
			m, err := mapper.RESTMapping(schema.GroupKind{Group: kind.Group, Kind: kind.Kind}, kind.Version)
			if meta.IsNoMatchError(err) && slices.Contains(others, kind.Group) {
				t.Logf("%s: %s is left out: %v", name, what, err)
				continue
			}
			if err != nil {
				t.Fatalf("%s: %s: %v", name, what, err)
			}
			var at dynamic.ResourceInterface = client.Resource(m.Resource)
			if m.Scope.Name() == meta.RESTScopeNameNamespace {
				at = client.Resource(m.Resource).Namespace(r.Namespace)
			}
			_, err = at.Apply(t.Context(), object.GetName(), object, metav1.ApplyOptions{FieldManager: "tombolo-test", Force: true, DryRun: []string{metav1.DryRunAll}})
			if err != nil {
				t.Errorf("%s: %s: %v", name, what, err)
			}
			taken++
		}
		t.Logf("%s: %d objects", name, taken)
	}
	if len(warned.all) > 0 {
		t.Errorf("warnings: %s", strings.Join(warned.all, "; "))
	}
}

// asked does a request as tombolo-install does it.
func asked(t *testing.T, r request.Request) (out, stderr string, err error) {
	t.Helper()
	var o, e bytes.Buffer
	err = Run(t.Context(), r, &o, &e)
	return o.String(), e.String(), err
}

// On a cluster without Tombolo and without nodes: install, upgrade and uninstall of
// the release as such. That an upgrade brings definitions up to date and keeps
// values, and what stays in the end.
func TestRelease(t *testing.T) {
	c, r := realCluster(t)
	if roles, err := c.Client.RbacV1().ClusterRoles().List(t.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/part-of=tombolo"}); err != nil {
		t.Fatal(err)
	} else if len(roles.Items) > 0 {
		t.Skip("this cluster has Tombolo: its release is not ours to replace")
	}
	if nodes, err := c.Client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	} else if len(nodes.Items) > 0 {
		t.Skip("this cluster has nodes: the suite of test/kubernetes installs there")
	}
	client, err := dynamic.NewForConfig(c.rest)
	if err != nil {
		t.Fatal(err)
	}
	crds := client.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	// What another test has left would be somebody else's for the release, which leaves it alone.
	withoutDefinitions(t, crds)
	t.Cleanup(func() { withoutDefinitions(t, crds) })
	r.Timeout = 5 * time.Second
	pre := r
	pre.Verb, pre.Pre = "check", true
	if out, _, err := asked(t, pre); !errors.Is(err, ErrAnswered) || !strings.Contains(out, "error   nodes: the cluster has none") || !strings.Contains(out, "unknown bpffs") {
		t.Errorf("check --pre: %v\n%s", err, out)
	}
	do := func(verb string, set ...string) string {
		r := r
		r.Verb, r.Set, r.Force = verb, set, verb == "uninstall"
		out, stderr, err := asked(t, r)
		if err != nil {
			t.Fatalf("%s: %v\n%s%s", verb, err, out, stderr)
		}
		return out + stderr
	}
	do("install", append([]string{"apiserver.port=9555"}, base...)...)
	if _, _, err := asked(t, request.Request{Verb: "install", Version: r.Version, Kubeconfigs: r.Kubeconfigs, Namespace: r.Namespace, Set: base}); err == nil || !strings.Contains(err.Error(), "has a Tombolo already") {
		t.Errorf("installed twice: %v", err)
	}
	formerDefinition(t, crds)
	r.Version = "v1.2.4"
	do("upgrade", "agent.logLevel=debug")
	peers, err := crds.Get(t.Context(), "meshpeers.tombolo.io", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if columns(t, peers) == 0 {
		t.Error("an upgrade leaves the definition of before")
	}
	agent, err := c.Client.AppsV1().DaemonSets(r.Namespace).Get(t.Context(), "tombolo-agent", metav1.GetOptions{})
	if err != nil || !slices.Contains(agent.Spec.Template.Spec.Containers[0].Args, "--log-level=debug") || !strings.HasSuffix(agent.Spec.Template.Spec.Containers[0].Image, ":v1.2.4") {
		t.Errorf("the agent after an upgrade: %v %+v", err, agent.Spec.Template.Spec)
	}
	server, err := c.Client.AppsV1().StatefulSets(r.Namespace).Get(t.Context(), "tombolo-apiserver", metav1.GetOptions{})
	if err != nil || !slices.Contains(server.Spec.Template.Spec.Containers[0].Args, "--listen=:9555") {
		t.Errorf("a value of before did not stay: %v", err)
	}
	if _, err := c.Client.CoreV1().Secrets(r.Namespace).Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "tombolo-ca"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if said := do("uninstall"); !strings.Contains(said, "Tombolo is gone") || !strings.Contains(said, "warning: ") {
		t.Errorf("uninstall says %s", said)
	}
	stays(t, c, r.Namespace)
	if _, err := crds.Get(t.Context(), "meshpeers.tombolo.io", metav1.GetOptions{}); err != nil {
		t.Errorf("the definition, and all MeshPeers with it: %v", err)
	}
}

// withoutDefinitions removes the definitions that a release brings, and waits until
// they are gone.
func withoutDefinitions(t *testing.T, crds dynamic.ResourceInterface) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	defer cancel()
	for _, name := range []string{"meshpeers.tombolo.io", "serviceexports.multicluster.x-k8s.io", "serviceimports.multicluster.x-k8s.io"} {
		crds.Delete(ctx, name, metav1.DeleteOptions{})
		for {
			_, err := crds.Get(ctx, name, metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				break
			}
			if ctx.Err() != nil {
				t.Errorf("%s does not go: %v", name, err)
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// formerDefinition makes the definition of MeshPeer that of a version whose release had no
// printer columns.
func formerDefinition(t *testing.T, crds dynamic.ResourceInterface) {
	t.Helper()
	text, err := deploy.Chart.ReadFile("chart/files/crds/tombolo.io_meshpeers.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects(t, string(text)) {
		versions, _, _ := unstructured.NestedSlice(o, "spec", "versions")
		delete(versions[0].(map[string]any), "additionalPrinterColumns")
		if err := unstructured.SetNestedSlice(o, versions, "spec", "versions"); err != nil {
			t.Fatal(err)
		}
		// Helm's marks stay: what has none is somebody else's, and is left alone.
		now, err := crds.Get(t.Context(), "meshpeers.tombolo.io", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		former := &unstructured.Unstructured{Object: o}
		former.SetAnnotations(now.GetAnnotations())
		former.SetLabels(now.GetLabels())
		made, err := crds.Apply(t.Context(), "meshpeers.tombolo.io", former, metav1.ApplyOptions{FieldManager: kube.ManagedFieldsManager, Force: true})
		if err != nil || columns(t, made) != 0 {
			t.Fatalf("the definition of before: %v", err)
		}
	}
}

func columns(t *testing.T, crd *unstructured.Unstructured) int {
	t.Helper()
	versions, _, err := unstructured.NestedSlice(crd.Object, "spec", "versions")
	if err != nil || len(versions) == 0 {
		t.Fatalf("the definition has no versions: %v", err)
	}
	all, _ := versions[0].(map[string]any)["additionalPrinterColumns"].([]any)
	return len(all)
}

// stays: after an uninstallation there is the Secret of the CA, and nothing that runs.
func stays(t *testing.T, c *Cluster, ns string) {
	t.Helper()
	if _, err := c.Client.CoreV1().Secrets(ns).Get(t.Context(), "tombolo-ca", metav1.GetOptions{}); err != nil {
		t.Errorf("the CA: %v", err)
	}
	sets, err := c.Client.AppsV1().DaemonSets(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(sets.Items) > 0 {
		t.Errorf("DaemonSets: %v %d", err, len(sets.Items))
	}
	if roles, err := c.Client.RbacV1().ClusterRoles().List(t.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/part-of=tombolo"}); err != nil || len(roles.Items) > 0 {
		t.Errorf("ClusterRoles: %v %d", err, len(roles.Items))
	}
}
