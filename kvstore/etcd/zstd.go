package etcd

import (
	"io"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
)

// zstdName is the content coding of gRPC messages compressed with zstd.
const zstdName = "zstd"

// zstdWindow bounds the memory of one coder, in bytes. Messages are some
// hundred kilobytes; a larger window gains nothing.
const zstdWindow = 512 << 10

// zstdMaxWindow is the largest window a sender may ask of us, in bytes. How much
// comes out of a message is bounded by gRPC's receive limit, which counts
// decompressed bytes and reads no further.
const zstdMaxWindow = 8 << 20

func init() { encoding.RegisterCompressor(&zstdCompressor{}) }

// zstdCompressor is the gRPC compressor: zstd at its fastest level, coders pooled.
type zstdCompressor struct {
	writers sync.Pool // *zstdWriter
	readers sync.Pool // *zstdReader
}

func (c *zstdCompressor) Name() string { return zstdName }

func (c *zstdCompressor) Compress(w io.Writer) (io.WriteCloser, error) {
	if z, ok := c.writers.Get().(*zstdWriter); ok {
		z.Reset(w)
		return z, nil
	}
	enc, err := zstd.NewWriter(w,
		zstd.WithEncoderLevel(zstd.SpeedFastest),
		zstd.WithEncoderConcurrency(1), // no goroutines to leak from the pool
		zstd.WithWindowSize(zstdWindow),
		zstd.WithLowerEncoderMem(true),
	)
	if err != nil {
		return nil, err
	}
	return &zstdWriter{Encoder: enc, pool: &c.writers}, nil
}

func (c *zstdCompressor) Decompress(r io.Reader) (io.Reader, error) {
	if z, ok := c.readers.Get().(*zstdReader); ok {
		if err := z.Decoder.Reset(r); err != nil {
			c.readers.Put(z)
			return nil, err
		}
		return z, nil
	}
	dec, err := zstd.NewReader(r,
		zstd.WithDecoderConcurrency(1), // decodes in the caller's goroutine
		zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(zstdMaxWindow),
	)
	if err != nil {
		return nil, err
	}
	return &zstdReader{Decoder: dec, pool: &c.readers}, nil
}

type zstdWriter struct {
	*zstd.Encoder
	pool *sync.Pool
}

func (z *zstdWriter) Close() error {
	err := z.Encoder.Close()
	z.Encoder.Reset(nil)
	z.pool.Put(z)
	return err
}

type zstdReader struct {
	*zstd.Decoder
	pool *sync.Pool
}

// Close is called once by gRPC, also when it stopped reading half way.
func (z *zstdReader) Close() error {
	err := z.Decoder.Reset(nil)
	z.pool.Put(z)
	return err
}

// isUnknownEncoding recognises a server that lacks the compressor asked for.
func isUnknownEncoding(err error) bool {
	if err == nil {
		return false
	}
	code, text := codeOf(err)
	return code == codes.Unimplemented && strings.Contains(text, "grpc-encoding")
}
