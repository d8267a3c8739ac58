package main

import "slices"

// cases are all, in the order in which they run: what others stand on comes first,
// what takes Tombolo away comes last.
func cases() []Case {
	return slices.Concat(installCases, trafficCases, hostCases, globalCases, policyCases, mcsCases, speedCases, lifeCases, faultCases, chainedCases, lastCases)
}

// NeedsLab is for cases that cut power or networks.
func NeedsLab(w *World) string {
	if w.Lab == nil {
		return "needs the powers of the lab (run it without -contexts)"
	}
	return ""
}

// NeedsMain is for cases about what is another one's work where Tombolo is chained.
func NeedsMain(w *World) string {
	if w.chained {
		return "pods' network is another plugin's here"
	}
	return ""
}

// NeedsChained is for cases about the two beside each other.
func NeedsChained(w *World) string {
	if !w.chained {
		return "needs another CNI plugin in charge (-chained)"
	}
	return ""
}

// NeedsTwoNodes is for cases between nodes.
func NeedsTwoNodes(w *World) string {
	for _, c := range w.Clusters {
		if len(c.Nodes) < 2 {
			return c.Name + " has a single node"
		}
	}
	return ""
}
