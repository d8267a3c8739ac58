package agent

import (
	"fmt"
	"net/netip"
	"strings"
)

// Line is a flow for a person: when, what became of it, who to whom, and why.
func (f *Flow) Line() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %-9s %s → %s %s", f.Time.Format("15:04:05.000"), f.Verdict, f.Source.text(), f.Destination.text(), f.Protocol)
	if f.Service != "" {
		fmt.Fprintf(&b, " (service %s)", f.Service)
	} else if f.Frontend != "" {
		fmt.Fprintf(&b, " (by %s)", f.Frontend)
	}
	if why := f.why(); why != "" {
		b.WriteString(": " + why)
	}
	return Escape(b.String())
}

// why leaves out what the verdict says already.
func (f *Flow) why() string {
	switch {
	case f.Rule != "" && f.Direction != "":
		return f.Reason + ", " + f.Rule
	case f.Rule != "":
		return f.Rule
	case len(f.Policies) > 0:
		verb := " isolates the pod"
		if len(f.Policies) > 1 {
			verb = " isolate the pod"
		}
		return f.Reason + ", no rule allows it and " + strings.Join(f.Policies, ", ") + verb
	case f.Verdict == FlowForwarded && f.Reason == "flow_new":
		return ""
	}
	return f.Reason
}

// text is an end: its name, and its address where that is another.
func (e FlowEnd) text() string {
	at := e.Address
	if a, err := netip.ParseAddr(at); err == nil && e.Port != 0 {
		at = netip.AddrPortFrom(a, e.Port).String()
	}
	return e.Name + " " + at
}
