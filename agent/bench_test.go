package agent

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// benchState is a state with n services of 4 endpoints in each of the own
// cluster and so many peers.
func benchState(b *testing.B, n, peers int) *State {
	b.Helper()
	s := newState(Config{Cluster: "c1", ClusterID: 1, Node: "n1"}, NewFakes())
	for _, d := range s.t.all() {
		if _, err := d.Resync(1); err != nil {
			b.Fatal(err)
		}
	}
	var records []*clustermesh.Peer
	for p := 2; p <= peers+1; p++ {
		records = append(records, &clustermesh.Peer{Name: fmt.Sprintf("c%d", p), ID: clustermesh.ID(p), PodPrefixes: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(10 + p)}), 8)}})
	}
	s.SetPeers(records)
	for c := 1; c <= peers+1; c++ {
		s.Apply(clustermesh.Update{Cluster: fmt.Sprintf("c%d", c), Scope: clustermesh.ScopeExport, View: benchView(b, c, n)}, true)
	}
	return s
}

func benchView(b testing.TB, c, n int) *clustermesh.View {
	b.Helper()
	v := clustermesh.NewView(clustermesh.Admission{Cluster: fmt.Sprintf("c%d", c), ID: clustermesh.ID(c), Local: true}, clustermesh.ScopeExport)
	put := func(r clustermesh.Record) {
		if err := v.Apply(clustermesh.Change{Key: clustermesh.KeyOf(clustermesh.ScopeExport, v.Name(), r), Record: r}); err != nil {
			b.Fatal(err)
		}
	}
	addr := func(i int) netip.Addr {
		return netip.AddrFrom4([4]byte{byte(10 + c), byte(i >> 16), byte(i >> 8), byte(i)})
	}
	nodes := min(1000, 10*n)
	for i := range nodes {
		put(&clustermesh.Node{Name: fmt.Sprintf("n%d", i), Number: uint16(i + 1), WireGuardKey: [32]byte{byte(c), byte(i), byte(i >> 8), 1},
			PodPrefixes: []netip.Prefix{netip.PrefixFrom(addr(i<<8), 24)}, WireGuardEndpoint: "192.0.2.1:51820"})
	}
	for i := range n {
		name := clustermesh.ServiceName{Namespace: "shop", Name: fmt.Sprintf("s%d", i)}
		put(&clustermesh.Service{Name: name, Global: true, Shared: true, Frontends: []netip.Addr{netip.AddrFrom4([4]byte{172, 20, byte(i >> 8), byte(i)})},
			Ports: []clustermesh.Port{{Name: "http", Protocol: clustermesh.TCP, Port: 80}}})
		slice := &clustermesh.EndpointSlice{Name: clustermesh.SliceName{Service: name, Slice: "1"}, Ports: []clustermesh.Port{{Name: "http", Protocol: clustermesh.TCP, Port: 8080}}}
		for e := range 4 {
			slice.Endpoints = append(slice.Endpoints, clustermesh.Endpoint{Address: addr(i*4 + e), Node: uint16(e + 1), Ready: true, Serving: true})
		}
		put(slice)
	}
	for i := range 10 * n {
		put(&clustermesh.Address{Name: clustermesh.AddressName{Node: fmt.Sprintf("n%d", i%nodes), Prefix: netip.PrefixFrom(addr(i), 32)}, Identity: clustermesh.MakeIdentity(clustermesh.ID(c), uint32(i))})
	}
	return v
}

// finish computes and writes all that is left.
func finish(s *State) {
	for more := true; more; {
		more = s.Compute(turnServices)
		more = s.t.flush(turnRows) || more
	}
}

// BenchmarkServices merges 5,000 services and writes their rows into tables in
// memory; one cluster beside the own one.
func BenchmarkServices(b *testing.B) {
	for _, peers := range []int{0, 1, 5} {
		b.Run(fmt.Sprint("peers=", peers), func(b *testing.B) {
			s := benchState(b, 5000, peers)
			finish(s)
			b.ResetTimer()
			for range b.N {
				s.services = map[clustermesh.ServiceName]appliedService{}
				s.t.services = NewDelta(TableServices, Table[ServiceKey, ServiceRow](NewFake[ServiceKey, ServiceRow]("", 0)), s.t.services.owner, s.known)
				s.t.slots = NewDelta(TableSlots, Table[SlotKey, SlotRow](NewFake[SlotKey, SlotRow]("", 0)), s.t.slots.owner, s.known)
				_, _ = s.t.services.Resync(1)
				_, _ = s.t.slots.Resync(1)
				s.touchAll()
				finish(s)
			}
			b.ReportMetric(float64(b.N)*5000/b.Elapsed().Seconds(), "services/s")
		})
	}
}

// BenchmarkFirstView takes a cluster of 1,000 nodes, 5,000 services and 50,000
// addresses in and writes its rows.
func BenchmarkFirstView(b *testing.B) {
	b.StopTimer()
	for range b.N {
		s := benchState(b, 5000, 0)
		finish(s)
		s.SetPeers([]*clustermesh.Peer{{Name: "c2", ID: 2, PodPrefixes: []netip.Prefix{netip.MustParsePrefix("12.0.0.0/8")}}})
		v := benchView(b, 2, 5000)
		b.StartTimer()
		s.Apply(clustermesh.Update{Cluster: "c2", Scope: clustermesh.ScopeExport, View: v}, true)
		finish(s)
		b.StopTimer()
	}
}

// BenchmarkOneChange is one endpoint more or less in a mesh of six clusters.
func BenchmarkOneChange(b *testing.B) {
	s := benchState(b, 5000, 5)
	finish(s)
	name := clustermesh.ServiceName{Namespace: "shop", Name: "s7"}
	b.ResetTimer()
	for i := range b.N {
		slice := &clustermesh.EndpointSlice{Name: clustermesh.SliceName{Service: name, Slice: "1"}, Ports: []clustermesh.Port{{Name: "http", Protocol: clustermesh.TCP, Port: 8080}}}
		for e := range 3 + i%2 {
			slice.Endpoints = append(slice.Endpoints, clustermesh.Endpoint{Address: netip.AddrFrom4([4]byte{12, 0, 0, byte(e)}), Node: 1, Ready: true, Serving: true})
		}
		key := clustermesh.KeyOf(clustermesh.ScopeExport, "c2", slice)
		s.Apply(clustermesh.Update{Cluster: "c2", Scope: clustermesh.ScopeExport, Changes: []clustermesh.Change{{Key: key, Record: slice}}}, true)
		finish(s)
	}
}

func BenchmarkPlan(b *testing.B) {
	own := planNode(1, 1, "10.1.1.0/24", "fd00:1:1::/64")
	in := PlanInput{Own: own, OwnNodes: []*clustermesh.Node{own}, OwnPrefixes: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}
	for c := range 25 {
		var nodes []*clustermesh.Node
		for n := range 200 {
			nodes = append(nodes, planNode(c+2, n+1, fmt.Sprintf("10.%d.%d.0/24", c+2, n+1), fmt.Sprintf("fd00:%x:%x::/64", c+2, n+1)))
		}
		in.Remote = append(in.Remote, planCluster(c+2, nodes...))
	}
	for b.Loop() {
		if peers, _, problems := Plan(in); len(peers) != 5000 || len(problems) > 0 {
			b.Fatal(len(peers), problems)
		}
	}
}
