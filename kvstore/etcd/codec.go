package etcd

import (
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec below falls back on it
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
)

// frame is an answer that is encoded already. It may be sent once: gRPC gives
// its buffer back to the pool.
type frame struct{ data mem.BufferSlice }

// newFrame takes over b, which may have grown out of a pooled buffer.
func newFrame(b []byte) *frame {
	return &frame{data: mem.BufferSlice{mem.NewBuffer(&b, mem.DefaultBufferPool())}}
}

// codec is gRPC's protobuf codec, except that frames pass as they are.
type codec struct{ proto encoding.CodecV2 }

func newCodec() encoding.CodecV2 { return codec{encoding.GetCodecV2("proto")} }

func (codec) Name() string { return "proto" }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if f, ok := v.(*frame); ok {
		if f.data == nil {
			return nil, fmt.Errorf("etcd: an encoded answer was sent twice")
		}
		data := f.data
		f.data = nil
		return data, nil
	}
	return c.proto.Marshal(v)
}

func (c codec) Unmarshal(data mem.BufferSlice, v any) error { return c.proto.Unmarshal(data, v) }

// maxRequestMessage bounds one decompressed request to a Server, in bytes.
const maxRequestMessage = 4 << 20

// ServerOptions are those of a gRPC server that a Server is registered at:
// codec for encoded answers, fixed windows, keepalive, message limits. Other
// services may live on the same server. Clients that ask for zstd get it.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(newCodec()),
		// Requests are small: a caller may make us hold no more than this.
		grpc.StaticStreamWindowSize(256 << 10),
		grpc.StaticConnWindowSize(1 << 20),
		grpc.MaxRecvMsgSize(maxRequestMessage),
		grpc.MaxConcurrentStreams(1000),
		// A caller that got stuck in the handshake is cut off.
		grpc.ConnectionTimeout(10 * time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: 15 * time.Second, Timeout: 10 * time.Second,
			MaxConnectionIdle: 10 * time.Minute, // without a call; a Store connects again by itself
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	}
}
