package relay

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve answers one connection on a socket of its own.
func serve(t *testing.T, answer func(conn *net.UnixConn)) (path string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "relay") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path = filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		answer(conn.(*net.UnixConn))
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return path
}

// The end of in reaches the server as an end, and its answer, which it gives only
// then, reaches out in full.
func TestEndOfInputLeavesTheAnswer(t *testing.T) {
	sent := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	path := serve(t, func(conn *net.UnixConn) {
		all, err := io.ReadAll(conn)
		if err != nil {
			t.Error(err)
		}
		conn.Write(append(all, "end"...))
	})
	var out bytes.Buffer
	if err := Run(t.Context(), path, bytes.NewReader(sent), &out); err != nil {
		t.Fatal(err)
	}
	if want := Greeting + string(sent) + "end"; out.String() != want {
		t.Errorf("%d bytes came back, want %d", out.Len(), len(want))
	}
}

// A server that ends the connection ends the relay, whatever in does.
func TestServerEnds(t *testing.T) {
	path := serve(t, func(conn *net.UnixConn) {
		io.ReadFull(conn, make([]byte, 5))
		conn.Write([]byte("bye"))
	})
	in, feed := io.Pipe()
	defer in.Close()
	go feed.Write([]byte("hello"))
	var out bytes.Buffer
	if err := Run(t.Context(), path, in, &out); err != nil || out.String() != Greeting+"bye" {
		t.Errorf("%v, %q", err, out.String())
	}
}

func TestContextEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	path := serve(t, func(conn *net.UnixConn) {
		io.ReadFull(conn, make([]byte, 1))
		cancel()
		io.Copy(io.Discard, conn)
	})
	in, feed := io.Pipe()
	defer feed.Close()
	go feed.Write([]byte("x"))
	if err := Run(ctx, path, in, io.Discard); err != nil {
		t.Error(err)
	}
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("no reader") }

func TestErrors(t *testing.T) {
	dead := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", dead)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	for path, want := range map[string]string{
		filepath.Join(t.TempDir(), "none"): "there is no socket",
		dead:                               "nobody listens on the socket",
	} {
		var out bytes.Buffer
		err := Run(t.Context(), path, strings.NewReader(""), &out)
		if err == nil || !strings.Contains(err.Error(), want) || out.String() != Refusal+err.Error()+"\n" {
			t.Errorf("%s: %v, %q; want %q", path, err, out.String(), want)
		}
	}
	mute := serve(t, func(conn *net.UnixConn) { io.Copy(io.Discard, conn) })
	if err := Run(t.Context(), mute, strings.NewReader(""), fullDisk{}); err == nil || !strings.Contains(err.Error(), "no reader") {
		t.Error(err)
	}
}
