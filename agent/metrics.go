package agent

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// scrapeTimeout bounds how long a scrape waits for the owner goroutine.
const scrapeTimeout = 2 * time.Second

func newLatency() prometheus.Histogram {
	return prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "tombolo_agent_origin_to_kernel_seconds",
		Help:    "Time from a change at its source to the kernel of this node, clocks of both taken together.",
		Buckets: prometheus.ExponentialBuckets(0.0005, 2, 18),
	})
}

// Descriptions of the metrics that are read from state on scrape.
var (
	descReady     = desc("ready", "1 once the own cluster was synced and the tables were written.")
	descWanted    = desc("table_rows_wanted", "Rows a table should hold.", "table")
	descSize      = desc("table_size", "Rows that fit into a table; absent for tables without a limit.", "table")
	descPending   = desc("table_rows_pending", "Rows in which the kernel differs from the wish.", "table")
	descStuck     = desc("table_rows_stuck", "Rows that the kernel refused.", "table")
	descHeld      = desc("table_rows_held", "Rows kept for clusters that have not reported synced.", "table")
	descWritten   = desc("table_rows_written_total", "Rows written.", "table")
	descRemoved   = desc("table_rows_removed_total", "Rows removed.", "table")
	descDrifted   = desc("table_rows_drifted_total", "Rows that somebody else had changed.", "table")
	descErrors    = desc("table_errors_total", "Calls that the kernel refused.", "table")
	descSynced    = desc("cluster_synced", "1 if everything came from the cluster itself since the agent started.", "cluster")
	descConnected = desc("cluster_connected", "1 while there is a connection.", "cluster")
	descStale     = desc("cluster_stale_seconds", "How long there has been no connection; 0 while there is one.", "cluster")
	descRevision  = desc("cluster_revision", "Revision of the cluster's store up to which everything is known.", "cluster")
	descRecords   = desc("cluster_records", "Records of the cluster.", "cluster")
	descNodes     = desc("cluster_nodes", "Nodes of the cluster.", "cluster")
	descDown      = desc("cluster_down", "1 if no node of the cluster answers through the tunnel.", "cluster")
	descNodesDown = desc("cluster_nodes_down", "Nodes of the cluster that do not answer through the tunnel.", "cluster")
	descRoundTrip = desc("cluster_round_trip_seconds", "Median of the smoothed round trips to the cluster's nodes; absent before the first answer.", "cluster")
	descLoss      = desc("cluster_probe_loss_ratio", "Share of the last minute's probes to the cluster's nodes without an answer; absent if there were none.", "cluster")
	descGateway   = desc("gateway_down", "1 if the gateway is judged down. Of clusters with gateways alone.", "cluster", "gateway")
	descBehind    = desc("gateway_nodes", "Nodes behind the gateway.", "cluster", "gateway")
	descRefused   = desc("records_refused_total", "Records that were not believed.", "cluster", "reason")
	descProbes    = desc("health_probes_total", "Probes of nodes.")
	descMisses    = desc("health_probe_misses_total", "Probes without an answer.")
	descProblems  = desc("problems", "Problems that the status names.")
	descServices  = desc("services", "Services with rows.")
	descMembers   = desc("gossip_members", "Agents of the own cluster that gossip sees, this one included. Absent: this agent does not gossip.")
	descVerdicts  = desc("gossip_verdicts", "1 while enough members are seen for their verdicts to count.")
	descChosen    = desc("probe_targets_chosen", "Nodes that this agent was chosen to probe at the full rate.")
	descByOthers  = desc("nodes_down_by_agreement", "Nodes judged down because several agents agreed.")
	descResets    = desc("socket_resets_asked_total", "Backends that are gone, for whose connections a reset was asked.")
	descResetLost = desc("socket_resets_lost_total", "Backends that are gone, and for which there was no room to remember it.")
	descDrained   = prometheus.NewDesc("tombolo_drain_left_ratio", "How much of its weight a cluster that is drained, or returns, has left in this node's services. by: itself, or operator (of the own cluster).", []string{"cluster", "by"}, nil)
	descDrainedAt = prometheus.NewDesc("tombolo_drain_start_timestamp_seconds", "When the drain or return of a cluster began.", []string{"cluster", "by"}, nil)
	descDrainedIn = prometheus.NewDesc("tombolo_drain_services", "Services in a cluster that are drained, or return, by themselves.", []string{"cluster", "by"}, nil)
	descPass      = desc("background_services_total", "Services merged again in the background because shares changed.")
	descPods      = desc("pods", "Pods on this node.")
	descEndpoints = prometheus.NewDesc("tombolo_endpoints", "Endpoints of this node by state: creating, ready, regenerating, disconnecting.", []string{"state"}, nil)
	descUnmanaged = prometheus.NewDesc("tombolo_unmanaged_pods", "Pods on this node, of the own cluster's records, that Tombolo has not connected.", nil, nil)
	descFlows     = desc("flows_total", "Events that were read from the kernel: drops, new flows, flows cut.")
	descFlowsLost = desc("flows_lost_total", "Events that followers were too slow for. Those that the kernel had no room for are in tombolo_bpf_events_total.")
	descEvents    = prometheus.NewDesc("tombolo_bpf_events_total",
		"What the kernel's programs did with packets and calls, and why they dropped some, by reason. event_lost: events that nobody was told of.", []string{"reason"}, nil)
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("tombolo_agent_"+name, help, labels, nil)
}

// collector reads the agent's status on scrape.
type collector struct{ a *Agent }

// Collector exports the metrics tombolo_agent_…, read from state on scrape.
func (a *Agent) Collector() prometheus.Collector { return collector{a} }

// Describe implements prometheus.Collector.
func (c collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descReady, descWanted, descSize, descPending, descStuck, descHeld, descWritten, descRemoved, descDrifted, descErrors,
		descSynced, descConnected, descStale, descRevision, descRecords, descNodes, descDown, descNodesDown,
		descRoundTrip, descLoss, descGateway, descBehind,
		descMembers, descVerdicts, descChosen, descByOthers, descRefused, descProbes, descMisses, descProblems, descServices, descResets, descResetLost, descDrained, descDrainedAt, descDrainedIn, descPass, descPods, descEndpoints, descUnmanaged,
	} {
		out <- d
	}
	c.a.latency.Describe(out)
	for _, m := range c.a.health.record.histograms() {
		m.Describe(out)
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(out chan<- prometheus.Metric) {
	c.a.latency.Collect(out)
	for _, m := range c.a.health.record.histograms() {
		m.Collect(out)
	}
	c.collectFlows(out)
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	var s Status
	var lost, passed uint64
	if err := c.a.call(ctx, func() { s, lost, passed = c.a.status(), c.a.state.gone.lost, c.a.state.pass.done }); err != nil {
		out <- prometheus.NewInvalidMetric(descReady, err)
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(descReady, oneIf(s.Ready))
	gauge(descProblems, float64(len(s.Problems)))
	gauge(descServices, float64(s.Services))
	gauge(descPods, float64(s.Pods))
	states := map[string]int{}
	for _, e := range s.Endpoints {
		states[e.State]++
	}
	for _, state := range endpointStates {
		gauge(descEndpoints, float64(states[state]), state)
	}
	gauge(descUnmanaged, float64(len(s.Unmanaged)))
	counter(descPass, passed)
	c.drains(s.Drains, gauge)
	asked, full := c.a.resets.counts()
	counter(descResets, asked)
	counter(descResetLost, full+lost)
	counter(descProbes, s.Health.Probes)
	if g := s.Health.Gossip; g != nil {
		gauge(descMembers, float64(g.Members))
		gauge(descVerdicts, oneIf(g.Verdicts))
		gauge(descChosen, float64(g.Chosen))
	}
	agreed := 0
	for _, d := range s.Health.Down {
		if len(d.By) > 0 {
			agreed++
		}
	}
	gauge(descByOthers, float64(agreed))
	counter(descMisses, s.Health.Misses)
	for _, t := range s.Tables {
		gauge(descWanted, float64(t.Wanted), t.Name)
		if t.Size > 0 {
			gauge(descSize, float64(t.Size), t.Name)
		}
		gauge(descPending, float64(t.Pending), t.Name)
		gauge(descStuck, float64(t.Stuck), t.Name)
		gauge(descHeld, float64(t.Held), t.Name)
		counter(descWritten, t.Written, t.Name)
		counter(descRemoved, t.Removed, t.Name)
		counter(descDrifted, t.Drifted, t.Name)
		counter(descErrors, t.Errors, t.Name)
	}
	for _, cl := range s.Clusters {
		stale := 0.0
		if cl.StaleSince != nil {
			stale = time.Since(*cl.StaleSince).Seconds()
		}
		gauge(descSynced, oneIf(cl.Synced), cl.Name)
		gauge(descConnected, oneIf(cl.Connected), cl.Name)
		gauge(descStale, stale, cl.Name)
		gauge(descRevision, float64(cl.Revision), cl.Name)
		gauge(descRecords, float64(cl.Records), cl.Name)
		gauge(descNodes, float64(cl.Nodes), cl.Name)
		gauge(descDown, oneIf(cl.Down), cl.Name)
		for _, g := range cl.Gateways {
			gauge(descGateway, oneIf(g.Down), cl.Name, g.Name)
			gauge(descBehind, float64(g.Nodes), cl.Name, g.Name)
		}
		gauge(descNodesDown, float64(len(cl.NodesDown)), cl.Name)
		if rtt := cl.Path.RoundTripMS; rtt != nil {
			gauge(descRoundTrip, *rtt/1000, cl.Name)
		}
		if loss := cl.Path.LossPercent; loss != nil {
			gauge(descLoss, *loss/100, cl.Name)
		}
		for reason, n := range cl.Refused {
			counter(descRefused, n, cl.Name, reason)
		}
	}
}

// collectFlows needs nothing of the owner goroutine.
func (c collector) collectFlows(out chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	seen, lost := c.a.flows.counts()
	counter(descFlows, seen)
	counter(descFlowsLost, lost)
	if c.a.cfg.Counters == nil {
		return
	}
	counts, err := c.a.cfg.Counters()
	if err != nil {
		out <- prometheus.NewInvalidMetric(descEvents, err)
		return
	}
	for reason, n := range counts {
		counter(descEvents, n, reason)
	}
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// drains are a series for each cluster, and for its services together: these may be
// many.
func (collector) drains(list []DrainStatus, gauge func(*prometheus.Desc, float64, ...string)) {
	type who struct{ cluster, by string }
	services := map[who]int{}
	for _, d := range list {
		w := who{d.Cluster, "operator"}
		if d.ByItself {
			w.by = "itself"
		}
		switch {
		case d.Services > 0:
			services[w] += d.Services
		case d.Service != "":
			services[w]++
		default:
			gauge(descDrained, d.Left/100, w.cluster, w.by)
			gauge(descDrainedAt, float64(d.Since.Unix()), w.cluster, w.by)
		}
	}
	for w, n := range services {
		gauge(descDrainedIn, float64(n), w.cluster, w.by)
	}
}
