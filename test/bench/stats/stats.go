// Package stats is how the benchmarks sum up repeated runs: by medians, with
// their spread, and by ratios of runs that were taken close together.
package stats

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// Quantile of an unsorted sample, by nearest rank.
func Quantile[T float64 | time.Duration](sample []T, q float64) T {
	if len(sample) == 0 {
		return 0
	}
	s := slices.Clone(sample)
	slices.Sort(s)
	return s[min(len(s)-1, int(q*float64(len(s))))]
}

// Median of an unsorted sample.
func Median[T float64 | time.Duration](sample []T) T { return Quantile(sample, 0.5) }

// Ratios compares two series run by run: each pair was measured close together,
// so what the machine did meanwhile touches both.
func Ratios(a, b []float64) []float64 {
	out := make([]float64, len(a))
	for i := range a {
		out[i] = a[i] / b[i]
	}
	return out
}

// Spread is "median [least..most]" of some runs.
func Spread(runs []float64, unit string) string {
	return fmt.Sprintf("%s [%s..%s] %s", Short(Median(runs)), Short(slices.Min(runs)), Short(slices.Max(runs)), unit)
}

// Short is a figure with three significant digits or so.
func Short(v float64) string {
	switch {
	case v >= 1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// MS is a duration in milliseconds.
func MS(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

// Report prints rows in columns.
func Report(out io.Writer, rows ...[]string) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprint(w, "  ")
		for _, cell := range row {
			fmt.Fprint(w, cell, "\t")
		}
		fmt.Fprintln(w)
	}
	w.Flush()
}
