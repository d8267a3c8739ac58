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

// client is the state of one Access.Name, or of an Access.Group.
type client struct {
	name string

	mu       sync.Mutex
	group    *client // nil = none; replaced only when the former one has no watches
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
	s.forgetIdle()
	c := present(s.clients, access.Name, access.Budget)
	if access.Group != "" {
		g := present(s.groups, access.Group, access.GroupBudget)
		c.mu.Lock()
		c.group = g
		c.mu.Unlock()
	}
	return c
}

// present finds or makes a state with this budget.
func present(in map[string]*client, name string, budget Budget) *client {
	c := in[name]
	if c == nil {
		c = &client{name: name, streams: map[*liveStream]struct{}{}}
		in[name] = c
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastSeen = time.Now()
	c.setBudget(budget)
	return c
}

// forgetIdle runs now and then: callers can be many.
func (s *Server) forgetIdle() {
	if time.Since(s.swept) < time.Second {
		return
	}
	s.swept = time.Now()
	for _, in := range []map[string]*client{s.clients, s.groups} {
		for name, c := range in {
			c.mu.Lock()
			if len(c.streams) == 0 && c.stats.Watches == 0 && time.Since(c.lastSeen) > forgetAfter {
				delete(in, name)
			}
			c.mu.Unlock()
		}
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

// shared is the caller's group; nil = none.
func (c *client) shared() *client {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.group
}

// charge takes one request from the budget, and then from the group's.
func (c *client) charge() error {
	if err := c.chargeOne(); err != nil {
		return err
	}
	g := c.shared()
	if g == nil {
		return nil
	}
	err := g.chargeOne()
	if err != nil {
		c.refused()
	}
	return err
}

func (c *client) chargeOne() error {
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
	if err := c.paceOne(ctx, n); err != nil {
		return err
	}
	g := c.shared()
	if g == nil {
		return nil
	}
	return g.paceOne(ctx, n)
}

func (c *client) paceOne(ctx context.Context, n int) error {
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

// addWatch takes one watch from the budget and the group's; the caller returns
// it with removeWatch.
func (c *client) addWatch() error {
	if err := c.addOneWatch(); err != nil {
		return err
	}
	g := c.shared()
	if g == nil {
		return nil
	}
	err := g.addOneWatch()
	if err != nil {
		c.removeOneWatch()
		c.refused()
	}
	return err
}

func (c *client) addOneWatch() error {
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
	c.removeOneWatch()
	if g := c.shared(); g != nil {
		g.removeOneWatch()
	}
}

func (c *client) removeOneWatch() {
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
