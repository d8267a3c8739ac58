// Command bench measures what Tombolo promises about speed, each figure beside
// a yardstick taken in the same run: a bare etcd, a direct connect(). Absolute
// figures are those of this machine at this moment; compare the ratios.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/tombolo-mesh/tombolo/test/lab"
)

// section is one of the benchmarks.
type section struct {
	name, title string
	root        bool
	run         func(context.Context, *bench) error
}

var sections = []section{
	{"propagation", "1. A change at the source until it is in a BPF map", true, propagation},
	{"badpeer", "1b. The same beside a peer that floods, lies or hangs", true, badPeers},
	{"sync", "2. A fresh agent until it is synced and its maps are written", true, syncUp},
	{"publish", "3. First publication of a large cluster into an embedded etcd", false, publication},
	{"tables", "4. Services per second into BPF maps", true, tables},
	{"connect", "5. connect() through the socket program", true, connects},
}

// bench is one run of the command.
type bench struct {
	runs   int
	binDir string
}

func main() {
	lab.Janitor()
	lab.Workload()
	child()
	var b bench
	only := flag.String("only", "", "comma-separated sections to run (propagation, badpeer, sync, publish, tables, connect); all if empty")
	flag.IntVar(&b.runs, "runs", 5, "interleaved runs of everything that is compared")
	flag.StringVar(&b.binDir, "bin", "bin", "folder of the programs, from make build")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	failed := false
	for _, s := range sections {
		if *only != "" && !slices.Contains(strings.Split(*only, ","), s.name) {
			continue
		}
		fmt.Printf("\n%s\n", s.title)
		if s.root && os.Geteuid() != 0 {
			fmt.Println("  skipped: needs root")
			continue
		}
		if err := s.run(ctx, &b); err != nil {
			fmt.Printf("  FAILED: %v\n", err)
			failed = true
		}
	}
	if failed || ctx.Err() != nil {
		os.Exit(1)
	}
}
