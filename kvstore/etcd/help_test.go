package etcd_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	etcdembed "go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/tombolo-mesh/tombolo/kvstore"
	"github.com/tombolo-mesh/tombolo/kvstore/etcd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ca signs the certificates of one test run.
type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

var serial atomic.Int64

func newCA(t testing.TB) *ca {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(serial.Add(1)), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	cert := must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key))))
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &ca{cert, key, pool}
}

func (c *ca) leaf(name string) tls.Certificate {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(serial.Add(1)), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, c.cert, key.Public(), c.key))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (c *ca) client(name string) *tls.Config {
	return &tls.Config{RootCAs: c.pool, Certificates: []tls.Certificate{c.leaf(name)}, MinVersion: tls.VersionTLS13}
}

// files writes the CA, and a leaf, as etcd wants them.
func (c *ca) files(t testing.TB, name string) (caFile, certFile, keyFile string) {
	t.Helper()
	dir := t.TempDir()
	leaf := c.leaf(name)
	write := func(file, kind string, der []byte) string {
		path := filepath.Join(dir, file)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	keyDER := must(x509.MarshalECPrivateKey(leaf.PrivateKey.(*ecdsa.PrivateKey)))
	return write("ca.pem", "CERTIFICATE", c.cert.Raw), write("cert.pem", "CERTIFICATE", leaf.Certificate[0]), write("key.pem", "EC PRIVATE KEY", keyDER)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// port is a Memory behind the etcd API on a loopback port with mutual TLS.
type port struct {
	*etcd.Server
	ca   *ca
	addr string
	grpc *grpc.Server
}

// serve starts a port at addr ("" = any). Callers are named by the common name
// of their certificate and get what access says.
func serve(t testing.TB, c *ca, addr string, store etcd.Source, access func(name string) (etcd.Access, error)) *port {
	t.Helper()
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	creds := credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{c.leaf("port")}, ClientCAs: c.pool,
		ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13,
	})
	p := &port{
		Server: etcd.NewServer(store, etcd.ServerConfig{Authorize: func(ctx context.Context) (etcd.Access, error) {
			from, ok := peer.FromContext(ctx)
			if !ok {
				return etcd.Access{}, errors.New("no peer")
			}
			return access(from.AuthInfo.(credentials.TLSInfo).State.PeerCertificates[0].Subject.CommonName)
		}}),
		ca: c, addr: l.Addr().String(),
		grpc: grpc.NewServer(append(etcd.ServerOptions(), grpc.Creds(creds))...),
	}
	p.Register(p.grpc)
	done := make(chan struct{})
	go func() { defer close(done); p.grpc.Serve(l) }() //nolint:errcheck // ends with Stop
	t.Cleanup(func() { p.grpc.Stop(); <-done })
	return p
}

// everything lets every caller read everything.
func everything(name string) (etcd.Access, error) {
	return etcd.Access{Name: name, Prefixes: []string{""}}, nil
}

func (p *port) open(t testing.TB, name string, change ...func(*etcd.Config)) *etcd.Store {
	t.Helper()
	cfg := etcd.Config{Endpoints: []string{p.addr}, TLS: p.ca.client(name)}
	for _, f := range change {
		f(&cfg)
	}
	return open(t, cfg)
}

func open(t testing.TB, cfg etcd.Config) *etcd.Store {
	t.Helper()
	s, err := etcd.Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func compressed(c *etcd.Config) { c.Compress = true }

// realEtcd starts an etcd with a TLS listener, as an operator would run one.
// dir "" = a fresh one, addr "" = any port.
type realEtcd struct {
	*etcdembed.Etcd
	addr    string
	dir     string
	ca      *ca
	closing sync.Once
}

func startEtcd(t testing.TB, c *ca, dir, addr string) *realEtcd {
	t.Helper()
	if dir == "" {
		dir = t.TempDir()
	}
	if addr == "" {
		addr = freeAddr(t)
	}
	cfg := etcdembed.NewConfig()
	cfg.Dir = dir
	cfg.ListenPeerUrls = nil
	listen := url.URL{Scheme: "https", Host: addr}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{listen}, []url.URL{listen}
	cfg.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:1"}}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.InitialClusterToken = fmt.Sprintf("%s-%d", dir, serial.Add(1))
	cfg.TickMs, cfg.ElectionMs = 50, 500
	cfg.WatchProgressNotifyInterval = time.Second
	cfg.ZapLoggerBuilder = etcdembed.NewZapLoggerBuilder(zap.NewNop())
	caFile, cert, key := c.files(t, "etcd")
	cfg.ClientTLSInfo = transport.TLSInfo{CertFile: cert, KeyFile: key, TrustedCAFile: caFile, ClientCertAuth: true}
	e, err := etcdembed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	real := &realEtcd{Etcd: e, addr: addr, dir: dir, ca: c}
	t.Cleanup(real.Close)
	select {
	case <-e.Server.ReadyNotify():
	case <-time.After(20 * time.Second):
		t.Fatal("etcd did not become ready")
	}
	return real
}

// Close may be called twice, unlike etcd's own.
func (e *realEtcd) Close() { e.closing.Do(e.Etcd.Close) }

func (e *realEtcd) config(name string) etcd.Config {
	return etcd.Config{Endpoints: []string{e.addr}, TLS: e.ca.client(name)}
}

func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func commit(t testing.TB, s kvstore.Store, ops ...kvstore.Op) kvstore.Position {
	t.Helper()
	pos, err := s.Commit(context.Background(), ops...)
	if err != nil {
		t.Fatal(err)
	}
	return pos
}

func put(t testing.TB, s kvstore.Store, key, value string) kvstore.Position {
	t.Helper()
	return commit(t, s, kvstore.Put(key, []byte(value), 0))
}

func list(t testing.TB, s kvstore.Store, prefix string, at kvstore.Position) ([]kvstore.KV, kvstore.Position) {
	t.Helper()
	kvs, pos, err := tryList(s, prefix, at)
	if err != nil {
		t.Fatal(err)
	}
	return kvs, pos
}

func tryList(s kvstore.Store, prefix string, at kvstore.Position) ([]kvstore.KV, kvstore.Position, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var all []kvstore.KV
	pos, err := s.List(ctx, prefix, at, func(kvs []kvstore.KV) error { all = append(all, kvs...); return nil })
	return all, pos, err
}

func keys(kvs []kvstore.KV) (out []string) {
	for _, kv := range kvs {
		out = append(out, kv.Key)
	}
	return out
}

// watching collects what a watch yields in a goroutine.
type watching struct {
	t       testing.TB
	batches chan kvstore.Batch
	ended   chan error
	cancel  context.CancelFunc
}

func watch(t testing.TB, s kvstore.Store, prefix string, after kvstore.Position) *watching {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w := &watching{t: t, batches: make(chan kvstore.Batch, 10000), ended: make(chan error, 1), cancel: cancel}
	done := make(chan struct{})
	go func() {
		defer close(done)
		var last error
		for b, err := range s.Watch(ctx, prefix, after) {
			if err != nil {
				last = err
				break
			}
			w.batches <- b
		}
		w.ended <- last
	}()
	t.Cleanup(func() { cancel(); <-done })
	return w
}

// standing waits for the bookmark that says that the watch stands.
func (w *watching) standing() *watching {
	w.t.Helper()
	b := w.next()
	if len(b.Events) != 0 {
		w.t.Fatalf("the watch began with events: %v", b)
	}
	return w
}

func (w *watching) next() kvstore.Batch {
	w.t.Helper()
	select {
	case b := <-w.batches:
		return b
	case err := <-w.ended:
		w.t.Fatalf("the watch ended: %v", err)
	case <-time.After(20 * time.Second):
		w.t.Fatal("the watch is silent")
	}
	panic("unreachable")
}

// events returns the next n events, without bookmarks.
func (w *watching) events(n int) (out []kvstore.Event) {
	w.t.Helper()
	for len(out) < n {
		out = append(out, w.next().Events...)
	}
	return out
}

func (w *watching) end() error {
	w.t.Helper()
	for {
		select {
		case <-w.batches:
		case err := <-w.ended:
			return err
		case <-time.After(20 * time.Second):
			w.t.Fatal("the watch does not end")
		}
	}
}

func wantKeys(t testing.TB, got []kvstore.KV, want ...string) {
	t.Helper()
	if !slices.Equal(keys(got), want) {
		t.Fatalf("keys %q, want %q", keys(got), want)
	}
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}
