package main

import (
	"fmt"
	"slices"

	"github.com/tombolo-mesh/tombolo/test/bench/stats"
)

// aim is something that Tombolo promises, held against the figures of this run.
type aim struct {
	What, Measured string
	Met            bool
}

// What counts as the same: medians of quiet runs differ by so much.
const same = 0.03

// least are the ratios to the plain path that are promised.
var least = map[string]float64{crr: 1.1, rr: 1 - same, stream: 1.1}

var names = map[string]string{crr: "connects", rr: "round trips", stream: "one stream"}

// pathAims judges the ways that deliver past the node's stack.
func pathAims(all []pathFigures) []aim {
	var out []aim
	for _, way := range []string{packet, node} {
		ours := slices.DeleteFunc(slices.Clone(all), func(f pathFigures) bool { return f.Way != way })
		if len(ours) == 0 {
			continue
		}
		for _, k := range kinds {
			out = append(out, against(ours, k))
		}
		out = append(out, flat(ours))
		for _, theirs := range all {
			if theirs.Way == nftables || theirs.Way == iptables {
				out = append(out, ahead(ours, theirs))
			}
		}
	}
	return out
}

func ratio(f pathFigures, kind string) float64 { return stats.Median(f.Kinds[kind].Ratio) }

// against the plain path, at every scale.
func against(ours []pathFigures, kind string) aim {
	worst := slices.MinFunc(ours, func(a, b pathFigures) int { return compare(ratio(a, kind), ratio(b, kind)) })
	return aim{fmt.Sprintf("%s, %s: at least %.2f of a", worst.Letter, names[kind], least[kind]),
		fmt.Sprintf("%.2f with %s services, %s rules", ratio(worst, kind), count(worst.Services), count(worst.Rules)), ratio(worst, kind) >= least[kind]}
}

// flat: connecting costs with the most services what it costs with the fewest,
// for each number of rules.
func flat(ours []pathFigures) aim {
	a := aim{What: fmt.Sprintf("%s, connects: the same with the most services as with the fewest", ours[0].Letter), Met: true}
	for _, few := range ours {
		many := few
		for _, f := range ours {
			if f.Rules == few.Rules && f.Services > many.Services {
				many = f
			}
		}
		if few.Services != ours[0].Services || many.Services == few.Services {
			continue
		}
		r := ratio(many, crr) / ratio(few, crr)
		a.Met = a.Met && r >= 1-2*same
		a.Measured += fmt.Sprintf("%.2f at %s, %s rules; ", r, count(many.Services), count(few.Rules))
	}
	return a
}

// ahead of kube-proxy, in every kind of traffic, with as many services and
// whatever number of rules.
func ahead(ours []pathFigures, theirs pathFigures) aim {
	a := aim{What: fmt.Sprintf("%s ahead of %s with %s services", ours[0].Letter, theirs.variant, count(theirs.Services)), Met: true}
	for _, k := range kinds {
		worst := 0.0
		for _, f := range ours {
			if r := ratio(f, k) / ratio(theirs, k); f.Services == theirs.Services && (worst == 0 || r < worst) {
				worst = r
			}
		}
		a.Met = a.Met && worst > 1
		a.Measured += fmt.Sprintf("%s ×%.2f; ", names[k], worst)
	}
	return a
}

func compare(a, b float64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}
