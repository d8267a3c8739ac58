package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/tombolo-mesh/tombolo/test/bench/stats"
)

// report is the table at the end: what happened, what was promised, what was
// measured.
type report []row

type row struct{ fault, promised, measured, verdict string }

func (r report) print(out io.Writer) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "FAULT\tPROMISED\tMEASURED\tVERDICT")
	for _, row := range r {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", row.fault, row.promised, row.measured, row.verdict)
	}
	w.Flush()
}

func (s *suite) row(promised, measured, verdict string) {
	s.table = append(s.table, row{s.label(), promised, measured, verdict})
	s.say("%s: %s%s", promised, measured, map[bool]string{true: "", false: "  (" + verdict + ")"}[verdict == ""])
}

// never is a promise that something does not happen. There is no second try.
func (s *suite) never(promised string, times int, detail string) {
	verdict := "kept"
	if times > 0 {
		verdict = "BROKEN"
		s.lost++
	}
	s.row(promised, detail, verdict)
}

// failed is what the machine may be at fault for: it is tried once more.
func (s *suite) failed(promised, measured string) {
	s.broken = append(s.broken, s.current.name)
	s.row(promised, measured, "BROKEN")
}

// within is a promise about time: the worst counts. A machine may be slow, but not
// several times as slow.
func (s *suite) within(promised string, limit time.Duration, took []time.Duration) {
	switch {
	case len(took) == 0 || slices.Max(took) > muchOver*limit:
		s.failed(promised, spread(took))
	case slices.Max(took) > limit:
		s.row(promised, spread(took), "over")
	default:
		s.row(promised, spread(took), "kept")
	}
}

// muchOver is how many times as long no busy machine explains.
const muchOver = 5

// figure is measured, and nothing is promised about it.
func (s *suite) figure(what, measured string) { s.row(what, measured, "") }

// spread is the median and the worst of some times.
func spread(took []time.Duration) string {
	if len(took) == 0 {
		return "never"
	}
	return fmt.Sprintf("median %s, worst %s (%d)", seconds(stats.Median(took)), seconds(slices.Max(took)), len(took))
}

func seconds(d time.Duration) string {
	if d < 100*time.Millisecond {
		return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}
