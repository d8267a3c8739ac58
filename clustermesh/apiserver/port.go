package apiserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
	"github.com/tombolo-mesh/tombolo/kvstore"
	"github.com/tombolo-mesh/tombolo/kvstore/etcd"
)

// PortConfig is what the mesh port needs. Zero values of the last block have
// defaults.
type PortConfig struct {
	Store     kvstore.Store  // writes, and reads of peers and tokens
	Cache     etcd.Source    // what readers are served from: the watch cache
	CA        *certs.CA      // to begin with; see ReplaceCA
	Leaf      *certs.Leaf    // named apiserver; gets its first certificate from New if it has none that holds
	Bundles   *certs.Bundles // the port keeps the own cluster's and the peers' bundles in it
	Registrar Registrar
	// ReviewNode is Config.ReviewNode.
	ReviewNode func(ctx context.Context, token string) (node string, err error)
	// GossipKeys are what the nodes of the own cluster gossip by, and how soon they
	// should ask again (0 = as they like). nil = none are handed out.
	GossipKeys func(ctx context.Context) (keys [][]byte, again time.Duration, err error)
	// Own is the present record of the own cluster: name, ID, mesh addresses,
	// pod prefixes, version, capabilities. The CA bundle is filled in.
	Own func() clustermesh.Cluster
	// Watched is followed for the peers; nil = Store. A watch cache that outlives
	// the loss of the store keeps the peers as well.
	Watched kvstore.Store
	// Exports follows the peers' exported services on the same connections; nil =
	// nobody asks for them.
	Exports *Exports
	Log     *slog.Logger // nil = discard

	LeafTTL     time.Duration // of every certificate; default certs.DefaultTTL
	Handshake   time.Duration // for TLS and the first frames; default 10 s
	Connections int           // at a time; default 8192
	Strangers   int           // connections without a verified certificate, of those; default 128
	PeerBudget  etcd.Budget   // of each peer's reader; default DefaultPeerBudget
	// ClusterBudget is of all readers of a peer together, however many names its
	// CA makes; default DefaultClusterBudget.
	ClusterBudget etcd.Budget
	Now           func() time.Time
}

// DefaultPeerBudget bounds what one reader of a peer may ask of the mesh port.
var DefaultPeerBudget = etcd.Budget{Watches: 256, RequestsPerSecond: 200}

// DefaultClusterBudget bounds what all readers of a peer may ask together: 5000
// nodes with three watches each, which come back within seconds after a restart.
var DefaultClusterBudget = etcd.Budget{Watches: 16384, RequestsPerSecond: 2000}

// Port is the mesh port: one TLS listener with the read half of the etcd v3 API
// and the Mesh service, for nodes, peers and clusters that are about to join.
// What a caller may do follows from its verified certificate alone; see access.
type Port struct {
	pb.UnimplementedMeshServer

	cfg      PortConfig
	own      string // cluster name
	log      *slog.Logger
	peers    *Peers
	tokens   *tokenStore
	conns    *connections
	contacts contacts
	etcd     *etcd.Server
	grpc     *grpc.Server

	joinMu    sync.Mutex // one join, leave or remove at a time
	caProblem atomic.Pointer[Problem]
	caNow     atomic.Pointer[certs.CA]
}

// NewPort checks cfg and makes a Port. The listener is Run's.
func NewPort(cfg PortConfig) (*Port, error) {
	if cfg.Store == nil || cfg.Cache == nil || cfg.CA == nil || cfg.Leaf == nil || cfg.Bundles == nil || cfg.Registrar == nil || cfg.Own == nil {
		return nil, errors.New("mesh port: store, cache, CA, leaf, bundles, registrar and own cluster are all needed")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	setDefault(&cfg.LeafTTL, certs.DefaultTTL)
	setDefault(&cfg.Handshake, 10*time.Second)
	setDefault(&cfg.Connections, 8192)
	setDefault(&cfg.Strangers, 128)
	if cfg.PeerBudget == (etcd.Budget{}) {
		cfg.PeerBudget = DefaultPeerBudget
	}
	setDefault(&cfg.ClusterBudget, DefaultClusterBudget)
	p := &Port{cfg: cfg, own: cfg.CA.Cluster(), log: cfg.Log}
	p.contacts.all = make(map[string]*contact)
	p.caNow.Store(cfg.CA)
	if want := certs.APIServer(p.own); cfg.Leaf.Name() != want {
		return nil, fmt.Errorf("mesh port: the leaf is for %s, expected %s", cfg.Leaf.Name(), want)
	}
	if err := p.firstLeaf(); err != nil {
		return nil, err
	}
	if err := cfg.Bundles.Set(p.own, cfg.CA.Bundle()); err != nil {
		return nil, err
	}
	p.peers = NewPeers(cfg.Store, p.own, cfg.Bundles, cfg.Log)
	if cfg.Watched != nil {
		p.peers.watched = cfg.Watched
	}
	p.tokens = &tokenStore{store: cfg.Store, cluster: p.own, now: cfg.Now}
	p.conns = newConnections(cfg)
	cfg.Bundles.OnChange(p.bundleChanged)
	p.serveWith()
	return p, nil
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// serveWith builds the gRPC server.
func (p *Port) serveWith() {
	options := append(etcd.ServerOptions(),
		grpc.Creds(&transport{port: p, conf: certs.IntroductionTLS(p.cfg.Leaf)}),
		grpc.ConnectionTimeout(p.cfg.Handshake),
		grpc.MaxConcurrentStreams(1024),
		grpc.MaxRecvMsgSize(1<<20), // every request is small
		grpc.ChainUnaryInterceptor(p.authorizeUnary),
		grpc.ChainStreamInterceptor(p.authorizeStream),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	)
	p.grpc = grpc.NewServer(options...)
	p.etcd = etcd.NewServer(p.cfg.Cache, etcd.ServerConfig{Authorize: p.authorizeReader, Log: p.log})
	p.etcd.Register(p.grpc)
	pb.RegisterMeshServer(p.grpc, p)
}

// Peers are the clusters this one is joined with.
func (p *Port) Peers() *Peers { return p.peers }

// Run serves on l until ctx ends. Meanwhile it keeps the peers and their
// bundles current, follows what they announce about themselves, renews the own
// certificate and undoes joins that a crash left half finished.
func (p *Port) Run(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var tasks sync.WaitGroup
	tasks.Go(func() { p.peers.Run(ctx) })
	tasks.Go(func() { p.followPeers(ctx) })
	tasks.Go(func() { _ = p.cfg.Leaf.Run(ctx, p.signOwn) }) // ends with ctx only
	tasks.Go(func() { p.undoHalfJoins(ctx) })
	tasks.Go(func() { p.compareCA(ctx) })
	tasks.Go(func() {
		<-ctx.Done()
		p.stop()
	})
	err := p.grpc.Serve(p.conns.limit(l))
	stopped := ctx.Err() != nil
	cancel()
	tasks.Wait()
	if stopped || errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return fmt.Errorf("mesh port: %w", err)
}

// stop lets running calls end for a moment; watches never end by themselves.
func (p *Port) stop() {
	done := make(chan struct{})
	go func() { p.grpc.GracefulStop(); close(done) }()
	select {
	case <-done:
	case <-time.After(500 * time.Millisecond):
		p.grpc.Stop()
		<-done
	}
}

// firstLeaf gets a certificate if there is none that holds.
func (p *Port) firstLeaf() error {
	leaf := p.cfg.Leaf
	if leaf.Valid() && p.signedByUs() {
		return nil
	}
	if err := leaf.Renew(context.Background(), p.signOwn); err != nil {
		return fmt.Errorf("certificate of the mesh port: %w", err)
	}
	return nil
}

// signedByUs: a certificate from before the CA was replaced is of no use.
func (p *Port) signedByUs() bool {
	_, err := certs.VerifyWith(p.ca().Bundle(), p.cfg.Leaf.Certificate().Certificate, p.cfg.Now())
	return err == nil
}

func (p *Port) signOwn(_ context.Context, csr []byte) (chain, bundle []byte, err error) {
	ca := p.ca()
	chain, err = ca.Sign(csr, certs.APIServer(p.own), p.cfg.LeafTTL, p.cfg.Now())
	return chain, ca.Bundle(), err
}

// ownCluster is the own record as others get it.
func (p *Port) ownCluster() *clustermesh.Cluster {
	c := p.cfg.Own()
	c.Name, c.CABundle = p.own, p.ca().Bundle()
	return &c
}
