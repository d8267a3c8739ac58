package apiserver

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// A folder of pods that is deleted, file by file: the service keeps all of its
// backends, what is held is named, and it goes through in time or on demand.
func TestPodsFolderDeleted(t *testing.T) {
	for _, confirm := range []bool{false, true} {
		t.Run(fmt.Sprintf("confirm=%v", confirm), func(t *testing.T) {
			const pods = 20
			dir := t.TempDir()
			write := func(name, text string) {
				t.Helper()
				if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			write("base.yaml", "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {podCIDRs: [10.1.1.0/24]}\n---\n"+
				"apiVersion: v1\nkind: Service\nmetadata: {name: shop, namespace: default}\nspec: {selector: {app: shop}, ports: [{port: 80}]}\n")
			for i := range pods {
				write(fmt.Sprintf("pods/p%d.yaml", i), fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: p%d, namespace: default, uid: u%d, labels: {app: shop}}\nspec: {nodeName: n1, containers: [{name: c, image: i}]}\n", i, i))
			}
			store := kvstore.NewMemory(kvstore.MemoryOptions{})
			guard := 1500 * time.Millisecond
			if confirm {
				guard = time.Hour
			}
			p := startPublishing(t, Config{Guard: guard, Source: NewFolder(FolderConfig{Dir: dir, Settle: 10 * time.Millisecond})}, store)
			eventually(t, "published", func() bool { return markerOf(t, store) != nil })
			for i := range pods {
				eventually(t, "pod registered", func() bool {
					_, err := p.registry.RegisterEndpoint(t.Context(), EndpointRegistration{Node: "n1", Namespace: "default", Pod: fmt.Sprintf("p%d", i), Owner: fmt.Sprintf("u%d", i),
						Ready: true, Addresses: addrList(fmt.Sprintf("10.1.1.%d", 10+i))})
					return err == nil
				})
			}
			backends := func() int {
				return strings.Count(dumpStore(store, clustermesh.KindPrefix(clustermesh.ScopeLocal, "aws", clustermesh.KindEndpointSlice)[len(clustermesh.Root):]), "10.1.1.")
			}
			eventually(t, "all backends", func() bool { return backends() == pods })
			if err := os.RemoveAll(filepath.Join(dir, "pods")); err != nil {
				t.Fatal(err)
			}
			eventually(t, "held and named", func() bool {
				return strings.Contains(p.problemText(), "objects of kind pod: a mass delete is held: the source lacks 20 of 20 objects it had (Pod default/p0 …); if it is meant: tombolo mesh confirm-deletes pod;")
			})
			eventually(t, "the service has its backends", func() bool { return backends() == pods })
			if confirm {
				if n := p.confirm("pod"); n != pods {
					t.Errorf("%d released", n)
				}
			}
			eventually(t, "gone in the end", func() bool { return backends() == 0 && !strings.Contains(p.problemText(), "held") })
		})
	}
}

// The same while no server runs: what the store holds stays as it is until the
// guard's time is over, or somebody confirms.
func TestPodsGoneAtStart(t *testing.T) {
	store := kvstore.NewMemory(kvstore.MemoryOptions{})
	dir := t.TempDir()
	run := func(pods int, guard time.Duration) *publishing {
		s := &staticSource{changes: make(chan Objects, 1)}
		o := Objects{Complete: true, At: time.Now(), Upserts: map[Ref]runtime.Object{
			{KindNode, "", "n1"}: &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: corev1.NodeSpec{PodCIDRs: []string{"10.1.1.0/24"}}},
		}}
		for i := range pods {
			name := fmt.Sprintf("p%d", i)
			o.Upserts[Ref{KindPod, "default", name}] = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name)}, Spec: corev1.PodSpec{NodeName: "n1"}}
		}
		s.changes <- o
		return startPublishing(t, Config{StateDir: dir, Source: s, Guard: guard}, store)
	}
	workloads := func() int { return strings.Count(dumpStore(store, "local/aws/workload/"), "\n") }
	p := run(20, time.Hour)
	eventually(t, "published", func() bool { return workloads() == 20 })
	p.stop()
	p = run(2, time.Hour)
	eventually(t, "held and named", func() bool {
		return strings.Contains(p.problemText(), "a mass delete is held, and nothing else is published meanwhile: the source lacks 18 of 20 pods")
	})
	if n := workloads(); n != 20 {
		t.Errorf("%d workloads are left", n)
	}
	if n := p.confirm("pod"); n != 18 {
		t.Errorf("%d released", n)
	}
	// The records' own guard asks for a second opinion on each kind.
	eventually(t, "gone", func() bool { p.confirm(""); return workloads() == 2 })
	p.stop()
	p = run(20, time.Hour)
	eventually(t, "back", func() bool { return workloads() == 20 })
	p.stop()
	run(2, 200*time.Millisecond)
	eventually(t, "by itself", func() bool { return workloads() == 2 })
}

// What the guard lets through and what it holds.
func TestSourceGuard(t *testing.T) {
	pod := func(i int) (Ref, runtime.Object) {
		name := fmt.Sprintf("p%02d", i)
		return Ref{KindPod, "default", name}, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	}
	pods := func(from, to int) map[Ref]runtime.Object {
		m := make(map[Ref]runtime.Object)
		for i := from; i < to; i++ {
			ref, obj := pod(i)
			m[ref] = obj
		}
		return m
	}
	refs := func(from, to int) (all []Ref) {
		for ref := range pods(from, to) {
			all = append(all, ref)
		}
		return all
	}
	now := time.Unix(1000, 0)
	g := newSourceGuard(30 * time.Second)
	step := func(what string, after time.Duration, o Objects, deletes, upserts, held int) {
		t.Helper()
		now = now.Add(after)
		out := g.admit(o, now)
		if len(out.Deletes) != deletes || len(out.Upserts) != upserts || len(g.kind(KindPod).held) != held {
			t.Errorf("%s: %d deletes, %d upserts, %d held; want %d, %d, %d", what, len(out.Deletes), len(out.Upserts), len(g.kind(KindPod).held), deletes, upserts, held)
		}
	}
	step("first list", 0, Objects{Complete: true, Upserts: pods(0, 20)}, 0, 20, 0)
	step("a few are not many", time.Minute, Objects{Deletes: refs(0, 5)}, 5, 0, 0)
	step("back again", time.Minute, Objects{Upserts: pods(0, 5)}, 0, 5, 0)
	for i := range 20 { // a rolling update: one comes, one goes
		step("rolling update", time.Second, Objects{Upserts: pods(20+i, 21+i), Deletes: refs(i, i+1)}, 1, 1, 0)
	}
	step("one by one", time.Minute, Objects{Deletes: refs(20, 30)}, 10, 0, 0)
	step("the next one is too much, all come back", 10*time.Millisecond, Objects{Deletes: refs(30, 31)}, 0, 10, 11)
	step("and more", 10*time.Millisecond, Objects{Deletes: refs(31, 40)}, 0, 0, 20)
	if ps := g.problems(); len(ps) != 1 || !strings.Contains(ps[0].Why, "lacks 20 of 20") {
		t.Errorf("%v", ps)
	}
	if got := g.release("", now.Add(-30*time.Second)); len(got) != 0 {
		t.Errorf("released too early: %v", got)
	}
	step("some come back", time.Second, Objects{Complete: true, Upserts: pods(20, 35)}, 0, 15, 5)
	if got := g.release("service", now); len(got) != 0 {
		t.Errorf("another kind: %v", got)
	}
	if got := g.release("pod", now); len(got) != 5 || !slices.IsSortedFunc(got, compareRefs) {
		t.Errorf("released: %v", got)
	}
	step("the end", time.Second, Objects{Complete: true, Upserts: pods(20, 35)}, 0, 15, 0)
}
