package etcd

import (
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

func viaCodec(b []byte) (*pb.RangeStreamResponse, error) {
	out := new(pb.RangeStreamResponse)
	err := newChunkCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(b[:len(b)/2]), mem.SliceBuffer(b[len(b)/2:])}, out)
	return out, err
}

// The short way understands what the generated code understands.
func TestChunkIsProtobuf(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := &pb.RangeResponse{More: rapid.Bool().Draw(t, "more"), Count: rapid.Int64().Draw(t, "count")}
		if rapid.Bool().Draw(t, "header") {
			r.Header = &pb.ResponseHeader{ClusterId: rapid.Uint64().Draw(t, "id"), Revision: rapid.Int64().Draw(t, "rev")}
		}
		for _, kv := range rapid.SliceOfN(kvGen, 0, 5).Draw(t, "kvs") {
			r.Kvs = append(r.Kvs, proto3(kv, rapid.Bool().Draw(t, "keysOnly")))
		}
		want := &pb.RangeStreamResponse{RangeResponse: r}
		b, err := proto.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > 2 {
			if _, ok := decodeChunk(b); !ok {
				t.Fatalf("the short way was not taken for %x", b)
			}
		}
		if got, err := viaCodec(b); err != nil || !proto.Equal(got, want) {
			t.Fatalf("got %v, %v; want %v", got, err, want)
		}
	})
}

// Damaged or unknown bytes end as they do without the short way.
func TestChunkDamaged(t *testing.T) {
	good, err := proto.Marshal(&pb.RangeStreamResponse{RangeResponse: &pb.RangeResponse{
		Header: &pb.ResponseHeader{ClusterId: 1, Revision: 2},
		Kvs:    []*mvccpb.KeyValue{{Key: []byte("a"), Value: []byte("b"), ModRevision: 3}, {Key: []byte("c")}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		b := append([]byte(nil), good...)
		for range rapid.IntRange(1, 4).Draw(t, "changes") {
			b[rapid.IntRange(0, len(b)-1).Draw(t, "at")] = rapid.Byte().Draw(t, "to")
		}
		b = b[:rapid.IntRange(0, len(b)).Draw(t, "length")]
		want := new(pb.RangeStreamResponse)
		wantErr := proto.Unmarshal(b, want)
		got, err := viaCodec(b)
		if (err == nil) != (wantErr == nil) || err == nil && !proto.Equal(got, want) {
			t.Fatalf("%x: got %v, %v; the generated code says %v, %v", b, got, err, want, wantErr)
		}
	})
}
