package clustermesh

import (
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// TestMergeImport: where the addresses of an import lead to.
func TestMergeImport(t *testing.T) {
	exported := func(s *Service) { s.Export = &Export{Created: 1} }
	tests := []struct {
		name string
		own  func(*Service)            // of the import, in cluster a
		says map[string]func(*Service) // the exported service, by cluster
		want string
	}{
		{"of all clusters that export", nil, map[string]func(*Service){"a": exported, "b": exported, "c": exported}, "a(1) b(2) c(1)"},
		{"of others alone", nil, map[string]func(*Service){"b": exported}, "b(2)"},
		{"global there is not exported", nil, map[string]func(*Service){"a": exported, "b": func(s *Service) { s.Global = true }}, "a(1)"},
		{"local here is not exported", nil, map[string]func(*Service){"a": func(*Service) {}, "b": exported}, "b(2)"},
		{"of nobody", nil, nil, ""},
		{"affinity of the import", func(s *Service) { s.Affinity = AffinityLocal }, map[string]func(*Service){"a": exported, "b": exported}, "a(1) | b(2)"},
		{"failover of the import", func(s *Service) { s.Failover = []string{"c"} }, map[string]func(*Service){"a": exported, "b": exported, "c": exported}, "a(1) | c(1) | b(2)"},
		{"near is what is in the own cluster", func(s *Service) { s.Distribution = DistributionSameZone }, map[string]func(*Service){"a": exported, "b": exported}, "a(1) | b(2)"},
		{"near, but all are equal", func(s *Service) { s.Distribution, s.Affinity = DistributionSameZone, AffinityNone },
			map[string]func(*Service){"a": exported, "b": exported}, "a(1) b(2)"},
		{"weight of the exporter", nil, map[string]func(*Service){"a": exported, "b": func(s *Service) { exported(s); s.Weight, s.HasWeight = 3, true }}, "a(1) b*3(2)"},
		{"settings of the exporter do not count", nil, map[string]func(*Service){"a": exported, "b": func(s *Service) { exported(s); s.Affinity = AffinityLocal }}, "a(1) b(2)"},
		{"not ready, published by the exporter", nil, map[string]func(*Service){"b": exported, "c": exported, "d": func(s *Service) { exported(s); s.PublishNotReady = true }}, "b(2) c(1) d(1)"},
	}
	for _, test := range tests {
		m := newMesh(t, "a", "b", "c", "d")
		for name, change := range test.says {
			s := checkout()
			s.Global = false
			change(s)
			m.put(m.Views[name], s)
		}
		for name, states := range map[string]string{"a": "rn", "b": "rrs", "c": "r", "d": "n"} {
			m.backends(name, states)
		}
		m.putImport(test.own)
		got := Merge(m.MergeInput)
		if show(got) != test.want || got.Import != "checkout" || got.Global {
			t.Errorf("%s: %s, want %s", test.name, show(got), test.want)
		}
	}
}

// TestMergeImportPorts: each port of an import leads to the clusters that expose
// it, by its name, protocol and number, whatever their endpoints' ports are.
func TestMergeImportPorts(t *testing.T) {
	m := newMesh(t, "a", "b", "c", "d")
	for name, ports := range map[string][]Port{
		"a": {{"http", TCP, 80, 0}}, "b": {{"http", TCP, 8080, 0}}, "c": {{"web", TCP, 8000, 0}}, "d": {{"http", UDP, 80, 0}, {"web", TCP, 8000, 30080}},
	} {
		s := checkout()
		s.Global, s.Export, s.Ports = false, &Export{Created: 1}, ports
		slice := &EndpointSlice{Name: SliceName{m.Name, "s1"}, Endpoints: []Endpoint{{Address: addr4(10<<24 | uint32(clusterID(name))<<16 | 1), Node: 1, Ready: true}}}
		for _, p := range ports {
			slice.Ports = append(slice.Ports, Port{p.Name, p.Protocol, 42, 0})
		}
		m.put(m.Views[name], s, slice)
	}
	m.putImport(func(s *Service) { s.Ports = []Port{{"http", TCP, 80, 0}, {"web", TCP, 8000, 0}} })
	got := Merge(m.MergeInput)
	if show(got) != "a(1)" {
		t.Errorf("http: %s", show(got))
	}
	got.Ports = got.Ports[1:]
	if show(got) != "c(1) d(1)" {
		t.Errorf("web: %s", show(got))
	}
	for _, w := range got.Clusters {
		if w.Cluster == "b" && (w.Tier != -1 || w.Reason != "it exports no port of the import under the same name, protocol and number") {
			t.Errorf("b: %+v", w)
		}
	}
}

// putImport gives cluster a an import of checkout, and has the mesh merge it.
func (m *mesh) putImport(change func(*Service)) {
	s := &Service{Name: ServiceName{"shop", "derived-1"}, Ports: checkoutPorts, Frontends: addresses("172.20.0.9"), Import: "checkout"}
	if change != nil {
		change(s)
	}
	m.Home = NewView(Admission{Cluster: "a", ID: 1, Local: true}, ScopeLocal)
	m.put(m.Home, s)
	m.Name = s.Name
}

// TestExportedServiceStaysLocal: exporting changes nothing for clients of the
// service's own address, in any cluster.
func TestExportedServiceStaysLocal(t *testing.T) {
	m := newMesh(t, "a", "b")
	for name := range m.Views {
		s := checkout()
		s.Global, s.Export = false, &Export{Created: 1}
		m.put(m.Views[name], s)
		m.backends(name, "rr")
	}
	if got := show(Merge(m.MergeInput)); got != "a(2)" {
		t.Errorf("not global: %s", got)
	}
	own := checkout()
	own.Export = &Export{Created: 1}
	m.put(m.Views["a"], own) // global here, exported there
	if got := show(Merge(m.MergeInput)); got != "a(2)" {
		t.Errorf("global in one cluster alone: %s", got)
	}
}

// TestMergeImportLocalPolicy: with internalTrafficPolicy Local only the client's
// node counts, and so the own cluster.
func TestMergeImportLocalPolicy(t *testing.T) {
	for own, want := range map[bool]int{true: 2, false: 0} {
		m := newMesh(t, "a", "b")
		for name := range m.Views {
			s := checkout()
			s.Global = false
			if name == "b" || own {
				s.Export = &Export{Created: 1}
			}
			m.put(m.Views[name], s)
			m.backends(name, "rr")
		}
		m.putImport(func(s *Service) { s.InternalLocal = true })
		got := Merge(m.MergeInput)
		if len(got.Ports) != 1 || len(got.Ports[0].Local) != want {
			t.Errorf("own cluster exports: %v, local backends %v, want %d", own, got.Ports, want)
		}
		for _, w := range got.Clusters {
			if w.Cluster == "a" && own != strings.Contains(w.Reason, "internalTrafficPolicy") {
				t.Errorf("own cluster exports: %v, reason %q", own, w.Reason)
			}
			if w.Cluster == "a" && !own && w.Reason != "it exports no service shop/checkout" {
				t.Errorf("reason %q", w.Reason)
			}
		}
	}
}

// TestImportIsLikeGlobal: an import of what all clusters export leads where the
// annotated global service would, whatever the settings.
func TestImportIsLikeGlobal(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		global, exporting := newMesh(t, "a", "b", "c"), newMesh(t, "a", "b", "c")
		set := func(s *Service) {
			s.Affinity = rapid.SampledFrom([]Affinity{"", AffinityLocal, AffinityRemote, AffinityNone}).Draw(rt, "affinity")
			s.Failover = rapid.SampledFrom([][]string{nil, {"b"}, {"c", "b"}, {"x"}}).Draw(rt, "failover")
			s.MinHealthy = rapid.SampledFrom([]string{"", "2", "50%"}).Draw(rt, "min-healthy")
		}
		settings := checkout()
		set(settings)
		for _, name := range []string{"a", "b", "c"} {
			s := checkout()
			if name == "a" {
				s.Affinity, s.Failover, s.MinHealthy = settings.Affinity, settings.Failover, settings.MinHealthy
			}
			s.Weight, s.HasWeight = rapid.Uint16Range(0, 2).Draw(rt, "weight"), true
			x := *s
			x.Global, x.Export = false, &Export{Created: 1}
			global.put(global.Views[name], s)
			exporting.put(exporting.Views[name], &x)
			slice := drawEndpoints(rt, s.Name, clusterID(name), "s")
			global.put(global.Views[name], slice)
			exporting.put(exporting.Views[name], slice)
		}
		exporting.putImport(func(s *Service) {
			s.Affinity, s.Failover, s.MinHealthy = settings.Affinity, settings.Failover, settings.MinHealthy
		})
		a, b := Merge(global.MergeInput), Merge(exporting.MergeInput)
		for i := range a.Ports {
			if !reflect.DeepEqual(a.Ports[i].Tiers, b.Ports[i].Tiers) {
				rt.Fatalf("global\n%s\nimport\n%s", showAll(a.Ports), showAll(b.Ports))
			}
		}
	})
}
