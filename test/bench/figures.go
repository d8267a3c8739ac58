package main

import (
	"os"

	"github.com/tombolo-mesh/tombolo/test/bench/stats"
)

// incumbent names figures that come with the goals: of the incumbent's own
// machinery, which does less than is measured here.
func incumbent(what string) string {
	return "incumbent, measured on a machine like this without TLS, " + what
}

func mib(bytes float64) float64 { return bytes / (1 << 20) }

// report prints rows in columns.
func report(rows ...[]string) { stats.Report(os.Stdout, rows...) }
