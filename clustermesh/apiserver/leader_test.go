package apiserver

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/tombolo-mesh/tombolo/kvstore"
	"github.com/tombolo-mesh/tombolo/kvstore/etcd/embed"
)

// pausable is a store as one process sees it: while the process is stopped
// nothing it does gets anywhere, and what it began goes on when it is resumed.
type pausable struct {
	kvstore.Store
	mu      sync.Mutex
	resumed chan struct{} // nil while running
}

func (p *pausable) pause() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.resumed = make(chan struct{})
}

func (p *pausable) resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.resumed)
	p.resumed = nil
}

func (p *pausable) wait() {
	p.mu.Lock()
	c := p.resumed
	p.mu.Unlock()
	if c != nil {
		<-c // a stopped process does not look at its contexts either
	}
}

func (p *pausable) Commit(_ context.Context, ops ...kvstore.Op) (kvstore.Position, error) {
	p.wait()
	// As a process that was stopped between its last check and the system call:
	// the commit goes out, however old it is.
	return p.Store.Commit(context.Background(), ops...)
}

func (p *pausable) Grant(ctx context.Context, ttl time.Duration) (kvstore.Lease, error) {
	p.wait()
	l, err := p.Store.Grant(ctx, ttl)
	if err != nil {
		return nil, err
	}
	return pausableLease{l, p}, nil
}

type pausableLease struct {
	kvstore.Lease
	p *pausable
}

func (l pausableLease) KeepAlive(ctx context.Context) (time.Duration, error) {
	l.p.wait()
	return l.Lease.KeepAlive(ctx)
}

func (l pausableLease) Revoke(ctx context.Context) error {
	l.p.wait()
	return l.Lease.Revoke(ctx)
}

func testLeader(store kvstore.Store, holder string, ttl time.Duration) *leader {
	return newLeader(leaderConfig{Store: store, Key: "/leader", Holder: holder, TTL: ttl, Log: slog.New(slog.DiscardHandler)})
}

// One of two replicas leads; when it is stopped past its lease the other takes
// over, and what the first still writes on waking is refused.
func TestLeaderPaused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := kvstore.NewMemory(kvstore.MemoryOptions{})
		defer store.Close()
		pausedLeader(t, store, 10*time.Second)
	})
}

// The same on a real etcd, on real time.
func TestLeaderPausedEtcd(t *testing.T) {
	server, err := embed.Start(t.Context(), embed.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	pausedLeader(t, server.Store(), time.Second)
}

func pausedLeader(t *testing.T, store kvstore.Store, ttl time.Duration) {
	first := &pausable{Store: store}
	a, b := testLeader(first, "a", ttl), testLeader(store, "b", ttl)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()

	// Each leader writes its name as fast as it may; a remembers its fence.
	var old *fence
	got := make(chan string, 100)
	write := func(name string, s kvstore.Store) func(context.Context, *fence) error {
		return func(ctx context.Context, f *fence) error {
			if name == "a" && old == nil {
				old = f
			}
			got <- name
			for ctx.Err() == nil {
				ops, err := f.ops()
				if err != nil {
					return err
				}
				if _, err := s.Commit(ctx, append(ops, kvstore.Put("/by", []byte(name), 0))...); err != nil {
					return err
				}
				pause(ctx, ttl/10)
			}
			return nil
		}
	}
	running.Go(func() { a.run(ctx, write("a", first)) })
	if name := <-got; name != "a" {
		t.Fatalf("%s leads", name)
	}
	running.Go(func() { b.run(ctx, write("b", store)) })
	first.pause()
	if name := <-got; name != "b" {
		t.Fatalf("%s leads", name)
	}
	pause(ctx, ttl/2)
	first.resume()
	// What the old term may still send, whatever its clock said.
	_, err := store.Commit(ctx, kvstore.IfCreateRevision(old.key, old.rev), kvstore.Put("/by", []byte("a"), 0))
	if !errors.Is(err, kvstore.ErrConflict) {
		t.Fatalf("a commit of the old term: %v", err)
	}
	pause(ctx, ttl)
	if kv, err := getKey(ctx, store, "/by"); err != nil || string(kv.Value) != "b" {
		t.Fatalf("written by %q, %v", kv.Value, err)
	}
	if leads, _, _ := a.status(); leads {
		t.Error("the old leader believes that it leads")
	}
}

// A replica that starts again takes its own key over at once, with a create
// revision of its own.
func TestLeaderRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := kvstore.NewMemory(kvstore.MemoryOptions{})
		defer store.Close()
		l := testLeader(store, "a", 10*time.Second)
		_, before, err := l.campaign(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		_, after, err := testLeader(store, "a", 10*time.Second).campaign(t.Context())
		if err != nil || time.Since(began) > 0 || after.rev == before.rev {
			t.Fatalf("took over after %s at revision %d (before %d): %v", time.Since(began), after.rev, before.rev, err)
		}
		if _, _, err := testLeader(store, "b", 10*time.Second).campaign(t.Context()); !errors.Is(err, kvstore.ErrConflict) {
			t.Fatalf("another replica: %v", err)
		}
	})
}

// Two whole replicas over one store: one publishes, both take registrations, and
// when the leader ends the other goes on without a change of the store.
func TestTwoReplicas(t *testing.T) {
	store := kvstore.NewMemory(kvstore.MemoryOptions{})
	defer store.Close()
	objects := Objects{Complete: true, At: time.Now(), Upserts: map[Ref]runtime.Object{
		{KindNode, "", "n1"}: &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: corev1.NodeSpec{PodCIDRs: []string{"10.1.1.0/24"}}},
		{KindPod, "shop", "p"}: &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p", Labels: map[string]string{"app": "x"}}, Spec: corev1.PodSpec{NodeName: "n1"}},
		{KindService, "shop", "s"}: &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "s", Annotations: map[string]string{AnnotationGlobal: "true"}},
			Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": "x"}, Ports: []corev1.ServicePort{{Port: 80}}}},
	}}
	source := func() Source {
		s := &staticSource{changes: make(chan Objects, 1)}
		s.changes <- objects
		return s
	}
	a := startPublishing(t, Config{Source: source(), LeaseTTL: 2 * time.Second}, store)
	eventually(t, "the first leads", func() bool { l, _, _ := a.leader.status(); return l })
	b := startPublishing(t, Config{Source: source(), LeaseTTL: 2 * time.Second}, store)

	// Both replicas give one identity, each asked for half.
	if _, err := b.registry.RegisterNode(t.Context(), NodeRegistration{Node: "n1", WireGuardKey: [32]byte{1}}); err != nil {
		eventually(t, "the other replica takes a node", func() bool {
			_, err = b.registry.RegisterNode(t.Context(), NodeRegistration{Node: "n1", WireGuardKey: [32]byte{1}})
			return err == nil
		})
	}
	r := EndpointRegistration{Node: "n1", Namespace: "shop", Pod: "p", Owner: "u", Addresses: addrList("10.1.1.5"), Ready: true}
	id, err := b.registry.RegisterEndpoint(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	again, err := a.registry.RegisterEndpoint(t.Context(), r)
	if err != nil || again != id {
		t.Fatalf("one replica says identity %d, the other %d, %v", id, again, err)
	}
	const slice = "export/aws/endpointslice/shop/s/v4-80  ports=TCP:80 endpoints=10.1.1.5@1\n"
	eventually(t, "published by the leader", func() bool { return dumpStore(store, "export/aws/endpointslice/") == slice })

	before := dumpStore(store, "")
	marker, _ := getKey(t.Context(), store, "/tombolo/v1/export/aws/cluster")
	a.stop()
	eventually(t, "the other leads", func() bool { l, _, _ := b.leader.status(); return l })
	eventually(t, "the other has published", func() bool { p := b.core.publisher.Load(); return p != nil && p.Idle() && p.Status().Listed })
	if after := dumpStore(store, ""); after != before {
		t.Errorf("the store changed with the leader:\n%s\nbefore:\n%s", after, before)
	}
	if now, _ := getKey(t.Context(), store, "/tombolo/v1/export/aws/cluster"); now.ModRevision != marker.ModRevision {
		t.Error("the marker was written again: a new leader is no new incarnation")
	}
}

// Two stores count alike: a leader of the one must not be taken for the leader of
// the other, which came into its place.
func TestFenceOfAnotherStore(t *testing.T) {
	var fences []*fence
	var stores []kvstore.Store
	for _, holder := range []string{"a", "b"} {
		store := kvstore.NewMemory(kvstore.MemoryOptions{})
		defer store.Close()
		l := newLeader(leaderConfig{Store: store, Key: "leader", Holder: holder, TTL: 10 * time.Second, Log: slog.New(slog.DiscardHandler)})
		_, f, err := l.campaign(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		fences, stores = append(fences, f), append(stores, store)
	}
	if fences[0].rev != fences[1].rev {
		t.Fatalf("revisions %d and %d: this test proves nothing", fences[0].rev, fences[1].rev)
	}
	for i, f := range fences {
		for j, store := range stores {
			ops, err := f.ops()
			if err != nil {
				t.Fatal(err)
			}
			_, err = store.Commit(t.Context(), append(ops, kvstore.Put("x", nil, 0))...)
			if i == j && err != nil || i != j && !errors.Is(err, kvstore.ErrConflict) {
				t.Errorf("leader of store %d commits to store %d: %v", i, j, err)
			}
		}
	}
}
