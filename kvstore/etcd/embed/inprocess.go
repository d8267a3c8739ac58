package embed

import (
	"context"
	"io"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3rpc"
	"go.etcd.io/etcd/server/v3/proxy/grpcproxy/adapter"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// clients call an etcd in the process without a socket. etcd's own adapters do
// most of it; they lack streamed lists, and watches that end with the server.
type clients struct {
	kv    pb.KVClient
	watch pb.WatchClient
	lease pb.LeaseClient
}

var errStopped = status.Error(codes.Unavailable, "the embedded etcd has been stopped")

func inProcess(lifetime context.Context, s *etcdserver.EtcdServer) clients {
	kv := v3rpc.NewQuotaKVServer(s)
	return clients{
		kv:    &kvClient{KVClient: adapter.KvServerToKvClient(kv), server: kv, lifetime: lifetime},
		watch: &watchClient{WatchClient: adapter.WatchServerToWatchClient(v3rpc.NewWatchServer(s)), lifetime: lifetime},
		lease: adapter.LeaseServerToLeaseClient(v3rpc.NewQuotaLeaseServer(s)),
	}
}

type kvClient struct {
	pb.KVClient
	server   pb.KVServer
	lifetime context.Context
}

// RangeStream runs the server's side in a goroutine that ends with ctx, or when
// the stream has been read to its end.
func (c *kvClient) RangeStream(ctx context.Context, in *pb.RangeRequest, _ ...grpc.CallOption) (pb.KV_RangeStreamClient, error) {
	if c.lifetime.Err() != nil {
		return nil, errStopped
	}
	p := &rangePipe{ctx: ctx, chunks: make(chan *pb.RangeStreamResponse, 1), ended: make(chan error, 1)}
	go func() {
		err := c.server.RangeStream(in, rangeServerSide{rangePipe: p})
		if err == nil {
			err = io.EOF
		}
		p.ended <- err
		close(p.chunks)
	}()
	return rangeClientSide{rangePipe: p}, nil
}

type rangePipe struct {
	ctx    context.Context
	chunks chan *pb.RangeStreamResponse
	ended  chan error
}

func (p *rangePipe) Context() context.Context { return p.ctx }

type rangeServerSide struct {
	grpc.ServerStream // nil: nothing else of it is called
	*rangePipe
}

func (s rangeServerSide) Context() context.Context { return s.ctx }

func (s rangeServerSide) Send(r *pb.RangeStreamResponse) error {
	select {
	case s.chunks <- r:
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

type rangeClientSide struct {
	grpc.ClientStream // nil: nothing else of it is called
	*rangePipe
}

func (c rangeClientSide) Context() context.Context { return c.ctx }

func (c rangeClientSide) Recv() (*pb.RangeStreamResponse, error) {
	select {
	case r, ok := <-c.chunks:
		if ok {
			return r, nil
		}
	case <-c.ctx.Done():
		return nil, c.ctx.Err()
	}
	err := <-c.ended
	c.ended <- err // for a reader that asks again
	return nil, err
}

type watchClient struct {
	pb.WatchClient
	lifetime context.Context
}

// Watch ends with the server: etcd itself would leave the stream silent.
func (c *watchClient) Watch(ctx context.Context, opts ...grpc.CallOption) (pb.Watch_WatchClient, error) {
	if c.lifetime.Err() != nil {
		return nil, errStopped
	}
	ctx, cancel := context.WithCancel(ctx)
	unhook := context.AfterFunc(c.lifetime, cancel)
	context.AfterFunc(ctx, func() { unhook() })
	stream, err := c.WatchClient.Watch(ctx, opts...)
	if err != nil {
		cancel()
		return nil, err
	}
	return &watchStream{Watch_WatchClient: stream, lifetime: c.lifetime}, nil
}

type watchStream struct {
	pb.Watch_WatchClient
	lifetime context.Context
}

func (s *watchStream) Recv() (*pb.WatchResponse, error) {
	r, err := s.Watch_WatchClient.Recv()
	if err != nil && s.lifetime.Err() != nil {
		return nil, errStopped
	}
	return r, err
}
