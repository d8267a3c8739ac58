package etcd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/codes"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

const (
	// pageKeys is the size of a page where a list can not be streamed. etcd
	// counts the rest of the range for each page, so small pages cost the
	// square of the keys.
	pageKeys = 5000

	// streamRetry is how long a server that knows no RangeStream is believed
	// to be the same.
	streamRetry = 10 * time.Minute
)

// errNoStream: the server lacks RangeStream (etcd before 3.7).
var errNoStream = errors.New("RangeStream not supported")

// List streams the range, or reads pages where the server can not stream.
// It is one snapshot either way: etcd pins the revision of a stream itself,
// pages are pinned to the revision of the first.
func (s *Store) List(ctx context.Context, prefix string, at kvstore.Position, visit func([]kvstore.KV) error) (kvstore.Position, error) {
	l := &listing{store: s, prefix: prefix, at: at, visit: visit}
	err := errNoStream
	if time.Now().Unix() >= s.noStreams.Load() {
		err = l.stream(ctx)
		if s.compressionRefused(err) {
			err = l.stream(ctx)
		}
		if errors.Is(err, errNoStream) {
			s.noStreams.Store(time.Now().Add(streamRetry).Unix())
		}
	}
	if errors.Is(err, errNoStream) {
		err = l.pages(ctx)
		if s.compressionRefused(err) {
			err = l.pages(ctx)
		}
	}
	switch {
	case l.stopped != nil:
		return kvstore.Position{}, l.stopped
	case err != nil:
		return kvstore.Position{}, s.fail(ctx, l.String(), s.whichStore(ctx, prefix, at, err))
	}
	return l.at, nil
}

// listing is one List in progress.
type listing struct {
	store   *Store
	prefix  string
	at      kvstore.Position // completed by the first header
	visit   func([]kvstore.KV) error
	stopped error // what visit returned
}

func (l *listing) String() string {
	if l.at.Revision == 0 {
		return "list " + printable(l.prefix)
	}
	return fmt.Sprintf("list %s at %d", printable(l.prefix), l.at.Revision)
}

func (l *listing) stream(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	key, end := prefixRange(l.prefix)
	stream, err := l.store.kv.RangeStream(ctx, &pb.RangeRequest{Key: key, RangeEnd: end, Revision: l.at.Revision}, l.store.readOptions()...)
	if err != nil {
		return noStream(err)
	}
	for first, done := true, false; ; first = false {
		msg, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			if !done {
				return errors.New("the stream ended without the header that completes it")
			}
			return nil
		}
		if err != nil {
			if first {
				return noStream(err)
			}
			return err
		}
		r := msg.GetRangeResponse()
		if r.GetHeader() != nil {
			if err := l.header(r.Header); err != nil {
				return err
			}
			done = true
		}
		if err := l.deliver(r.GetKvs()); err != nil {
			return err
		}
	}
}

func noStream(err error) error {
	if code, _ := codeOf(err); code == codes.Unimplemented && !isUnknownEncoding(err) {
		return errNoStream
	}
	return err
}

func (l *listing) pages(ctx context.Context) error {
	key, end := prefixRange(l.prefix)
	for {
		r, err := l.store.kv.Range(ctx, &pb.RangeRequest{Key: key, RangeEnd: end, Revision: l.at.Revision, Limit: pageKeys}, l.store.readOptions()...)
		if err != nil {
			return err
		}
		if err := l.header(r.Header); err != nil {
			return err
		}
		if err := l.deliver(r.Kvs); err != nil {
			return err
		}
		if !r.More {
			return nil
		}
		if len(r.Kvs) == 0 {
			return errors.New("a page without keys says that there are more")
		}
		key = append([]byte(r.Kvs[len(r.Kvs)-1].Key), 0)
	}
}

// header checks who answers and pins the revision of a list at "now".
func (l *listing) header(h *pb.ResponseHeader) error {
	if err := checkStore(h, l.at.StoreID); err != nil {
		return err
	}
	l.at.StoreID = h.ClusterId
	if l.at.Revision == 0 {
		l.at.Revision = h.Revision
	}
	return nil
}

func (l *listing) deliver(kvs []*mvccpb.KeyValue) error {
	if len(kvs) == 0 {
		return nil
	}
	chunk := make([]kvstore.KV, len(kvs))
	for i, kv := range kvs {
		chunk[i] = toKV(kv)
		if !strings.HasPrefix(chunk[i].Key, l.prefix) {
			return fmt.Errorf("the answer holds %s, which was not asked for", printable(chunk[i].Key))
		}
	}
	l.stopped = l.visit(chunk)
	return l.stopped
}

// toKV takes over kv's value; the key becomes a string.
func toKV(kv *mvccpb.KeyValue) kvstore.KV {
	return kvstore.KV{
		Key:            string(kv.Key),
		Value:          kv.Value,
		CreateRevision: kv.CreateRevision,
		ModRevision:    kv.ModRevision,
		Lease:          kv.Lease,
	}
}

// prefixRange is the etcd range of all keys under prefix.
func prefixRange(prefix string) (key, end []byte) {
	if prefix == "" {
		return []byte{0}, []byte{0}
	}
	return []byte(prefix), prefixEnd(prefix)
}

// prefixEnd is the first key after all that begin with prefix; "\0", etcd's
// "no end", if there is none.
func prefixEnd(prefix string) []byte {
	end := []byte(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return []byte{0}
}
