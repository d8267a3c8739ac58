package agent

import (
	"fmt"
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
	Drains     []DrainStatus     `json:"drains"` // clusters that get fewer new connections or none
	Pods       int               `json:"pods"`
	Endpoints  []EndpointStatus  `json:"endpoints"`
	Unmanaged  []UnmanagedPod    `json:"unmanagedPods"` // on this node, not connected by Tombolo
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
	Path         PathStatus        `json:"path"` // to its nodes, as the probes find it
	Down         bool              `json:"down"` // all its nodes are judged down
	Nodes        int               `json:"nodes"`
	NodesDown    []string          `json:"nodesDown,omitempty"`
	Records      int               `json:"records"`
	Lists        int               `json:"lists"`             // complete lists read since the agent started, over all scopes; it grows when a watch could not be resumed
	Refused      map[string]uint64 `json:"refused,omitempty"` // records not believed, by reason
	Topology     string            `json:"topology"`          // mesh, gateway
	Gateways     []GatewayStatus   `json:"gateways,omitempty"`
	// Gateway is the gateway by which this node reaches the cluster, of the own cluster
	// that by which it reaches all others that all gateways reach; absent: it is behind none.
	Gateway string `json:"gateway,omitempty"`
}

// GatewayStatus is a gateway of a cluster, as this agent sees it.
type GatewayStatus struct {
	Name  string `json:"name"`
	Down  bool   `json:"down"`
	Nodes int    `json:"nodes"` // behind it
}

// TableStatus is where one table stands.
type TableStatus struct {
	Name    string `json:"name"`
	Wanted  int    `json:"wanted"`
	Size    int    `json:"size,omitempty"` // rows that fit; absent: no limit is known
	Pending int    `json:"pending"`        // rows that differ in the kernel or are still to be computed
	Stuck   int    `json:"stuck"`          // of these, refused by the kernel
	Held    int    `json:"held"`           // kept for clusters that have not reported synced
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
	// Gossip is what this agent sees of the others of its cluster; absent: it is on its own.
	Gossip *GossipStatus `json:"gossip,omitempty"`
	// Down are the nodes judged down, and by whom.
	Down []DownStatus `json:"down,omitempty"`
	// Verdicts are the last changes of what this agent holds of nodes, oldest first.
	Verdicts []VerdictStatus `json:"verdicts,omitempty"`
}

// VerdictStatus is how a node came to be judged down, or up again.
type VerdictStatus struct {
	Cluster string `json:"cluster"` // its ID, if it is not known any more
	Node    string `json:"node"`    // its number, if it is not known any more
	Down    bool   `json:"down"`
	// Silent is when the first probe was sent that the node did not answer, and Noticed
	// when this agent saw so; absent: it missed none, or judged the node up.
	Silent  *time.Time `json:"silent,omitempty"`
	Noticed *time.Time `json:"noticed,omitempty"`
	// Accused is when another agent's word against the node was first heard.
	Accused *time.Time `json:"accused,omitempty"`
	Decided time.Time  `json:"decided"`
	Written *time.Time `json:"written,omitempty"` // absent: not yet
	By      []string   `json:"by,omitempty"`      // as in down
}

// GossipStatus is what gossip tells.
type GossipStatus struct {
	Members  int  `json:"members"`  // agents seen, this one included
	Nodes    int  `json:"nodes"`    // registered in the cluster
	Verdicts bool `json:"verdicts"` // enough are seen: the members' verdicts count
	Chosen   int  `json:"chosen"`   // nodes that this agent was chosen to probe at the full rate
}

// DownStatus is a node that is judged down.
type DownStatus struct {
	Cluster string `json:"cluster"`
	Node    string `json:"node"`
	// By are the agents whose probes miss it, if they agreed; absent: this node's
	// own probes alone found so.
	By []string `json:"by,omitempty"`
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
		Problems: []ProblemStatus{}, Drains: a.state.drainStatus(time.Now()),
		Endpoints: a.endpointStatus(), Unmanaged: a.unmanaged(time.Now()),
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
	s.Health.Gossip = gossipStatus(report)
	for _, c := range sortedKeys(a.state.clusters) {
		s.Health.Down = append(s.Health.Down, downStatus(c, report)...)
	}
	s.Health.Verdicts = a.verdictStatus(report.Verdicts)
	for _, d := range a.state.t.all() {
		s.Tables = append(s.Tables, tableStatus(d))
		if d.name() == TablePolicy && a.state.policyDue() {
			s.Tables[len(s.Tables)-1].Pending++
		}
		if d.name() == TableServices {
			s.Tables[len(s.Tables)-1].Pending += len(a.state.dirty) + a.state.pass.waiting()
		}
	}
	s.Tables = append(s.Tables, a.health.tables()...)
	for _, p := range a.allProblems(s.Clusters) {
		s.Problems = append(s.Problems, ProblemStatus{Escape(p.What), Escape(p.Why), Escape(p.Fix)})
	}
	return s
}

func gossipStatus(r healthReport) *GossipStatus {
	if r.Council == nil {
		return nil
	}
	return &GossipStatus{Members: len(r.Council.live), Nodes: r.Council.nodes, Verdicts: r.Council.sits(), Chosen: r.Full}
}

// downStatus are the nodes of a cluster that are judged down, by name.
func downStatus(c *clusterState, r healthReport) (out []DownStatus) {
	for _, n := range sortedKeys(c.nodes) {
		k := NodeKey{uint16(c.id), n.Number}
		if _, down := r.Nodes[k]; down {
			out = append(out, DownStatus{Cluster: c.name, Node: n.Name, By: r.By[k]})
		}
	}
	return out
}

// verdictStatus gives the last verdicts names.
func (a *Agent) verdictStatus(verdicts []HealthVerdict) (out []VerdictStatus) {
	when := func(t time.Time) *time.Time {
		if t.IsZero() {
			return nil
		}
		t = t.UTC()
		return &t
	}
	for _, v := range verdicts {
		s := VerdictStatus{
			Cluster: strconv.Itoa(int(v.Node.Cluster)), Node: strconv.Itoa(int(v.Node.Node)), Down: v.Down, By: v.By,
			Silent: when(v.Silent), Noticed: when(v.Noticed), Accused: when(v.Accused), Decided: v.Decided.UTC(), Written: when(v.Written),
		}
		for _, c := range a.state.clusters {
			if uint16(c.id) != v.Node.Cluster {
				continue
			}
			s.Cluster = c.name
			for _, n := range c.nodes {
				if n.Number == v.Node.Node {
					s.Node = n.Name
				}
			}
		}
		out = append(out, s)
	}
	return out
}

func tableStatus(d anyDelta) TableStatus {
	written, removed, failures, drifted := d.counts()
	return TableStatus{
		Name: d.name(), Wanted: d.Len(), Size: d.Size(), Pending: d.Pending(), Stuck: d.Stuck(), Held: d.Held(),
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
	var paths []pathReport
	for _, n := range c.nodes {
		k := NodeKey{uint16(c.id), n.Number}
		if _, down := report.Nodes[k]; down {
			s.NodesDown = append(s.NodesDown, n.Name)
		}
		if p, is := report.Paths[k]; is {
			paths = append(paths, p)
		}
	}
	slices.Sort(s.NodesDown)
	a.state.gatewayStatus(c, &s)
	s.Path = pathStatus(paths, s.Down, len(s.NodesDown))
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
