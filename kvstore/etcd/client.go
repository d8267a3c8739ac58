package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

// Window is the flow-control window of a stream and of a connection, in bytes.
// It is fixed: with gRPC's own estimate lists over long lines take twice as
// long and every watch event costs a ping.
const Window = 4 << 20

const (
	// keepaliveTime is how long a connection may be silent before it is pinged,
	// keepaliveTimeout how long the answer may take. Together they bound how
	// long a vanished peer goes unnoticed. Servers refuse more than one ping
	// per 5 s.
	keepaliveTime    = 10 * time.Second
	keepaliveTimeout = 5 * time.Second

	// maxReceive bounds one decompressed answer, in bytes. Lists and watches
	// come in messages of a few megabytes at most.
	maxReceive = 64 << 20
)

// Config says how to reach one store.
type Config struct {
	// Endpoints are the members of one etcd cluster, or the replicas of one mesh
	// port: "host:port", or URLs with https://, http:// or unix://.
	Endpoints []string
	// TLS secures the connection. Its callbacks are asked at every handshake, so
	// a renewed certificate or a changed bundle needs no new Store. Nil = no
	// TLS, which only an endpoint that says http:// or unix:// may do.
	TLS *tls.Config
	// Compress asks the server to compress its answers with zstd, message by
	// message. A server that cannot is asked without.
	Compress bool
	// Log receives what is worth knowing and is no error; nil = discard.
	Log *slog.Logger
}

// Open returns a store on the given endpoints. It connects when it is first
// used, so the server need not be up; ctx bounds nothing but Open itself.
// The caller closes the store.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	client, err := dial(cfg)
	if err != nil {
		return nil, err
	}
	conn := client.ActiveConnection()
	s := NewStore(pb.NewKVClient(conn), pb.NewWatchClient(conn), pb.NewLeaseClient(conn), endpointsText(cfg.Endpoints), cfg.Log)
	s.client = client
	s.compress.Store(cfg.Compress)
	return s, nil
}

// Replicas opens one store for each endpoint of cfg, in that order: what
// kvstore.Follow takes to resume at another replica. Close closes them all.
func Replicas(ctx context.Context, cfg Config) (stores []kvstore.Store, closeAll func(), err error) {
	var opened []*Store
	closeAll = func() {
		for _, s := range opened {
			s.Close()
		}
	}
	if len(cfg.Endpoints) == 0 {
		return nil, closeAll, errNoEndpoints
	}
	for _, ep := range cfg.Endpoints {
		one := cfg
		one.Endpoints = []string{ep}
		s, err := Open(ctx, one)
		if err != nil {
			closeAll()
			return nil, func() {}, err
		}
		opened = append(opened, s)
		stores = append(stores, s)
	}
	return stores, closeAll, nil
}

var errNoEndpoints = errors.New("etcd: no endpoints given: name at least one host:port")

// dial makes the etcd client. Its own retries are off: an error is the
// caller's to see, and the caller's loop (Follow, Publish) backs off.
func dial(cfg Config) (*clientv3.Client, error) {
	if len(cfg.Endpoints) == 0 {
		return nil, errNoEndpoints
	}
	for _, ep := range cfg.Endpoints {
		if err := checkEndpoint(ep, cfg.TLS != nil); err != nil {
			return nil, err
		}
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints:            cfg.Endpoints,
		TLS:                  cfg.TLS,
		DialKeepAliveTime:    keepaliveTime,
		DialKeepAliveTimeout: keepaliveTimeout,
		MaxUnaryRetries:      1,
		MaxCallRecvMsgSize:   maxReceive,
		Logger:               zap.NewNop(),
		DialOptions: []grpc.DialOption{
			grpc.WithStaticStreamWindowSize(Window),
			grpc.WithStaticConnWindowSize(Window),
			grpc.WithDefaultCallOptions(
				grpc.MaxCallRecvMsgSize(maxReceive),
				grpc.MaxCallSendMsgSize(math.MaxInt32),
			),
			// Reconnecting must not wait for minutes after a long outage:
			// the loops above back off on their own.
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
				MinConnectTimeout: 5 * time.Second,
			}),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("etcd: endpoints %s: %w", endpointsText(cfg.Endpoints), err)
	}
	return client, nil
}
