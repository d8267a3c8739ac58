// Package relay joins the standard streams of a process to a Unix socket. It is
// the far end of a command line that reaches a socket inside a pod: exec runs the
// relay in there, and package relay/pod speaks through it.
//
//	tombolo ─ relay/pod ─ exec (kube-apiserver, kubelet, runtime) ─ relay ─ socket
package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strings"
	"syscall"
	"time"
)

// A relay says one line before anything else: Greeting, once the socket has taken
// its connection, and then all that follows is the socket's; or Refusal and why
// not. Who reads something else talks to a program that has no relay.
const (
	Greeting = "tombolo-relay 1\n"
	Refusal  = "tombolo-relay 1 error: "
)

// dialTimeout bounds the wait for a socket whose server does not accept.
const dialTimeout = 5 * time.Second

// Run joins in and out to the socket at path until the socket has said all. When
// in ends, the socket is told so and may still answer.
//
// It leaves one read of in behind if the socket ends first: the process must end.
func Run(ctx context.Context, path string, in io.Reader, out io.Writer) error {
	dialer := net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		err = dialError(path, err)
		_, _ = io.WriteString(out, Refusal+strings.ReplaceAll(err.Error(), "\n", " ")+"\n")
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if _, err := io.WriteString(out, Greeting); err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	go func() {
		// An error here is the socket's end, which the other direction sees, or
		// that of in, after which nothing more can come either.
		_, _ = io.Copy(conn, in)
		conn.(*net.UnixConn).CloseWrite()
	}()
	if _, err := io.Copy(out, conn); err != nil && ctx.Err() == nil && !errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("relay: %w", err)
	}
	return nil
}

// dialError says what to do about a socket that does not answer.
func dialError(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("there is no socket %s: its server has not started yet, or was started with another --socket", path)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("nobody listens on the socket %s: its server has ended", path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("the socket %s may not be opened by this user", path)
	}
	return fmt.Errorf("the socket %s does not answer: %w", path, err)
}
