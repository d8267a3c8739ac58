package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/tombolo-mesh/tombolo/test/bench/stats"
)

// results are all figures of a run, and what -o writes.
type results struct {
	Machine  machine
	Paths    []pathFigures     `json:",omitempty"`
	Packets  []packetFigures   `json:",omitempty"`
	Capacity []capacityFigures `json:",omitempty"`
	Aims     []aim
}

// pathFigures are those of one variant, by kind of traffic.
type pathFigures struct {
	variant
	SetUpMS float64
	Kinds   map[string]*series
}

// series is one measure, run by run.
type series struct {
	PerSecond []float64
	Ratio     []float64 // to the yardstick measured just before
	P50us     []float64 `json:",omitempty"`
	P50Ratio  []float64 `json:",omitempty"`
	P99us     []float64 `json:",omitempty"`
}

func (s *series) add(o, base outcome) {
	s.PerSecond, s.Ratio = append(s.PerSecond, o.PerSecond), append(s.Ratio, o.PerSecond/base.PerSecond)
	if o.P50 > 0 {
		s.P50us, s.P99us = append(s.P50us, 1000*stats.MS(o.P50)), append(s.P99us, 1000*stats.MS(o.P99))
		s.P50Ratio = append(s.P50Ratio, float64(o.P50)/float64(base.P50))
	}
}

// cells are "median [least..most]" in the unit, and the ratio likewise.
func (s *series) cells(unit float64) []string {
	scaled := make([]float64, len(s.PerSecond))
	for i, v := range s.PerSecond {
		scaled[i] = v / unit
	}
	return []string{spread(scaled), "×" + spread(s.Ratio)}
}

func spread(runs []float64) string {
	if len(runs) == 0 {
		return "–"
	}
	return strings.TrimSpace(stats.Spread(runs, ""))
}

func (f pathFigures) scale() []string {
	if f.Way == plain {
		return []string{f.variant.String(), "", ""}
	}
	return []string{f.variant.String(), count(f.Services), count(f.Rules)}
}

func printPaths(w io.Writer, all []pathFigures) {
	rates := [][]string{{"", "services", "rules", "connects/s", "to a", "round trips/s", "to a", "Gbit/s, one stream", "to a", "set up, ms"}}
	times := [][]string{{"", "services", "rules", "connect p50 µs", "to a", "p99 µs", "round trip p50 µs", "to a", "p99 µs"}}
	for _, f := range all {
		row := f.scale()
		for _, k := range kinds {
			unit := 1.0
			if k == stream {
				unit = 1e9
			}
			row = append(row, f.Kinds[k].cells(unit)...)
		}
		rates = append(rates, append(row, stats.Short(f.SetUpMS)))
		row = f.scale()
		for _, k := range []string{crr, rr} {
			row = append(row, spread(f.Kinds[k].P50us), "×"+spread(f.Kinds[k].P50Ratio), spread(f.Kinds[k].P99us))
		}
		times = append(times, row)
	}
	fmt.Fprint(w, "\n## From pod to pod: rates\n\nMedian [least..most] of all runs; ratios to the plain path measured just before.\n\n")
	markdown(w, rates)
	fmt.Fprint(w, "\n## From pod to pod: times\n\n")
	markdown(w, times)
}

func printAims(w io.Writer, aims []aim) {
	if len(aims) == 0 {
		return
	}
	rows := [][]string{{"aim", "measured", ""}}
	for _, a := range aims {
		verdict := "met"
		if !a.Met {
			verdict = "MISSED"
		}
		rows = append(rows, []string{a.What, a.Measured, verdict})
	}
	fmt.Fprint(w, "\n## Aims\n\n")
	markdown(w, rows)
}

// count is a number with its thousands set apart.
func count(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// markdown prints a table, the first row as its head.
func markdown(w io.Writer, rows [][]string) {
	width := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	line := func(row []string, pad string) {
		for i, cell := range row {
			fmt.Fprint(w, "| ", cell, strings.Repeat(pad, width[i]-utf8.RuneCountInString(cell)), " ")
		}
		fmt.Fprintln(w, "|")
	}
	line(rows[0], " ")
	line(slices.Repeat([]string{""}, len(width)), "-")
	for _, row := range rows[1:] {
		line(row, " ")
	}
}

// writeJSON writes to a file, or to standard output if it is "-".
func (r results) writeJSON(name string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if b = append(b, '\n'); name == "-" {
		_, err = os.Stdout.Write(b)
		return err
	}
	return os.WriteFile(name, b, 0o644)
}
