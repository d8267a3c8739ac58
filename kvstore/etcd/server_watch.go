package etcd

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

const (
	// noWatch is the ID in answers that belong to no watch, or to all.
	noWatch = -1

	// fragmentBytes closes a message of a watch that asked for fragments.
	fragmentBytes = poolBytes

	// maxStreamWatches bounds the watches of one stream, whatever the budget.
	maxStreamWatches = 10000
)

// watchConn is one Watch stream: any number of watches, each with a goroutine
// that sends what it finds at once.
type watchConn struct {
	server *Server
	client *client
	stream grpc.ServerStream
	ctx    context.Context
	fail   context.CancelCauseFunc // ends the whole stream
	wg     sync.WaitGroup

	send sync.Mutex // one message at a time

	mu      sync.Mutex
	watches map[int64]*serverWatch
	nextID  int64
	closing bool // run waits for the goroutines there are
}

type serverWatch struct {
	id      int64
	keys    keyRange
	after   kvstore.Position
	cancel  context.CancelFunc
	ctx     context.Context
	req     *pb.WatchCreateRequest
	skipPut bool
	skipDel bool

	delivered int64 // guarded by watchConn.mu: everything up to here was sent
}

// watchStream is Watch.Watch.
func (s *Server) watchStream(_ any, stream grpc.ServerStream) error {
	_, c, err := s.admit(stream.Context())
	if err != nil {
		return err
	}
	return s.live(stream.Context(), c, func(ctx context.Context) error {
		ctx, fail := context.WithCancelCause(ctx)
		defer fail(nil)
		conn := &watchConn{server: s, client: c, stream: stream, ctx: ctx, fail: fail, watches: map[int64]*serverWatch{}}
		return conn.run()
	})
}

// run serves the stream until it ends. Receiving has a goroutine of its own,
// which ends when the handler has returned.
func (c *watchConn) run() error {
	received := make(chan error, 1)
	go func() { received <- c.receive() }()
	var err error
	select {
	case err = <-received:
	case <-c.ctx.Done():
		err = context.Cause(c.ctx)
	}
	c.fail(nil)
	c.mu.Lock()
	c.closing = true
	c.mu.Unlock()
	c.wg.Wait()
	if errors.Is(err, context.Canceled) {
		err = rpctypes.ErrGRPCWatchCanceled
	}
	return err
}

func (c *watchConn) receive() error {
	for c.ctx.Err() == nil {
		req := new(pb.WatchRequest)
		err := c.stream.RecvMsg(req)
		if errors.Is(err, io.EOF) {
			// The caller will ask for nothing more; its watches go on.
			<-c.ctx.Done()
			return context.Cause(c.ctx)
		}
		if err != nil {
			return err
		}
		switch r := req.RequestUnion.(type) {
		case *pb.WatchRequest_CreateRequest:
			err = c.create(r.CreateRequest)
		case *pb.WatchRequest_CancelRequest:
			err = c.cancelWatch(r.CancelRequest.GetWatchId())
		case *pb.WatchRequest_ProgressRequest:
			err = c.progress()
		}
		if err != nil {
			return err
		}
	}
	return context.Cause(c.ctx)
}

// create starts a watch or says why not. An error ends the whole stream.
func (c *watchConn) create(req *pb.WatchCreateRequest) error {
	if req == nil {
		return nil
	}
	access, _, err := c.server.admit(c.stream.Context())
	if err != nil {
		return err
	}
	now, err := c.server.now()
	if err != nil {
		return err
	}
	w, reason := c.newWatch(access, req, now)
	if reason != "" {
		return c.control(&pb.WatchResponse{Header: header(now), WatchId: noWatch, Created: true, Canceled: true, CancelReason: reason})
	}
	// The announcement goes first, or the caller would not know whose events come.
	if err := c.control(&pb.WatchResponse{Header: header(now), WatchId: w.id, Created: true}); err != nil {
		c.forget(w)
		return err
	}
	if !c.begin() {
		c.forget(w)
		return context.Cause(c.ctx)
	}
	go func() {
		defer c.wg.Done()
		defer c.forget(w)
		c.follow(w)
	}()
	return nil
}

// begin counts one more goroutine for run to wait for, unless it waits already.
func (c *watchConn) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return false
	}
	c.wg.Add(1)
	return true
}

// newWatch checks a request and registers its watch; reason is empty if that went well.
func (c *watchConn) newWatch(access Access, req *pb.WatchCreateRequest, now kvstore.Position) (w *serverWatch, reason string) {
	key := req.Key
	if len(key) == 0 {
		key = []byte{0}
	}
	w = &serverWatch{keys: parseRange(key, req.RangeEnd), req: req, after: now}
	if err := c.server.allowed(access, c.client, w.keys); err != nil {
		return nil, status.Convert(err).Message()
	}
	switch {
	case w.keys.form == rangeEmpty:
		return nil, "etcdserver: watch range is empty"
	case req.PrevKv:
		return nil, "this port keeps no previous values: watch without prev_kv"
	case req.StartRevision < 0:
		return nil, rpctypes.ErrCompacted.Error()
	case req.WatchId < 0:
		return nil, "a watch ID must not be negative"
	}
	if req.StartRevision > 0 {
		w.after.Revision = req.StartRevision - 1
	}
	w.delivered = w.after.Revision
	w.skipPut = slices.Contains(req.Filters, pb.WatchCreateRequest_NOPUT)
	w.skipDel = slices.Contains(req.Filters, pb.WatchCreateRequest_NODELETE)

	c.mu.Lock()
	defer c.mu.Unlock()
	if req.WatchId != 0 && c.watches[req.WatchId] != nil {
		return nil, "mvcc: duplicate watch ID provided on the WatchStream"
	}
	if len(c.watches) >= maxStreamWatches {
		return nil, "too many watches on one stream"
	}
	if err := c.client.addWatch(); err != nil {
		return nil, err.Error()
	}
	w.id = req.WatchId
	if w.id == 0 {
		for c.watches[c.nextID] != nil {
			c.nextID++
		}
		w.id = c.nextID
		c.nextID++
	}
	w.ctx, w.cancel = context.WithCancel(c.ctx)
	c.watches[w.id] = w
	return w, ""
}

// forget takes w off the stream; only the first call for a watch counts.
func (c *watchConn) forget(w *serverWatch) bool {
	c.mu.Lock()
	mine := c.watches[w.id] == w
	if mine {
		delete(c.watches, w.id)
	}
	c.mu.Unlock()
	w.cancel()
	if mine {
		c.client.removeWatch()
	}
	return mine
}

func (c *watchConn) cancelWatch(id int64) error {
	c.mu.Lock()
	w := c.watches[id]
	c.mu.Unlock()
	if w == nil || !c.forget(w) {
		return nil
	}
	return c.control(&pb.WatchResponse{Header: header(c.server.store.Position()), WatchId: id, Canceled: true})
}

// progress answers for all watches of the stream: everything up to the least
// delivered revision has been sent.
func (c *watchConn) progress() error {
	if err := c.client.charge(); err != nil {
		return err
	}
	pos, err := c.server.now()
	if err != nil {
		return err
	}
	// Held over the sending, or a watch could deliver an event in between.
	c.send.Lock()
	defer c.send.Unlock()
	c.mu.Lock()
	for _, w := range c.watches {
		pos.Revision = min(pos.Revision, w.delivered)
	}
	c.mu.Unlock()
	return c.stream.SendMsg(&pb.WatchResponse{Header: header(pos), WatchId: noWatch})
}

// control sends an answer that is no event.
func (c *watchConn) control(r *pb.WatchResponse) error {
	c.send.Lock()
	defer c.send.Unlock()
	return c.stream.SendMsg(r)
}

func header(pos kvstore.Position) *pb.ResponseHeader {
	return &pb.ResponseHeader{ClusterId: pos.StoreID, MemberId: pos.StoreID, Revision: pos.Revision, RaftTerm: 1}
}

// follow sends what happens under w until it ends.
func (c *watchConn) follow(w *serverWatch) {
	for batch, err := range c.server.store.Watch(w.ctx, w.keys.prefix(), w.after) {
		if err != nil {
			c.ended(w, err)
			return
		}
		if err := c.deliver(w, batch); err != nil {
			c.fail(err)
			return
		}
	}
}

// ended tells why a watch is over, unless it was cancelled.
func (c *watchConn) ended(w *serverWatch, err error) {
	if w.ctx.Err() != nil {
		return
	}
	r := &pb.WatchResponse{Header: header(c.server.store.Position()), WatchId: w.id, Canceled: true}
	switch {
	case errors.Is(err, kvstore.ErrCompacted):
		// From the present revision a watch can begin for certain.
		r.CompactRevision = max(r.Header.Revision, 1)
	case errors.Is(err, kvstore.ErrFutureRevision):
		r.CancelReason = rpctypes.ErrFutureRev.Error()
	default:
		// Another store took the place of this one, or the cache was cut off:
		// what the caller knows of revisions is void, so the stream ends.
		c.fail(status.Error(codes.Unavailable, err.Error()))
		return
	}
	if !c.forget(w) {
		return
	}
	if err := c.control(r); err != nil {
		c.fail(err)
	}
}

// deliver sends a batch: whole revisions, in one message unless the caller
// asked for fragments.
func (c *watchConn) deliver(w *serverWatch, batch kvstore.Batch) error {
	events := w.filter(batch.Events)
	bookmark := len(events) == 0
	if bookmark && (!w.req.ProgressNotify || len(batch.Events) > 0 || batch.Position.Revision <= w.after.Revision) {
		c.mu.Lock()
		defer c.mu.Unlock()
		w.delivered = batch.Position.Revision
		return nil
	}
	for first := true; first || len(events) > 0; first = false {
		body, rest := w.encode(batch.Position, events)
		if err := c.client.pace(w.ctx, len(body)); err != nil {
			if w.ctx.Err() != nil {
				return nil // cancelled while it waited
			}
			return err
		}
		if err := c.sendEvents(w, body, batch.Position.Revision, len(rest) == 0); err != nil {
			return err
		}
		events = rest
	}
	return nil
}

func (c *watchConn) sendEvents(w *serverWatch, body []byte, rev int64, last bool) error {
	c.send.Lock()
	defer c.send.Unlock()
	if w.ctx.Err() != nil {
		return nil // its cancellation has been announced
	}
	if last {
		c.mu.Lock()
		w.delivered = rev
		c.mu.Unlock()
	}
	return c.stream.SendMsg(newFrame(body))
}

// encode makes one WatchResponse of the first events and returns the rest.
func (w *serverWatch) encode(pos kvstore.Position, events []kvstore.Event) (body []byte, rest []kvstore.Event) {
	size := 64
	for i := 0; i < len(events) && size < fragmentBytes; i++ {
		size += len(events[i].KV.Key) + len(events[i].KV.Value) + 48
	}
	body = answerBuffer(min(size, fragmentBytes))
	body = appendHeader(body, pos)
	body = appendField(body, watchID, uint64(w.id))
	n := 0
	for n < len(events) {
		if n > 0 && w.req.Fragment && len(body)+len(events[n].KV.Key)+len(events[n].KV.Value) > fragmentBytes {
			break
		}
		body = appendEvent(body, &events[n])
		n++
	}
	if n < len(events) {
		body = appendField(body, watchFrag, 1)
	}
	return body, events[n:]
}

// filter keeps the events that the watch is about. Events are shared: what is
// left out is left out of a copy.
func (w *serverWatch) filter(events []kvstore.Event) []kvstore.Event {
	wanted := func(e *kvstore.Event) bool {
		return w.keys.has(e.KV.Key) && !(e.Delete && w.skipDel) && !(!e.Delete && w.skipPut)
	}
	for i := range events {
		if wanted(&events[i]) {
			continue
		}
		kept := slices.Clone(events[:i])
		for j := i + 1; j < len(events); j++ {
			if wanted(&events[j]) {
				kept = append(kept, events[j])
			}
		}
		return kept
	}
	return events
}
