package kube_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/kube"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/kube/v1alpha1"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/mcs"
)

var podsResource = schema.GroupVersionResource{Version: "v1", Resource: "pods"}

// run runs a part of the mesh API server until the test ends.
func (r *realAPI) run(part apiserver.Part, on *apiserver.Running) {
	on.Cluster, on.ID, on.Log = "a", 1, slog.New(slog.DiscardHandler)
	if on.Problems == nil {
		on.Problems = apiserver.NewProblems(nil)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- part.Run(ctx, on) }()
	r.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
	})
}

// pod makes one that no kubelet will ever run.
func (r *realAPI) pod(name, account, node string, labels map[string]string) *unstructured.Unstructured {
	r.t.Helper()
	u := object("v1", "Pod", r.ns, name, map[string]any{
		"serviceAccountName": account, "nodeName": node, "containers": []any{map[string]any{"name": "c", "image": "none.example/none"}},
	})
	u.SetLabels(labels)
	made, err := r.dynamic(podsResource, r.ns).Create(context.Background(), u, metav1.CreateOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		zero := int64(0)
		r.dynamic(podsResource, r.ns).Delete(context.Background(), name, metav1.DeleteOptions{GracePeriodSeconds: &zero})
	})
	return made
}

// token requests one of a service account, bound to a pod if there is one.
func (r *realAPI) token(account, audience string, pod *unstructured.Unstructured) string {
	r.t.Helper()
	req := &authenticationv1.TokenRequest{TypeMeta: metav1.TypeMeta{APIVersion: "authentication.k8s.io/v1", Kind: "TokenRequest"}, Spec: authenticationv1.TokenRequestSpec{Audiences: []string{audience}}}
	if pod != nil {
		req.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.GetName(), UID: pod.GetUID()}
	}
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(req)
	if err != nil {
		r.t.Fatal(err)
	}
	u := &unstructured.Unstructured{Object: content}
	u.SetName(account)
	answer, err := r.dynamic(schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}, r.ns).Create(context.Background(), u, metav1.CreateOptions{}, "token")
	if err != nil {
		r.t.Fatal(err)
	}
	text, _, _ := unstructured.NestedString(answer.Object, "status", "token")
	return text
}

// A node registers with a token that Kubernetes bound to a pod on it, and by no other.
func TestRealTokenReview(t *testing.T) {
	r := openReal(t)
	accounts := r.dynamic(schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}, r.ns)
	if _, err := accounts.Create(t.Context(), object("v1", "ServiceAccount", r.ns, "agent", nil), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	node := "node-of-" + r.ns
	nodes := r.dynamic(schema.GroupVersionResource{Version: "v1", Resource: "nodes"}, "")
	// Unschedulable, so that nothing is ever put on it.
	if _, err := nodes.Create(t.Context(), object("v1", "Node", "", node, map[string]any{"unschedulable": true}), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nodes.Delete(context.Background(), node, metav1.DeleteOptions{}) })
	pod := r.pod("agent-1", "agent", node, nil)
	review := kube.NewReviewer(r.client, "tombolo", r.ns+"/agent").ReviewNode
	good := r.token("agent", "tombolo", pod)
	if got, err := review(t.Context(), good); got != node || err != nil {
		t.Fatalf("node %q, %v; want %q", got, err, node)
	}
	for _, c := range []struct{ what, token, why string }{
		{"of another audience", r.token("agent", "https://kubernetes.default.svc", pod), "not meant for audience"},
		{"of another account", r.token("default", "tombolo", nil), "another account"},
		{"bound to no pod", r.token("agent", "tombolo", nil), "bound to no node"},
		{"with a damaged signature", good[:len(good)-8] + "AAAAAAAA", "does not accept"},
	} {
		got, err := review(t.Context(), c.token)
		var refusal *apiserver.Refusal
		if got != "" || !errors.As(err, &refusal) || !strings.Contains(err.Error(), c.why) {
			t.Errorf("a token %s: node %q, %v; want a refusal with %q", c.what, got, err, c.why)
		}
	}
	zero := int64(0)
	if err := r.dynamic(podsResource, r.ns).Delete(t.Context(), "agent-1", metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
		t.Fatal(err)
	}
	r.soon("the token ends with its pod", func() error {
		if got, err := review(context.Background(), good); err == nil {
			return fmt.Errorf("still node %s", got)
		}
		return nil
	})
}

// The ConfigMap for the agents and the Secret of the CA are what they are on a twin.
func TestRealConfigMapAndSecret(t *testing.T) {
	r := openReal(t)
	r.pod("apiserver-0", "default", "nowhere", map[string]string{"app.kubernetes.io/name": "tombolo-apiserver"})
	pods := r.dynamic(podsResource, r.ns)
	if _, err := pods.Patch(t.Context(), "apiserver-0", "application/merge-patch+json", []byte(`{"status":{"podIPs":[{"ip":"192.0.2.7"}],"podIP":"192.0.2.7"}}`), metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	r.run(kube.MeshConfig{Client: r.client, Name: "mesh", Port: "9443", Advertise: []string{"mesh.example:9443"}}.Part(), &apiserver.Running{Bundle: func() []byte { return []byte("PEM") }})
	want := func() error {
		cm, err := r.client.ConfigMaps(r.ns).Get(context.Background(), "mesh", metav1.GetOptions{})
		if err == nil && (cm.Data["addresses"] != "192.0.2.7:9443\nmesh.example:9443\n" || cm.Data["ca-bundle.pem"] != "PEM" || cm.Data["cluster"] != "a") {
			err = fmt.Errorf("%v", cm.Data)
		}
		return err
	}
	r.soon("the ConfigMap", want)
	if err := r.client.ConfigMaps(r.ns).Delete(t.Context(), "mesh", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	r.soon("the ConfigMap again", want)

	keeper := kube.NewCASecret(r.client, "ca", "aws", false)
	if _, err := keeper.Get(t.Context()); !errors.Is(err, apiserver.ErrNoCA) {
		t.Errorf("before: %v", err)
	}
	first, second := freshCA(t), freshCA(t)
	if _, err := keeper.Make(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if got, err := keeper.Make(t.Context(), second); err != nil || string(got.Key) != string(first.Key) {
		t.Errorf("a second replica got another CA than the first one made: %v", err)
	}
	changed := make(chan struct{}, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); keeper.Follow(ctx, func() { changed <- struct{}{} }) }()
	defer func() { cancel(); <-done }()
	<-changed // the watch is under way
	if _, err := kube.NewCASecret(r.client, "ca", "gcp", false).Get(t.Context()); err == nil || !strings.Contains(err.Error(), `holds the CA of cluster "aws"`) {
		t.Errorf("another cluster's: %v", err)
	}
	secret, err := r.client.Secrets(r.ns).Get(t.Context(), "ca", metav1.GetOptions{})
	if err != nil || secret.Type != corev1.SecretTypeTLS {
		t.Fatalf("%v, type %s", err, secret.Type)
	}
	secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey], secret.Data["ca.crt"] = second.Chain, second.Key, second.Chain
	for len(changed) > 0 {
		<-changed
	}
	if _, err := r.client.Secrets(r.ns).Update(t.Context(), secret, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	case <-time.After(30 * time.Second):
		t.Error("a changed Secret was not noticed")
	}
}

// Imports on a real API server: it allocates the address, validates what is written,
// and lets go of it all when the last exporter does.
func TestRealMCS(t *testing.T) {
	r := openReal(t)
	everywhere, err := r.dynamic(podsResource, "").List(t.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=tombolo-apiserver"})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range everywhere.Items {
		if p.GetNamespace() != r.ns {
			t.Skipf("Tombolo itself runs in namespace %s of this cluster, and looks after ServiceImports", p.GetNamespace())
		}
	}
	r.define("files/crds/multicluster.x-k8s.io_serviceexports.yaml")
	r.define("files/crds/multicluster.x-k8s.io_serviceimports.yaml")
	m := &mcsRig{t: t, client: r.client, exports: apiserver.NewExports("a", 1, nil)}
	m.exports.SetPeers([]*clustermesh.Peer{{Name: "b", ID: 2}})
	m.says("a", clustermesh.ScopeExport)
	m.says("a", clustermesh.ScopeLocal)
	r.namespace("ns")
	if _, err := r.client.Services("ns").Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "hello"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "web", Port: 80}}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.run(kube.MCS(kube.MCSConfig{Client: r.client, ClusterSet: "mesh"}), &apiserver.Running{Exports: m.exports})
	// text is what there is, with the address that the API server chose left out.
	text := func() string {
		got := m.text()
		if svc, err := r.client.Services("ns").Get(context.Background(), mcs.DerivedName(helloName), metav1.GetOptions{}); err == nil && svc.Spec.ClusterIP != "" {
			got = strings.ReplaceAll(got, svc.Spec.ClusterIP, "IP")
		}
		return got
	}
	want := func(what, wanted string) {
		t.Helper()
		r.soon(what, func() error {
			if got := text(); got != wanted {
				return fmt.Errorf("%q, want %q", got, wanted)
			}
			return nil
		})
	}
	exports := r.dynamic(v1beta1.SchemeGroupVersion.WithResource("serviceexports"), "ns")
	if _, err := exports.Create(t.Context(), object("multicluster.x-k8s.io/v1beta1", "ServiceExport", "ns", "hello", map[string]any{}), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	m.says("b", clustermesh.ScopeExport, helloExport(1000, nil), helloSlice("10.2.0.5"))
	want("one exporter", "ClusterSetIP[IP] of b Ready=True derived b[10.2.0.5]")
	m.says("a", clustermesh.ScopeExport, helloExport(2000, nil), helloSlice("10.1.0.5"))
	want("two exporters", "ClusterSetIP[IP] of a b Ready=True derived a[10.1.0.5] b[10.2.0.5]")
	r.soon("conditions of the export", func() error {
		u, err := exports.Get(context.Background(), "hello", metav1.GetOptions{})
		if err != nil {
			return err
		}
		conditions, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
		for _, kind := range []string{"Valid", "Ready"} {
			if !strings.Contains(fmt.Sprint(conditions), "status:True type:"+kind) {
				return fmt.Errorf("%v", conditions)
			}
		}
		return nil
	})
	m.says("b", clustermesh.ScopeExport)
	want("one left", "ClusterSetIP[IP] of a Ready=True derived a[10.1.0.5]")
	m.says("a", clustermesh.ScopeExport, helloExport(2000, func(s *clustermesh.Service) { s.Headless = true }), helloSlice("10.1.0.6"))
	want("headless now", "Headless of a Ready=True a[10.1.0.6]")
	m.says("a", clustermesh.ScopeExport)
	want("none", "")
}

// MeshPeers with the definition as it is installed: what it refuses never gets to
// the controller, and what the controller writes it takes.
func TestRealMeshPeers(t *testing.T) {
	ra, rb := openReal(t), openReal(t) // two namespaces stand for two clusters
	ra.define("files/crds/tombolo.io_meshpeers.yaml")
	refused := func(name string, spec map[string]any, why string) {
		t.Helper()
		_, err := ra.dynamic(v1alpha1.MeshPeers, ra.ns).Create(t.Context(), object("tombolo.io/v1alpha1", "MeshPeer", ra.ns, name, spec), metav1.CreateOptions{})
		if err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s %v: %v; want a refusal with %q", name, spec, err, why)
		}
	}
	refused("gcp", map[string]any{"tokenSecretRef": map[string]any{"name": "t"}, "invite": map[string]any{}}, "not both")
	refused("a.b", map[string]any{}, "DNS label")
	refused("gcp", map[string]any{"invite": map[string]any{"ttl": "1s"}}, "one minute to 24 hours")
	refused("gcp", map[string]any{"deletionPolicy": "Perhaps"}, "deletionPolicy")
	t.Cleanup(func() { // a test that failed must not leave namespaces that cannot go
		for _, r := range []*realAPI{ra, rb} {
			peers := r.dynamic(v1alpha1.MeshPeers, r.ns)
			list, err := peers.List(context.Background(), metav1.ListOptions{})
			if err != nil {
				t.Error(err)
				continue
			}
			for _, mp := range list.Items {
				peers.Patch(context.Background(), mp.GetName(), "application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
			}
		}
	})
	a, b := newSideOn(t, "aws", 1, ra.client), newSideOn(t, "gcp", 2, rb.client)
	a.create("gcp", v1alpha1.MeshPeerSpec{Invite: &v1alpha1.Invite{}})
	b.putToken("t", a.token("gcp-token"))
	b.create("aws", v1alpha1.MeshPeerSpec{TokenSecretRef: &v1alpha1.TokenSecretRef{Name: "t"}})
	for _, s := range []*side{a, b} {
		other := map[string]string{"aws": "gcp", "gcp": "aws"}[s.name]
		s.wait(other, v1alpha1.Joined, "True Joined")
		s.wait(other, v1alpha1.Reachable, "True Connected")
		s.wait(other, v1alpha1.Synced, "True Synced")
	}
	b.delete("aws")
	b.gone("aws")
	a.wait("gcp", v1alpha1.Joined, "False Left")
	a.delete("gcp")
	a.gone("gcp")
}
