package apiserver

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/kvstore"
	"github.com/tombolo-mesh/tombolo/kvstore/etcd/embed"
)

// benchStores are what a change is published to.
func benchStores(b *testing.B) map[string]kvstore.Store {
	server, err := embed.Start(b.Context(), embed.Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(server.Close)
	return map[string]kvstore.Store{"memory": kvstore.NewMemory(kvstore.MemoryOptions{}), "etcd": server.Store()}
}

// BenchmarkSourceToStore is the way of one change: the clock starts before the
// file is written and stops when the watch of the store shows the record.
func BenchmarkSourceToStore(b *testing.B) {
	for name, store := range benchStores(b) {
		b.Run(name, func(b *testing.B) {
			dir := b.TempDir()
			path := dir + "/svc.yaml"
			file := func(port int) []byte { return []byte(svcYAML("bench", port)) }
			if err := certs.WriteFile(path, file(1), 0o600); err != nil {
				b.Fatal(err)
			}
			p := startPublishing(b, Config{Source: NewFolder(FolderConfig{Dir: dir})}, store)
			eventually(b, "published", func() bool {
				kv, err := getKey(b.Context(), store, "/tombolo/v1/export/aws/cluster")
				return err == nil && kv.Key != ""
			})
			ctx, cancel := context.WithCancel(b.Context())
			defer cancel()
			seen := make(chan time.Time, 16)
			go func() {
				for batch, err := range store.Watch(ctx, "/tombolo/v1/local/aws/service/", kvstore.Position{}) {
					if err != nil {
						return
					}
					for range batch.Events {
						seen <- time.Now()
					}
				}
			}()
			time.Sleep(50 * time.Millisecond) // the watch stands
			var took []time.Duration
			port := 1
			for b.Loop() {
				port = port%60000 + 1
				text := file(port + 1)
				began := time.Now()
				writeAndRename(b, dir, path, text)
				took = append(took, (<-seen).Sub(began))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
			p.stop()
		})
	}
}

// writeAndRename replaces a file without waiting for the disk.
func writeAndRename(b *testing.B, dir, path string, text []byte) {
	b.Helper()
	if err := os.WriteFile(dir+"/.new", text, 0o644); err != nil {
		b.Fatal(err)
	}
	if err := os.Rename(dir+"/.new", path); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkFirstPublication is 1,000 nodes, 5,000 services of 4 pods, all
// registered, from the source's first list until the marker is in the store.
func BenchmarkFirstPublication(b *testing.B) {
	objects := make(map[Ref]runtime.Object)
	for i := range 1000 {
		name := fmt.Sprint("node", i)
		objects[Ref{KindNode, "", name}] = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDRs: []string{fmt.Sprintf("10.%d.%d.0/24", 1+i/256, i%256)}}}
	}
	for i := range 5000 {
		name := fmt.Sprint("svc", i)
		objects[Ref{KindService, "shop", name}] = &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Annotations: map[string]string{AnnotationGlobal: "true"}},
			Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": name}, Ports: []corev1.ServicePort{{Port: 80}}}}
		for j := range 4 {
			pod := fmt.Sprintf("%s-%d", name, j)
			objects[Ref{KindPod, "shop", pod}] = &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: pod, Labels: map[string]string{"app": name, "rank": fmt.Sprint(j)}},
				Spec:       corev1.PodSpec{NodeName: fmt.Sprint("node", (i*4+j)%1000)}}
		}
	}
	for b.Loop() {
		for name, store := range benchStores(b) {
			source := &staticSource{changes: make(chan Objects, 1)}
			began := time.Now()
			source.changes <- Objects{Complete: true, Upserts: objects, At: began}
			p := startPublishing(b, Config{Source: source}, store)
			for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
				if kv, err := getKey(b.Context(), store, "/tombolo/v1/export/aws/cluster"); err == nil && kv.Key != "" {
					break
				}
			}
			b.ReportMetric(time.Since(began).Seconds(), name+"-s")
			p.stop()
		}
	}
}
