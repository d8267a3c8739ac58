package trace

import (
	"fmt"
	"strings"

	"github.com/tombolo-mesh/tombolo/agent/policy"
	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// maxListed is how many rules or policies of a kind are written out.
const maxListed = 20

// Text is the answer for a person.
func (a *Answer) Text() string {
	var b strings.Builder
	port := Port{Number: a.Port, Name: a.PortName}
	on := a.Protocol
	if a.Port != 0 {
		on = fmt.Sprintf("%d/%s", port.Number, a.Protocol)
		if a.PortName != "" {
			on += " (" + a.PortName + ")"
		}
	}
	fmt.Fprintf(&b, "%s: %s → %s on %s\n", a.Verdict, a.From.Name, a.To.Name, on)
	a.From.write(&b, "from")
	a.To.write(&b, "to  ")
	a.Egress.write(&b, "egress of "+a.From.Name)
	a.Ingress.write(&b, "ingress of "+a.To.Name)
	for _, n := range a.Notes {
		fmt.Fprintf(&b, "note: %s\n", n)
	}
	return b.String()
}

func (e EndText) write(b *strings.Builder, word string) {
	fmt.Fprintf(b, "  %s  ", word)
	switch e.Kind {
	case KindPod:
		fmt.Fprintf(b, "pod %s", e.Name)
		if e.Node != "" {
			fmt.Fprintf(b, " on node %s", e.Node)
		}
		if e.HostNetwork {
			b.WriteString(" (on its network)")
		}
	default:
		b.WriteString(e.Name)
	}
	if e.Address != "" && e.Address != e.Name {
		fmt.Fprintf(b, ", %s", e.Address)
	}
	fmt.Fprintf(b, ", identity %s", identityText(e.Identity))
	if e.Cluster != "" {
		fmt.Fprintf(b, ", cluster %s", e.Cluster)
	}
	b.WriteByte('\n')
	own, where := labelTexts(e.Labels)
	if len(own) > 0 {
		fmt.Fprintf(b, "        labels: %s\n", strings.Join(own, ", "))
	}
	if len(where) > 0 {
		fmt.Fprintf(b, "        of its namespace: %s\n", strings.Join(where, ", "))
	}
	if account := e.Labels[clustermesh.LabelServiceAccount]; account != "" && account != "default" {
		fmt.Fprintf(b, "        service account: %s\n", account)
	}
}

// identityText adds the names of reserved ones.
func identityText(s string) string {
	switch s {
	case "0:1":
		return "0:1 (host)"
	case "0:2":
		return "0:2 (world)"
	case "0:3":
		return "0:3 (remote node)"
	}
	return s
}

func (s Side) write(b *strings.Builder, name string) {
	fmt.Fprintf(b, "  %s: %s: %s\n", name, s.Verdict, s.Why)
	if s.SideExplanation == nil {
		return
	}
	if len(s.Policies) > 0 {
		isolated := ""
		if s.Isolated {
			isolated = " (what no NetworkPolicy allows is denied)"
		}
		fmt.Fprintf(b, "    applies  %s%s\n", strings.Join(s.Policies, ", "), isolated)
	}
	list(b, s.Matched, func(m policy.Matched) string {
		decides := ""
		if m.Rule == s.Rule {
			decides = ": decides"
		}
		return fmt.Sprintf("matches  %s (%s, %s) by %s%s", m.Rule, m.Tier, m.Verdict, m.By, decides)
	})
	list(b, s.Unmatched, func(u policy.Unmatched) string {
		return fmt.Sprintf("no match %s (%s, %s): %s", u.Rule, u.Tier, u.Verdict, u.Why)
	})
	list(b, s.Bystanders, func(p policy.Bystander) string {
		return fmt.Sprintf("not here %s: it selects %s", p.Policy, p.Selects)
	})
}

func list[T any](b *strings.Builder, items []T, line func(T) string) {
	for i, item := range items {
		if i == maxListed {
			fmt.Fprintf(b, "    … and %d more\n", len(items)-i)
			return
		}
		fmt.Fprintf(b, "    %s\n", line(item))
	}
}
