package agent

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// APIVersion is the version of all JSON that the agent answers with.
const APIVersion = "tombolo.io/v1"

// Status is the agent's own view of everything: JSON of GET /v1/status.
type Status struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"` // AgentStatus
	Node       string            `json:"node"`
	Cluster    string            `json:"cluster"`
	ClusterID  clustermesh.ID    `json:"clusterID"`
	Ready      bool              `json:"ready"`
	Started    time.Time         `json:"started"`
	Settled    *time.Time        `json:"settled,omitempty"` // since when every cluster is synced and every table written; absent while they are not
	Clusters   []ClusterStatus   `json:"clusters"`
	Tables     []TableStatus     `json:"tables"`
	Health     HealthStatus      `json:"health"`
	Pods       int               `json:"pods"`
	Services   int               `json:"services"`
	Problems   []ProblemStatus   `json:"problems"`
	Details    map[string]string `json:"details,omitempty"`
}

// ClusterStatus is what the agent knows of one cluster.
type ClusterStatus struct {
	Name         string            `json:"name"`
	ID           clustermesh.ID    `json:"id"`
	Local        bool              `json:"local"`
	Connected    bool              `json:"connected"`
	Synced       bool              `json:"synced"`               // everything came from the cluster itself since the agent started
	FromSnapshot bool              `json:"fromSnapshot"`         // what is known was read from disk
	StaleSince   *time.Time        `json:"staleSince,omitempty"` // since when there is no connection
	LastError    string            `json:"lastError,omitempty"`
	StoreID      string            `json:"storeID,omitempty"` // hexadecimal
	Revision     int64             `json:"revision,omitempty"`
	Incarnation  string            `json:"incarnation,omitempty"`
	Version      string            `json:"version,omitempty"`
	Down         bool              `json:"down"` // all its nodes are judged down
	Nodes        int               `json:"nodes"`
	NodesDown    []string          `json:"nodesDown,omitempty"`
	Records      int               `json:"records"`
	Lists        int               `json:"lists"`             // complete lists read since the agent started, over all scopes; it grows when a watch could not be resumed
	Refused      map[string]uint64 `json:"refused,omitempty"` // records not believed, by reason
}

// TableStatus is where one table stands.
type TableStatus struct {
	Name    string `json:"name"`
	Wanted  int    `json:"wanted"`
	Pending int    `json:"pending"` // rows that differ in the kernel or are still to be computed
	Stuck   int    `json:"stuck"`   // of these, refused by the kernel
	Held    int    `json:"held"`    // kept for clusters that have not reported synced
	Written uint64 `json:"written"`
	Removed uint64 `json:"removed"`
	Drifted uint64 `json:"drifted"` // rows that somebody else had changed
	Errors  uint64 `json:"errors"`
}

// HealthStatus sums the health checks up.
type HealthStatus struct {
	Targets      int    `json:"targets"`
	IntervalMS   int64  `json:"intervalMS"`
	Probes       uint64 `json:"probes"`
	Misses       uint64 `json:"misses"`
	NodesDown    int    `json:"nodesDown"`
	ClustersDown int    `json:"clustersDown"`
}

// ProblemStatus is something that is wrong: what, why, and what to do.
type ProblemStatus struct {
	What string `json:"what"`
	Why  string `json:"why"`
	Fix  string `json:"fix"`
}

// status gathers everything; owner goroutine.
func (a *Agent) status() Status {
	report := a.health.report()
	s := Status{
		APIVersion: APIVersion, Kind: "AgentStatus", Node: a.cfg.Node, Cluster: a.cfg.Cluster, ClusterID: a.cfg.ClusterID,
		Ready: a.ready.Load(), Started: a.started.UTC(), Pods: len(a.state.pods), Services: len(a.state.services),
		Health: HealthStatus{
			Targets: report.Targets, IntervalMS: report.Interval.Milliseconds(), Probes: report.Probes, Misses: report.Misses,
			NodesDown: len(report.Nodes), ClustersDown: len(report.Clusters),
		},
		Problems: []ProblemStatus{},
	}
	if a.cfg.Details != nil {
		s.Details = a.cfg.Details()
	}
	if !a.settled.IsZero() {
		at := a.settled.UTC()
		s.Settled = &at
	}
	for _, c := range sortedKeys(a.state.clusters) {
		s.Clusters = append(s.Clusters, a.clusterStatus(c, report))
	}
	for _, d := range a.state.t.all() {
		s.Tables = append(s.Tables, tableStatus(d))
		if d.name() == TableServices {
			s.Tables[len(s.Tables)-1].Pending += len(a.state.dirty)
		}
	}
	s.Tables = append(s.Tables, a.health.tables()...)
	for _, p := range a.allProblems(s.Clusters) {
		s.Problems = append(s.Problems, ProblemStatus{Escape(p.What), Escape(p.Why), Escape(p.Fix)})
	}
	return s
}

func tableStatus(d anyDelta) TableStatus {
	written, removed, failures, drifted := d.counts()
	return TableStatus{
		Name: d.name(), Wanted: d.Len(), Pending: d.Pending(), Stuck: d.Stuck(), Held: d.Held(),
		Written: written, Removed: removed, Drifted: drifted, Errors: failures,
	}
}

func (l *healthLoop) tables() []TableStatus {
	l.writing.Lock()
	defer l.writing.Unlock()
	return []TableStatus{tableStatus(l.nodes), tableStatus(l.clusters)}
}

func (a *Agent) clusterStatus(c *clusterState, report healthReport) ClusterStatus {
	s := ClusterStatus{Name: c.name, ID: c.id, Local: c.peer == nil, Synced: c.synced(), Nodes: len(c.nodes)}
	if f := a.followers[c.name]; f != nil {
		fs := f.state()
		s.Connected, s.Lists = fs.Connected, fs.Lists
		if !fs.Connected {
			since := fs.Since.UTC()
			s.StaleSince = &since
			s.LastError = errorText(fs.LastError)
			if note, ok := a.lost[c.name]; ok && s.LastError == "" {
				s.LastError = errorText(note.err)
			}
		}
		if !fs.Position.IsZero() {
			s.StoreID, s.Revision = strconv.FormatUint(fs.Position.StoreID, 16), fs.Position.Revision
		}
	}
	for scope, v := range c.views {
		s.Records += v.Len()
		s.FromSnapshot = s.FromSnapshot || a.fromSnapshot[viewName{c.name, scope}] && !c.live[scope]
		if me := v.Cluster(); me != nil {
			s.Incarnation, s.Version = strconv.FormatUint(me.Incarnation, 16), Escape(me.Version)
		}
	}
	_, s.Down = report.Clusters[ClusterKey(c.id)]
	for _, n := range c.nodes {
		if _, down := report.Nodes[NodeKey{uint16(c.id), n.Number}]; down {
			s.NodesDown = append(s.NodesDown, n.Name)
		}
	}
	slices.Sort(s.NodesDown)
	if r := a.refused[c.name]; r != nil && len(r.counts) > 0 {
		s.Refused = map[string]uint64{}
		for class, n := range r.counts {
			s.Refused[string(class)] = n
		}
	}
	return s
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return Escape(err.Error())
}

// allProblems are all that is known to be wrong, without those that plainly
// follow from another one.
func (a *Agent) allProblems(clusters []ClusterStatus) []clustermesh.Problem {
	var out []clustermesh.Problem
	out = append(out, a.clusterProblems(clusters)...)
	tables := append(a.state.t.problems(), a.health.problems()...)
	for _, p := range tables {
		if strings.HasPrefix(p.What, "table "+TableRoutes+":") && a.state.t.peers.Problem() != nil {
			continue // without the tunnel device there are no routes into it either
		}
		out = append(out, p)
	}
	for _, key := range slices.Sorted(maps.Keys(a.problems)) {
		out = append(out, a.problems[key])
	}
	for _, name := range slices.Sorted(maps.Keys(a.refused)) {
		if p, is := a.refused[name].problem(name); is {
			out = append(out, p)
		}
	}
	return append(out, a.state.Problems()...)
}

func (a *Agent) clusterProblems(clusters []ClusterStatus) []clustermesh.Problem {
	var out []clustermesh.Problem
	local := true // the own cluster answers
	for _, c := range clusters {
		if c.Local {
			local = c.Synced
		}
	}
	if local && a.state.clusters[a.cfg.Cluster].nodes[a.cfg.Node] == nil {
		out = append(out, clustermesh.Problem{
			What: fmt.Sprintf("cluster %s has no record of node %s", a.cfg.Cluster, a.cfg.Node),
			Why:  "the node is not registered, or its name differs",
			Fix:  "check the name, and the agent's log about registration; until then nothing leads to other nodes",
		})
	}
	for _, c := range clusters {
		what := fmt.Sprintf("cluster %s is not in reach", c.Name)
		fix := "what is known of it stays in force; check its mesh API server and the way to it"
		switch {
		case c.Connected && c.Synced:
		case !c.Synced && !c.Local && !local:
			continue // who the peers are is known from the own cluster; that is said already
		case !c.Synced && c.FromSnapshot:
			out = append(out, clustermesh.Problem{What: what + "; what it said before the restart is used", Why: c.LastError, Fix: fix})
		case !c.Synced:
			out = append(out, clustermesh.Problem{What: what + " and has not been since the agent started", Why: c.LastError, Fix: fix})
		case c.LastError != "":
			out = append(out, clustermesh.Problem{What: what, Why: c.LastError, Fix: fix})
		}
		if c.Down {
			out = append(out, clustermesh.Problem{
				What: fmt.Sprintf("no node of cluster %s answers through the tunnel", c.Name),
				Why:  fmt.Sprintf("all %d nodes missed their probes in a row", c.Nodes),
				Fix:  "connections go to other clusters until one answers; check its power, its network, and UDP between the nodes",
			})
			continue
		}
		if len(c.NodesDown) > 0 {
			out = append(out, clustermesh.Problem{
				What: fmt.Sprintf("nodes of cluster %s do not answer through the tunnel: %s", c.Name, strings.Join(c.NodesDown, ", ")),
				Why:  "they missed their probes in a row",
				Fix:  "connections go to other backends until they answer; check the nodes, and UDP between them and this one",
			})
		}
	}
	return out
}

// Escape makes control characters of foreign text harmless for a terminal.
func Escape(s string) string {
	if !strings.ContainsFunc(s, control) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if control(r) {
			fmt.Fprintf(&b, "\\u%04x", r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

func control(r rune) bool { return r < 0x20 || r >= 0x7f && r < 0xa0 }

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
