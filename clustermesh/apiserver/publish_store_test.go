package apiserver

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// Which store it is, and what that means, also after a restart.
func TestStoreMemory(t *testing.T) {
	before := kvstore.Position{StoreID: 7, Revision: 100}
	for _, c := range []struct {
		name   string
		at     kvstore.Position
		marked bool
		fresh  bool
		want   string
	}{
		{"as before", kvstore.Position{StoreID: 7, Revision: 100}, true, false, ""},
		{"further on", kvstore.Position{StoreID: 7, Revision: 120}, true, false, ""},
		{"another one", kvstore.Position{StoreID: 8, Revision: 500}, true, true, "a different one than before"},
		{"a backup", kvstore.Position{StoreID: 7, Revision: 60}, true, true, "restored from a backup"},
		{"empty", kvstore.Position{StoreID: 8, Revision: 1}, false, true, "came back empty"},
	} {
		dir := t.TempDir()
		m := openStoreMemory(dir, slog.New(slog.DiscardHandler))
		if fresh, p := m.judge(before, false); fresh || p != nil {
			t.Errorf("the first store ever: %v %v", fresh, p)
		}
		m.accept(before)
		m = openStoreMemory(dir, slog.New(slog.DiscardHandler))
		fresh, p := m.judge(c.at, c.marked)
		if fresh != c.fresh || (p == nil) != (c.want == "") || (p != nil && !strings.Contains(p.Text(), c.want)) {
			t.Errorf("%s: %v %v", c.name, fresh, p)
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/store.json", []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if fresh, p := openStoreMemory(dir, slog.New(slog.DiscardHandler)).judge(before, true); fresh || p != nil {
		t.Errorf("a file that cannot be read: %v %v", fresh, p)
	}
}

func oneNode() Source {
	s := &staticSource{changes: make(chan Objects, 1)}
	s.changes <- Objects{Complete: true, At: time.Now(), Upserts: map[Ref]runtime.Object{
		{KindNode, "", "n1"}: &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: corev1.NodeSpec{PodCIDRs: []string{"10.1.1.0/24"}}},
	}}
	return s
}

func markerOf(t *testing.T, store kvstore.Store) *clustermesh.Cluster {
	t.Helper()
	key := clustermesh.KeyOf(clustermesh.ScopeExport, "aws", &clustermesh.Cluster{})
	kv, err := getKey(t.Context(), store, key.String())
	if err != nil || kv.Key == "" {
		return nil
	}
	r, err := clustermesh.Decode(key, kv.Value)
	if err != nil {
		t.Fatal(err)
	}
	return r.(*clustermesh.Cluster)
}

// The incarnation stays over a restart and is another one in another store.
func TestIncarnation(t *testing.T) {
	dir := t.TempDir()
	run := func(store kvstore.Store) uint64 {
		p := startPublishing(t, Config{StateDir: dir, Source: oneNode()}, store)
		defer p.stop()
		eventually(t, "published", func() bool {
			pub := p.core.publisher.Load()
			return pub != nil && pub.Status().Listed && pub.Idle() && markerOf(t, store) != nil
		})
		return markerOf(t, store).Incarnation
	}
	store := kvstore.NewMemory(kvstore.MemoryOptions{})
	first := run(store)
	if again := run(store); first == 0 || again != first {
		t.Errorf("incarnation %x, after a restart %x", first, again)
	}
	if other := run(kvstore.NewMemory(kvstore.MemoryOptions{})); other == first {
		t.Error("an emptied store has the incarnation of the former one")
	}
}

// The etcd of another cluster is not written to.
func TestForeignStore(t *testing.T) {
	store := kvstore.NewMemory(kvstore.MemoryOptions{})
	if _, err := store.Commit(context.Background(), kvstore.Put("/tombolo/v1/export/other/cluster", []byte("x"), 0)); err != nil {
		t.Fatal(err)
	}
	p := startPublishing(t, Config{Source: oneNode()}, store)
	eventually(t, "the problem is named", func() bool {
		return strings.Contains(p.problemText(), "it is the etcd of another cluster: it holds the records of cluster other")
	})
	if text := dumpStore(store, "export/aws/"); text != "" {
		t.Errorf("published all the same:\n%s", text)
	}
}
