package register

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is a mesh API server's port as far as a node sees it: real TLS and a
// real CA, registrations in memory.
type server struct {
	pb.UnimplementedMeshServer
	t       *testing.T
	cluster string
	ca      *certs.CA
	bundles *certs.Bundles
	address string
	grpc    *grpc.Server

	mu        sync.Mutex
	ttl       time.Duration
	tokens    map[string]certs.Token
	nodes     []*pb.RegisterNodeRequest
	endpoints []*pb.RegisterEndpointRequest
	renewed   int
	gossip    [][]byte
	again     time.Duration
}

func newServer(t *testing.T, cluster string) *server {
	t.Helper()
	ca, err := certs.OpenCA(t.TempDir(), cluster, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, cluster: cluster, ca: ca, bundles: certs.NewBundles(), ttl: time.Hour, tokens: map[string]certs.Token{}}
	if err := s.bundles.Set(cluster, ca.Bundle()); err != nil {
		t.Fatal(err)
	}
	s.start("127.0.0.1:0")
	return s
}

func (s *server) start(address string) {
	s.t.Helper()
	leaf, err := certs.NewLeaf("", certs.APIServer(s.cluster), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	err = leaf.Renew(context.Background(), func(_ context.Context, csr []byte) ([]byte, []byte, error) {
		chain, err := s.ca.Sign(csr, leaf.Name(), time.Hour, time.Now())
		return chain, nil, err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.address = l.Addr().String()
	s.grpc = grpc.NewServer(grpc.Creds(credentials.NewTLS(certs.IntroductionTLS(leaf))))
	pb.RegisterMeshServer(s.grpc, s)
	go s.grpc.Serve(l)
	s.t.Cleanup(s.grpc.Stop)
}

func (s *server) token(t *testing.T, node string) string {
	t.Helper()
	tok, err := certs.NewToken(certs.NodeToken, s.cluster, node, []string{s.address}, s.ca.Fingerprint(), time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.tokens[tok.ID] = tok
	s.mu.Unlock()
	return tok.Text()
}

func (s *server) caller(ctx context.Context) (certs.Name, bool, error) {
	p, _ := peer.FromContext(ctx)
	return s.bundles.VerifyGrace(certs.RawChain(p.AuthInfo.(credentials.TLSInfo).State), time.Now())
}

func (s *server) RegisterNode(ctx context.Context, r *pb.RegisterNodeRequest) (*pb.RegisterNodeResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nodes = append(s.nodes, r)
	resp := &pb.RegisterNodeResponse{
		GossipKeys: s.gossip, Again: int64(s.again),
		Cluster: &pb.Cluster{Name: s.cluster, Id: 7, MeshAddresses: []string{s.address}, CaBundle: s.ca.Bundle()},
		Node: &pb.Node{Number: 3,
			PodPrefixes:     []*pb.Prefix{{Address: []byte{10, 7, 3, 0}, Bits: 24}},
			TunnelAddresses: [][]byte{{10, 7, 3, 1}}},
	}
	if r.ServiceAccountToken != "" {
		if r.ServiceAccountToken != "pod-token" {
			return nil, status.Error(codes.Unauthenticated, "service-account token refused")
		}
		chain, err := s.ca.Sign(r.Csr, certs.Node(s.cluster, r.Node), s.ttl, time.Now())
		resp.Chain, resp.Bundle = chain, s.ca.Bundle()
		return resp, err
	}
	if r.TokenId != "" {
		tok, ok := s.tokens[r.TokenId]
		if !ok || string(tok.Secret) != string(r.Secret) {
			return nil, status.Error(codes.PermissionDenied, "token refused: it was used already; make a new node token")
		}
		delete(s.tokens, r.TokenId)
		chain, err := s.ca.Sign(r.Csr, certs.Node(s.cluster, r.Node), s.ttl, time.Now())
		if err != nil {
			return nil, err
		}
		resp.Chain, resp.Bundle = chain, s.ca.Bundle()
		return resp, nil
	}
	name, expired, err := s.caller(ctx)
	if err != nil || expired || name.Node != r.Node {
		return nil, status.Errorf(codes.Unauthenticated, "%v (expired: %v): %v", name, expired, err)
	}
	return resp, nil
}

func (s *server) Renew(ctx context.Context, r *pb.RenewRequest) (*pb.RenewResponse, error) {
	name, _, err := s.caller(ctx)
	if err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.renewed++
	chain, err := s.ca.Sign(r.Csr, name, s.ttl, time.Now())
	return &pb.RenewResponse{Chain: chain, Bundle: s.ca.Bundle()}, err
}

func (s *server) RegisterEndpoint(ctx context.Context, r *pb.RegisterEndpointRequest) (*pb.RegisterEndpointResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endpoints = append(s.endpoints, r)
	return &pb.RegisterEndpointResponse{Identity: 7<<20 | 5}, nil
}

func (s *server) calls() []*pb.RegisterNodeRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*pb.RegisterNodeRequest(nil), s.nodes...)
}

func open(t *testing.T, dir, token string) *Client {
	t.Helper()
	cfg := Config{StateDir: dir, Node: "node-1"}
	if token != "" {
		cfg.Token = func() (string, error) { return token + "\n", nil }
	}
	c, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	c.Update(Self{UnderlayAddresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, WireGuardKey: [32]byte{9}, WireGuardEndpoint: "192.0.2.1:51820"})
	return c
}

func TestFirstStartAndRestart(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	s := newServer(t, "here")
	c := open(t, dir, s.token(t, "node-1"))
	if _, ok := c.Facts(); ok {
		t.Error("facts before registration")
	}
	if err := c.Register(ctx); err != nil {
		t.Fatal(err)
	}
	f, ok := c.Facts()
	if !ok || f.Cluster != "here" || f.ClusterID != 7 || f.Number != 3 || f.PodPrefixes[0].String() != "10.7.3.0/24" || f.TunnelAddresses[0].String() != "10.7.3.1" {
		t.Errorf("facts %+v", f)
	}
	for _, file := range []string{"cluster.json", "certificate/leaf.pem"} {
		st, err := os.Stat(filepath.Join(dir, file))
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", file, st, err)
		}
	}
	if err := c.Register(ctx); err != nil { // now by certificate
		t.Fatal(err)
	}
	if calls := s.calls(); len(calls) != 2 || calls[1].TokenId != "" || len(calls[1].Secret) != 0 || calls[1].WireguardEndpoint != "192.0.2.1:51820" {
		t.Errorf("%d calls: %v", len(calls), calls)
	}
	if id, err := c.RegisterEndpoint(ctx, Endpoint{Namespace: "shop", Name: "a", Owner: "uid", Addresses: []netip.Addr{netip.MustParseAddr("10.7.3.9")}, Ready: true}); err != nil || id != clustermesh.MakeIdentity(7, 5) {
		t.Errorf("endpoint: %v %v", id, err)
	}
	c.Close()

	// No server in reach, no token: the disk is enough.
	s.grpc.Stop()
	c = open(t, dir, "")
	if again, ok := c.Facts(); !ok || !again.equal(f) || c.Leaf().Certificate() == nil {
		t.Errorf("after a restart: %+v %v", again, ok)
	}
	if err := c.Register(ctx); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), s.address) || c.Problem() == nil {
		t.Errorf("without a server: %v", err)
	}
	// The server is back at its address.
	s.start(s.address)
	if err := c.Register(ctx); err != nil || c.Problem() != nil {
		t.Errorf("%v, problem %v", err, c.Problem())
	}
}

// Long away: the certificate's time is over, the node renews it and goes on.
func TestExpiredCertificate(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	s := newServer(t, "here")
	s.ttl = time.Second
	c := open(t, dir, s.token(t, "node-1"))
	if err := c.Register(ctx); err != nil {
		t.Fatal(err)
	}
	c.Close()
	for !time.Now().After(c.Leaf().Expires()) { // at most the second the certificate lives
		time.Sleep(20 * time.Millisecond)
	}
	c = open(t, dir, "")
	if _, ok := c.Facts(); !ok || c.Leaf().Certificate() == nil {
		t.Fatal("an expired certificate was thrown away")
	}
	s.mu.Lock()
	s.ttl = time.Hour
	s.mu.Unlock()
	if err := c.Register(ctx); err != nil {
		t.Fatal(err)
	}
	if s.renewed != 1 || !c.Leaf().Valid() {
		t.Errorf("renewed %d times, expires %s", s.renewed, c.Leaf().Expires())
	}
}

// A server that is not the one the token names gets no secret.
func TestWrongCA(t *testing.T) {
	real, false_ := newServer(t, "here"), newServer(t, "here")
	tok, err := certs.NewToken(certs.NodeToken, "here", "node-1", []string{false_.address}, real.ca.Fingerprint(), time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	c := open(t, t.TempDir(), tok.Text())
	if err := c.Register(context.Background()); !errors.Is(err, ErrUntrusted) || !strings.Contains(err.Error(), "nothing secret was sent") {
		t.Errorf("wrong CA: %v", err)
	}
	if n := len(false_.calls()); n != 0 {
		t.Errorf("the false server got %d calls", n)
	}
}

func TestTokenRefusals(t *testing.T) {
	ctx := context.Background()
	s := newServer(t, "here")
	make := func(change func(*certs.Token)) string {
		tok, err := certs.NewToken(certs.NodeToken, "here", "node-1", []string{s.address}, s.ca.Fingerprint(), time.Now().Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		change(&tok)
		return tok.Text()
	}
	join, err := certs.NewToken(certs.JoinToken, "here", "", []string{s.address}, s.ca.Fingerprint(), time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, token, want string }{
		{"none", "", "--token-file"},
		{"garbage", "tombolo-node.xxx", "node token:"},
		{"join token", join.Text(), "this is a join token"},
		{"another node", make(func(t *certs.Token) { t.Node = "node-2" }), "it is for node node-2, this is node-1"},
		{"expired", make(func(t *certs.Token) { t.Expires = time.Now().Add(-time.Minute) }), "it expired at"},
		{"used", make(func(*certs.Token) {}), "used already"},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := open(t, t.TempDir(), c.token)
			if err := client.Register(ctx); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if _, ok := client.Facts(); ok {
				t.Error("facts after a refusal")
			}
		})
	}
	if n := len(s.calls()); n != 1 {
		t.Errorf("%d calls reached the server, expected the used token's alone", n)
	}
}

func TestStateOfAnother(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	s, other := newServer(t, "here"), newServer(t, "there")
	c := open(t, dir, s.token(t, "node-1"))
	if err := c.Register(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{StateDir: dir, Node: "node-2"}); err == nil || !strings.Contains(err.Error(), `belongs to node "node-1"`) {
		t.Errorf("another node: %v", err)
	}
	os.RemoveAll(filepath.Join(dir, "certificate"))
	c = open(t, dir, other.token(t, "node-1"))
	if err := c.Register(ctx); err == nil || !strings.Contains(err.Error(), "this node belongs to here") {
		t.Errorf("another cluster's token: %v", err)
	}
	// A lost certificate with facts: a new token of the same cluster mends it.
	c = open(t, dir, s.token(t, "node-1"))
	if err := c.Register(ctx); err != nil {
		t.Error(err)
	}
	// Facts that cannot be read are set aside, and a token mends that too.
	if err := os.WriteFile(factsFile(dir), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	os.RemoveAll(filepath.Join(dir, "certificate"))
	c = open(t, dir, s.token(t, "node-1"))
	if _, err := os.Stat(factsFile(dir) + ".bad"); err != nil {
		t.Error(err)
	}
	if err := c.Register(ctx); err != nil {
		t.Error(err)
	}
}

// Run registers, again when the node's addresses change, and renews at half-life.
func TestRun(t *testing.T) {
	s := newServer(t, "here")
	s.ttl = 4 * time.Second
	changed := make(chan Facts, 8)
	text := s.token(t, "node-1")
	c, err := Open(Config{StateDir: t.TempDir(), Node: "node-1", Token: func() (string, error) { return text, nil }, Changed: func(f Facts) { changed <- f }})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	if f := <-changed; f.Number != 3 {
		t.Errorf("%+v", f)
	}
	c.Update(Self{WireGuardEndpoint: "192.0.2.77:1"})
	wait(t, "the new endpoint", func() error {
		calls := s.calls()
		if last := calls[len(calls)-1]; last.WireguardEndpoint != "192.0.2.77:1" {
			return fmt.Errorf("last call says %q", last.WireguardEndpoint)
		}
		return nil
	})
	wait(t, "the renewal", func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.renewed == 0 {
			return errors.New("not renewed")
		}
		return nil
	})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// A server that went away and came back may have lost what it was told: the node
// says it again by itself, and its pods are told to.
func TestRegistersAgainWhenTheServerIsBack(t *testing.T) {
	s := newServer(t, "here")
	back := make(chan struct{}, 8)
	text := s.token(t, "node-1")
	c, err := Open(Config{StateDir: t.TempDir(), Node: "node-1", Token: func() (string, error) { return text, nil }, Back: func() { back <- struct{}{} }})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	c.Nudge()
	wait(t, "registered by certificate", func() error {
		c.Nudge()
		if len(s.calls()) < 2 {
			return errors.New("not yet")
		}
		return nil
	})
	s.grpc.Stop()
	s.start(s.address)
	before := len(s.calls())
	select {
	case <-back:
	case <-time.After(10 * time.Second):
		t.Fatal("nobody was told that the server is back")
	}
	wait(t, "registered again", func() error {
		if len(s.calls()) <= before {
			return errors.New("not yet")
		}
		return nil
	})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Calls that are under way when the certificate is renewed are not lost.
func TestCallsDuringRenewal(t *testing.T) {
	ctx := context.Background()
	s := newServer(t, "here")
	c := open(t, t.TempDir(), s.token(t, "node-1"))
	if err := c.Register(ctx); err != nil {
		t.Fatal(err)
	}
	stop, failed := make(chan struct{}), make(chan error, 1)
	var calls sync.WaitGroup
	for i := range 4 {
		calls.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := c.RegisterEndpoint(ctx, Endpoint{Namespace: "shop", Name: fmt.Sprint(i), Owner: fmt.Sprint(n), Ready: true}); err != nil {
					select {
					case failed <- err:
					default:
					}
					return
				}
			}
		})
	}
	for range 20 {
		if err := c.Leaf().Renew(ctx, c.sign); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	calls.Wait()
	select {
	case err := <-failed:
		t.Errorf("a call was lost: %v", err)
	default:
	}
}

func wait(t *testing.T, what string, ok func() error) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}
