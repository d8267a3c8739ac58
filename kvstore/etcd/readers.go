package etcd

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Reader is what a Server knows of one caller.
type Reader struct {
	Name     string
	Streams  int   // watch streams and streamed lists in progress
	Watches  int   // watches in progress
	Requests int64 // since the server began or the caller was forgotten
	Refused  int64 // of them, over budget or not allowed
	Bytes    int64 // of answers, before compression
}

// forgetAfter is how long the budget of a caller without streams is remembered.
// It must outlast the longest burst, or reconnecting would refill it.
const forgetAfter = time.Minute

// client is the state of one Access.Name.
type client struct {
	name string

	mu       sync.Mutex
	budget   Budget
	requests *rate.Limiter // nil = no limit
	bytes    *rate.Limiter // nil = no limit
	streams  map[*liveStream]struct{}
	stats    Reader
	lastSeen time.Time
}

// liveStream is a call that CloseClient can end.
type liveStream struct {
	ctx    context.Context // the call's own, for Authorize
	cancel context.CancelCauseFunc
}

// admit authorises one call and charges it to its caller's budget.
func (s *Server) admit(ctx context.Context) (Access, *client, error) {
	access, err := s.authorize(ctx)
	if err != nil {
		return Access{}, nil, denied(err)
	}
	if access.Name == "" {
		return Access{}, nil, status.Error(codes.PermissionDenied, "the caller has no name")
	}
	c := s.client(access)
	return access, c, c.charge()
}

// denied makes a status of what Authorize said, if it is none.
func denied(err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.PermissionDenied, err.Error())
}

// client finds or makes the state of a caller and takes over its present budget.
func (s *Server) client(access Access) *client {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.clients[access.Name]
	if c == nil {
		s.forgetIdle()
		c = &client{name: access.Name, streams: map[*liveStream]struct{}{}}
		s.clients[access.Name] = c
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastSeen = time.Now()
	c.setBudget(access.Budget)
	return c
}

func (s *Server) forgetIdle() {
	for name, c := range s.clients {
		c.mu.Lock()
		if len(c.streams) == 0 && time.Since(c.lastSeen) > forgetAfter {
			delete(s.clients, name)
		}
		c.mu.Unlock()
	}
}

func (c *client) setBudget(b Budget) {
	if b == c.budget {
		return
	}
	if b.RequestsPerSecond != c.budget.RequestsPerSecond {
		c.requests = nil
		if b.RequestsPerSecond > 0 {
			c.requests = rate.NewLimiter(rate.Limit(b.RequestsPerSecond), 2*b.RequestsPerSecond)
		}
	}
	if b.BytesPerSecond != c.budget.BytesPerSecond {
		c.bytes = nil
		if b.BytesPerSecond > 0 {
			c.bytes = rate.NewLimiter(rate.Limit(b.BytesPerSecond), int(10*b.BytesPerSecond))
		}
	}
	c.budget = b
}

// charge takes one request from the budget.
func (c *client) charge() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stats.Requests++
	if c.requests == nil || c.requests.Allow() {
		return nil
	}
	c.stats.Refused++
	return status.Errorf(codes.ResourceExhausted, "%s exceeds its budget of %d requests per second: try again later", c.name, c.budget.RequestsPerSecond)
}

func (c *client) refused() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stats.Refused++
}

// pace waits until n bytes may be sent.
func (c *client) pace(ctx context.Context, n int) error {
	c.mu.Lock()
	c.stats.Bytes += int64(n)
	limit := c.bytes
	c.mu.Unlock()
	for limit != nil && n > 0 {
		part := min(n, limit.Burst())
		if err := limit.WaitN(ctx, part); err != nil {
			if ctx.Err() != nil {
				return status.FromContextError(ctx.Err()).Err()
			}
			c.refused() // the caller's deadline comes first
			return status.Errorf(codes.ResourceExhausted, "%s exceeds its budget of %.0f bytes per second: try again later", c.name, float64(limit.Limit()))
		}
		n -= part
	}
	return nil
}

// addWatch takes one watch from the budget; the caller returns it with removeWatch.
func (c *client) addWatch() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.budget.Watches > 0 && c.stats.Watches >= c.budget.Watches {
		c.stats.Refused++
		return fmt.Errorf("%s exceeds its budget of %d watches at a time", c.name, c.budget.Watches)
	}
	c.stats.Watches++
	return nil
}

func (c *client) removeWatch() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stats.Watches--
}

// live runs body as a call that CloseClient can end. It returns at once when
// that happens, even while body is stuck in a send to a caller that does not
// read: returning is what frees body.
func (s *Server) live(ctx context.Context, c *client, body func(ctx context.Context) error) error {
	sctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stream := &liveStream{ctx: ctx, cancel: cancel}
	c.mu.Lock()
	c.streams[stream] = struct{}{}
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.streams, stream)
		c.lastSeen = time.Now()
	}()

	// A CloseClient between admit and here has not seen this stream.
	if _, err := s.authorize(ctx); err != nil {
		return denied(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- body(sctx) }()
	select {
	case err := <-ended:
		if cause := context.Cause(sctx); cause != nil && ctx.Err() == nil {
			return cause
		}
		return err
	case <-sctx.Done():
		if ctx.Err() == nil {
			return context.Cause(sctx)
		}
		return <-ended
	}
}

// CloseClient ends the live streams of all callers whose name matches: with
// what Authorize says now, or, if they are still allowed, with a request to
// connect again. Their later calls are judged as all calls are.
func (s *Server) CloseClient(match func(name string) bool) {
	s.mu.Lock()
	var streams []*liveStream
	for name, c := range s.clients {
		if !match(name) {
			continue
		}
		c.mu.Lock()
		for stream := range c.streams {
			streams = append(streams, stream)
		}
		c.mu.Unlock()
	}
	s.mu.Unlock()
	for _, stream := range streams {
		cause := status.Error(codes.Unavailable, "the rights of this caller have changed: connect again")
		if _, err := s.authorize(stream.ctx); err != nil {
			cause = denied(err)
		}
		stream.cancel(cause)
	}
}

// Readers lists the callers seen lately, by name.
func (s *Server) Readers() []Reader {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Reader, 0, len(s.clients))
	for name, c := range s.clients {
		c.mu.Lock()
		r := c.stats
		r.Name, r.Streams = name, len(c.streams)
		c.mu.Unlock()
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b Reader) int { return strings.Compare(a.Name, b.Name) })
	return out
}
