package agent

import (
	"fmt"
	"strings"
	"time"
)

// text is the explanation for a person.
func (e ServiceExplanation) text(now time.Time) string {
	var b strings.Builder
	kind := "not global"
	if e.Global {
		kind = "global, affinity " + e.Affinity
	}
	if e.Import != "" {
		kind = fmt.Sprintf("import of %s/%s, affinity %s", e.Namespace, e.Import, e.Affinity)
	}
	fmt.Fprintf(&b, "service %s/%s: %s\n", e.Namespace, e.Name, kind)
	e.Traffic.text(&b)
	for _, p := range e.Ports {
		p.frontendsText(&b)
		if !p.InKernel {
			b.WriteString("    (not written to the kernel yet)\n")
		}
		if len(p.Tiers) == 0 {
			b.WriteString("    no backend anywhere: connections are refused\n")
		}
		for i, t := range p.Tiers {
			fmt.Fprintf(&b, "    tier %d", i+1)
			if t.SharePercent < 99.99 {
				fmt.Fprintf(&b, ", keeps %.0f%% of what reaches it", t.SharePercent)
			}
			b.WriteByte('\n')
			for _, g := range t.Groups {
				fmt.Fprintf(&b, "      %s: weight %d, %d backends%s\n", g.Cluster, g.Weight, len(g.Backends), downText(g.Down))
				for n, back := range g.Backends {
					if n == 20 {
						fmt.Fprintf(&b, "        … and %d more\n", len(g.Backends)-n)
						break
					}
					fmt.Fprintf(&b, "        %s\n", back.text())
				}
			}
		}
		p.restText(&b)
	}
	b.WriteString("\n  clusters\n")
	for _, c := range e.Clusters {
		tier := "no traffic"
		if c.Tier >= 0 {
			tier = fmt.Sprintf("%d of %d healthy", c.Healthy, c.Total)
		}
		stale := ""
		if c.Stale {
			stale = ", STALE: not in reach, what it said last is used"
		}
		fmt.Fprintf(&b, "    %s: %s%s%s: %s\n", c.Cluster, tier, downText(c.Down), stale, c.Reason)
	}
	for _, d := range e.Drains {
		fmt.Fprintf(&b, "    %s: %s\n", d.Cluster, d.Text(now))
	}
	for _, n := range e.Notes {
		fmt.Fprintf(&b, "  note: %s\n", Escape(n))
	}
	return b.String()
}

func downText(down bool) string {
	if down {
		return ", DOWN: does not answer through the tunnel"
	}
	return ""
}

func (b BackendExplanation) text() string {
	s := b.Address + " on node " + b.Node + downText(b.NodeDown)
	if b.Unused != "" {
		s += ", not used: " + b.Unused
	}
	return s
}

// text says what is not as usual.
func (t TrafficPolicies) text(b *strings.Builder) {
	if t.External == "Local" {
		b.WriteString("  externalTrafficPolicy Local: clients outside reach the backends of the node they come to, and these see their address\n")
	}
	if t.Internal == "Local" {
		b.WriteString("  internalTrafficPolicy Local: clients of the ClusterIP reach the backends of their own node alone\n")
	}
	if t.Distribution != "" {
		fmt.Fprintf(b, "  traffic distribution %s: see the hints of its endpoints\n", t.Distribution)
	}
	if t.SessionAffinitySeconds > 0 {
		fmt.Fprintf(b, "  session affinity: a client stays with its backend until %s after its last connection\n", time.Duration(t.SessionAffinitySeconds)*time.Second)
	}
	if len(t.SourceRanges) > 0 {
		fmt.Fprintf(b, "  load balancer addresses are for clients from %s\n", strings.Join(t.SourceRanges, ", "))
	}
	if t.HealthCheckPort > 0 {
		fmt.Fprintf(b, "  health check port %d: this node answers that it has %d endpoints\n", t.HealthCheckPort, t.HealthCheckEndpoints)
	}
}

// frontendsText is the ClusterIP on a line, then everything beside it.
func (p PortExplanation) frontendsText(b *strings.Builder) {
	fmt.Fprintf(b, "\n  %s\n", strings.Join(p.Frontends, ", "))
	for _, f := range p.Exposed {
		plain := f.Kind == kindClusterIP.String()
		if !plain {
			fmt.Fprintf(b, "  %s: %s", f.Address, f.Kind)
			if f.Outside == "here" {
				b.WriteString("; from outside to this node's backends alone")
			}
			b.WriteByte('\n')
		}
		if f.HeldBy != "" {
			fmt.Fprintf(b, "    %s is taken: %s has it\n", f.Address, Escape(f.HeldBy))
		}
	}
}

// restText is what the tiers do not say.
func (p PortExplanation) restText(b *strings.Builder) {
	if localInForce(p.Exposed) && len(p.Tiers) > 0 {
		b.WriteString("    where Local is in force\n")
		for _, x := range p.Here {
			fmt.Fprintf(b, "      %s\n", x.text())
		}
		if len(p.Here) == 0 {
			b.WriteString("      none on this node: what comes is dropped, other nodes are left alone\n")
		}
	}
	if len(p.Idle) == 0 {
		return
	}
	b.WriteString("    endpoints of this cluster that take nothing\n")
	for i, x := range p.Idle {
		if i == 20 {
			fmt.Fprintf(b, "      … and %d more\n", len(p.Idle)-i)
			break
		}
		fmt.Fprintf(b, "      %s\n", x.text())
	}
}
