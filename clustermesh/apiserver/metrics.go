package apiserver

import (
	"context"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

// metricsCollector reads the server's state on each scrape: a metric cannot
// drift from what it tells of.
type metricsCollector struct{ s *server }

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("tombolo_apiserver_"+name, help, labels, nil)
}

var (
	metricLeader      = describe("leader", "1 if this replica holds the leader key.")
	metricRevision    = describe("store_revision", "Revision of the store that the watch cache has reached.")
	metricConnected   = describe("store_connected", "1 while the watch cache follows the store.")
	metricRelists     = describe("store_relists", "How often the watch cache listed the store again.")
	metricRecords     = describe("records", "Records in the store.", "scope", "kind")
	metricWanted      = describe("publish_wanted_keys", "Keys that should be in the store. Leader only.")
	metricPending     = describe("publish_pending_keys", "Keys that wait to be written. Leader only.")
	metricCommits     = describe("publish_commits", "Commits of this term. Leader only.")
	metricHeld        = describe("publish_held_keys", "Keys whose mass delete is held.", "kind")
	metricRefused     = describe("publish_refused_keys", "Keys whose value the store did not take. Leader only.")
	metricProblems    = describe("problems", "Present problems, as tombolo status shows them.")
	metricCertificate = describe("certificate_expires_seconds", "When the certificate of the mesh port ends, Unix time.")
	metricPeers       = describe("peers", "Clusters this one is joined with.")
	metricReachable   = describe("peer_reachable", "1 if a peer's mesh port answers.", "peer")
)

func (c metricsCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		metricLeader, metricRevision, metricConnected, metricRelists, metricRecords, metricWanted, metricPending,
		metricCommits, metricHeld, metricRefused, metricProblems, metricCertificate, metricPeers, metricReachable,
	} {
		ch <- d
	}
}

func (c metricsCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	s := c.s
	leads, _, _ := s.leader.status()
	gauge(metricLeader, oneIf(leads))
	gauge(metricRevision, float64(s.cache.Position().Revision))
	if f := s.follow.Load(); f != nil {
		gauge(metricConnected, oneIf(f.Connected))
		gauge(metricRelists, float64(f.Relists))
	}
	out := &pb.StatusResponse{Cluster: &pb.Cluster{}}
	if err := s.status(context.Background(), out); err == nil {
		for name, n := range out.Records {
			scope, kind, _ := strings.Cut(name, "/")
			gauge(metricRecords, float64(n), scope, kind)
		}
	}
	if pub := s.core.publisher.Load(); pub != nil {
		st := pub.Status()
		gauge(metricWanted, float64(st.Wanted))
		gauge(metricPending, float64(st.Pending))
		gauge(metricCommits, float64(st.Commits))
		gauge(metricRefused, float64(st.Refused))
		for _, h := range pub.Held() {
			gauge(metricHeld, float64(h.Keys), h.Kind)
		}
	}
	gauge(metricProblems, float64(len(s.problems.All())+len(s.port.Problems())))
	gauge(metricCertificate, float64(s.port.cfg.Leaf.Expires().Unix()))
	peers := s.port.PeerStatus()
	gauge(metricPeers, float64(len(peers)))
	for _, p := range peers {
		gauge(metricReachable, oneIf(p.Reachable), p.Peer.Name)
	}
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
