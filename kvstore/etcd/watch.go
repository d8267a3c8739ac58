package etcd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/metadata"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

// progressEvery is how long a watch may be silent before it asks how far it is.
// etcd tells by itself every 10 minutes only, by when the place of a quiet
// prefix may be compacted.
const progressEvery = 10 * time.Second

// Watch opens a stream of its own for one watch. The etcd client's watch is not
// used because it reconnects in silence, to whatever answers then. The first
// batch is a bookmark: it says that the watch stands.
func (s *Store) Watch(ctx context.Context, prefix string, after kvstore.Position) iter.Seq2[kvstore.Batch, error] {
	return func(yield func(kvstore.Batch, error) bool) {
		w := &watching{store: s, prefix: prefix, after: after, yield: yield}
		err := w.run(ctx)
		if s.compressionRefused(err) {
			err = w.run(ctx)
		}
		if err == nil || ctx.Err() != nil {
			return
		}
		yield(kvstore.Batch{}, s.fail(ctx, w.String(), err))
	}
}

// watching is one Watch in progress.
type watching struct {
	store  *Store
	prefix string
	after  kvstore.Position // completed by the first answer
	yield  func(kvstore.Batch, error) bool

	last    int64           // revision up to which everything was delivered
	heard   atomic.Bool     // something came since the last look
	partial []*mvccpb.Event // fragments of a batch that is not whole yet
	size    int             // of partial, in bytes
}

// maxFragments bounds a batch that comes in fragments, in bytes: a server that
// never ends one must not take all memory.
const maxFragments = 4 * maxReceive

// eventBytes is about what an event takes beside its key and value.
const eventBytes = 128

func (w *watching) String() string {
	return fmt.Sprintf("watch %s after %d", printable(w.prefix), w.after.Revision)
}

// run returns nil when the consumer has had enough.
func (w *watching) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if w.after.Revision == 0 {
		now, err := w.store.read(ctx, w.prefix, w.after)
		if err != nil {
			return err
		}
		w.after = now
	}
	w.last = w.after.Revision
	w.partial, w.size = nil, 0

	// A member cut off from its cluster would watch on without an event.
	ctx = metadata.AppendToOutgoingContext(ctx, rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader)
	stream, err := w.store.watch.Watch(ctx, w.store.readOptions()...)
	if err != nil {
		return err
	}
	key, end := prefixRange(w.prefix)
	create := &pb.WatchCreateRequest{Key: key, RangeEnd: end, StartRevision: w.after.Revision + 1, ProgressNotify: true, Fragment: true}
	if err := stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}}); err != nil && !errors.Is(err, io.EOF) {
		return err // EOF: Recv knows the reason
	}
	asking := false
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return errors.New("the server ended the watch")
		}
		if err != nil {
			return err
		}
		if err := checkStore(resp.Header, w.after.StoreID); err != nil {
			return err
		}
		w.heard.Store(true)
		more, err := w.receive(ctx, resp)
		if err != nil || !more {
			return err
		}
		if !asking {
			asking = true
			go w.askProgress(ctx, stream)
		}
	}
}

// askProgress asks for bookmarks while nothing else comes, until the watch ends.
func (w *watching) askProgress(ctx context.Context, stream pb.Watch_WatchClient) {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	ask := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if w.heard.Swap(false) {
				continue
			}
			if stream.Send(ask) != nil {
				return // Recv reports it
			}
		}
	}
}

// receive handles one response; more is false when the consumer has had enough.
func (w *watching) receive(ctx context.Context, r *pb.WatchResponse) (more bool, err error) {
	switch {
	case r.Canceled:
		return false, cancelled(r)
	case r.Created:
		// etcd waits for a revision that it has not reached, for ever if it was
		// restored from a backup, and lets a watch begin at the very revision
		// it was compacted to, where deletes are missing. A read at that place
		// is judged strictly, and by the leader: a member that lags a moment
		// behind it is no reason to fail.
		if _, err := w.store.read(ctx, w.prefix, w.after); err != nil {
			return false, err
		}
		return w.yield(kvstore.Batch{Position: w.after}, nil), nil
	case len(r.Events) == 0 && !r.Fragment && len(w.partial) == 0:
		if r.Header.Revision <= w.last {
			return true, nil
		}
		w.last = r.Header.Revision
		return w.yield(kvstore.Batch{Position: kvstore.Position{StoreID: w.after.StoreID, Revision: w.last}}, nil), nil
	}
	w.partial = append(w.partial, r.Events...)
	if r.Fragment {
		for _, ev := range r.Events {
			w.size += len(ev.GetKv().GetKey()) + len(ev.GetKv().GetValue()) + eventBytes
		}
		if w.size += eventBytes; w.size > maxFragments {
			return false, fmt.Errorf("the server sent fragments of more than %d MiB and no end of them", maxFragments>>20)
		}
		return true, nil
	}
	batch, err := w.batch()
	if err != nil {
		return false, err
	}
	return w.yield(batch, nil), nil
}

// batch turns the collected events into whole revisions. The header of the
// response is no measure of progress: while a watch catches up it names the
// revision of the store, not that of the last event.
func (w *watching) batch() (kvstore.Batch, error) {
	events := make([]kvstore.Event, 0, len(w.partial))
	last := w.last
	for _, ev := range w.partial {
		e := kvstore.Event{Delete: ev.Type == mvccpb.Event_DELETE, KV: toKV(ev.Kv)}
		if e.Delete {
			e.KV = kvstore.KV{Key: e.KV.Key, ModRevision: e.KV.ModRevision}
		}
		switch {
		case !strings.HasPrefix(e.KV.Key, w.prefix):
			return kvstore.Batch{}, fmt.Errorf("the watch brought %s, which was not asked for", printable(e.KV.Key))
		case e.KV.ModRevision <= w.last || e.KV.ModRevision < last:
			return kvstore.Batch{}, fmt.Errorf("the watch went back from revision %d to %d", max(last, w.last), e.KV.ModRevision)
		}
		last = e.KV.ModRevision
		events = append(events, e)
	}
	w.partial, w.size, w.last = nil, 0, last
	return kvstore.Batch{Position: kvstore.Position{StoreID: w.after.StoreID, Revision: last}, Events: events}, nil
}

// cancelled says why the server ended the watch.
func cancelled(r *pb.WatchResponse) error {
	if r.CompactRevision != 0 {
		return fmt.Errorf("%w: the store remembers %d and later", kvstore.ErrCompacted, r.CompactRevision)
	}
	switch {
	case r.CancelReason == "":
		return errors.New("the server cancelled the watch without a reason")
	case strings.Contains(r.CancelReason, "permission denied"):
		return fmt.Errorf("%w: %s", kvstore.ErrDenied, r.CancelReason)
	}
	if kind := revisionKind(r.CancelReason); kind != nil {
		return fmt.Errorf("%w: %s", kind, r.CancelReason)
	}
	return fmt.Errorf("the server cancelled the watch: %s", r.CancelReason)
}
