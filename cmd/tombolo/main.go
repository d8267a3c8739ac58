// Command tombolo is the command line of the mesh: what operators type.
//
// Nouns read, verbs change. Data goes to standard output, everything else to
// standard error. Exit status: 0 done, 1 failed, 2 wrong usage.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/tombolo-mesh/tombolo/test/lab"
)

func main() {
	lab.Janitor()
	lab.Workload()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	env := environment{Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv, Terminal: isTerminal(os.Stdout), Now: time.Now}
	os.Exit(run(ctx, env))
}

// environment is everything ambient that a command touches, so that a test can
// run one in-process.
type environment struct {
	Args           []string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Getenv         func(string) string
	Terminal       bool // Stdout is a terminal
	Now            func() time.Time
}

// usageError is a mistake in what was typed: exit status 2.
type usageError struct{ error }

// errAnswered ends a command with status 1 whose answer has said why.
var errAnswered = errors.New("")

func run(ctx context.Context, env environment) int {
	c := &cli{env: env}
	defer c.close()
	root := c.root()
	root.SetArgs(env.Args)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errAnswered):
		return 1
	}
	fmt.Fprintln(env.Stderr, "error: "+printableText(err.Error()))
	var usage usageError
	if errors.As(err, &usage) {
		fmt.Fprintln(env.Stderr, "run 'tombolo --help' or 'tombolo COMMAND --help' for usage")
		return 2
	}
	return 1
}

// colour says whether Stdout shall have colours.
func (e environment) colour() bool {
	return e.Terminal && e.Getenv("NO_COLOR") == "" && e.Getenv("TERM") != "dumb"
}

func isTerminal(f *os.File) bool {
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0
}
