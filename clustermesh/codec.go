package clustermesh

import (
	"bytes"
	"errors"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

// The first byte of a value names its encoding.
const (
	encodingPlain = 'p' // protobuf
	encodingZstd  = 'z' // zstd of protobuf
)

const (
	// plainLimit: records up to this many bytes stay plain. Small ones gain
	// nothing from compression on their own (the transport compresses across
	// records), large ones (policies, CA bundles, full slices) a lot.
	plainLimit = 1 << 10
	// maxPlain bounds what a compressed value may grow to.
	maxPlain = 1 << 20
)

// Encode makes the value of a record: one byte naming the encoding, then
// protobuf. What Decode would refuse, Encode refuses; a value above
// kvstore.MaxValue is an error that names the record.
func Encode(r Record) ([]byte, error) {
	plain, err := marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode %s %s: %w", r.Kind(), quote(r.KeyName()), err)
	}
	value := pack(plain)
	if len(value) > kvstore.MaxValue || len(plain)-1 > maxPlain {
		return nil, fmt.Errorf("encode %s %s: %d bytes; a record may have at most %d: split it or shorten it",
			r.Kind(), quote(r.KeyName()), len(value), kvstore.MaxValue)
	}
	// Reading back is the one check that cannot drift from what readers accept.
	d := decoders.Get().(*decoder)
	defer decoders.Put(d)
	if _, err := d.decode(r.Kind(), r.KeyName(), value); err != nil {
		return nil, fmt.Errorf("encode %s %s: %w", r.Kind(), quote(r.KeyName()), err)
	}
	return value, nil
}

// Decode reads a value of key k. The record shares no memory with value. The
// error of a malformed value names the key and what is wrong; nothing of a
// malformed record is returned.
func Decode(k Key, value []byte) (Record, error) {
	d := decoders.Get().(*decoder)
	defer decoders.Put(d)
	r, err := d.decode(k.Kind, k.Name, value)
	if err != nil {
		return nil, fmt.Errorf("record %s: %w", quote(k.String()), err)
	}
	return owned(r), nil
}

// decoders serve Encode, Decode and Same. They do not intern: their records
// have nothing to share with.
var decoders = sync.Pool{New: func() any { return newDecoder(false) }}

// Same reports whether two values of a key say the same, whatever their
// encoding, unknown fields and origin. Values that do not decode are the same
// only if their bytes are. It fits kvstore.PublishConfig.Same.
func Same(key string, a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	k, err := ParseKey(key)
	if err != nil {
		return false
	}
	ra, err := Decode(k, a)
	if err != nil {
		return false
	}
	rb, err := Decode(k, b)
	return err == nil && Equal(ra, rb)
}

// KindOf is the kind of a key as text, "" if it is no key of ours. It fits
// kvstore.PublishConfig.Kind.
func KindOf(key string) string {
	k, err := ParseKey(key)
	if err != nil {
		return ""
	}
	return string(k.Kind)
}

// pack turns plain (whose first byte is free for the encoding) into a value.
func pack(plain []byte) []byte {
	plain[0] = encodingPlain
	if len(plain) <= plainLimit {
		return plain
	}
	packed := encoder().EncodeAll(plain[1:], []byte{encodingZstd})
	if len(packed) >= len(plain) {
		return plain
	}
	return packed
}

// unpack returns the protobuf bytes of a value. They are the value's own when
// it is plain, and in buf (grown as needed) when it is compressed.
func unpack(value, buf []byte) (plain, grown []byte, err error) {
	if len(value) == 0 {
		return nil, buf, errors.New("value is empty; its first byte should name the encoding")
	}
	if len(value) > kvstore.MaxValue {
		return nil, buf, fmt.Errorf("value has %d bytes; at most %d are allowed", len(value), kvstore.MaxValue)
	}
	switch value[0] {
	case encodingPlain:
		return value[1:], buf, nil
	case encodingZstd:
		plain, err := decompressor().DecodeAll(value[1:], buf[:0])
		if err != nil {
			return nil, buf, fmt.Errorf("zstd: %w", err)
		}
		if len(plain) > maxPlain {
			return nil, buf, fmt.Errorf("zstd: more than %d bytes after decompression", maxPlain)
		}
		return plain, plain, nil
	}
	return nil, buf, fmt.Errorf("unknown encoding byte %#02x; this version knows 'p' (protobuf) and 'z' (zstd): the publisher is newer than this reader supports", value[0])
}

var encoder = sync.OnceValue(func() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true),
		zstd.WithWindowSize(128<<10))
	if err != nil {
		panic(err) // constant options: cannot fail
	}
	return e
})

var decompressor = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(maxPlain), zstd.WithDecoderMaxWindow(maxPlain))
	if err != nil {
		panic(err) // constant options: cannot fail
	}
	return d
})
