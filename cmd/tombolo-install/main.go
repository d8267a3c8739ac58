// Command tombolo-install does what `tombolo install`, `upgrade`, `uninstall` and
// `check` say: it is started by them, with a request as its one argument. It is
// apart from tombolo because of the size of Helm's library.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/tombolo-mesh/tombolo/deploy/install"
	"github.com/tombolo-mesh/tombolo/deploy/request"
)

// version of the build; set by the linker for releases.
var version = "dev"

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run returns the exit status: 0 done, 1 failed, 2 wrong usage.
func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r, err := request.Parse(strings.Join(args, " "), version)
	if err != nil {
		fmt.Fprintln(stderr, "error: "+err.Error())
		return 2
	}
	err = install.Run(ctx, r, stdout, stderr)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, install.ErrAnswered):
		return 1
	}
	fmt.Fprintln(stderr, "error: "+err.Error())
	return 1
}
