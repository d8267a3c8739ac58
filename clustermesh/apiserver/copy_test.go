package apiserver

import (
	"context"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
	"github.com/tombolo-mesh/tombolo/kvstore/etcd/embed"
	"github.com/tombolo-mesh/tombolo/kvstore/kvtest"
)

// shop is a source of one node with one pod and a service of it.
func shop() Source {
	s := &staticSource{changes: make(chan Objects, 1)}
	s.changes <- Objects{Complete: true, At: time.Now(), Upserts: map[Ref]runtime.Object{
		{KindNode, "", "n1"}: &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: corev1.NodeSpec{PodCIDRs: []string{"10.1.1.0/24"}}},
		{KindPod, "default", "p1"}: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p1", UID: types.UID("u1"), Labels: map[string]string{"app": "shop"}},
			Spec: corev1.PodSpec{NodeName: "n1"}},
		{KindService, "default", "shop"}: &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "shop"},
			Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "shop"}, Ports: []corev1.ServicePort{{Port: 80}}}},
	}}
	return s
}

// registerShop does what the agent of n1 does, and lets cluster gcp be a peer.
func registerShop(t *testing.T, p *publishing) {
	t.Helper()
	node := NodeRegistration{Node: "n1", UnderlayAddresses: addrList("192.0.2.1"), WireGuardEndpoint: "192.0.2.1:51820", WireGuardKey: [32]byte{1}}
	eventually(t, "node registered", func() bool { _, err := p.registry.RegisterNode(t.Context(), node); return err == nil })
	pod := EndpointRegistration{Node: "n1", Namespace: "default", Pod: "p1", Owner: "u1", Ready: true, Addresses: addrList("10.1.1.5")}
	if _, err := p.registry.RegisterEndpoint(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	befriend(t, p.store, "gcp", 2)
	eventually(t, "all is published", func() bool {
		text := dumpStore(p.store, "")
		return strings.Contains(text, "10.1.1.5") && dumpStore(p.cache, "") == text
	})
}

func befriend(t *testing.T, store kvstore.Store, name string, id clustermesh.ID) {
	t.Helper()
	peer := &clustermesh.Peer{Name: name, ID: id, MeshAddresses: []string{name + ".example:9443"}, CABundle: rigCA(t, name).Bundle()}
	ops, err := NewPeers(store, "aws", certs.NewBundles(), nil).put(peer, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Commit(t.Context(), ops...); err != nil {
		t.Fatal(err)
	}
}

func quietly() *slog.Logger { return slog.New(slog.DiscardHandler) }

// An etcd that came back empty gets back what only it knew, before anybody can
// read it without.
func TestEmptyStoreIsRefilled(t *testing.T) {
	dir := t.TempDir()
	store := kvstore.NewMemory(kvstore.MemoryOptions{})
	p := startPublishing(t, Config{StateDir: dir, Source: shop()}, store)
	registerShop(t, p)
	want := dumpStore(store, "")
	p.stop()

	empty := kvstore.NewMemory(kvstore.MemoryOptions{})
	p = startPublishing(t, Config{StateDir: dir, Source: shop()}, empty)
	eventually(t, "published", func() bool { return markerOf(t, empty) != nil })
	// The marker is written last: what is there at its revision is all readers see.
	if got := dumpStore(empty, ""); got != want {
		t.Errorf("after the refill:\n%s\nbefore:\n%s", got, want)
	}
	if text := p.problemText(); !strings.Contains(text, "the etcd came back empty; restored 2 registrations and 1 peers from "+dir) || !strings.Contains(text, "tombolo mesh list") {
		t.Errorf("problems:\n%s", text)
	}
	// Copies go on from the new store.
	befriend(t, empty, "edge", 3)
	eventually(t, "the copy follows the new store", func() bool {
		f, err := readCopy(filepath.Join(dir, "last-good"), "aws")
		return err == nil && strings.Contains(string(mustEncode(t, f)), "peer/edge")
	})
}

func mustEncode(t *testing.T, f *copyFile) []byte {
	t.Helper()
	text, err := f.encode()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// While the server runs, a store that is suddenly an empty one takes nothing
// away from readers, not for a moment.
func TestStoreSwappedUnderReaders(t *testing.T) {
	store, empty := kvstore.NewMemory(kvstore.MemoryOptions{}), kvstore.NewMemory(kvstore.MemoryOptions{})
	f := kvtest.NewFaulty(store, 1, kvtest.Faults{})
	p := startPublishing(t, Config{Source: shop(), LeaseTTL: time.Second}, f)
	registerShop(t, p)
	want := dumpStore(store, "")
	eventually(t, "copied", func() bool { return p.copy.position().Revision > 0 && dumpStore(p.cache, "") == want })
	f.Swap(empty)
	eventually(t, "the gate holds", func() bool {
		if got := dumpStore(p.cache, ""); got != want {
			t.Fatalf("readers see:\n%s", got)
		}
		return p.gate.holds(empty.Position().StoreID) || p.cache.Position().StoreID == empty.Position().StoreID
	})
	eventually(t, "the new store is shown", func() bool {
		if got := dumpStore(p.cache, ""); got != want {
			t.Fatalf("readers see:\n%s\nwant\n%s", got, want)
		}
		return p.cache.Position().StoreID == empty.Position().StoreID
	})
	if text := p.problemText(); !strings.Contains(text, "restored 2 registrations and 1 peers") || strings.Contains(text, "while it was in use") {
		t.Errorf("problems:\n%s", text)
	}
	if _, err := p.registry.RegisterNode(t.Context(), NodeRegistration{Node: "n1", UnderlayAddresses: addrList("192.0.2.9"), WireGuardEndpoint: "192.0.2.9:51820", WireGuardKey: [32]byte{1}}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	eventually(t, "published to the new store", func() bool { return strings.Contains(dumpStore(empty, ""), "192.0.2.9") })
}

// An etcd put back from a copy of its data directory.
func TestStoreFromABackup(t *testing.T) {
	dir := t.TempDir()
	data, backup := filepath.Join(dir, "etcd"), filepath.Join(dir, "backup")
	state := filepath.Join(dir, "state")
	run := func() (*publishing, func()) {
		t.Helper()
		e, err := embed.Start(context.Background(), embed.Config{Dir: data, Log: quietly()})
		if err != nil {
			t.Fatal(err)
		}
		p := startPublishing(t, Config{StateDir: state, Source: shop()}, e.Store())
		return p, func() { p.stop(); e.Close() }
	}
	p, stop := run()
	befriend(t, p.store, "old", 9)
	eventually(t, "published", func() bool { return markerOf(t, p.store) != nil })
	first := markerOf(t, p.store).Incarnation
	stop()
	copyTree(t, data, backup)

	p, stop = run()
	registerShop(t, p)
	want := dumpStore(p.store, "")
	stop()
	if err := os.RemoveAll(data); err != nil {
		t.Fatal(err)
	}
	copyTree(t, backup, data)

	p, stop = run()
	defer stop()
	eventually(t, "published anew", func() bool { m := markerOf(t, p.store); return m != nil && m.Incarnation != first })
	if got := dumpStore(p.store, ""); got != want {
		t.Errorf("from the backup:\n%s\nbefore:\n%s", got, want)
	}
	if text := p.problemText(); !strings.Contains(text, "restored from a backup; restored 2 registrations and 1 peers") {
		t.Errorf("problems:\n%s", text)
	}
}

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(from, path)
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		if !d.Type().IsRegular() {
			return nil // a socket
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), text, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A copy that cannot be used is named and set aside, and changes nothing else.
func TestCopyFile(t *testing.T) {
	good := mustEncode(t, &copyFile{Cluster: "aws", StoreID: "7", Revision: 3, Records: []copyRecord{{Key: "k", Value: []byte("v")}}})
	if f, err := decodeCopy(good, "aws"); err != nil || f.Records[0].Key != "k" {
		t.Fatalf("%v %v", f, err)
	}
	for name, text := range map[string]string{
		"empty": "", "garbage": "\x00\x01", "cut": string(good[:len(good)-4]), "changed": strings.Replace(string(good), `"revision":3`, `"revision":4`, 1),
		"another cluster": string(mustEncode(t, &copyFile{Cluster: "gcp"})),
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "last-good")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c := openLastGood(dir, "aws", kvstore.NewReplica(kvstore.MemoryOptions{}), quietly())
		if ps := c.problems(); len(ps) != 1 || !strings.Contains(ps[0].Text(), path+".bad") || c.last != nil {
			t.Errorf("%s: %v", name, ps)
		}
		if _, err := os.Stat(path + ".bad"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What the store has is not touched by a restore, and one text keeps one number.
func TestRestoreChangesNothingThatIsThere(t *testing.T) {
	store := kvstore.NewMemory(kvstore.MemoryOptions{})
	put := func(key string, value []byte) copyRecord {
		if _, err := store.Commit(t.Context(), kvstore.Put(key, value, 0)); err != nil {
			t.Fatal(err)
		}
		return copyRecord{Key: key, Value: []byte("older")}
	}
	n := newNumbers(numbersConfig{Store: store, Prefix: identityPrefix("aws"), Max: 9})
	if _, err := n.ensure(t.Context(), []string{"b"}); err != nil {
		t.Fatal(err)
	}
	was := newNumbers(numbersConfig{Store: kvstore.NewMemory(kvstore.MemoryOptions{}), Prefix: identityPrefix("aws"), Max: 9})
	if _, err := was.ensure(t.Context(), []string{"a", "b", "c"}); err != nil {
		t.Fatal(err)
	}
	c := openLastGood(t.TempDir(), "aws", kvstore.NewReplica(kvstore.MemoryOptions{}), quietly())
	c.last = &copyFile{Cluster: "aws", StoreID: "1", Revision: 1, Records: []copyRecord{put(privateKey("aws", "node", "n1"), []byte("newer")), {Key: privateKey("aws", "token", "t"), Value: []byte("x"), Leased: true}}}
	for number, text := range map[string]string{"1": "a", "2": "b", "3": "c"} {
		kv, err := getKey(t.Context(), was.cfg.Store, identityPrefix("aws")+number)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := numberOf(kv.Value); got != text {
			t.Fatalf("number %s is of %s", number, got)
		}
		c.last.Records = append(c.last.Records, copyRecord{Key: kv.Key, Value: kv.Value})
	}
	lease := &fence{key: privateKey("aws", "leader", "apiserver"), term: privateKey("aws", "leader", "apiserver/1"), deadline: time.Now().Add(time.Hour)}
	at, err := store.Commit(t.Context(), kvstore.Put(lease.key, nil, 0), kvstore.Put(lease.term, nil, 0))
	if err != nil {
		t.Fatal(err)
	}
	lease.rev = at.Revision
	got, err := c.restore(t.Context(), store, lease)
	if err != nil || got.registrations != 0 || got.others != 2 { // the token, and number 3
		t.Fatalf("%+v %v", got, err)
	}
	if kv, _ := getKey(t.Context(), store, privateKey("aws", "node", "n1")); string(kv.Value) != "newer" {
		t.Errorf("the node says %q", kv.Value)
	}
	if kv, _ := getKey(t.Context(), store, privateKey("aws", "token", "t")); kv.Lease == 0 {
		t.Error("the token would stay for ever")
	}
	if _, err := n.ensure(t.Context(), []string{"a"}); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]uint32{"a": 2, "b": 1, "c": 3} {
		if number, _ := n.lookup(text); number != want {
			t.Errorf("%s has number %d, want %d", text, number, want)
		}
	}
	lease.rev++
	if _, err := store.Commit(t.Context(), kvstore.Delete(privateKey("aws", "node", "n1"))); err != nil {
		t.Fatal(err)
	}
	if _, err := c.restore(t.Context(), store, lease); err == nil {
		t.Error("restored without the leader key")
	}
}

// The same while the server runs: an external etcd restored from a backup.
func TestStoreRestoredUnderReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := kvstore.NewMemory(kvstore.MemoryOptions{StoreID: 7})
		backup := kvstore.NewMemory(kvstore.MemoryOptions{StoreID: 7})
		defer store.Close()
		defer backup.Close()
		f := kvtest.NewFaulty(store, 1, kvtest.Faults{})
		p := startPublishing(t, Config{Source: shop()}, f)
		defer p.stop()
		eventually(t, "published", func() bool { return markerOf(t, store) != nil })
		var ops []kvstore.Op
		_, err := store.List(t.Context(), "", kvstore.Position{}, func(kvs []kvstore.KV) error {
			for _, kv := range kvs {
				if kv.Lease == 0 {
					ops = append(ops, kvstore.Put(kv.Key, kv.Value, 0))
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := backup.Commit(t.Context(), ops...); err != nil {
			t.Fatal(err)
		}
		registerShop(t, p)
		time.Sleep(2 * time.Second)
		want, first := dumpStore(store, ""), markerOf(t, store).Incarnation
		f.Swap(backup)
		for range 1200 { // a minute, and more than a reader takes to believe in a backup
			time.Sleep(50 * time.Millisecond)
			if got := dumpStore(p.cache, ""); got != want {
				t.Fatalf("readers see:\n%s\nwant\n%s\n%s", got, want, p.problemText())
			}
		}
		if got := dumpStore(backup, ""); got != want {
			t.Errorf("the backup was brought to\n%s\nwant\n%s\n%s", got, want, p.problemText())
		}
		if m := markerOf(t, backup); m == nil || m.Incarnation == first {
			t.Error("no new incarnation")
		}
		if at := p.cache.Position(); at.Revision > backup.Position().Revision {
			t.Errorf("the cache still shows what was before: %v", at)
		}
		if text := p.problemText(); !strings.Contains(text, "restored from a backup; restored 2 registrations and 1 peers") || strings.Contains(text, "while it was in use") {
			t.Errorf("problems:\n%s", text)
		}
	})
}

// A term that goes on over a restored store, because the backup holds its key as
// well, is ended: the next one judges the store.
func TestTermEndsWhenItsStoreWasRestored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := kvstore.NewMemory(kvstore.MemoryOptions{})
		defer store.Close()
		p := startPublishing(t, Config{Source: shop()}, store)
		defer p.stop()
		eventually(t, "published", func() bool { return markerOf(t, store) != nil })
		key := privateKey("aws", "leader", "apiserver")
		before, err := getKey(t.Context(), store, key)
		if err != nil {
			t.Fatal(err)
		}
		p.gate.changed(store.Position())
		time.Sleep(5 * time.Second)
		if now, _ := getKey(t.Context(), store, key); now.CreateRevision != before.CreateRevision {
			t.Error("a term was ended for nothing")
		}
		p.gate.changed(kvstore.Position{StoreID: store.Position().StoreID, Revision: 1})
		time.Sleep(5 * time.Second)
		if now, _ := getKey(t.Context(), store, key); now.CreateRevision == before.CreateRevision {
			t.Error("the term went on")
		}
	})
}
