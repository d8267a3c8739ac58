package clustermesh

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestMergeSettings(t *testing.T) {
	all := map[string]string{"a": "rr", "b": "rrr", "c": "r", "d": "r"}
	type world struct {
		own    func(*Service)            // settings of cluster a
		others map[string]func(*Service) // of the rest
		states map[string]string
	}
	weight := func(n uint16) func(*Service) { return func(s *Service) { s.Weight, s.HasWeight = n, true } }
	tests := []struct {
		name string
		world
		want, note string
	}{
		{"no affinity", world{states: all}, "a(2) b(3) c(1) d(1)", ""},
		{"none", world{own: func(s *Service) { s.Affinity = AffinityNone }, states: all}, "a(2) b(3) c(1) d(1)", ""},
		{"local", world{own: func(s *Service) { s.Affinity = AffinityLocal }, states: all}, "a(2) | b(3) c(1) d(1)", ""},
		{"local, nothing there", world{own: func(s *Service) { s.Affinity = AffinityLocal }, states: map[string]string{"a": "nn", "b": "r"}}, "b(1)", ""},
		{"remote", world{own: func(s *Service) { s.Affinity = AffinityRemote }, states: all}, "b(3) c(1) d(1) | a(2)", ""},
		{"local with failover", world{own: func(s *Service) { s.Affinity, s.Failover = AffinityLocal, []string{"c", "b"} }, states: all}, "a(2) | c(1) | b(3) | d(1)", ""},
		{"failover alone", world{own: func(s *Service) { s.Failover = []string{"c"} }, states: all}, "a(2) | c(1) | b(3) d(1)", ""},
		{"remote with failover", world{own: func(s *Service) { s.Affinity, s.Failover = AffinityRemote, []string{"d"} }, states: all}, "d(1) | b(3) c(1) | a(2)", ""},
		{"remote with two", world{own: func(s *Service) { s.Affinity, s.Failover = AffinityRemote, []string{"d", "b"} }, states: all}, "d(1) | b(3) | c(1) | a(2)", ""},
		{"none with failover", world{own: func(s *Service) { s.Affinity, s.Failover = AffinityNone, []string{"d", "b"} }, states: all}, "a(2) c(1) | d(1) | b(3)", ""},
		{"failover too long", world{own: func(s *Service) { s.Affinity, s.Failover = AffinityLocal, []string{"b", "c", "d"} }, states: all}, "a(2) | b(3) c(1) d(1)", "at most 2 can be ordered"},
		{"failover unknown", world{own: func(s *Service) { s.Failover = []string{"x\x1b", "c"} }, states: all}, "a(2) | c(1) | b(3) d(1)", `failover names "x\x1b", which is no known cluster`},
		{"failover to itself", world{own: func(s *Service) { s.Failover = []string{"a", "c"} }, states: all}, "a(2) | c(1) | b(3) d(1)", "the local cluster; it is skipped"},
		{"failover twice", world{own: func(s *Service) { s.Failover = []string{"c", "c"} }, states: all}, "a(2) | c(1) | b(3) d(1)", "twice"},
		{"affinity unknown", world{own: func(s *Service) { s.Affinity = "near" }, states: all}, "a(2) b(3) c(1) d(1)", "affinity \"near\" is unknown"},
		{"not global here", world{own: func(s *Service) { s.Global = false }, states: all}, "a(2)", ""},
		{"not shared here", world{own: func(s *Service) { s.Shared = false }, states: all}, "a(2) b(3) c(1) d(1)", ""},
		{"not shared there", world{others: map[string]func(*Service){"b": func(s *Service) { s.Shared = false }}, states: all}, "a(2) c(1) d(1)", ""},
		{"not global there", world{others: map[string]func(*Service){"c": func(s *Service) { s.Global = false }}, states: all}, "a(2) b(3) d(1)", ""},
		{"affinity of others", world{others: map[string]func(*Service){"b": func(s *Service) { s.Affinity, s.Failover = AffinityLocal, []string{"d"} }}, states: all}, "a(2) b(3) c(1) d(1)", ""},
		{"weights", world{own: weight(3), others: map[string]func(*Service){"b": weight(10)}, states: all}, "a*3(2) b*10(3) c(1) d(1)", ""},
		{"weight 0 there", world{own: func(s *Service) { s.Affinity = AffinityLocal }, others: map[string]func(*Service){"b": weight(0)}, states: all}, "a(2) | b*0(3) c(1) d(1)", ""},
		{"weight 0 here", world{own: func(s *Service) { s.Affinity, s.Weight, s.HasWeight = AffinityLocal, 0, true }, states: all}, "a*0(2) b(3) c(1) d(1)", ""},
		{"weight 0 is all there is", world{own: func(s *Service) { s.Affinity = AffinityLocal }, others: map[string]func(*Service){"b": weight(0), "c": weight(0)},
			states: map[string]string{"b": "r", "c": "r"}}, "b*0(1) c*0(1)", ""},
		{"weight 0 everywhere keeps tiers", world{own: func(s *Service) { s.Affinity, s.HasWeight = AffinityLocal, true }, others: map[string]func(*Service){"b": weight(0)},
			states: map[string]string{"a": "r", "b": "r"}}, "a*0(1) | b*0(1)", ""},
		{"min-healthy held", world{own: func(s *Service) { s.Affinity, s.MinHealthy = AffinityLocal, "50%" }, states: map[string]string{"a": "rn", "b": "r"}}, "a(1) | b(1)", ""},
		{"min-healthy not held", world{own: func(s *Service) { s.Affinity, s.MinHealthy = AffinityLocal, "50%" }, states: map[string]string{"a": "rnnn", "b": "r"}}, "32767:a(1) | b(1)", ""},
		{"min-healthy count", world{own: func(s *Service) { s.Affinity, s.MinHealthy = AffinityLocal, "4" }, states: map[string]string{"a": "rrr", "b": "rrrr"}}, "49151:a(3) | b(4)", ""},
		{"min-healthy, all ill", world{own: func(s *Service) { s.Affinity, s.MinHealthy = AffinityLocal, "100%" }, states: map[string]string{"a": "rnnn", "b": "rnnn"}}, "32767:a(1) | b(1)", ""},
		{"min-healthy, three ill", world{own: func(s *Service) { s.Failover, s.MinHealthy = []string{"b"}, "100%" }, states: map[string]string{"a": "rnnn", "b": "rnnn", "c": "rnnn"}}, "21845:a(1) | 32767:b(1) | c(1)", ""},
		{"min-healthy, weight 0 does not count", world{own: func(s *Service) { s.Affinity, s.MinHealthy = AffinityLocal, "100%" }, others: map[string]func(*Service){"c": weight(0)},
			states: map[string]string{"a": "rnnn", "b": "rnnn", "c": "r"}}, "32767:a(1) | b(1) c*0(1)", ""},
		{"min-healthy alone", world{own: func(s *Service) { s.MinHealthy = "100%" }, states: map[string]string{"a": "rnnn"}}, "a(1)", ""},
		{"min-healthy ignores the terminating", world{own: func(s *Service) { s.Affinity, s.MinHealthy = AffinityLocal, "100%" }, states: map[string]string{"a": "rst", "b": "r"}}, "a(1) | b(1)", ""},
		{"min-healthy malformed", world{own: func(s *Service) { s.Affinity, s.MinHealthy = AffinityLocal, "many" }, states: all}, "a(2) | b(3) c(1) d(1)", "min-healthy \"many\" is neither"},
		{"terminating stays out", world{states: map[string]string{"a": "rs", "b": "s"}}, "a(1)", ""},
		{"terminating is all there is", world{states: map[string]string{"a": "nst", "b": "s"}}, "a(1) b(1)", ""},
		{"nothing at all", world{states: map[string]string{"a": "nt", "b": ""}}, "", ""},
		{"published while it terminates", world{states: map[string]string{"a": "Rt", "b": "s"}}, "a(1)", ""},
		{"not ready, published", world{own: func(s *Service) { s.PublishNotReady = true }, states: map[string]string{"a": "nnt", "b": "n"}}, "a(2)", ""},
	}
	for _, test := range tests {
		m := newMesh(t, "a", "b", "c", "d")
		for name, v := range m.Views {
			s := checkout()
			change := test.others[name]
			if name == "a" {
				change = test.own
			} else {
				s.Frontends = addresses("172.20.9.9")
			}
			if change != nil {
				change(s)
			}
			m.put(v, s)
			m.backends(name, test.states[name])
		}
		got := Merge(m.MergeInput)
		if show(got) != test.want {
			t.Errorf("%s: %q; want %q", test.name, show(got), test.want)
		}
		notes := strings.Join(got.Notes, "; ")
		if !strings.Contains(notes, test.note) || test.note == "" && notes != "" || strings.ContainsAny(notes, "\x1b") {
			t.Errorf("%s: notes %q; want %q", test.name, notes, test.note)
		}
		if !slices.Equal(got.Ports[0].Frontends, addresses("172.20.0.1")) {
			t.Errorf("%s: frontends %v", test.name, got.Ports[0].Frontends)
		}
	}
}

func TestMergePortsAndFamilies(t *testing.T) {
	m := newMesh(t, "a", "b")
	own := checkout()
	own.Ports = []Port{{"http", TCP, 80, 30080}, {"dns", UDP, 53, 0}, {"dns-tcp", TCP, 53, 0}}
	own.Frontends = addresses("fd01::1", "172.20.0.2", "172.20.0.1", "172.20.0.1")
	m.put(m.Views["a"], own)
	other := checkout()
	other.Ports = []Port{{"http", TCP, 8888, 0}}
	m.put(m.Views["b"], other,
		&EndpointSlice{Name: SliceName{m.Name, "v4"}, Ports: []Port{{"dns", UDP, 5353, 0}, {"http", TCP, 8080, 0}, {"dns", TCP, 1, 0}}, Endpoints: []Endpoint{endpoint("10.2.0.2", 2), endpoint("10.2.0.1", 1)}},
		&EndpointSlice{Name: SliceName{m.Name, "v4-again"}, Ports: []Port{{"http", TCP, 8080, 0}}, Endpoints: []Endpoint{{Address: addr4(10<<24 | 2<<16 | 1)}}},
		&EndpointSlice{Name: SliceName{m.Name, "v6"}, Ports: []Port{{"http", TCP, 8081, 0}}, Endpoints: []Endpoint{endpoint("fd00:2::1", 1)}})
	var got []string
	for _, p := range Merge(m.MergeInput).Ports {
		s := fmt.Sprintf("%s v6=%v %v:", describePort(p.Port), p.V6, p.Frontends)
		for _, tier := range p.Tiers {
			for _, b := range tier.Groups[0].Backends {
				s += fmt.Sprintf(" %v@%d", netip.AddrPortFrom(b.Address, b.Port), b.Node)
			}
		}
		got = append(got, s)
	}
	want := []string{
		"http:TCP:80+30080 v6=false [172.20.0.1 172.20.0.2]: 10.2.0.1:8080@1 10.2.0.2:8080@2",
		"http:TCP:80+30080 v6=true [fd01::1]: [fd00:2::1]:8081@1",
		"dns:UDP:53 v6=false [172.20.0.1 172.20.0.2]: 10.2.0.1:5353@1 10.2.0.2:5353@2",
		"dns:UDP:53 v6=true [fd01::1]:",
		"dns-tcp:TCP:53 v6=false [172.20.0.1 172.20.0.2]:",
		"dns-tcp:TCP:53 v6=true [fd01::1]:",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestMergeHome(t *testing.T) {
	m := newMesh(t, "a", "b")
	m.Home = NewView(Admission{Cluster: "a", ID: 1, Local: true}, ScopeLocal)
	if got := Merge(m.MergeInput); got.Found || len(got.Notes) != 1 {
		t.Errorf("a service from nowhere: %+v", got)
	}
	m.put(m.Views["b"], checkout())
	m.backends("b", "r")
	if Merge(m.MergeInput).Found {
		t.Error("another cluster's service has frontends here")
	}
	s := checkout()
	s.Shared = false
	m.put(m.Home, s, slice("shop", "checkout", "s1", endpoint("10.1.0.1", 1)))
	if got := show(Merge(m.MergeInput)); got != "a(1) b(1)" {
		t.Errorf("global, not shared: %s", got)
	}
	// It becomes shared: its records move to scope export, one watch after the other.
	m.put(m.Views["a"], slice("shop", "checkout", "s1", endpoint("10.1.0.1", 1)))
	if got := show(Merge(m.MergeInput)); got != "a(1) b(1)" {
		t.Errorf("in both: %s", got)
	}
	m.Home.remove(Key{ScopeLocal, "a", KindEndpointSlice, "shop/checkout/s1"})
	if got := show(Merge(m.MergeInput)); got != "a(1) b(1)" {
		t.Errorf("half moved: %s", got)
	}
}

func TestMergeLimitsGroups(t *testing.T) {
	var names []string
	for c := 'a'; c <= 'u'; c++ {
		names = append(names, string(c))
	}
	m := newMesh(t, names...)
	m.Local = "u"
	for _, name := range names {
		s := checkout()
		if name == "b" {
			s.HasWeight = true
		}
		m.put(m.Views[name], s)
		m.backends(name, "r")
	}
	got := Merge(m.MergeInput)
	// All but b (weight 0) and the last of the rest; the local cluster is in.
	if want := "a(1) c(1) d(1) e(1) f(1) g(1) h(1) i(1) j(1) k(1) l(1) m(1) n(1) o(1) p(1) u(1)"; show(got) != want {
		t.Errorf("got %s", show(got))
	}
	for _, w := range got.Clusters {
		if w.Cluster == "q" && (w.Tier != -1 || !strings.Contains(w.Reason, "at most 16 clusters")) {
			t.Errorf("q: %+v", w)
		}
	}
}

func TestMergeExplains(t *testing.T) {
	m := newMesh(t, "a", "b", "c", "d", "e", "f", "g")
	own := checkout()
	own.Affinity, own.Failover = AffinityLocal, []string{"b"}
	m.put(m.Views["a"], own)
	for _, c := range []string{"b", "d", "e", "f", "g"} {
		s := checkout()
		s.Shared = c != "d"
		s.Weight, s.HasWeight = 0, c == "g"
		m.put(m.Views[c], s)
	}
	m.backends("a", "nn")
	m.backends("b", "rr")
	m.backends("g", "r")
	m.put(m.Views["f"], &EndpointSlice{Name: SliceName{m.Name, "x"}, Ports: []Port{{"web", TCP, 80, 0}}, Endpoints: []Endpoint{endpoint("10.6.0.1", 1)}})
	var got []string
	for _, w := range Merge(m.MergeInput).Clusters {
		got = append(got, fmt.Sprintf("%s %d *%d %d/%d %s", w.Cluster, w.Tier, w.Weight, w.Healthy, w.Total, w.Reason))
	}
	want := []string{
		`a -1 *1 0/2 none of its 2 endpoints is ready`,
		`b 1 *1 2/2 named as number 1 in failover, affinity local`,
		`c -1 *0 0/0 it shows no service of this name: none there, not global there, or not shared`,
		`d -1 *0 0/0 the service is not shared there`,
		`e -1 *1 0/0 it has no endpoints`,
		`f -1 *1 1/1 its endpoints match no port of the local service in an address family that it has a frontend of: it has "web"/TCP/IPv4, the local service "http"/TCP/IPv4`,
		`g 2 *0 1/1 one of the rest, affinity local; weight 0: takes nothing as long as another cluster can`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestAffected(t *testing.T) {
	for _, r := range []Record{service("a"), slice("shop", "a", "s")} {
		if n, ok := Affected(Change{Key: KeyOf(ScopeExport, "a", r)}); !ok || n != (ServiceName{"shop", "a"}) {
			t.Errorf("%s: %v, %v", r.Kind(), n, ok)
		}
	}
	if _, ok := Affected(Change{Key: Key{ScopeExport, "a", KindNode, "n"}}); ok {
		t.Error("a node affects a service")
	}
}
