package kube_test

import (
	"context"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/kube"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/kube/kubetest"
)

func replica(name string, ips ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "tombolo-system", Name: name, Labels: map[string]string{"app.kubernetes.io/name": "tombolo-apiserver"}}}
	for _, ip := range ips {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	return p
}

// The ConfigMap names all replicas, follows them and the bundle, is repaired, and
// what others keep in it is left alone. Without any address it stays as it was.
func TestMeshConfig(t *testing.T) {
	s := kubetest.New(t)
	client, err := kube.New(s.Config(), kube.Config{Namespace: "tombolo-system"})
	if err != nil {
		t.Fatal(err)
	}
	problems := apiserver.NewProblems(nil)
	on := &apiserver.Running{Cluster: "aws", Problems: problems, Bundle: func() []byte { return []byte("PEM") }}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	part := kube.MeshConfig{Client: client, Name: "tombolo-mesh", Port: "9443", Advertise: []string{":9443", "mesh.example:9443"}}.Part()
	go func() { done <- part.Run(ctx, on) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		client.CloseIdle()
	})
	get := func() map[string]string {
		cm, err := client.ConfigMaps("tombolo-system").Get(t.Context(), "tombolo-mesh", metav1.GetOptions{})
		if err != nil {
			return nil
		}
		return cm.Data
	}
	eventually(t, "it is made", func() bool {
		d := get()
		return d["addresses"] == "mesh.example:9443\n" && d["cluster"] == "aws" && d["ca-bundle.pem"] == "PEM"
	})
	s.Put(replica("a-1", "192.168.0.12", "fd00::12"), replica("a-0", "192.168.0.11"), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "tombolo-system", Name: "other"}})
	const all = "192.168.0.11:9443\n192.168.0.12:9443\n[fd00::12]:9443\nmesh.example:9443\n"
	eventually(t, "all replicas", func() bool { return get()["addresses"] == all })
	s.Put(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "tombolo-system", Name: "tombolo-mesh"}, Data: map[string]string{"addresses": "evil:1\n", "note": "mine"}})
	eventually(t, "it is repaired", func() bool {
		d := get()
		return d["addresses"] == all && d["note"] == "mine" && d["ca-bundle.pem"] == "PEM"
	})
	s.Delete(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "tombolo-system", Name: "tombolo-mesh"}})
	eventually(t, "it is made again", func() bool { return get()["addresses"] == all })
	if ps := problems.All(); len(ps) > 0 {
		t.Errorf("problems: %v", ps)
	}
}
