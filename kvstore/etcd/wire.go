package etcd

import (
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

// Hand-written encoding of the messages a Server sends in bulk. The numbers are
// the field numbers of etcd's rpc.proto and kv.proto; wire_test.go compares
// each with the generated code.

const (
	fieldHeader = 1 // of every response

	rangeKVs   = 2
	rangeMore  = 3
	rangeCount = 4

	watchID     = 2
	watchFrag   = 7
	watchEvents = 11
)

// kvFields is what the fields of kv need without key and value.
type kvFields struct {
	size       int // of the whole KeyValue
	withValue  bool
	version    uint64
	deleteOnly bool // the KeyValue of a delete: key and mod revision
}

func measure(kv *kvstore.KV, keysOnly, deleted bool) kvFields {
	f := kvFields{withValue: !keysOnly && !deleted && len(kv.Value) > 0, deleteOnly: deleted}
	f.size = bytesSize(len(kv.Key)) + varintSize(uint64(kv.ModRevision))
	if deleted {
		return f
	}
	// etcd counts the writes of a key's life; a Memory keeps no such count. All
	// that readers make of it is whether it is 1, that is a creation.
	f.version = 2
	if kv.CreateRevision == kv.ModRevision {
		f.version = 1
	}
	f.size += varintSize(uint64(kv.CreateRevision)) + varintSize(f.version) + varintSize(uint64(kv.Lease))
	if f.withValue {
		f.size += bytesSize(len(kv.Value))
	}
	return f
}

func appendKV(b []byte, kv *kvstore.KV, f kvFields) []byte {
	if len(kv.Key) > 0 {
		b = append(b, 1<<3|2)
		b = protowire.AppendVarint(b, uint64(len(kv.Key)))
		b = append(b, kv.Key...)
	}
	if f.deleteOnly {
		return appendField(b, 3, uint64(kv.ModRevision))
	}
	b = appendField(b, 2, uint64(kv.CreateRevision))
	b = appendField(b, 3, uint64(kv.ModRevision))
	b = appendField(b, 4, f.version)
	if f.withValue {
		b = append(b, 5<<3|2)
		b = protowire.AppendVarint(b, uint64(len(kv.Value)))
		b = append(b, kv.Value...)
	}
	return appendField(b, 6, uint64(kv.Lease))
}

// appendRangeKV adds kv to a RangeResponse.
func appendRangeKV(b []byte, kv *kvstore.KV, keysOnly bool) []byte {
	f := measure(kv, keysOnly, false)
	b = append(b, rangeKVs<<3|2)
	b = protowire.AppendVarint(b, uint64(f.size))
	return appendKV(b, kv, f)
}

// appendEvent adds ev to a WatchResponse.
func appendEvent(b []byte, ev *kvstore.Event) []byte {
	f := measure(&ev.KV, false, ev.Delete)
	size := 1 + protowire.SizeBytes(f.size)
	if ev.Delete {
		size += 2
	}
	b = append(b, watchEvents<<3|2)
	b = protowire.AppendVarint(b, uint64(size))
	if ev.Delete {
		b = append(b, 1<<3, 1)
	}
	b = append(b, 2<<3|2)
	b = protowire.AppendVarint(b, uint64(f.size))
	return appendKV(b, &ev.KV, f)
}

// appendHeader adds a ResponseHeader: cluster 1, member 2, revision 3, term 4.
func appendHeader(b []byte, pos kvstore.Position) []byte {
	size := 2*varintSize(pos.StoreID) + varintSize(uint64(pos.Revision)) + varintSize(1)
	b = append(b, fieldHeader<<3|2)
	b = protowire.AppendVarint(b, uint64(size))
	b = appendField(b, 1, pos.StoreID)
	b = appendField(b, 2, pos.StoreID)
	b = appendField(b, 3, uint64(pos.Revision))
	return appendField(b, 4, 1)
}

// appendField adds a varint field with a number below 16; 0 is left out.
func appendField(b []byte, num byte, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(append(b, num<<3), v)
}

// varintSize and bytesSize are the sizes of fields with a number below 16.
func varintSize(v uint64) int {
	if v == 0 {
		return 0
	}
	return 1 + protowire.SizeVarint(v)
}

func bytesSize(n int) int {
	if n == 0 {
		return 0
	}
	return 1 + protowire.SizeBytes(n)
}
