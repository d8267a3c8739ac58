package etcd

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/status"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

func TestZstdRoundTrip(t *testing.T) {
	c := encoding.GetCompressor(zstdName)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 50 {
				in := bytes.Repeat([]byte{byte(g), byte(i), 'x'}, 1+i*1000)
				var packed bytes.Buffer
				w, err := c.Compress(&packed)
				if err != nil {
					t.Error(err)
					return
				}
				w.Write(in) //nolint:errcheck // Close tells
				if err := w.Close(); err != nil {
					t.Error(err)
					return
				}
				r, err := c.Decompress(&packed)
				if err != nil {
					t.Error(err)
					return
				}
				out, err := io.ReadAll(r)
				r.(io.Closer).Close()
				if err != nil || !bytes.Equal(in, out) {
					t.Errorf("%d bytes became %d: %v", len(in), len(out), err)
					return
				}
			}
		})
	}
	wg.Wait()
	if _, err := io.ReadAll(must(c.Decompress(strings.NewReader("no zstd at all")))); err == nil {
		t.Error("garbage was decompressed")
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// bomb compresses as zstd does, but what comes out is 1 GiB of zeros.
type bomb struct{ encoding.Compressor }

func (bomb) Compress(w io.Writer) (io.WriteCloser, error) {
	enc, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(zstdMaxWindow))
	if err != nil {
		return nil, err
	}
	return bombWriter{enc}, nil
}

type bombWriter struct{ enc *zstd.Encoder }

func (b bombWriter) Write(p []byte) (int, error) { return len(p), nil }

func (b bombWriter) Close() error {
	zeros := make([]byte, 1<<20)
	for range 1 << 10 {
		if _, err := b.enc.Write(zeros); err != nil {
			return err
		}
	}
	return b.enc.Close()
}

// A small compressed request that unpacks to 1 GiB is refused at the limit.
func TestZstdBomb(t *testing.T) {
	good := encoding.GetCompressor(zstdName)
	mem := kvstore.NewMemory(kvstore.MemoryOptions{})
	defer mem.Close()
	g := grpc.NewServer(ServerOptions()...)
	NewServer(mem, ServerConfig{Authorize: func(context.Context) (Access, error) {
		return Access{Name: "x", Prefixes: []string{""}}, nil
	}}).Register(g)
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	done := make(chan struct{})
	go func() { defer close(done); g.Serve(l) }() //nolint:errcheck // ends with Stop
	defer func() { g.Stop(); <-done }()
	conn := must(grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials())))
	defer conn.Close()

	var packed bytes.Buffer
	w := must(bomb{good}.Compress(&packed))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	t.Logf("the bomb has %d bytes", packed.Len())
	r := must(good.Decompress(bytes.NewReader(packed.Bytes())))
	n := must(io.Copy(io.Discard, io.LimitReader(r, maxRequestMessage+1)))
	r.(io.Closer).Close()
	if n != maxRequestMessage+1 {
		t.Fatalf("only %d bytes came out: this is no bomb", n)
	}

	ctx := t.Context()
	encoding.RegisterCompressor(renamed{bomb{good}, "zstd-bomb"})
	_, err := pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: []byte("/a")}, grpc.UseCompressor("zstd-bomb"))
	if status.Code(err) != codes.ResourceExhausted {
		t.Fatalf("the bomb was answered with %v", err)
	}
}

// renamed makes the server take the bomb for a coding of its own, unpacked by
// the real decompressor.
type renamed struct {
	encoding.Compressor
	name string
}

func (r renamed) Name() string { return r.name }

func (r renamed) Decompress(in io.Reader) (io.Reader, error) {
	return encoding.GetCompressor(zstdName).Decompress(in)
}
