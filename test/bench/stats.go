package main

import (
	"fmt"
	"os"
	"slices"
	"text/tabwriter"
	"time"
)

// quantile of an unsorted sample, by nearest rank.
func quantile[T float64 | time.Duration](sample []T, q float64) T {
	if len(sample) == 0 {
		return 0
	}
	s := slices.Clone(sample)
	slices.Sort(s)
	return s[min(len(s)-1, int(q*float64(len(s))))]
}

func median[T float64 | time.Duration](sample []T) T { return quantile(sample, 0.5) }

// ratios compares two series run by run: each pair was measured close together,
// so what the machine did meanwhile touches both.
func ratios(a, b []float64) []float64 {
	out := make([]float64, len(a))
	for i := range a {
		out[i] = a[i] / b[i]
	}
	return out
}

// incumbent names figures that come with the goals: of the incumbent's own
// machinery, which does less than is measured here.
func incumbent(what string) string {
	return "incumbent, measured on a machine like this without TLS, " + what
}

// spread is "median [least..most]" of some runs.
func spread(runs []float64, unit string) string {
	return fmt.Sprintf("%s [%s..%s] %s", short(median(runs)), short(slices.Min(runs)), short(slices.Max(runs)), unit)
}

func short(v float64) string {
	switch {
	case v >= 1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func ms(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

func mib(bytes float64) float64 { return bytes / (1 << 20) }

// report prints rows in columns.
func report(rows ...[]string) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprint(w, "  ")
		for _, cell := range row {
			fmt.Fprint(w, cell, "\t")
		}
		fmt.Fprintln(w)
	}
	w.Flush()
}
