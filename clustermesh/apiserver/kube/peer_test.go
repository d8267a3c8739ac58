package kube_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/gentype"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/kube"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/kube/kubetest"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/kube/v1alpha1"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

const ns = "tombolo-system"

// side is a cluster: an API server in memory, and a mesh API server with the
// controller of MeshPeers as long as it is not stopped.
type side struct {
	t      *testing.T
	name   string
	id     int
	api    *kubetest.Server
	client *kube.Client
	store  *kvstore.Memory
	dir    string
	addr   string
	socket string
	stop   func()
}

type peersClient = gentype.ClientWithList[*v1alpha1.MeshPeer, *v1alpha1.MeshPeerList]

func newSide(t *testing.T, name string, id int) *side {
	t.Helper()
	api := kubetest.New(t)
	api.Serve(kubetest.Kind{GroupVersionResource: v1alpha1.MeshPeers, Name: "MeshPeer", Namespace: true})
	s := newSideOn(t, name, id, testClient(t, api))
	s.api = api
	return s
}

// newSideOn is newSide on an API server that is there, real or not.
func newSideOn(t *testing.T, name string, id int, client *kube.Client) *side {
	t.Helper()
	s := &side{t: t, name: name, id: id, client: client, dir: t.TempDir(), store: kvstore.NewMemory(kvstore.MemoryOptions{})}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	l.Close()
	t.Cleanup(s.store.Close)
	s.start()
	return s
}

type noObjects struct{}

func (noObjects) Run(ctx context.Context, deliver func(apiserver.Objects)) error {
	deliver(apiserver.Objects{Complete: true, At: time.Now()})
	<-ctx.Done()
	return nil
}

// start starts the mesh API server, as after a crash.
func (s *side) start() {
	s.t.Helper()
	s.socket, s.stop = runServer(s.t, apiserver.Config{
		Cluster: s.name, ID: clustermesh.ID(s.id), StateDir: s.dir, Source: noObjects{}, Listen: s.addr, Version: "v1.0.0",
		PodPrefixes: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/16", s.id))}, LeaseTTL: 2 * time.Second, Log: slog.New(slog.DiscardHandler),
		Open: func(context.Context) (apiserver.StoreHandle, error) {
			return apiserver.StoreHandle{Store: s.store}, nil
		},
		Parts: []apiserver.Part{kube.PeersPart(s.client)},
	})
}

// runServer runs a mesh API server with a socket of its own, and returns when it is
// ready. stop, which may be called again, stops it and waits.
func runServer(t *testing.T, cfg apiserver.Config) (socket string, stop func()) {
	t.Helper()
	sockets, err := os.MkdirTemp("", "server") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	ready := make(chan struct{})
	cfg.Socket, cfg.Ready = filepath.Join(sockets, "s"), func() { close(ready) }
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- apiserver.Run(ctx, cfg) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		os.RemoveAll(sockets)
	})
	t.Cleanup(stop)
	select {
	case <-ready:
	case err := <-done:
		done <- nil
		t.Fatal(err)
	}
	return cfg.Socket, stop
}

func (s *side) peers() *peersClient {
	c, err := kube.Resource(s.client, v1alpha1.MeshPeers, s.client.Namespace, func() *v1alpha1.MeshPeer { return &v1alpha1.MeshPeer{} }, func() *v1alpha1.MeshPeerList { return &v1alpha1.MeshPeerList{} })
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

func (s *side) create(name string, spec v1alpha1.MeshPeerSpec) {
	s.t.Helper()
	_, err := s.peers().Create(context.Background(), &v1alpha1.MeshPeer{
		TypeMeta: metav1.TypeMeta{APIVersion: "tombolo.io/v1alpha1", Kind: "MeshPeer"}, ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: s.client.Namespace}, Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *side) putToken(name, token string) {
	s.t.Helper()
	_, err := s.client.Secrets(s.client.Namespace).Create(context.Background(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: s.client.Namespace}, Type: corev1.SecretTypeOpaque,
		Data: map[string][]byte{"token": []byte(token)}}, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
}

// condition is "status reason: message" of one.
func (s *side) condition(name, kind string) string {
	mp, err := s.peers().Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		return err.Error()
	}
	c := meta.FindStatusCondition(mp.Status.Conditions, kind)
	if c == nil {
		return "none"
	}
	return fmt.Sprintf("%s %s: %s", c.Status, c.Reason, c.Message)
}

func (s *side) wait(name, kind, want string) {
	s.t.Helper()
	var got string
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if got = s.condition(name, kind); strings.Contains(got, want) {
			return
		}
	}
	s.t.Fatalf("%s: MeshPeer %s: %s is %q, want %q", s.name, name, kind, got, want)
}

// token waits for the invitation's.
func (s *side) token(secret string) string {
	s.t.Helper()
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if got, err := s.client.Secrets(s.client.Namespace).Get(context.Background(), secret, metav1.GetOptions{}); err == nil {
			return string(got.Data["token"])
		}
	}
	s.t.Fatalf("%s: no Secret %s", s.name, secret)
	return ""
}

// gone waits until the resource is.
func (s *side) gone(name string) {
	s.t.Helper()
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if _, err := s.peers().Get(context.Background(), name, metav1.GetOptions{}); err != nil {
			return
		}
	}
	s.t.Fatalf("%s: MeshPeer %s is still there: %s", s.name, name, s.condition(name, v1alpha1.Joined))
}

func (s *side) delete(name string) {
	s.t.Helper()
	if err := s.peers().Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
		s.t.Fatal(err)
	}
}

// Two clusters join by MeshPeers alone, and part by deleting one. A token is not
// used again, and a wrong one is refused in words.
func TestMeshPeersJoinAndLeave(t *testing.T) {
	a, b := newSide(t, "aws", 1), newSide(t, "gcp", 2)
	b.create("aws", v1alpha1.MeshPeerSpec{TokenSecretRef: &v1alpha1.TokenSecretRef{Name: "t"}})
	b.wait("aws", v1alpha1.Joined, "False NoToken: Secret t does not exist")
	a.create("gcp", v1alpha1.MeshPeerSpec{Invite: &v1alpha1.Invite{}})
	a.wait("gcp", v1alpha1.Joined, "False Invited: the token in Secret gcp-token")
	token := a.token("gcp-token")
	b.create("azure", v1alpha1.MeshPeerSpec{TokenSecretRef: &v1alpha1.TokenSecretRef{Name: "t"}})
	b.putToken("t", token)
	b.wait("azure", v1alpha1.Joined, "False WrongCluster: the token is of cluster aws")
	for _, s := range []*side{a, b} {
		other := map[string]string{"aws": "gcp", "gcp": "aws"}[s.name]
		s.wait(other, v1alpha1.Joined, "True Joined")
		s.wait(other, v1alpha1.Reachable, "True Connected")
		s.wait(other, v1alpha1.Synced, "True Synced")
		mp, err := s.peers().Get(t.Context(), other, metav1.GetOptions{})
		if err != nil || mp.Status.ObservedGeneration != mp.Generation || mp.Status.ClusterID == 0 || len(mp.Status.PodPrefixes) != 1 || !strings.HasPrefix(mp.Status.PodPrefixes[0], "10.") {
			t.Errorf("%v %+v", err, mp.Status)
		}
	}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if _, err := a.client.Secrets(ns).Get(t.Context(), "gcp-token", metav1.GetOptions{}); err != nil {
			break
		}
	}
	if _, err := a.client.Secrets(ns).Get(t.Context(), "gcp-token", metav1.GetOptions{}); err == nil {
		t.Error("the used token is still there")
	}
	a.delete("gcp")
	a.gone("gcp")
	b.wait("aws", v1alpha1.Joined, "False Left: the clusters were joined by this token")
	b.delete("azure")
	b.gone("azure")
	b.delete("aws")
	b.gone("aws")
}

// A token is good as long as its MeshPeer invites: deleting that withdraws it, and so
// does a join by another token.
func TestInvitationIsWithdrawn(t *testing.T) {
	a, b := newSide(t, "aws", 1), newSide(t, "gcp", 2)
	a.create("gcp", v1alpha1.MeshPeerSpec{Invite: &v1alpha1.Invite{}})
	token := a.token("gcp-token")
	a.delete("gcp")
	a.gone("gcp")
	b.putToken("t", token)
	b.create("aws", v1alpha1.MeshPeerSpec{TokenSecretRef: &v1alpha1.TokenSecretRef{Name: "t"}})
	b.wait("aws", v1alpha1.Joined, "False TokenRefused")
	if c := b.condition("aws", v1alpha1.Joined); !strings.Contains(c, "knows no such token") {
		t.Errorf("the withdrawn token: %s", c)
	}
	b.delete("aws")
	b.gone("aws")
	// Two invitations, of which one is used.
	a.create("gcp", v1alpha1.MeshPeerSpec{Invite: &v1alpha1.Invite{SecretName: "one"}})
	a.create("other", v1alpha1.MeshPeerSpec{Invite: &v1alpha1.Invite{SecretName: "two"}})
	unused := a.token("one")
	b.putToken("u", a.token("two"))
	b.create("aws", v1alpha1.MeshPeerSpec{TokenSecretRef: &v1alpha1.TokenSecretRef{Name: "u"}})
	b.wait("aws", v1alpha1.Joined, "True Joined")
	a.wait("gcp", v1alpha1.Joined, "True Joined")
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := a.client.Secrets(ns).Get(t.Context(), "one", metav1.GetOptions{}); err != nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the Secret of an invitation that is not needed any more is still there")
		}
	}
	c := newSide(t, "azure", 3)
	c.putToken("t", unused)
	c.create("aws", v1alpha1.MeshPeerSpec{TokenSecretRef: &v1alpha1.TokenSecretRef{Name: "t"}})
	c.wait("aws", v1alpha1.Joined, "False TokenRefused")
	// The status of the mesh API server tells the resources with their conditions.
	mp := a.status("other")
	if mp == nil || mp.Wish != "invites" || mp.Created == 0 || len(mp.Conditions) == 0 || mp.Conditions[0].Reason == "" {
		t.Errorf("status of MeshPeer other: %v", mp)
	}
}

// An invitation that goes into another Secret, or none, is another one: what was
// written for the spec before is withdrawn. What somebody else wrote stays.
func TestInvitationMoves(t *testing.T) {
	a, b := newSide(t, "aws", 1), newSide(t, "gcp", 2)
	change := func(f func(*v1alpha1.MeshPeerSpec)) {
		t.Helper()
		for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
			mp, err := a.peers().Get(t.Context(), "gcp", metav1.GetOptions{})
			if err == nil {
				f(&mp.Spec)
				_, err = a.peers().Update(t.Context(), mp, metav1.UpdateOptions{})
			}
			if err == nil {
				return
			}
			if time.Now().After(end) {
				t.Fatal(err)
			}
		}
	}
	left := func(name string) bool {
		_, err := a.client.Secrets(ns).Get(t.Context(), name, metav1.GetOptions{})
		return err == nil
	}
	a.putToken("theirs", "not ours")
	a.create("gcp", v1alpha1.MeshPeerSpec{Invite: &v1alpha1.Invite{SecretName: "one"}})
	first := a.token("one")
	change(func(s *v1alpha1.MeshPeerSpec) { s.Invite.SecretName = "two" })
	second := a.token("two")
	eventually(t, "the first Secret is gone", func() bool { return !left("one") })
	for name, token := range map[string]string{"t": first, "u": second} {
		b.putToken(name, token)
	}
	b.create("aws", v1alpha1.MeshPeerSpec{TokenSecretRef: &v1alpha1.TokenSecretRef{Name: "t"}})
	b.wait("aws", v1alpha1.Joined, "False TokenRefused")
	b.delete("aws")
	b.gone("aws")
	change(func(s *v1alpha1.MeshPeerSpec) { s.Invite = nil })
	eventually(t, "the second Secret is gone", func() bool { return !left("two") })
	b.create("aws", v1alpha1.MeshPeerSpec{TokenSecretRef: &v1alpha1.TokenSecretRef{Name: "u"}})
	b.wait("aws", v1alpha1.Joined, "False TokenRefused")
	if !left("theirs") {
		t.Error("a Secret that is somebody else's was deleted")
	}
}

// status is a MeshPeer as `tombolo mesh status` has it.
func (s *side) status(name string) *pb.MeshPeerStatus {
	conn, err := grpc.NewClient("unix:"+s.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	st, err := pb.NewAdminClient(conn).Status(context.Background(), &pb.StatusRequest{})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, mp := range st.MeshPeers {
		if mp.Name == name {
			return mp
		}
	}
	return nil
}

// What the checks before a join refuse stands in the condition's message.
func TestMeshPeerRefusal(t *testing.T) {
	a, b := newSide(t, "aws", 1), newSide(t, "gcp", 1)
	a.create("gcp", v1alpha1.MeshPeerSpec{Invite: &v1alpha1.Invite{SecretName: "s"}})
	b.putToken("t", a.token("s"))
	b.create("aws", v1alpha1.MeshPeerSpec{TokenSecretRef: &v1alpha1.TokenSecretRef{Name: "t"}})
	b.wait("aws", v1alpha1.Joined, "False Refused: join refused")
	b.delete("aws")
	b.gone("aws")
}

// A peer that cannot be told keeps the resource until it may be forced.
func TestMeshPeerOfDeadCluster(t *testing.T) {
	a, b := newSide(t, "aws", 1), newSide(t, "gcp", 2)
	a.create("gcp", v1alpha1.MeshPeerSpec{Invite: &v1alpha1.Invite{}})
	b.putToken("t", a.token("gcp-token"))
	b.create("aws", v1alpha1.MeshPeerSpec{TokenSecretRef: &v1alpha1.TokenSecretRef{Name: "t"}})
	b.wait("aws", v1alpha1.Joined, "True Joined")
	a.wait("gcp", v1alpha1.Joined, "True Joined")
	a.stop()
	b.delete("aws")
	b.wait("aws", v1alpha1.Joined, "True CannotLeave: remove refused")
	for { // the controller may write between the two
		mp, err := b.peers().Get(t.Context(), "aws", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		mp.Spec.DeletionPolicy = v1alpha1.Force
		if _, err = b.peers().Update(t.Context(), mp, metav1.UpdateOptions{}); err == nil {
			break
		}
	}
	b.gone("aws")
}

// Wherever a server stops between two writes, another one brings the join about,
// by the one token.
func TestMeshPeersSurviveRestarts(t *testing.T) {
	for n := 1; ; n++ {
		a, b := newSide(t, "aws", 1), newSide(t, "gcp", 2)
		a.create("gcp", v1alpha1.MeshPeerSpec{Invite: &v1alpha1.Invite{}})
		b.putToken("t", a.token("gcp-token"))
		cut, left := make(chan struct{}), n
		var once sync.Once
		var mu sync.Mutex
		b.api.Fail(func(r *http.Request) *kubetest.Fault {
			mu.Lock()
			defer mu.Unlock()
			if r.Method == http.MethodGet || r.Method == http.MethodPost {
				return nil
			}
			if left--; left > 0 {
				return nil
			}
			once.Do(func() { close(cut) })
			return &kubetest.Fault{} // from the n-th write on nothing gets through
		})
		b.create("aws", v1alpha1.MeshPeerSpec{TokenSecretRef: &v1alpha1.TokenSecretRef{Name: "t"}})
		joined := make(chan struct{})
		go func() {
			for !strings.HasPrefix(b.condition("aws", v1alpha1.Reachable), "True") {
				select {
				case <-cut:
					return
				case <-time.After(5 * time.Millisecond):
				}
			}
			close(joined)
		}()
		whole := false
		select {
		case <-cut:
			b.stop()
			b.api.Back()
			b.start()
		case <-joined:
			whole = true
		case <-time.After(30 * time.Second):
			t.Fatal("neither joined nor cut")
		}
		b.wait("aws", v1alpha1.Joined, "True Joined")
		a.wait("gcp", v1alpha1.Joined, "True Joined")
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			mp, err := b.peers().Get(t.Context(), "aws", metav1.GetOptions{})
			if err == nil && mp.Status.UsedToken != "" {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("after the %dth write the token is not noted: %v", n, errors.Join(err))
			}
		}
		a.stop()
		b.stop()
		if whole || n == 12 {
			if n < 3 {
				t.Errorf("only %d writes were cut", n-1)
			}
			return
		}
	}
}
