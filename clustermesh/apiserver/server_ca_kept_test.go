package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// fakeKeeper keeps a CA in memory.
type fakeKeeper struct {
	mu       sync.Mutex
	text     CAText
	err      error
	supplied bool
	made     int
	gets     int
	changed  []func()
}

func (k *fakeKeeper) get() (CAText, error) {
	switch {
	case k.err != nil:
		return CAText{}, k.err
	case len(k.text.Chain) == 0:
		return CAText{}, ErrNoCA
	}
	return k.text, nil
}

func (k *fakeKeeper) Get(context.Context) (CAText, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.gets++
	return k.get()
}

// looked: a server has looked at the CA again, and has done what follows from it.
func (k *fakeKeeper) looked(t *testing.T) {
	t.Helper()
	count := func() int { k.mu.Lock(); defer k.mu.Unlock(); return k.gets }
	for range 2 { // the second look begins after the first one's end
		was := count()
		k.set(k.text, k.err)
		eventually(t, "the CA is looked at again", func() bool { return count() > was })
	}
}

func (k *fakeKeeper) Make(_ context.Context, text CAText) (CAText, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.text.Chain) == 0 && k.err == nil {
		k.text = text
		k.made++
	}
	return k.get()
}

func (k *fakeKeeper) Supplied() bool { return k.supplied }
func (k *fakeKeeper) String() string { return "the keeper" }

func (k *fakeKeeper) Follow(ctx context.Context, changed func()) {
	k.mu.Lock()
	k.changed = append(k.changed, changed)
	k.mu.Unlock()
	changed()
	<-ctx.Done()
}

// set has another content kept.
func (k *fakeKeeper) set(text CAText, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.text, k.err = text, err
	for _, f := range k.changed {
		f()
	}
}

func someCA(t *testing.T, cluster string) CAText {
	t.Helper()
	chain, key, err := certs.MakeCA(cluster, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return CAText{Chain: chain, Key: key}
}

func fingerprintOf(t *testing.T, text CAText) string {
	t.Helper()
	ca, err := certs.ParseCA("aws", time.Now(), text.Chain, text.Key)
	if err != nil {
		t.Fatal(err)
	}
	return ca.Fingerprint()
}

// startKept starts a whole replica over a store and a keeper; stop waits for its end.
func startKept(t *testing.T, dir string, store kvstore.Store, keeper CAKeeper, announce time.Duration) (s *server, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	sockets, err := os.MkdirTemp("", "kept") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(sockets) })
	source := &staticSource{changes: make(chan Objects, 1)}
	source.changes <- Objects{Complete: true, At: time.Now()}
	cfg := Config{Cluster: "aws", ID: 1, StateDir: dir, Source: source, Listen: addr, Socket: filepath.Join(sockets, "s"), Version: "v1.0.0",
		CAKeeper: keeper, CAAnnounce: announce, LeaseTTL: 2 * time.Second,
		Open: func(context.Context) (StoreHandle, error) { return StoreHandle{Store: store}, nil }}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	state, err := openState(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s, err = newServer(ctx, cfg, state, StoreHandle{Store: store})
	if err == nil {
		err = s.port.refuseOtherCA(ctx)
	}
	if err != nil {
		cancel()
		state.close()
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			state.close()
		})
	}
	t.Cleanup(stop)
	return s, stop
}

// Three replicas that start at once without any CA agree on one.
func TestReplicasAgreeOnOneCA(t *testing.T) {
	store := kvstore.NewMemory(kvstore.MemoryOptions{})
	defer store.Close()
	keeper := &fakeKeeper{}
	var all [3]*server
	var starting sync.WaitGroup
	for i := range all {
		dir := t.TempDir()
		starting.Go(func() { all[i], _ = startKept(t, dir, store, keeper, 100*time.Millisecond) })
	}
	starting.Wait()
	if keeper.made != 1 {
		t.Errorf("%d CAs were made", keeper.made)
	}
	for _, s := range all {
		if got := s.port.ca().Fingerprint(); got != fingerprintOf(t, keeper.text) {
			t.Errorf("a replica has the CA %s", got)
		}
	}
}

// A CA with another root is announced first, signs later, and what the former one
// has signed stays good. A restart in between does not start anew.
func TestKeptCAIsRolledOver(t *testing.T) {
	store := kvstore.NewMemory(kvstore.MemoryOptions{})
	defer store.Close()
	first, second := someCA(t, "aws"), someCA(t, "aws")
	keeper := &fakeKeeper{text: first, supplied: true}
	dir := t.TempDir()
	s, stop := startKept(t, dir, store, keeper, time.Hour)
	if s.port.ca().Fingerprint() != fingerprintOf(t, first) {
		t.Fatal("another CA than the one that is kept")
	}
	keeper.set(second, nil)
	eventually(t, "the new root is announced and the former CA signs", func() bool {
		ca := s.port.ca()
		return ca.Fingerprint() == fingerprintOf(t, first) && certs.SharedRoot(ca.Bundle(), second.Chain) != nil && s.caKept.published(t.Context(), mustCA(t, second))
	})
	stop()
	s, stop = startKept(t, dir, store, keeper, 100*time.Millisecond)
	defer stop()
	if ca := s.port.ca(); ca.Fingerprint() != fingerprintOf(t, second) || certs.SharedRoot(ca.Bundle(), first.Chain) == nil {
		t.Errorf("after the restart %s signs", ca.Fingerprint())
	}
}

func mustCA(t *testing.T, text CAText) *certs.CA {
	t.Helper()
	ca, err := certs.ParseCA("aws", time.Now(), text.Chain, text.Key)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func TestKeptCASwitchesByItself(t *testing.T) {
	store := kvstore.NewMemory(kvstore.MemoryOptions{})
	defer store.Close()
	first, second := someCA(t, "aws"), someCA(t, "aws")
	keeper := &fakeKeeper{text: first, supplied: true}
	s, _ := startKept(t, t.TempDir(), store, keeper, 100*time.Millisecond)
	keeper.set(second, nil)
	eventually(t, "the new CA signs and the former root stays announced", func() bool {
		ca := s.port.ca()
		return ca.Fingerprint() == fingerprintOf(t, second) && certs.SharedRoot(ca.Bundle(), first.Chain) != nil
	})
	eventually(t, "the port's own certificate is by the new CA", func() bool {
		_, _, err := certs.VerifyPinned(fingerprintOf(t, second), s.port.cfg.Leaf.Certificate().Certificate, time.Now())
		return err == nil
	})
}

// What cannot be used changes nothing, and is a problem until it can be.
func TestKeptCAThatCannotBeUsed(t *testing.T) {
	store := kvstore.NewMemory(kvstore.MemoryOptions{})
	defer store.Close()
	first, other := someCA(t, "aws"), someCA(t, "aws")
	keeper := &fakeKeeper{text: first, supplied: true}
	dir := t.TempDir()
	s, stop := startKept(t, dir, store, keeper, 100*time.Millisecond)
	problem := func(want string) func() bool {
		return func() bool {
			for _, p := range s.problems.All() {
				if strings.Contains(p.Text(), want) {
					return true
				}
			}
			return false
		}
	}
	keeper.set(CAText{Chain: other.Chain, Key: first.Key}, nil)
	unfit := problem("the key is not that of the first certificate")
	eventually(t, "a key that does not fit is a problem", unfit)
	if keeper.looked(t); !unfit() {
		t.Error("at the second look the problem is gone, and its cause is not")
	}
	keeper.set(CAText{}, nil)
	eventually(t, "a supplied CA that is gone is a problem", problem("there is no CA there"))
	if s.port.ca().Fingerprint() != fingerprintOf(t, first) {
		t.Error("the CA from before is not in force")
	}
	stop()
	keeper.set(CAText{}, errors.New("no answer"))
	s, stop = startKept(t, dir, store, keeper, 100*time.Millisecond)
	if s.port.ca().Fingerprint() != fingerprintOf(t, first) {
		t.Error("the copy does not serve")
	}
	keeper.set(first, nil)
	eventually(t, "the problem is over", func() bool { return !problem("CA of cluster")() })
	stop()
}

// A Secret that was deleted comes back with the same CA.
func TestDeletedCAIsPutBack(t *testing.T) {
	store := kvstore.NewMemory(kvstore.MemoryOptions{})
	defer store.Close()
	keeper := &fakeKeeper{}
	dir := t.TempDir()
	s, stop := startKept(t, dir, store, keeper, 100*time.Millisecond)
	want := s.port.ca().Fingerprint()
	back := func() bool {
		text, err := keeper.Get(t.Context())
		return err == nil && fingerprintOf(t, text) == want
	}
	keeper.set(CAText{}, nil)
	eventually(t, "a running server puts it back", back)
	stop()
	keeper.set(CAText{}, nil)
	_, stop = startKept(t, dir, store, keeper, 100*time.Millisecond)
	defer stop()
	if !back() {
		t.Error("a starting server does not put it back")
	}
}

// A CA that is to be supplied is waited for, and who asks meanwhile is told: the
// server is alive, not ready, and its status says what is missing.
func TestSuppliedCAIsWaitedFor(t *testing.T) {
	keeper := &fakeKeeper{supplied: true}
	dir, err := os.MkdirTemp("", "kept") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	metrics, socket := l.Addr().String(), filepath.Join(dir, "s")
	l.Close()
	store := kvstore.NewMemory(kvstore.MemoryOptions{})
	defer store.Close()
	source := &staticSource{changes: make(chan Objects, 1)}
	ready := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Config{Cluster: "aws", ID: 1, StateDir: dir, Source: source, Listen: "127.0.0.1:0", Advertise: []string{"mesh.example:9443"}, Socket: socket, Metrics: metrics, Version: "v1.0.0",
			CAKeeper: keeper, Log: slog.New(slog.DiscardHandler), Ready: func() { close(ready) },
			Open: func(context.Context) (StoreHandle, error) { return StoreHandle{Store: store, Text: "memory"}, nil }})
	}()
	probe := func(path string) string {
		res, err := http.Get("http://" + metrics + path)
		if err != nil {
			return err.Error()
		}
		defer res.Body.Close()
		text, _ := io.ReadAll(res.Body)
		return fmt.Sprint(res.StatusCode, " ", string(text))
	}
	const waits = "this server waits for its CA in the keeper, and serves nobody until then"
	eventually(t, "it says that it waits", func() bool { return strings.Contains(probe("/readyz"), "503 not ready: CA of cluster aws: "+waits) })
	if got := probe("/livez"); got != "200 alive\n" {
		t.Errorf("livez: %s", got)
	}
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	admin := pb.NewAdminClient(conn)
	st, err := admin.Status(t.Context(), &pb.StatusRequest{})
	if err != nil || st.Cluster.GetName() != "aws" || st.Leader || len(st.Problems) != 1 || st.Problems[0].What != waits || !strings.Contains(st.Problems[0].Fix, "cert-manager") {
		t.Errorf("%v: %v", err, st)
	}
	if _, err := admin.Invite(t.Context(), &pb.InviteRequest{}); AsRefusal(err) == nil || AsRefusal(err).What != waits {
		t.Errorf("another call: %v", err)
	}
	keeper.set(someCA(t, "aws"), nil)
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	case <-time.After(30 * time.Second):
		t.Fatal("it does not start with the CA")
	}
	eventually(t, "the server itself answers", func() bool {
		st, err := admin.Status(t.Context(), &pb.StatusRequest{})
		return err == nil && st.Fingerprint == fingerprintOf(t, keeper.text) && strings.HasPrefix(probe("/readyz"), "200")
	})
	cancel()
	if err := <-done; err != nil || keeper.made != 0 {
		t.Errorf("%v, %d made", err, keeper.made)
	}
}

// A server that ends while it waits leaves nothing behind; that it cannot say so
// anywhere is no reason not to wait.
func TestWaitingForCAEnds(t *testing.T) {
	k := &keptCA{server: newPublishing(Config{Cluster: "aws", ID: 1, StateDir: t.TempDir(), Socket: strings.Repeat("x", 200), Log: slog.New(slog.DiscardHandler)}, &stateDir{}, StoreHandle{Store: kvstore.NewMemory(kvstore.MemoryOptions{})}), keeper: &fakeKeeper{supplied: true}}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := k.open(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

// A server that made its CA before it had a keeper hands that one over.
func TestOwnCAIsHandedOver(t *testing.T) {
	store := kvstore.NewMemory(kvstore.MemoryOptions{})
	defer store.Close()
	dir := t.TempDir()
	ca, err := certs.OpenCA(filepath.Join(dir, "ca"), "aws", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	keeper := &fakeKeeper{}
	s, _ := startKept(t, dir, store, keeper, 100*time.Millisecond)
	if s.port.ca().Fingerprint() != ca.Fingerprint() || fingerprintOf(t, keeper.text) != ca.Fingerprint() {
		t.Error("another CA than before")
	}
}
