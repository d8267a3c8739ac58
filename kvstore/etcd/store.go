package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

// Store is a kvstore.Store on an etcd. Its methods are safe for concurrent use.
type Store struct {
	kv     pb.KVClient
	watch  pb.WatchClient
	leases pb.LeaseClient
	where  string // for errors
	log    *slog.Logger
	client *clientv3.Client // nil if the calls do not go through one

	compress  atomic.Bool
	noStreams atomic.Int64 // unix seconds until which RangeStream is not tried
}

var _ kvstore.Store = (*Store)(nil)

// NewStore makes a store of bare etcd clients; where names them in errors. It
// is for an etcd in the process; everybody else uses Open.
func NewStore(kv pb.KVClient, watch pb.WatchClient, leases pb.LeaseClient, where string, log *slog.Logger) *Store {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Store{kv: kv, watch: watch, leases: leases, where: printable(where), log: log}
}

// Client returns the etcd client below the store, nil if there is none.
func (s *Store) Client() *clientv3.Client { return s.client }

// Close ends the connection and with it every call in progress.
func (s *Store) Close() error {
	if s.client == nil {
		return nil
	}
	if err := s.client.Close(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("etcd %s: close: %w", s.where, err)
	}
	return nil
}

// Commit writes ops in one transaction.
func (s *Store) Commit(ctx context.Context, ops ...kvstore.Op) (kvstore.Position, error) {
	req, err := txn(ops)
	if err != nil {
		return kvstore.Position{}, fmt.Errorf("etcd %s: commit: %w", s.where, err)
	}
	resp, err := s.kv.Txn(ctx, req)
	if err != nil {
		return kvstore.Position{}, s.failWrite(ctx, "commit", err)
	}
	pos, err := position(resp.Header)
	if err != nil {
		return kvstore.Position{}, s.fail(ctx, "commit", err)
	}
	if !resp.Succeeded {
		return kvstore.Position{}, fmt.Errorf("etcd %s: %w", s.where, kvstore.ErrConflict)
	}
	return pos, nil
}

// txn builds the request: conditions become compares, the rest the success branch.
func txn(ops []kvstore.Op) (*pb.TxnRequest, error) {
	if len(ops) > kvstore.MaxOps {
		return nil, fmt.Errorf("%w: %d operations, at most %d", kvstore.ErrTooLarge, len(ops), kvstore.MaxOps)
	}
	req := &pb.TxnRequest{}
	var err error
	for _, op := range ops {
		op.Decode(
			func(key string, value []byte, lease int64) {
				if len(value) > kvstore.MaxValue {
					err = fmt.Errorf("%w: %s has a value of %d bytes, at most %d", kvstore.ErrTooLarge, printable(key), len(value), kvstore.MaxValue)
				}
				put := &pb.PutRequest{Key: []byte(key), Value: value, Lease: lease}
				req.Success = append(req.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: put}})
			},
			func(key string) {
				del := &pb.DeleteRangeRequest{Key: []byte(key)}
				req.Success = append(req.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: del}})
			},
			func(key string, rev int64) {
				req.Compare = append(req.Compare, &pb.Compare{
					Key: []byte(key), Target: pb.Compare_MOD, Result: pb.Compare_EQUAL,
					TargetUnion: &pb.Compare_ModRevision{ModRevision: rev},
				})
			},
			func(key string, rev int64) {
				req.Compare = append(req.Compare, &pb.Compare{
					Key: []byte(key), Target: pb.Compare_CREATE, Result: pb.Compare_EQUAL,
					TargetUnion: &pb.Compare_CreateRevision{CreateRevision: rev},
				})
			},
		)
	}
	return req, err
}

// failWrite is fail for calls that a mesh port does not have.
func (s *Store) failWrite(ctx context.Context, what string, err error) error {
	if ctx.Err() != nil {
		return s.fail(ctx, what, err)
	}
	kind := kindOf(err)
	switch code, text := codeOf(err); {
	case code == codes.Unimplemented:
		kind = kvstore.ErrReadOnly
	case code == codes.ResourceExhausted && strings.Contains(text, "message larger than max"):
		// The server's gRPC layer refused the request before reading it.
		kind = kvstore.ErrTooLarge
	}
	return &storeError{where: s.where, what: what, kind: kind, cause: err}
}

// Grant makes a lease. etcd raises a ttl below about 2 s to its own minimum.
func (s *Store) Grant(ctx context.Context, ttl time.Duration) (kvstore.Lease, error) {
	seconds := int64(math.Ceil(ttl.Seconds()))
	if seconds < 1 {
		return nil, fmt.Errorf("etcd %s: grant: a lease of %v is too short: at least 1s", s.where, ttl)
	}
	resp, err := s.leases.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: seconds})
	if err != nil {
		return nil, s.failWrite(ctx, "grant", err)
	}
	if resp.Error != "" {
		return nil, s.fail(ctx, "grant", errors.New(resp.Error))
	}
	return &lease{store: s, id: resp.ID}, nil
}

type lease struct {
	store *Store
	id    int64
}

func (l *lease) ID() int64 { return l.id }

// KeepAlive opens a stream for one renewal: the caller paces renewals and
// wants each one's error, which a shared stream would hide.
func (l *lease) KeepAlive(ctx context.Context) (time.Duration, error) {
	sctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := l.store.leases.LeaseKeepAlive(sctx)
	if err != nil {
		return 0, l.store.fail(ctx, l.text("renew"), err)
	}
	if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: l.id}); err != nil {
		// The reason of a broken stream is what Recv says; Send knows EOF only.
		if _, rerr := stream.Recv(); rerr != nil {
			err = rerr
		}
		return 0, l.store.fail(ctx, l.text("renew"), err)
	}
	resp, err := stream.Recv()
	if err != nil {
		return 0, l.store.fail(ctx, l.text("renew"), err)
	}
	if resp.TTL <= 0 {
		return 0, fmt.Errorf("etcd %s: %s: %w", l.store.where, l.text("renew"), kvstore.ErrLeaseNotFound)
	}
	return time.Duration(resp.TTL) * time.Second, nil
}

func (l *lease) Revoke(ctx context.Context) error {
	_, err := l.store.leases.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: l.id})
	return l.store.fail(ctx, l.text("revoke"), err)
}

func (l *lease) text(what string) string { return fmt.Sprintf("%s lease %x", what, l.id) }

var errNoStoreID = errors.New("the answer has no cluster ID: this is no etcd, or one that is not ready yet")

// position reads the place an answer comes from.
func position(h *pb.ResponseHeader) (kvstore.Position, error) {
	if h.GetClusterId() == 0 {
		return kvstore.Position{}, errNoStoreID
	}
	return kvstore.Position{StoreID: h.ClusterId, Revision: h.Revision}, nil
}

// checkStore compares the sender of an answer with the store wanted; 0 = any.
func checkStore(h *pb.ResponseHeader, want uint64) error {
	pos, err := position(h)
	if err != nil {
		return err
	}
	if want != 0 && pos.StoreID != want {
		return fmt.Errorf("%w: store %x instead of %x", kvstore.ErrOtherStore, pos.StoreID, want)
	}
	return nil
}

// read proves that the store at is there and has its revision, by a read of one
// key under prefix, which need not exist. It returns at; for a revision of 0,
// the present one.
func (s *Store) read(ctx context.Context, prefix string, at kvstore.Position) (kvstore.Position, error) {
	key, _ := prefixRange(prefix)
	r, err := s.kv.Range(ctx, &pb.RangeRequest{Key: key, KeysOnly: true, Revision: at.Revision})
	if err != nil {
		return at, s.whichStore(ctx, prefix, at, err)
	}
	if err := checkStore(r.Header, at.StoreID); err != nil {
		return at, err
	}
	if at.Revision == 0 {
		return position(r.Header)
	}
	return at, nil
}

// whichStore looks behind a complaint about a revision, which does not tell the
// store that made it: revisions of another store mean nothing.
func (s *Store) whichStore(ctx context.Context, prefix string, at kvstore.Position, complaint error) error {
	if at.StoreID == 0 || at.Revision == 0 {
		return complaint
	}
	if kind := kindOf(complaint); kind != kvstore.ErrCompacted && kind != kvstore.ErrFutureRevision {
		return complaint
	}
	if _, err := s.read(ctx, prefix, kvstore.Position{StoreID: at.StoreID}); errors.Is(err, kvstore.ErrOtherStore) {
		return err
	}
	return complaint
}

// readOptions are those of List and Watch.
func (s *Store) readOptions() []grpc.CallOption {
	if s.compress.Load() {
		return []grpc.CallOption{grpc.UseCompressor(zstdName)}
	}
	return nil
}

// compressionRefused notices a server without zstd and turns it off for good.
func (s *Store) compressionRefused(err error) bool {
	if !s.compress.Load() || !isUnknownEncoding(err) {
		return false
	}
	s.compress.Store(false)
	s.log.Info("the server cannot compress with zstd: reading uncompressed", "endpoints", s.where)
	return true
}
