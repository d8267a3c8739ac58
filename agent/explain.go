package agent

import (
	"errors"
	"fmt"
	"slices"
	"time"

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
	Import    string   `json:"import,omitempty"` // the exported service that it leads to
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
	Import     string             `json:"import,omitempty"` // the exported service that it leads to
	Affinity   string             `json:"affinity,omitempty"`
	Traffic    TrafficPolicies    `json:"traffic"`
	Ports      []PortExplanation  `json:"ports"`
	Clusters   []ClusterInService `json:"clusters"`
	Notes      []string           `json:"notes,omitempty"`
	Drains     []DrainStatus      `json:"drains,omitempty"` // that concern it
	Text       string             `json:"text"`             // all of it for a person
}

// PortExplanation is one port in one address family.
type PortExplanation struct {
	Name      string            `json:"name,omitempty"`
	Protocol  string            `json:"protocol"`
	ID        string            `json:"id"` // of its rows, hexadecimal
	Frontends []string          `json:"frontends"`
	Tiers     []TierExplanation `json:"tiers"`
	InKernel  bool              `json:"inKernel"` // the rows are written as wanted

	// Exposed are all frontends, also those for clients outside, and what they lead to.
	Exposed []FrontendExplanation `json:"exposed"`
	// Topology says by which hints this node uses fewer of its cluster's backends
	// than there are: zone or node; "" = it uses all.
	Topology string `json:"topology,omitempty"`
	// Here are the backends on this node; only with a traffic policy Local.
	Here []BackendExplanation `json:"here,omitempty"`
	// Idle are endpoints of this cluster that get nothing anywhere, and why.
	Idle []BackendExplanation `json:"idle,omitempty"`
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
	Unused      string `json:"unused,omitempty"` // why this node sends it nothing; "" = it does
}

// ClusterInService is why a cluster does or does not take traffic.
type ClusterInService struct {
	Cluster     string         `json:"cluster"`
	ID          clustermesh.ID `json:"id"`
	Tier        int            `json:"tier"` // from 0; -1 = none
	Weight      uint16         `json:"weight"`
	LeftPercent float64        `json:"leftPercent"` // of its weight: less than 100 while it is drained or returns
	Healthy     int            `json:"healthy"`
	Total       int            `json:"total"`
	Down        bool           `json:"down"` // no node of it answers
	Stale       bool           `json:"stale"`
	Reason      string         `json:"reason"`
}

var errNoService = errors.New("no such service")

func (a *Agent) serviceList() ServiceList {
	out := ServiceList{APIVersion: APIVersion, Kind: "ServiceList", Items: []ServiceSummary{}}
	for _, name := range a.state.allServices() {
		in := a.state.mergeInput(name)
		m := clustermesh.Merge(in)
		s := ServiceSummary{Namespace: name.Namespace, Name: name.Name, Global: m.Global, Import: m.Import, Affinity: string(m.Affinity), Frontends: []string{}, Clusters: []string{}}
		for _, p := range m.Ports {
			n := 0
			s.Frontends = append(s.Frontends, listedFrontends(p)...)
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
		Found: m.Found, Global: m.Global, Import: m.Import, Affinity: string(m.Affinity), Notes: m.Notes,
		Ports: []PortExplanation{}, Clusters: []ClusterInService{},
	}
	if !m.Found && len(m.Clusters) == 0 {
		return out, fmt.Errorf("%w: %s is not in cluster %s", errNoService, name, a.cfg.Cluster)
	}
	out.Traffic = a.explainTraffic(m)
	rows := makeServiceRows(rowInput{merged: m, cluster: a.state.own, at: a.state.at})
	for _, p := range m.Ports {
		out.Ports = append(out.Ports, a.explainPort(name, p, rows, report))
	}
	for _, w := range m.Clusters {
		c := ClusterInService{Cluster: w.Cluster, ID: w.ID, Tier: w.Tier, Weight: w.Weight, LeftPercent: percent(w.Left), Healthy: w.Healthy, Total: w.Total, Reason: Escape(w.Reason)}
		_, c.Down = report.Clusters[ClusterKey(w.ID)]
		if f := a.followers[w.Cluster]; f != nil {
			c.Stale = !f.state().Connected
		}
		out.Clusters = append(out.Clusters, c)
	}
	if m.Global || m.Import != "" {
		out.Drains = a.state.drainsOf(name, time.Now())
	}
	out.Text = out.text(time.Now())
	return out, nil
}
