package agent

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// ServiceList is JSON of GET /v1/services.
type ServiceList struct {
	APIVersion string           `json:"apiVersion"`
	Kind       string           `json:"kind"` // ServiceList
	Items      []ServiceSummary `json:"items"`
}

// ServiceSummary is one line of a list of services.
type ServiceSummary struct {
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	Global    bool     `json:"global"`
	Affinity  string   `json:"affinity,omitempty"`
	Frontends []string `json:"frontends"`
	Clusters  []string `json:"clusters"` // that take part, by name
	Backends  int      `json:"backends"`
}

// ServiceExplanation is JSON of GET /v1/services/<namespace>/<name>: where
// connections go and why.
type ServiceExplanation struct {
	APIVersion string             `json:"apiVersion"`
	Kind       string             `json:"kind"` // ServiceExplanation
	Namespace  string             `json:"namespace"`
	Name       string             `json:"name"`
	Found      bool               `json:"found"`
	Global     bool               `json:"global"`
	Affinity   string             `json:"affinity,omitempty"`
	Ports      []PortExplanation  `json:"ports"`
	Clusters   []ClusterInService `json:"clusters"`
	Notes      []string           `json:"notes,omitempty"`
	Text       string             `json:"text"` // all of it for a person
}

// PortExplanation is one port in one address family.
type PortExplanation struct {
	Name      string            `json:"name,omitempty"`
	Protocol  string            `json:"protocol"`
	ID        string            `json:"id"` // of its rows, hexadecimal
	Frontends []string          `json:"frontends"`
	Tiers     []TierExplanation `json:"tiers"`
	InKernel  bool              `json:"inKernel"` // the rows are written as wanted
}

// TierExplanation is one tier.
type TierExplanation struct {
	SharePercent float64            `json:"sharePercent"`
	Groups       []GroupExplanation `json:"groups"`
}

// GroupExplanation is one cluster's backends in a tier.
type GroupExplanation struct {
	Cluster  string               `json:"cluster"`
	ID       clustermesh.ID       `json:"id"`
	Weight   uint16               `json:"weight"`
	Down     bool                 `json:"down"`
	Backends []BackendExplanation `json:"backends"`
}

// BackendExplanation is one backend.
type BackendExplanation struct {
	Address     string `json:"address"`
	Node        string `json:"node,omitempty"`
	NodeDown    bool   `json:"nodeDown"`
	Terminating bool   `json:"terminating,omitempty"`
}

// ClusterInService is why a cluster does or does not take traffic.
type ClusterInService struct {
	Cluster string         `json:"cluster"`
	ID      clustermesh.ID `json:"id"`
	Tier    int            `json:"tier"` // from 0; -1 = none
	Weight  uint16         `json:"weight"`
	Healthy int            `json:"healthy"`
	Total   int            `json:"total"`
	Down    bool           `json:"down"` // no node of it answers
	Stale   bool           `json:"stale"`
	Reason  string         `json:"reason"`
}

var errNoService = errors.New("no such service")

func (a *Agent) serviceList() ServiceList {
	out := ServiceList{APIVersion: APIVersion, Kind: "ServiceList", Items: []ServiceSummary{}}
	for _, name := range a.state.allServices() {
		in := a.state.mergeInput(name)
		m := clustermesh.Merge(in)
		s := ServiceSummary{Namespace: name.Namespace, Name: name.Name, Global: m.Global, Affinity: string(m.Affinity), Frontends: []string{}, Clusters: []string{}}
		for _, p := range m.Ports {
			n := 0
			for _, f := range p.Frontends {
				s.Frontends = append(s.Frontends, frontendText(p, f.String()))
			}
			for _, t := range p.Tiers {
				for _, g := range t.Groups {
					n += len(g.Backends)
					if !slices.Contains(s.Clusters, g.Cluster) {
						s.Clusters = append(s.Clusters, g.Cluster)
					}
				}
			}
			s.Backends = max(s.Backends, n)
		}
		slices.Sort(s.Clusters)
		out.Items = append(out.Items, s)
	}
	return out
}

func frontendText(p clustermesh.MergedPort, addr string) string {
	if p.V6 {
		addr = "[" + addr + "]"
	}
	return fmt.Sprintf("%s:%d/%s", addr, p.Port.Port, protocolName(uint8(p.Port.Protocol)))
}

func (a *Agent) explain(name clustermesh.ServiceName) (ServiceExplanation, error) {
	in := a.state.mergeInput(name)
	in.Explain = true
	m := clustermesh.Merge(in)
	report := a.health.report()
	out := ServiceExplanation{
		APIVersion: APIVersion, Kind: "ServiceExplanation", Namespace: name.Namespace, Name: name.Name,
		Found: m.Found, Global: m.Global, Affinity: string(m.Affinity), Notes: m.Notes,
		Ports: []PortExplanation{}, Clusters: []ClusterInService{},
	}
	if !m.Found && len(m.Clusters) == 0 {
		return out, fmt.Errorf("%w: %s is not in cluster %s", errNoService, name, a.cfg.Cluster)
	}
	for _, p := range m.Ports {
		out.Ports = append(out.Ports, a.explainPort(name, p, report))
	}
	for _, w := range m.Clusters {
		c := ClusterInService{Cluster: w.Cluster, ID: w.ID, Tier: w.Tier, Weight: w.Weight, Healthy: w.Healthy, Total: w.Total, Reason: Escape(w.Reason)}
		_, c.Down = report.Clusters[ClusterKey(w.ID)]
		if f := a.followers[w.Cluster]; f != nil {
			c.Stale = !f.state().Connected
		}
		out.Clusters = append(out.Clusters, c)
	}
	out.Text = out.text()
	return out, nil
}

func (a *Agent) explainPort(name clustermesh.ServiceName, p clustermesh.MergedPort, report healthReport) PortExplanation {
	out := PortExplanation{
		Name: p.Port.Name, Protocol: protocolName(uint8(p.Port.Protocol)), InKernel: true,
		ID: fmt.Sprintf("%016x", ServiceID(name, p.Port.Name, p.Port.Protocol, p.V6)), Frontends: []string{}, Tiers: []TierExplanation{},
	}
	// What is to be merged again has no wanted rows yet that could be compared.
	if _, pending := a.state.dirty[name]; pending {
		out.InKernel = false
	}
	for _, f := range p.Frontends {
		out.Frontends = append(out.Frontends, frontendText(p, f.String()))
		k := ServiceKey{Addr: MakeAddr(f), Port: p.Port.Port, Proto: uint8(p.Port.Protocol)}
		want, ok := a.state.t.services.Wanted(k)
		have, is := a.state.t.services.Actual(k)
		out.InKernel = out.InKernel && ok && is && want == have
	}
	for _, t := range p.Tiers {
		tier := TierExplanation{SharePercent: float64(t.Share) * 100 / 65535}
		for _, g := range t.Groups {
			group := GroupExplanation{Cluster: g.Cluster, ID: g.ID, Weight: g.Weight, Backends: []BackendExplanation{}}
			_, group.Down = report.Clusters[ClusterKey(g.ID)]
			for _, b := range g.Backends {
				group.Backends = append(group.Backends, a.explainBackend(g, b, report))
			}
			tier.Groups = append(tier.Groups, group)
		}
		out.Tiers = append(out.Tiers, tier)
	}
	return out
}

func (a *Agent) explainBackend(g clustermesh.Group, b clustermesh.Backend, report healthReport) BackendExplanation {
	out := BackendExplanation{Address: hostPort(MakeAddr(b.Address), b.Port), Terminating: b.Terminating}
	if c := a.state.clusters[g.Cluster]; c != nil && c.export() != nil {
		if n := c.export().NodeByNumber(b.Node); n != nil {
			out.Node = n.Name
		}
	}
	_, out.NodeDown = report.Nodes[NodeKey{uint16(g.ID), b.Node}]
	return out
}

// text is the explanation for a person.
func (e ServiceExplanation) text() string {
	var b strings.Builder
	kind := "not global"
	if e.Global {
		kind = "global, affinity " + e.Affinity
	}
	fmt.Fprintf(&b, "service %s/%s: %s\n", e.Namespace, e.Name, kind)
	for _, p := range e.Ports {
		fmt.Fprintf(&b, "\n  %s\n", strings.Join(p.Frontends, ", "))
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
					fmt.Fprintf(&b, "        %s on node %s%s\n", back.Address, back.Node, downText(back.NodeDown))
				}
			}
		}
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
