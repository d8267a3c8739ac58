package install

import (
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

const kustomize = "../kustomize"

// placeholders fail safely where somebody applies the base as it is: no node has
// that name, and nobody that address.
var placeholders = []string{"cluster.name=set-cluster-name", "cluster.id=4095", "kubernetes.host=192.0.2.1", "apiserver.storage.node=set-state-node"}

// kustomized is the chart's rendering as the Kustomize folders have it.
func kustomized(t *testing.T, set ...string) string {
	t.Helper()
	got, _, err := Render(t.Context(), RenderOptions{Version: "dev", Namespace: DefaultNamespace, Kubernetes: "v1.37.0"}, valuesOf(t, set...))
	if err != nil {
		t.Fatal(err)
	}
	return "# Made from ../../chart by `make kustomize`.\n" + strings.ReplaceAll(got, "app.kubernetes.io/managed-by: Helm", "app.kubernetes.io/managed-by: Kustomize")
}

// The Kustomize base is the chart's rendering. `make kustomize` writes it anew.
func TestKustomizeBase(t *testing.T) {
	golden(t, filepath.Join(kustomize, "base/tombolo.yaml"), kustomized(t, placeholders...))
	golden(t, filepath.Join(kustomize, "cleanup/tombolo.yaml"), withoutCRDs(kustomized(t, append(placeholders, "cleanup.enabled=true")...)))
	text, err := os.ReadFile(filepath.Join(kustomize, "base/namespace.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var ns struct {
		Metadata struct{ Labels map[string]string }
	}
	if err := yaml.Unmarshal(text, &ns); err != nil || !maps.Equal(ns.Metadata.Labels, podSecurity) {
		t.Errorf("the namespace has labels %v %v, 'tombolo install' gives one %v", ns.Metadata.Labels, err, podSecurity)
	}
}

// What the example makes of its settings is what the chart makes of the same values.
func TestKustomizeExample(t *testing.T) {
	if *update {
		t.Skip("the base is being written")
	}
	got := objects(t, build(t, "example"))
	want := objects(t, kustomized(t, base...))
	delete(got, "Namespace//tombolo-system")
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if !reflect.DeepEqual(got[name], want[name]) {
			t.Errorf("%s is\n%v\nwant\n%v", name, got[name], want[name])
		}
		delete(got, name)
	}
	for name := range got {
		t.Errorf("%s is not the chart's", name)
	}
	if got, want := objects(t, build(t, "cleanup")), objects(t, withoutCRDs(kustomized(t, append(base, "cleanup.enabled=true")...))); !reflect.DeepEqual(got, want) {
		t.Errorf("cleanup: %v, want %v", got, want)
	}
}

func build(t *testing.T, folder string) string {
	t.Helper()
	made, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Join(kustomize, folder))
	if err != nil {
		t.Fatal(err)
	}
	text, err := made.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// objects of a manifest by kind, namespace and name.
func objects(t *testing.T, manifest string) map[string]map[string]any {
	t.Helper()
	all := make(map[string]map[string]any)
	for _, doc := range strings.Split(manifest, "\n---\n") {
		var o map[string]any
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		if o == nil {
			continue
		}
		m, _ := o["metadata"].(map[string]any)
		ns, _ := m["namespace"].(string)
		all[o["kind"].(string)+"/"+ns+"/"+m["name"].(string)] = o
	}
	return all
}
