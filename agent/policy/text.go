package policy

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// WriteText writes the tables as stable text.
func (t *Tables) WriteText(w io.Writer) {
	for _, name := range slices.Sorted(maps.Keys(t.Pods)) {
		fmt.Fprintf(w, "pod %s: subject %s\n", name, t.Pods[name])
	}
	for _, s := range slices.Sorted(maps.Keys(t.Subjects)) {
		fmt.Fprintf(w, "subject %s: %s\n", s, t.Subjects[s].Flags)
	}
	for _, p := range slices.SortedFunc(maps.Keys(t.Classes), netip.Prefix.Compare) {
		c := "none"
		if t.Classes[p] != 0 {
			c = t.Classes[p].String()
		}
		fmt.Fprintf(w, "class %s: %s\n", p, c)
	}
	for _, k := range slices.SortedFunc(maps.Keys(t.Rows), compareKeys) {
		fmt.Fprintf(w, "row %s: %s\n", k, t.Rows[k])
	}
}

func compareKeys(a, b Key) int {
	return cmp.Or(cmp.Compare(a.Subject, b.Subject), cmp.Compare(a.Dir, b.Dir), cmp.Compare(a.Peer, b.Peer),
		cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Bits, b.Bits))
}

func (k Key) String() string {
	s := fmt.Sprintf("%s %s %s %s", k.Subject, k.Dir, k.Peer, protoName(k.Proto))
	switch {
	case k.Bits == 16:
		s += fmt.Sprintf("/%d", k.Port)
	case k.Bits > 0:
		s += fmt.Sprintf("/%d-%d", k.Port, k.Port|(1<<(16-k.Bits)-1))
	}
	return s
}

func (s Stage) String() string {
	return fmt.Sprintf("%s(%d %08x)", s.Verdict, s.Rank, s.Rule)
}

func (r Row) String() string {
	var parts []string
	if r.Admin.Rank != 0 {
		parts = append(parts, "admin "+r.Admin.String())
	}
	if r.Allow != 0 {
		parts = append(parts, fmt.Sprintf("allow(%08x)", r.Allow))
	}
	if r.Base.Rank != 0 {
		parts = append(parts, "base "+r.Base.String())
	}
	if parts == nil {
		return "nothing"
	}
	return strings.Join(parts, " ")
}

// WriteText writes what the engine holds as stable text: policies, the subjects
// that pods have with their rules, and the classes of addresses. Rows are in the
// tables.
func (e *Engine) WriteText(w io.Writer) {
	for _, n := range slices.SortedFunc(maps.Keys(e.policies), compareNames) {
		st := e.policies[n]
		state := "in force"
		if st.parsed.err != nil {
			state = "refused: " + st.consequence()
		}
		fmt.Fprintf(w, "policy %s: %s\n", n, state)
		if p := st.applied; p != nil {
			fmt.Fprintf(w, "  for %s\n", p.subject.text)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(e.pods)) {
		fmt.Fprintf(w, "pod %s: subject %s\n", name, e.pods[name].said)
	}
	for _, id := range slices.Sorted(maps.Keys(e.subjects)) {
		s := e.subjects[id]
		stale := ""
		if s.pods == 0 {
			stale = " (until sweep)"
		}
		fmt.Fprintf(w, "subject %s%s\n", id, stale)
		for line := range strings.Lines(s.text) {
			fmt.Fprintf(w, "  %s", line)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(e.classes)) {
		c := e.classes[id]
		stale := ""
		if c.uses == 0 {
			stale = " (until sweep)"
		}
		fmt.Fprintf(w, "class %s: %s%s\n", c.id, c.text, stale)
	}
}
