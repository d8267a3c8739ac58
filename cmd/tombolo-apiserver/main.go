// The mesh API server of a cluster: it reads Kubernetes objects, publishes them
// as records in its etcd, and serves other clusters and its own agents.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run is main with what it touches as parameters. It returns the exit status.
func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cmd := command(stdout, stderr, serve)
	cmd.SetArgs(args)
	if err := cmd.ExecuteContext(ctx); err != nil {
		var quiet errReported
		if !errors.As(err, &quiet) {
			fmt.Fprintln(stderr, "tombolo-apiserver:", err)
		}
		return 1
	}
	return 0
}

// errReported is an error that the log holds already.
type errReported struct{ error }

// newLog logs to w: as text on a terminal, as JSON elsewhere.
func newLog(w io.Writer, level slog.Level) *slog.Logger {
	opts := &slog.HandlerOptions{Level: level}
	if f, ok := w.(*os.File); ok && isTerminal(f) {
		return slog.New(slog.NewTextHandler(w, opts))
	}
	return slog.New(slog.NewJSONHandler(w, opts))
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != ""
}
