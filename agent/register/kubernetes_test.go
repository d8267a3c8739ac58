package register

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// mount writes a mesh configuration as the kubelet does: a folder aside, and one
// link that is swapped.
func mount(t *testing.T, dir, cluster, addresses, bundle string) {
	t.Helper()
	fresh, err := os.MkdirTemp(dir, "..v")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"cluster": cluster, "addresses": addresses, "ca-bundle.pem": bundle} {
		if err := os.WriteFile(filepath.Join(fresh, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if link := filepath.Join(dir, name); os.Symlink(filepath.Join("..data", name), link) != nil {
			if _, err := os.Lstat(link); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.Symlink(filepath.Base(fresh), filepath.Join(dir, "..tmp")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
}

func onKubernetes(t *testing.T, state, dir string) *Client {
	t.Helper()
	c, err := Open(Config{StateDir: state, Node: "n1", MeshConfig: dir, AccountToken: func() (string, error) { return "pod-token\n", nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	c.Update(Self{WireGuardKey: [32]byte{1}})
	return c
}

// tokens counts what service-account tokens a server was sent.
func (s *server) accountTokens() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.nodes {
		if r.ServiceAccountToken != "" {
			n++
		}
	}
	return n
}

func TestRegisterByServiceAccountToken(t *testing.T) {
	s := newServer(t, "aws")
	state, dir := t.TempDir(), t.TempDir()
	c := onKubernetes(t, state, dir)
	if err := c.Register(t.Context()); err == nil || !strings.Contains(err.Error(), "writes it when it runs for the first time") {
		t.Fatalf("without a mesh configuration: %v", err)
	}
	mount(t, dir, "aws", s.address+"\n", string(s.ca.Bundle()))
	if err := c.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	if f, ok := c.Facts(); !ok || f.Cluster != "aws" || f.MeshAddresses[0] != s.address || s.accountTokens() != 1 {
		t.Fatalf("%+v, %d tokens", f, s.accountTokens())
	}
	// From now on the certificate counts, also after a restart with no mount.
	c.Close()
	c = onKubernetes(t, state, t.TempDir())
	if err := c.Register(t.Context()); err != nil || s.accountTokens() != 1 {
		t.Errorf("by certificate: %v, %d tokens", err, s.accountTokens())
	}
}

// The token goes to nobody who is not verified by the bundle of the mount.
func TestTokenStaysWithTheCluster(t *testing.T) {
	s, other := newServer(t, "aws"), newServer(t, "aws")
	dir := t.TempDir()
	mount(t, dir, "aws", other.address+"\n", string(s.ca.Bundle()))
	c := onKubernetes(t, t.TempDir(), dir)
	if err := c.Register(t.Context()); !errors.Is(err, ErrUntrusted) || other.accountTokens() != 0 {
		t.Errorf("%v, %d tokens sent", err, other.accountTokens())
	}
}

// A running node follows the mount: to another address, and to a cluster whose CA
// was lost and made anew, where it gets a certificate by its token again.
func TestFollowsTheMount(t *testing.T) {
	first, second := newServer(t, "aws"), newServer(t, "aws")
	dir := t.TempDir()
	mount(t, dir, "aws", first.address+"\n", string(first.ca.Bundle()))
	c := onKubernetes(t, t.TempDir(), dir)
	if err := c.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = c.Run(ctx) }()
	defer func() { cancel(); <-done }()
	first.grpc.Stop()
	mount(t, dir, "aws", second.address+"\n", string(second.ca.Bundle()))
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		f, _ := c.Facts()
		if f.MeshAddresses[0] == second.address && second.accountTokens() > 0 && c.Problem() == nil && f.Bundle == string(second.ca.Bundle()) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("not within 20 s: %+v, %v", f.MeshAddresses, c.Problem())
		}
	}
	mount(t, dir, "aws", "nonsense", "nonsense")
	c.followMesh()
	if f, _ := c.Facts(); f.MeshAddresses[0] != second.address {
		t.Errorf("a malformed mount took the addresses away: %v", f.MeshAddresses)
	}
}
