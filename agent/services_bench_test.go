package agent

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

func manyName(i int) clustermesh.ServiceName {
	return clustermesh.ServiceName{Namespace: "shop", Name: fmt.Sprintf("s%d", i)}
}

// manySlice is the slice of service i with so many endpoints.
func manySlice(i, endpoints int) *clustermesh.EndpointSlice {
	s := &clustermesh.EndpointSlice{Name: clustermesh.SliceName{Service: manyName(i), Slice: "1"}, Ports: []clustermesh.Port{{Name: "web", Protocol: clustermesh.TCP, Port: 8080}}}
	for e := range endpoints {
		n := i*10 + e
		s.Endpoints = append(s.Endpoints, clustermesh.Endpoint{Address: netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), Node: uint16(e%3 + 1), Ready: true, Serving: true})
	}
	return s
}

// manyServices is a state with n services of 10 endpoints; every tenth has a node
// port, and every hundredth a traffic policy Local.
func manyServices(b testing.TB, n int) *State {
	b.Helper()
	s := newState(Config{Cluster: "c1", ClusterID: 1, Node: "n1"}, NewFakes())
	for _, d := range s.t.all() {
		if _, err := d.Resync(1); err != nil {
			b.Fatal(err)
		}
	}
	v := clustermesh.NewView(clustermesh.Admission{Cluster: "c1", ID: 1, Local: true}, clustermesh.ScopeExport)
	put := func(r clustermesh.Record) {
		if err := v.Apply(clustermesh.Change{Key: clustermesh.KeyOf(clustermesh.ScopeExport, "c1", r), Record: r}); err != nil {
			b.Fatal(err)
		}
	}
	put(rigNode("n1", 1, "a"))
	for i := range n {
		svc := &clustermesh.Service{Name: manyName(i), Global: true, Shared: true, Frontends: []netip.Addr{netip.AddrFrom4([4]byte{172, byte(16 + i>>16), byte(i >> 8), byte(i)})},
			Ports: []clustermesh.Port{{Name: "web", Protocol: clustermesh.TCP, Port: 80}}}
		if i%10 == 0 {
			svc.Ports[0].NodePort, svc.ExternalLocal = uint16(20000+i/10), i%100 == 0
		}
		put(svc)
		put(manySlice(i, 10))
	}
	s.Apply(clustermesh.Update{Cluster: "c1", Scope: clustermesh.ScopeExport, View: v}, true)
	finish(s)
	return s
}

// BenchmarkOneEndpoint is one endpoint less, then more, of one service among many.
// It must not cost more among more.
func BenchmarkOneEndpoint(b *testing.B) {
	for _, n := range []int{100, 100_000} {
		b.Run(fmt.Sprint("services=", n), func(b *testing.B) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			s := manyServices(b, n)
			runtime.GC()
			runtime.ReadMemStats(&after)
			i := 0
			for b.Loop() {
				slice := manySlice(7, 9+i%2)
				i++
				key := clustermesh.KeyOf(clustermesh.ScopeExport, "c1", slice)
				s.Apply(clustermesh.Update{Cluster: "c1", Scope: clustermesh.ScopeExport, Changes: []clustermesh.Change{{Key: key, Record: slice}}}, true)
				finish(s)
				s.takeGone()
			}
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(n), "B/service")
			runtime.KeepAlive(s)
		})
	}
}
