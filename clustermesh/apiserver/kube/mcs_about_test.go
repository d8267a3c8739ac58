package kube_test

import (
	"context"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/kube/kubetest"
)

// TestMCSProperties: who the cluster says it is, in the best version that there
// is, however late it comes and whatever others make of it.
func TestMCSProperties(t *testing.T) {
	for _, version := range []string{"v1alpha1", "v1beta1"} {
		r := newMCSRig(t)
		r.start()
		gvr := schema.GroupVersionResource{Group: "about.k8s.io", Version: version, Resource: "clusterproperties"}
		r.api.Serve(kubetest.Kind{GroupVersionResource: gvr, Name: "ClusterProperty"})
		dyn, err := r.client.Dynamic()
		if err != nil {
			t.Fatal(err)
		}
		properties := dyn.Resource(gvr)
		say := func(when string) {
			t.Helper()
			for name, want := range map[string]string{"cluster.clusterset.k8s.io": "a", "clusterset.k8s.io": "mesh"} {
				eventually(t, version+", "+when+": "+name, func() bool {
					o, err := properties.Get(context.Background(), name, metav1.GetOptions{})
					if err != nil {
						return false
					}
					value, _, _ := unstructured.NestedString(o.Object, "spec", "value")
					return value == want
				})
			}
		}
		say("once there is the kind")
		if err := properties.Delete(context.Background(), "clusterset.k8s.io", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		say("one was deleted")
		o, err := properties.Get(context.Background(), "cluster.clusterset.k8s.io", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := unstructured.SetNestedField(o.Object, "z", "spec", "value"); err != nil {
			t.Fatal(err)
		}
		// It may be written between the two; then there is nothing to be put right.
		properties.Update(context.Background(), o, metav1.UpdateOptions{}) //nolint:errcheck // see above
		say("one was changed")
	}
}
