package etcd

import (
	"context"
	"errors"
	"slices"
	"sort"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

const (
	// streamKeys and streamBytes close a message of a streamed list, whichever
	// comes first: large enough to be cheap, small enough to be decoded while
	// the next one travels.
	streamKeys  = 2000
	streamBytes = poolBytes

	// maxAnswer bounds the answer to one Range, which is held in memory whole.
	maxAnswer = 64 << 20
)

// now is the present position, or the reason why there is none.
func (s *Server) now() (kvstore.Position, error) {
	pos := s.store.Position()
	if pos.StoreID == 0 {
		return pos, status.Error(codes.Unavailable, "the store has not been read completely yet: try again in a moment, or another replica")
	}
	return pos, nil
}

// allowed checks that r lies wholly within one of the caller's prefixes.
func (s *Server) allowed(access Access, c *client, r keyRange) error {
	if slices.ContainsFunc(access.Prefixes, r.within) {
		return nil
	}
	c.refused()
	s.log.Warn("refused a read outside of the caller's prefixes", "caller", access.Name, "range", r.String())
	return status.Errorf(codes.PermissionDenied, "etcdserver: permission denied: %s may not read %s", access.Name, r)
}

// rangeQuery is a Range or RangeStream request that was found good.
type rangeQuery struct {
	server *Server
	client *client
	keys   keyRange
	req    *pb.RangeRequest
	at     kvstore.Position
}

func (s *Server) query(ctx context.Context, req *pb.RangeRequest) (*rangeQuery, error) {
	access, c, err := s.admit(ctx)
	if err != nil {
		return nil, err
	}
	if len(req.Key) == 0 {
		return nil, rpctypes.ErrGRPCEmptyKey
	}
	q := &rangeQuery{server: s, client: c, keys: parseRange(req.Key, req.RangeEnd), req: req}
	if err := s.allowed(access, c, q.keys); err != nil {
		return nil, err
	}
	switch {
	case req.SortTarget != pb.RangeRequest_KEY || req.SortOrder == pb.RangeRequest_DESCEND:
		return nil, status.Error(codes.InvalidArgument, "this port answers in ascending order of keys only: sort at the reader")
	case req.MinModRevision != 0 || req.MaxModRevision != 0 || req.MinCreateRevision != 0 || req.MaxCreateRevision != 0:
		return nil, status.Error(codes.InvalidArgument, "this port does not filter by revision: filter at the reader")
	}
	now, err := s.now()
	if err != nil {
		return nil, err
	}
	if req.Revision > 0 {
		q.at = kvstore.Position{StoreID: now.StoreID, Revision: req.Revision}
	}
	return q, nil
}

// result is what a walk over the range found.
type result struct {
	header kvstore.Position
	count  int64 // keys in the range, sent or not
	more   bool  // there are keys beyond the limit
}

// run walks the range and hands every key within the limit to each.
func (q *rangeQuery) run(ctx context.Context, each func(*kvstore.KV) error) (result, error) {
	var res result
	limit := q.req.Limit
	done := errors.New("done")
	pos, err := q.server.store.List(ctx, q.keys.prefix(), q.at, func(chunk []kvstore.KV) error {
		lo := sort.Search(len(chunk), func(i int) bool { return chunk[i].Key >= q.keys.from })
		hi := lo + sort.Search(len(chunk)-lo, func(i int) bool { return q.keys.after(chunk[lo+i].Key) })
		for i := lo; i < hi && !q.req.CountOnly && (limit <= 0 || res.count+int64(i-lo) < limit); i++ {
			if err := each(&chunk[i]); err != nil {
				return err
			}
		}
		res.count += int64(hi - lo)
		// Behind the range there is nothing to see. A list of the present goes
		// on all the same, to learn which revision it reads: skipping is cheap.
		if hi < len(chunk) && !q.at.IsZero() {
			return done
		}
		return nil
	})
	if errors.Is(err, done) {
		pos, err = q.at, nil
	}
	if err != nil {
		return res, rangeStatus(err)
	}
	res.more = limit > 0 && res.count > limit && !q.req.CountOnly
	res.header = pos
	// A header names the present revision, whatever revision was read.
	if now := q.server.store.Position(); !q.at.IsZero() && now.StoreID == pos.StoreID && now.Revision > pos.Revision {
		res.header = now
	}
	return res, nil
}

// rangeStatus is err in the words that etcd clients know.
func rangeStatus(err error) error {
	switch {
	case errors.Is(err, kvstore.ErrCompacted):
		return rpctypes.ErrGRPCCompacted
	case errors.Is(err, kvstore.ErrFutureRevision):
		return rpctypes.ErrGRPCFutureRev
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.Unavailable, err.Error())
}

// rangeCall is KV.Range.
func (s *Server) rangeCall(ctx context.Context, req *pb.RangeRequest) (any, error) {
	q, err := s.query(ctx, req)
	if err != nil {
		return nil, err
	}
	body := answerBuffer(4 << 10)
	res, err := q.run(ctx, func(kv *kvstore.KV) error {
		if len(body)+len(kv.Key)+len(kv.Value) > maxAnswer {
			return status.Errorf(codes.ResourceExhausted, "the answer is larger than %d MiB: read by RangeStream or with a limit", maxAnswer>>20)
		}
		body = appendRangeKV(body, kv, req.KeysOnly)
		return nil
	})
	if err != nil {
		return nil, err
	}
	body = res.append(body)
	if err := q.client.pace(ctx, len(body)); err != nil {
		return nil, err
	}
	return newFrame(body), nil
}

// append adds what completes an answer.
func (r result) append(b []byte) []byte {
	b = appendHeader(b, r.header)
	if r.more {
		b = appendField(b, rangeMore, 1)
	}
	return appendField(b, rangeCount, uint64(r.count))
}

// rangeStream is KV.RangeStream.
func (s *Server) rangeStream(_ any, stream grpc.ServerStream) error {
	req := new(pb.RangeRequest)
	if err := stream.RecvMsg(req); err != nil {
		return err
	}
	q, err := s.query(stream.Context(), req)
	if err != nil {
		return err
	}
	return s.live(stream.Context(), q.client, func(ctx context.Context) error {
		out := &chunkWriter{ctx: ctx, client: q.client, stream: stream}
		out.begin()
		res, err := q.run(ctx, func(kv *kvstore.KV) error { return out.add(kv, req.KeysOnly) })
		if err != nil {
			return err
		}
		out.body = res.append(out.body)
		return out.flush()
	})
}

// chunkWriter collects the messages of a RangeStream: a RangeResponse each,
// wrapped as field 1. Its length comes before it and is known last, so the
// buffer keeps room for it.
type chunkWriter struct {
	ctx    context.Context
	client *client
	stream grpc.ServerStream
	body   []byte
	keys   int
}

// wrapRoom is enough for the tag and length of a message.
const wrapRoom = 8

func (w *chunkWriter) begin() {
	w.body, w.keys = answerBuffer(streamBytes)[:wrapRoom], 0
}

func (w *chunkWriter) add(kv *kvstore.KV, keysOnly bool) error {
	if w.keys >= streamKeys || len(w.body)+len(kv.Key)+len(kv.Value) > streamBytes && w.keys > 0 {
		if err := w.flush(); err != nil {
			return err
		}
		w.begin()
	}
	w.body = appendRangeKV(w.body, kv, keysOnly)
	w.keys++
	return nil
}

func (w *chunkWriter) flush() error {
	size := uint64(len(w.body) - wrapRoom)
	start := wrapRoom - 1 - protowire.SizeVarint(size)
	w.body[start] = 1<<3 | 2
	protowire.AppendVarint(w.body[:start+1], size)
	if err := w.client.pace(w.ctx, len(w.body)-start); err != nil {
		return err
	}
	body := w.body
	w.body = nil
	whole := mem.NewBuffer(&body, mem.DefaultBufferPool())
	message := whole.Slice(start, len(body))
	whole.Free() // message holds it
	return w.stream.SendMsg(&frame{data: mem.BufferSlice{message}})
}

// poolBytes is about the size of a message: it fits one of gRPC's buffers of
// 32 KiB. The next larger ones have 1 MiB, of which hundreds of readers that come
// at once would hold one or two each while their connections are full.
const poolBytes = 31 << 10

// answerBuffer is an empty buffer from gRPC's pool with room for n bytes.
func answerBuffer(n int) []byte { return (*mem.DefaultBufferPool().Get(n))[:0] }
