package apiserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
	"github.com/tombolo-mesh/tombolo/kvstore/etcd"
)

// meshRig is one cluster's mesh port on loopback, over a store in memory.
type meshRig struct {
	t       *testing.T
	name    string
	addr    string
	store   *kvstore.Memory
	ca      *certs.CA
	bundles *certs.Bundles
	port    *Port
	reg     *rigRegistrar
	cancel  context.CancelFunc
	done    chan error

	mu    sync.Mutex
	own   clustermesh.Cluster
	drift time.Duration // of its clock
}

type rigOption func(*meshRig, *PortConfig)

func withClock(d time.Duration) rigOption {
	return func(r *meshRig, _ *PortConfig) { r.drift = d }
}

func (r *meshRig) setClock(drift time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drift = drift
}

func withStore(wrap func(kvstore.Store) kvstore.Store) rigOption {
	return func(_ *meshRig, c *PortConfig) { c.Store = wrap(c.Store) }
}

func withOwn(edit func(*clustermesh.Cluster)) rigOption {
	return func(r *meshRig, _ *PortConfig) { edit(&r.own) }
}

func withCA(ca *certs.CA) rigOption {
	return func(_ *meshRig, c *PortConfig) { c.CA = ca }
}

func rigCA(t *testing.T, cluster string) *certs.CA {
	t.Helper()
	ca, err := certs.OpenCA(filepath.Join(t.TempDir(), "ca"), cluster, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// startRig starts the mesh port of a cluster with pod prefix 10.<id>.0.0/16.
func startRig(t *testing.T, name string, id clustermesh.ID, options ...rigOption) *meshRig {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &meshRig{
		t: t, name: name, addr: l.Addr().String(), store: kvstore.NewMemory(kvstore.MemoryOptions{}), bundles: certs.NewBundles(),
		done: make(chan error, 1), reg: &rigRegistrar{},
	}
	t.Cleanup(r.store.Close)
	r.own = clustermesh.Cluster{
		Name: name, ID: id, Incarnation: uint64(id) + 1000, Version: "v0.1.0", MeshAddresses: []string{r.addr},
		PodPrefixes: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/16", id))},
	}
	leaf, err := certs.NewLeaf("", certs.APIServer(name), nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg := PortConfig{
		Store: r.store, Cache: r.store, Leaf: leaf, Bundles: r.bundles, Registrar: r.reg,
		Own: func() clustermesh.Cluster { r.mu.Lock(); defer r.mu.Unlock(); return r.own },
		Now: func() time.Time { r.mu.Lock(); defer r.mu.Unlock(); return time.Now().Add(r.drift) },
	}
	for _, o := range options {
		o(r, &cfg)
	}
	if cfg.CA == nil {
		cfg.CA = rigCA(t, name)
	}
	r.ca = cfg.CA
	if r.port, err = NewPort(cfg); err != nil {
		t.Fatal(err)
	}
	r.publish()
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	go func() { r.done <- r.port.Run(ctx, l) }()
	t.Cleanup(func() { r.stop() })
	return r
}

func (r *meshRig) stop() {
	r.cancel()
	if err, ok := <-r.done; ok {
		close(r.done)
		if err != nil {
			r.t.Errorf("cluster %s: %v", r.name, err)
		}
	}
}

// publish writes the cluster's own record, as the publisher would.
func (r *meshRig) publish() {
	r.t.Helper()
	value, err := clustermesh.Encode(r.port.ownCluster())
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := r.store.Commit(r.t.Context(), kvstore.Put(clustermesh.ClusterKey(clustermesh.ScopeExport, r.name), value, 0)); err != nil {
		r.t.Fatal(err)
	}
}

func (r *meshRig) invite() string {
	r.t.Helper()
	tok, err := r.port.Invite(r.t.Context(), 0)
	if err != nil {
		r.t.Fatal(err)
	}
	return tok.Text()
}

func (r *meshRig) join(token string) error {
	_, err := r.port.JoinMesh(r.t.Context(), token, false)
	return err
}

// peerNames reads the store, not the watch.
func (r *meshRig) peerNames() string {
	r.t.Helper()
	present, err := r.port.peers.read(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	var names []string
	for _, p := range sortedPeers(present) {
		names = append(names, p.Name)
	}
	return strings.Join(names, " ")
}

// private lists the notes of joins under way.
func (r *meshRig) notes() (keys []string) {
	_, err := r.store.List(r.t.Context(), r.port.introductionKey(""), kvstore.Position{}, func(kvs []kvstore.KV) error {
		for _, kv := range kvs {
			keys = append(keys, kv.Key)
		}
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return keys
}

// leaf makes a certificate of this cluster.
func (r *meshRig) leaf(name certs.Name, ttl time.Duration) *certs.Leaf {
	r.t.Helper()
	return leafOf(r.t, r.ca, name, ttl)
}

func leafOf(t *testing.T, ca *certs.CA, name certs.Name, ttl time.Duration) *certs.Leaf {
	t.Helper()
	leaf, err := certs.NewLeaf("", name, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = leaf.Renew(t.Context(), func(_ context.Context, csr []byte) ([]byte, []byte, error) {
		chain, err := ca.Sign(csr, name, ttl, time.Now())
		return chain, nil, err
	})
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

// tls dials r with leaf.
func (r *meshRig) tls(leaf *certs.Leaf) *tls.Config {
	return certs.BundleTLS(leaf, r.ca.Bundle(), certs.APIServer(r.name))
}

func (r *meshRig) dial(leaf *certs.Leaf) *meshConn {
	r.t.Helper()
	conn, err := dialMesh(r.t.Context(), []string{r.addr}, r.tls(leaf))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(conn.close)
	return conn
}

// reader is an etcd client of r with leaf.
func (r *meshRig) reader(leaf *certs.Leaf) *etcd.Store {
	r.t.Helper()
	s, err := etcd.Open(r.t.Context(), etcd.Config{Endpoints: []string{r.addr}, TLS: r.tls(leaf)})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { s.Close() })
	return s
}

func list(ctx context.Context, s kvstore.Store, prefix string) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err = s.List(ctx, prefix, kvstore.Position{}, func(kvs []kvstore.KV) error { n += len(kvs); return nil })
	return n, err
}

func waitUntil(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func wantRefusal(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one that says %q", parts)
	}
	r := AsRefusal(err)
	if r == nil {
		t.Fatalf("not a refusal: %v", err)
	}
	if r.What == "" || r.Why == "" || r.Fix == "" {
		t.Errorf("a refusal must say what, why and what to do: %+v", r)
	}
	for _, p := range parts {
		if !strings.Contains(r.Error(), p) {
			t.Errorf("refusal %q does not say %q", r.Error(), p)
		}
	}
}

// rigRegistrar knows nodes n1 and n2, and pod shop/p1 on n1.
type rigRegistrar struct {
	mu    sync.Mutex
	nodes map[string]NodeRegistration
	gone  map[string]bool
}

func (g *rigRegistrar) RegisterNode(_ context.Context, r NodeRegistration) (*clustermesh.Node, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r.Node != "n1" && r.Node != "n2" || g.gone[r.Node] {
		return nil, Refuse(codes.NotFound, "registration refused", "add the node", "no node %s", r.Node)
	}
	if g.nodes == nil {
		g.nodes = make(map[string]NodeRegistration)
	}
	g.nodes[r.Node] = r
	return &clustermesh.Node{Name: r.Node, Number: 1, PodPrefixes: []netip.Prefix{netip.MustParsePrefix("10.1.1.0/24")},
		TunnelAddresses: []netip.Addr{netip.MustParseAddr("10.1.1.1")}, WireGuardKey: r.WireGuardKey}, nil
}

func (g *rigRegistrar) RegisterEndpoint(_ context.Context, r EndpointRegistration) (clustermesh.Identity, error) {
	if r.Node != "n1" {
		return 0, Refuse(codes.PermissionDenied, "registration refused", "ask the pod's node", "pod is not on %s", r.Node)
	}
	return clustermesh.MakeIdentity(1, 7), nil
}

func (g *rigRegistrar) KnowsNode(_ context.Context, node string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gone[node] {
		return Refuse(codes.NotFound, "renewal refused", "add the node", "no node %s", node)
	}
	return nil
}

// failingStore fails commits that put a key for which fail answers true.
type failingStore struct {
	kvstore.Store
	fail func(key string) bool
}

func (s failingStore) Commit(ctx context.Context, ops ...kvstore.Op) (kvstore.Position, error) {
	failed := false
	for _, op := range ops {
		op.Decode(func(key string, _ []byte, _ int64) { failed = failed || s.fail(key) }, func(string) {}, func(string, int64) {}, func(string, int64) {})
	}
	if failed {
		return kvstore.Position{}, errors.New("disk full")
	}
	return s.Store.Commit(ctx, ops...)
}
