package kube_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/diff"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"
	"sigs.k8s.io/yaml"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/kube"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/kube/kubetest"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// sourceTwin publishes the same manifests twice: read from a folder, and followed on
// an API server. The records must be the same.
type sourceTwin struct {
	t      *testing.T
	dir    string
	api    *kubetest.Server
	seen   [2]*seenSource     // the folder, the API server
	stores [2]*kvstore.Memory // what is published of them
}

// seenSource knows what its source has delivered.
type seenSource struct {
	apiserver.Source
	mu      sync.Mutex
	objects map[apiserver.Ref]runtime.Object
}

func (s *seenSource) Run(ctx context.Context, deliver func(apiserver.Objects)) error {
	return s.Source.Run(ctx, func(o apiserver.Objects) {
		deliver(o)
		s.mu.Lock()
		defer s.mu.Unlock()
		if o.Complete {
			s.objects = make(map[apiserver.Ref]runtime.Object)
		}
		for _, ref := range o.Deletes {
			delete(s.objects, ref)
		}
		maps.Copy(s.objects, o.Upserts)
	})
}

func (s *seenSource) get(ref apiserver.Ref) runtime.Object {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.objects[ref]
}

func newSourceTwin(t *testing.T) *sourceTwin {
	w := &sourceTwin{t: t, dir: t.TempDir(), api: kubetest.New(t)}
	w.api.Serve(kubetest.Kind{GroupVersionResource: exports, Name: "ServiceExport", Namespace: true}, kubetest.Kind{GroupVersionResource: policies, Name: "ClusterNetworkPolicy"})
	w.api.Put(definition("serviceexports.multicluster.x-k8s.io"), definition("clusternetworkpolicies.policy.networking.k8s.io"))
	client := testClient(t, w.api)
	for i, source := range []apiserver.Source{
		apiserver.NewFolder(apiserver.FolderConfig{Dir: w.dir, Settle: 2 * time.Millisecond, Rescan: 50 * time.Millisecond}),
		kube.NewSource(kube.SourceConfig{Client: client, ServiceExports: true, Log: slog.New(slog.DiscardHandler)}),
	} {
		w.stores[i] = kvstore.NewMemory(kvstore.MemoryOptions{})
		t.Cleanup(w.stores[i].Close)
		w.seen[i] = &seenSource{Source: source}
		w.publish(w.seen[i], w.stores[i])
	}
	return w
}

func (w *sourceTwin) publish(source apiserver.Source, store *kvstore.Memory) {
	w.t.Helper()
	runServer(w.t, apiserver.Config{
		Cluster: "aws", ID: 1, StateDir: w.t.TempDir(), Source: source, SlicesGiven: true, Listen: "127.0.0.1:0", Advertise: []string{"mesh.example:9443"},
		Version: "v1.0.0", PodPrefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00:1::/32")}, Guard: time.Hour, Log: slog.New(slog.DiscardHandler),
		Open: func(context.Context) (apiserver.StoreHandle, error) { return apiserver.StoreHandle{Store: store}, nil },
	})
}

// put writes an object for both; taken waits until both have delivered it.
func (w *sourceTwin) put(manifest string) (taken func()) {
	w.t.Helper()
	u := w.parse(manifest)
	w.write(u, manifest)
	w.api.Put(u)
	ref, want := refOf(u), w.text(u.GetKind(), w.decode(u.GetKind(), manifest))
	_, others := u.GetLabels()["service.kubernetes.io/service-proxy-name"]
	return func() {
		w.t.Helper()
		for i, s := range w.seen {
			gone := i == 1 && others // the API server is asked for the rest alone
			eventually(w.t, fmt.Sprintf("source %d has delivered %v as %s", i, ref, want), func() bool {
				got := s.get(ref)
				return gone && got == nil || got != nil && w.text(u.GetKind(), got) == want
			})
		}
	}
}

func (w *sourceTwin) delete(manifest string) (taken func()) {
	w.t.Helper()
	u := w.parse(manifest)
	if err := os.Remove(w.file(u)); err != nil {
		w.t.Fatal(err)
	}
	w.api.Delete(u)
	return func() {
		w.t.Helper()
		for i, s := range w.seen {
			eventually(w.t, fmt.Sprintf("source %d has delivered that %v is gone", i, refOf(u)), func() bool { return s.get(refOf(u)) == nil })
		}
	}
}

func refOf(u *unstructured.Unstructured) apiserver.Ref {
	return apiserver.Ref{Kind: u.GetKind(), Namespace: u.GetNamespace(), Name: u.GetName()}
}

// decode makes the object of a manifest.
func (w *sourceTwin) decode(kind, manifest string) runtime.Object {
	w.t.Helper()
	text, err := yaml.YAMLToJSON([]byte(manifest))
	if err != nil {
		w.t.Fatal(err)
	}
	o := map[string]runtime.Object{
		"Node": &corev1.Node{}, "Namespace": &corev1.Namespace{}, "Service": &corev1.Service{}, "Pod": &corev1.Pod{},
		"EndpointSlice": &discoveryv1.EndpointSlice{}, "NetworkPolicy": &networkingv1.NetworkPolicy{}, "ServiceExport": &mcsv1beta1.ServiceExport{},
	}[kind]
	if o == nil {
		o, _, err = apiserver.DecodeClusterNetworkPolicy(text)
	} else {
		err = json.Unmarshal(text, o)
	}
	if err != nil {
		w.t.Fatalf("%v\n%s", err, manifest)
	}
	return o
}

// text is what is read of an object, without what an API server fills in.
func (w *sourceTwin) text(kind string, o runtime.Object) string {
	w.t.Helper()
	text, err := json.Marshal(kube.Trimmed(kind, o))
	fields := map[string]any{}
	if err == nil {
		err = json.Unmarshal(text, &fields)
	}
	delete(fields, "apiVersion")
	delete(fields, "kind")
	if m, ok := fields["metadata"].(map[string]any); ok {
		for _, name := range []string{"uid", "resourceVersion", "generation"} {
			delete(m, name)
		}
	}
	if err == nil {
		text, err = json.Marshal(fields)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return string(text)
}

func (w *sourceTwin) parse(manifest string) *unstructured.Unstructured {
	w.t.Helper()
	u := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(manifest), &u.Object); err != nil {
		w.t.Fatalf("%v\n%s", err, manifest)
	}
	return u
}

func (w *sourceTwin) file(u *unstructured.Unstructured) string {
	return filepath.Join(w.dir, strings.ToLower(u.GetKind()+"-"+u.GetNamespace()+"-"+u.GetName()+".yaml"))
}

// write replaces the file in one step, so that no half of it is read.
func (w *sourceTwin) write(u *unstructured.Unstructured, manifest string) {
	tmp := filepath.Join(w.t.TempDir(), "new")
	err := os.WriteFile(tmp, []byte(manifest), 0o644)
	if err == nil {
		err = os.Rename(tmp, w.file(u))
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// agree waits until both have published mark, a Service that was put last, and the
// same beside it.
func (w *sourceTwin) agree(mark string) (dump string) {
	w.t.Helper()
	var a, b string
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		a, b = recordsOf(w.stores[0]), recordsOf(w.stores[1])
		if strings.Contains(a, mark) && strings.Contains(b, mark) && a == b {
			return a
		}
	}
	w.t.Fatalf("the sources differ:\n%s", diff.Diff("folder", []byte(a), "API server", []byte(b)))
	return ""
}

// plain is a record without what is random, and without what tells in which order
// things were noticed: numbers of nodes, identities (they stay for a while), and the
// UID, which an API server chooses itself.
func plain(r clustermesh.Record) clustermesh.Record {
	switch r := r.(type) {
	case *clustermesh.Cluster:
		r.Incarnation, r.CABundle = 0, nil
	case *clustermesh.Node:
		r.Number = 0
	case *clustermesh.EndpointSlice:
		for i := range r.Endpoints {
			r.Endpoints[i].Node = min(r.Endpoints[i].Node, 1)
		}
	case *clustermesh.Workload:
		r.Owner = ""
	case *clustermesh.IdentityRecord:
		return nil
	}
	return r
}

// recordsOf is what a store holds, as plain leaves it.
func recordsOf(store kvstore.Store) string {
	records := make(map[clustermesh.Key]clustermesh.Record)
	_, err := store.List(context.Background(), clustermesh.Root, kvstore.Position{}, func(kvs []kvstore.KV) error {
		for _, kv := range kvs {
			key, err := clustermesh.ParseKey(kv.Key)
			if err != nil {
				continue // private
			}
			r, err := clustermesh.Decode(key, kv.Value)
			if err != nil {
				return err
			}
			if r = plain(r); r != nil {
				records[key] = r
			}
		}
		return nil
	})
	if err != nil {
		return "error: " + err.Error()
	}
	return clustermesh.Dump(records)
}
