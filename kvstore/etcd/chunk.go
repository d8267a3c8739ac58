package etcd

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// chunkCodec is gRPC's protobuf codec with a short way for the chunks of a
// streamed list, which are most of what a fresh reader decodes: two allocations
// a chunk instead of three a key. Keys and values alias one buffer, so a value
// that is kept keeps its chunk, a few hundred kilobytes, as long as it lives.
type chunkCodec struct{ encoding.CodecV2 }

func newChunkCodec() encoding.CodecV2 { return chunkCodec{encoding.GetCodecV2("proto")} }

func (c chunkCodec) Unmarshal(data mem.BufferSlice, v any) error {
	if r, ok := v.(*pb.RangeStreamResponse); ok {
		if chunk, ok := decodeChunk(data.Materialize()); ok {
			r.RangeResponse = chunk
			return nil
		}
	}
	return c.CodecV2.Unmarshal(data, v)
}

// decodeChunk decodes what today's servers send. Anything else, damaged or newer,
// is not ok and left to the generated code.
func decodeChunk(b []byte) (*pb.RangeResponse, bool) {
	body, rest, ok := takeBytes(b, 1)
	if !ok || len(rest) > 0 {
		return nil, false
	}
	n, ok := countKVs(body)
	if !ok {
		return nil, false
	}
	out := &pb.RangeResponse{Kvs: make([]*mvccpb.KeyValue, 0, n)}
	slab := make([]mvccpb.KeyValue, n)
	for len(body) > 0 {
		var field []byte
		var v uint64
		switch body[0] {
		case rangeKVs<<3 | 2:
			if field, body, ok = takeBytes(body, rangeKVs); !ok {
				return nil, false
			}
			kv := &slab[len(out.Kvs)]
			if !decodeKV(kv, field) {
				return nil, false
			}
			out.Kvs = append(out.Kvs, kv)
		case fieldHeader<<3 | 2:
			if field, body, ok = takeBytes(body, fieldHeader); !ok || out.Header != nil {
				return nil, false
			}
			out.Header = new(pb.ResponseHeader)
			if proto.Unmarshal(field, out.Header) != nil {
				return nil, false
			}
		case rangeMore << 3:
			if v, body, ok = takeVarint(body); !ok {
				return nil, false
			}
			out.More = v != 0
		case rangeCount << 3:
			if v, body, ok = takeVarint(body); !ok {
				return nil, false
			}
			out.Count = int64(v)
		default:
			return nil, false
		}
	}
	return out, true
}

// countKVs counts the keys of a chunk, so that they get one slab.
func countKVs(b []byte) (n int, ok bool) {
	for len(b) > 0 {
		num, typ, size := protowire.ConsumeTag(b)
		if size < 0 {
			return 0, false
		}
		if num == rangeKVs {
			n++
		}
		value := protowire.ConsumeFieldValue(num, typ, b[size:])
		if value < 0 {
			return 0, false
		}
		b = b[size+value:]
	}
	return n, true
}

func decodeKV(kv *mvccpb.KeyValue, b []byte) bool {
	for ok := true; len(b) > 0; {
		var v uint64
		switch tag := b[0]; tag {
		case 1<<3 | 2:
			if kv.Key, b, ok = takeBytes(b, 1); !ok {
				return false
			}
		case 5<<3 | 2:
			if kv.Value, b, ok = takeBytes(b, 5); !ok {
				return false
			}
		case 2 << 3, 3 << 3, 4 << 3, 6 << 3:
			if v, b, ok = takeVarint(b); !ok {
				return false
			}
			switch tag >> 3 {
			case 2:
				kv.CreateRevision = int64(v)
			case 3:
				kv.ModRevision = int64(v)
			case 4:
				kv.Version = int64(v)
			case 6:
				kv.Lease = int64(v)
			}
		default:
			return false
		}
	}
	return true
}

// takeBytes takes a field of bytes with this number (below 16) off the front.
func takeBytes(b []byte, num byte) (field, rest []byte, ok bool) {
	if len(b) == 0 || b[0] != num<<3|2 {
		return nil, nil, false
	}
	field, n := protowire.ConsumeBytes(b[1:])
	if n < 0 {
		return nil, nil, false
	}
	return field[:len(field):len(field)], b[1+n:], true
}

// takeVarint takes a field of one tag byte and a number off the front.
func takeVarint(b []byte) (v uint64, rest []byte, ok bool) {
	v, n := protowire.ConsumeVarint(b[1:])
	if n < 0 {
		return 0, nil, false
	}
	return v, b[1+n:], true
}
