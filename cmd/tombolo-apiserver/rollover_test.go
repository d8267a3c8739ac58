package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tombolo-mesh/tombolo/agent/register"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// authority is a CA certificate with its key, signed by itself or by another.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string, by *authority) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(240 * time.Hour),
	}
	parent, signer := template, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

func (a *authority) certPEM() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
}

func (a *authority) keyPEM(t *testing.T) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// running is one mesh API server with an etcd of its own and supplied CA files.
type running struct {
	pb.AdminClient
	dir    string
	reload chan os.Signal
}

func write(t *testing.T, path string, text ...string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(strings.Join(text, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func (r *running) file(name string) string { return filepath.Join(r.dir, name) }

// supply puts the files of an intermediate and its root in place.
func (r *running) supply(t *testing.T, intermediate, root *authority) {
	t.Helper()
	write(t, r.file("key.pem"), intermediate.keyPEM(t))
	write(t, r.file("cert.pem"), intermediate.certPEM(), root.certPEM())
}

func startServer(t *testing.T, name string, id int, intermediate, root *authority) *running {
	t.Helper()
	r := &running{dir: t.TempDir(), reload: make(chan os.Signal, 1)}
	r.supply(t, intermediate, root)
	write(t, r.file("roots.pem"), root.certPEM())
	if err := os.Mkdir(r.file("manifests"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, r.file("manifests/n1.yaml"), fmt.Sprintf("apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {podCIDRs: [10.%d.1.0/24]}\n", id))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	o := options{
		cluster: name, id: uint16(id), stateDir: r.file("state"), manifests: r.file("manifests"), listen: addr, advertise: []string{addr},
		socket: r.file("s"), caCert: r.file("cert.pem"), caKey: r.file("key.pem"), caRoots: r.file("roots.pem"), podPrefixes: []string{fmt.Sprintf("10.%d.0.0/16", id)},
	}
	cfg, err := o.config(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ready := make(chan struct{})
	cfg.Reload, cfg.Ready = r.reload, func() { close(ready) }
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- apiserver.Run(ctx, cfg) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-ready:
	case err := <-done:
		done <- nil
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("unix:"+r.file("s"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	r.AdminClient = pb.NewAdminClient(conn)
	return r
}

func (r *running) status(t *testing.T) *pb.StatusResponse {
	t.Helper()
	s, err := r.Status(t.Context(), &pb.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (r *running) problems(t *testing.T) (text string) {
	t.Helper()
	for _, p := range r.status(t).Problems {
		text += p.Object + ": " + p.What + ": " + p.Why + "; " + p.Fix + "\n"
	}
	return text
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// Two clusters with supplied intermediates: a node registers, the clusters join,
// and the CA of one is rolled over while everything runs.
func TestIntermediatesAndRollOver(t *testing.T) {
	ctx := t.Context()
	root1, root2, rootG := newAuthority(t, "root 1", nil), newAuthority(t, "root 2", nil), newAuthority(t, "root of gcp", nil)
	first, second := newAuthority(t, "first", root1), newAuthority(t, "second", root2)
	aws := startServer(t, "aws", 1, first, root1)
	gcp := startServer(t, "gcp", 2, newAuthority(t, "gcp", rootG), rootG)
	until(t, "leading", func() bool { return aws.status(t).Leader && gcp.status(t).Leader })

	var token *pb.NodeTokenResponse
	until(t, "a node token", func() (ok bool) {
		var err error
		token, err = aws.NodeToken(ctx, &pb.NodeTokenRequest{Node: "n1"})
		return err == nil
	})
	node, err := register.Open(register.Config{StateDir: t.TempDir(), Node: "n1", Token: func() (string, error) { return token.Token, nil }})
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	node.Update(register.Self{UnderlayAddresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, WireGuardKey: [32]byte{9}, WireGuardEndpoint: "192.0.2.1:51820"})
	until(t, "the node registers", func() bool { return node.Register(ctx) == nil })

	invite, err := aws.Invite(ctx, &pb.InviteRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := gcp.JoinMesh(ctx, &pb.JoinMeshRequest{Token: invite.Token}); err != nil {
		t.Fatal(err)
	}
	peer := func() *pb.PeerStatus {
		for _, p := range gcp.status(t).Peers {
			return p
		}
		return &pb.PeerStatus{}
	}
	until(t, "gcp reaches aws", func() bool { return peer().Reachable })
	old, fresh := aws.status(t).Fingerprint, ""

	// Switching before anybody knows the new root is refused, and changes nothing.
	aws.supply(t, second, root2)
	aws.reload <- os.Interrupt
	until(t, "the refusal is named", func() bool {
		text := aws.problems(t)
		return strings.Contains(text, "CA from before stays in force") && strings.Contains(text, "add that root to --ca-roots first")
	})
	if got := aws.status(t).Fingerprint; got != old {
		t.Errorf("fingerprint %s, was %s", got, old)
	}
	// The new root is announced, the old CA still signs.
	aws.supply(t, first, root1)
	write(t, aws.file("roots.pem"), root1.certPEM(), root2.certPEM())
	aws.reload <- os.Interrupt
	until(t, "gcp knows both roots", func() bool { fresh = peer().Fingerprint; return len(fresh) > len(old) && strings.Contains(fresh, old) })
	if text := aws.problems(t); strings.Contains(text, "CA of cluster") {
		t.Errorf("problems:\n%s", text)
	}
	until(t, "the node knows both roots", func() bool {
		f, _ := node.Facts()
		return node.Register(ctx) == nil && strings.Contains(f.Bundle, root2.certPEM())
	})
	// Now the new CA signs. The files are looked at without being asked to.
	aws.supply(t, second, root2)
	until(t, "the new CA signs", func() bool { s := aws.status(t); return s.Fingerprint != old && strings.Contains(fresh, s.Fingerprint) })
	if err := node.Register(ctx); err != nil {
		t.Errorf("the node with its old certificate: %v", err)
	}
	invite, err = aws.Invite(ctx, &pb.InviteRequest{})
	if err != nil {
		t.Fatal(err)
	}
	// A cluster that knows nothing of the former one joins by the new one.
	rootE := newAuthority(t, "root of edge", nil)
	edge := startServer(t, "edge", 3, newAuthority(t, "edge", rootE), rootE)
	until(t, "edge leads", func() bool { return edge.status(t).Leader })
	if _, err := edge.JoinMesh(ctx, &pb.JoinMeshRequest{Token: invite.Token}); err != nil {
		t.Error(err)
	}
	until(t, "all reach one another", func() bool {
		peers := append(aws.status(t).Peers, gcp.status(t).Peers...)
		return len(peers) == 3 && !slices.ContainsFunc(peers, func(p *pb.PeerStatus) bool { return !p.Reachable })
	})
}

// Replicas over one etcd that each made a CA of their own: the second does not
// start, and says which file to copy.
func TestSecondReplicaNeedsTheSameCA(t *testing.T) {
	store := kvstore.NewMemory(kvstore.MemoryOptions{})
	defer store.Close()
	start := func(dir string) error {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		if err := os.MkdirAll(filepath.Join(dir, "manifests"), 0o700); err != nil {
			t.Fatal(err)
		}
		o := options{cluster: "aws", id: 1, stateDir: filepath.Join(dir, "state"), manifests: filepath.Join(dir, "manifests"), listen: "127.0.0.1:0", socket: filepath.Join(dir, "s")}
		cfg, err := o.config(slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		cfg.Open = func(context.Context) (apiserver.StoreHandle, error) { return apiserver.StoreHandle{Store: store}, nil }
		cfg.Ready = cancel
		return apiserver.Run(ctx, cfg)
	}
	one, two := t.TempDir(), t.TempDir()
	if err := start(one); err != nil {
		t.Fatal(err)
	}
	err := start(two)
	if err == nil || !strings.Contains(err.Error(), "has another CA than the cluster") || !strings.Contains(err.Error(), "copy the file ca/ca.pem of the state directory") {
		t.Fatalf("%v", err)
	}
	text, err := os.ReadFile(filepath.Join(one, "state/ca/ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(two, "state/ca/ca.pem"), string(text))
	if err := start(two); err != nil {
		t.Errorf("with the same CA: %v", err)
	}
	if err := start(one); err != nil {
		t.Errorf("the first one again: %v", err)
	}
}
