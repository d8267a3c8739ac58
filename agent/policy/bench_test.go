package policy

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// count is a sink that counts writes.
type count struct {
	Tables
	writes int
}

func newCount() *count { return &count{Tables: *NewTables()} }

func (c *count) SetRow(k Key, r Row) { c.writes++; c.Tables.SetRow(k, r) }
func (c *count) DeleteRow(k Key)     { c.writes++; c.Tables.DeleteRow(k) }

// benchEngine has so many identities in 100 namespaces, so many policies, and a
// hundred pods of this node.
func benchEngine(identities, policies int) (*Engine, *count) {
	e, sink := New(Options{Cluster: 1}), newCount()
	for i := range identities {
		benchIdentity(e, i)
	}
	for i := range policies {
		ns := fmt.Sprintf("ns%d", i%100)
		e.SetPolicy(Name{ns, fmt.Sprintf("p%d", i)}, fmt.Appendf(nil, `{"spec":{"podSelector":{"matchLabels":{"app":"app%d"}},"ingress":[
			{"from":[{"podSelector":{"matchLabels":{"app":"app%d"}}}],"ports":[{"port":%d}]},
			{"from":[{"namespaceSelector":{"matchLabels":{"team":"team%d"}}}],"ports":[{"port":9090}]},
			{"from":[{"ipBlock":{"cidr":"10.%d.0.0/16"}}]}]}}`, i%10, (i+1)%10, 1000+i, i%7, i%250))
	}
	for i := range 100 {
		e.SetPod(fmt.Sprintf("pod%d", i), Pod{Namespace: fmt.Sprintf("ns%d", i%100), Identity: clustermesh.MakeIdentity(1, uint32(i+1))})
	}
	e.Apply(sink)
	return e, sink
}

func benchIdentity(e *Engine, i int) {
	ns := fmt.Sprintf("ns%d", i%100)
	e.SetIdentity(clustermesh.MakeIdentity(1, uint32(i+1)), clustermesh.SecurityLabels("one", ns, "",
		map[string]string{"app": fmt.Sprintf("app%d", i/100%10), "version": fmt.Sprint(i)}, map[string]string{"team": fmt.Sprintf("team%d", i%7)}))
}

// One identity comes and goes, among few and among many: the same rows, the same cost.
func BenchmarkIdentity(b *testing.B) {
	for _, n := range []int{100, 20000} {
		b.Run(fmt.Sprintf("among-%d", n), func(b *testing.B) {
			e, sink := benchEngine(n, 1000)
			id := clustermesh.MakeIdentity(1, 500_000)
			labels := e.identities[clustermesh.MakeIdentity(1, 3)]
			sink.writes = 0
			for b.Loop() {
				e.SetIdentity(id, labels)
				e.Apply(sink)
				e.DeleteIdentity(id)
				e.Apply(sink)
			}
			b.ReportMetric(float64(sink.writes)/float64(b.N), "writes/op")
		})
	}
}

// One policy changes its port back and forth.
func BenchmarkPolicyChange(b *testing.B) {
	for _, n := range []int{100, 20000} {
		b.Run(fmt.Sprintf("among-%d", n), func(b *testing.B) {
			e, sink := benchEngine(n, 1000)
			sink.writes = 0
			for i := 0; b.Loop(); i++ {
				e.SetPolicy(Name{"ns3", "p3"}, fmt.Appendf(nil, `{"spec":{"podSelector":{},"ingress":[{"from":[{"podSelector":{"matchLabels":{"app":"app1"}}}],"ports":[{"port":%d}]}]}}`, i%2+1))
				e.Apply(sink)
				e.Sweep(sink)
			}
			b.ReportMetric(float64(sink.writes)/float64(b.N), "writes/op")
		})
	}
}

// All there is at once, as at the start of an agent.
func BenchmarkStart(b *testing.B) {
	for b.Loop() {
		_, sink := benchEngine(20000, 1000)
		b.ReportMetric(float64(len(sink.Rows)), "rows")
	}
}

func BenchmarkExplain(b *testing.B) {
	e, _ := benchEngine(20000, 1000)
	q := Query{
		From:  Party{Identity: clustermesh.MakeIdentity(1, 14), Address: netip.MustParseAddr("10.0.0.1"), Pod: true},
		Proto: clustermesh.TCP, Port: 9090,
	}
	for i := 0; b.Loop(); i++ {
		q.To = Party{Identity: clustermesh.MakeIdentity(1, uint32(1+i%5000)), Address: netip.MustParseAddr("10.0.0.2"), Pod: true}
		e.Explain(q)
	}
}

func BenchmarkLookup(b *testing.B) {
	e, sink := benchEngine(20000, 1000)
	e.Apply(sink)
	for i := 0; b.Loop(); i++ {
		sink.Lookup(sink.Pods["pod3"], Ingress, clustermesh.MakeIdentity(1, uint32(1+i%5000)), netip.MustParseAddr("10.0.0.1"), clustermesh.TCP, 9090)
	}
}
