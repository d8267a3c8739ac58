package clustermesh

import (
	"fmt"
	"math/big"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// mesh builds views for Merge from short texts; cluster names are one letter,
// "a" is local with ID 1 and prefix 10.1.0.0/16, and so on.
type mesh struct {
	MergeInput
	t testing.TB
}

func newMesh(t testing.TB, clusters ...string) *mesh {
	m := &mesh{MergeInput{Name: ServiceName{"shop", "checkout"}, Local: "a", Views: map[string]*View{}, Explain: true}, t}
	for _, c := range clusters {
		m.Views[c] = NewView(Admission{Cluster: c, ID: clusterID(c), PodPrefixes: anywhere}, ScopeExport)
	}
	return m
}

func clusterID(name string) ID { return ID(name[0] - 'a' + 1) }

var checkoutPorts = []Port{{"http", TCP, 80, 0}}

func checkout() *Service {
	return &Service{
		Name: ServiceName{"shop", "checkout"}, Ports: checkoutPorts, Frontends: addresses("172.20.0.1"), Global: true, Shared: true,
	}
}

func (m *mesh) put(v *View, records ...Record) {
	for _, r := range records {
		if err := v.put(r); err != nil {
			m.t.Fatal(err)
		}
	}
}

// backends gives a cluster endpoints: r ready, n not ready, s serving while it
// terminates, t terminating only.
func (m *mesh) backends(cluster, states string) {
	s := &EndpointSlice{Name: SliceName{m.Name, "s1"}, Ports: []Port{{"http", TCP, 8080, 0}}}
	for i, c := range states {
		s.Endpoints = append(s.Endpoints, Endpoint{
			Address: addr4(10<<24 | uint32(clusterID(cluster))<<16 | uint32(i+1)), Node: 1,
			Ready: c == 'r', Serving: c == 'r' || c == 's', Terminating: c == 's' || c == 't',
		})
	}
	m.put(m.Views[cluster], s)
}

// show is the first port's tiers: share:cluster*weight(backends)… | next tier.
func show(m Merged) string {
	if len(m.Ports) == 0 {
		return "no ports"
	}
	var tiers []string
	for _, t := range m.Ports[0].Tiers {
		s := ""
		if t.Share != ShareAll {
			s = fmt.Sprintf("%d:", t.Share)
		}
		for i, g := range t.Groups {
			if i > 0 {
				s += " "
			}
			s += g.Cluster
			if g.Weight != 1 {
				s += fmt.Sprintf("*%d", g.Weight)
			}
			s += fmt.Sprintf("(%d)", len(g.Backends))
		}
		tiers = append(tiers, s)
	}
	return strings.Join(tiers, " | ")
}

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

// TestMergeAgainstTwin merges random meshes and compares with twinMerge.
func TestMergeAgainstTwin(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		names := []string{"a", "b", "c", "d", "e"}[:rapid.IntRange(1, 5).Draw(rt, "clusters")]
		m := newMesh(t, names...)
		m.Explain = rapid.Bool().Draw(rt, "explain")
		for _, name := range names {
			if rapid.IntRange(0, 9).Draw(rt, "absent") > 0 {
				s := checkout()
				s.Ports = rapid.SampledFrom([][]Port{checkoutPorts, {{"http", TCP, 80, 0}, {"dns", UDP, 53, 0}}}).Draw(rt, "ports")
				s.Frontends = addresses(rapid.SampledFrom([]string{"172.20.0.1", "fd01::1"}).Draw(rt, "frontend"))
				s.Global, s.Shared = rapid.IntRange(0, 5).Draw(rt, "global") > 0, rapid.IntRange(0, 5).Draw(rt, "shared") > 0
				s.Weight, s.HasWeight = rapid.Uint16Range(0, 2).Draw(rt, "weight"), rapid.Bool().Draw(rt, "has weight")
				s.Affinity = rapid.SampledFrom([]Affinity{"", AffinityLocal, AffinityRemote, AffinityNone}).Draw(rt, "affinity")
				s.Failover = rapid.SampledFrom([][]string{nil, {"b"}, {"c", "b"}, {"x"}, {"a"}, {"b", "c", "d"}}).Draw(rt, "failover")
				s.MinHealthy = rapid.SampledFrom([]string{"", "2", "50%", "100%"}).Draw(rt, "min-healthy")
				s.PublishNotReady = rapid.IntRange(0, 5).Draw(rt, "publish") == 0
				m.put(m.Views[name], s)
			}
			for i := range rapid.IntRange(0, 3).Draw(rt, "slices") {
				m.put(m.Views[name], drawEndpoints(rt, m.Name, clusterID(name), fmt.Sprintf("s%d", i)))
			}
		}
		got := Merge(m.MergeInput)
		if again := Merge(m.MergeInput); !reflect.DeepEqual(got, again) {
			rt.Fatalf("two merges of one input differ:\n%+v\n%+v", got, again)
		}
		checkLimits(rt, got)
		if a, b := showAll(got.Ports), showAll(twinMerge(m.MergeInput)); a != b {
			rt.Fatalf("merged\n%s\ntwin\n%s", a, b)
		}
	})
}

func drawEndpoints(t *rapid.T, name ServiceName, id ID, slice string) *EndpointSlice {
	s := &EndpointSlice{Name: SliceName{name, slice}, Ports: rapid.SampledFrom([][]Port{
		{{"http", TCP, 8080, 0}}, {{"http", TCP, 8080, 0}, {"dns", UDP, 5353, 0}}, {{"http", UDP, 1, 0}},
	}).Draw(t, "ports")}
	v6 := rapid.IntRange(0, 3).Draw(t, "v6") == 0
	for range rapid.IntRange(0, 4).Draw(t, "endpoints") {
		n := rapid.Uint32Range(1, 4).Draw(t, "address")
		e := Endpoint{Address: addr4(10<<24 | uint32(id)<<16 | n), Node: uint16(n), Ready: rapid.Bool().Draw(t, "ready"), Serving: rapid.Bool().Draw(t, "serving")}
		e.Terminating = rapid.IntRange(0, 3).Draw(t, "terminating") == 0
		if v6 {
			e.Address = netip.MustParseAddr(fmt.Sprintf("fd00:%d::%d", id, n))
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

func checkLimits(t *rapid.T, m Merged) {
	for _, p := range m.Ports {
		seen := map[string]bool{}
		if len(p.Tiers) > MaxTiers {
			t.Fatalf("%d tiers", len(p.Tiers))
		}
		for i, tier := range p.Tiers {
			if len(tier.Groups) == 0 || len(tier.Groups) > MaxGroupsPerTier || i == len(p.Tiers)-1 && tier.Share != ShareAll {
				t.Fatalf("tier %d: %+v", i, tier)
			}
			for _, g := range tier.Groups {
				if seen[g.Cluster] || len(g.Backends) == 0 {
					t.Fatalf("cluster %s: twice, or empty", g.Cluster)
				}
				seen[g.Cluster] = true
			}
		}
		if len(seen) > MaxGroups {
			t.Fatalf("%d groups", len(seen))
		}
	}
}

func showAll(ports []MergedPort) string {
	var b strings.Builder
	for _, p := range ports {
		fmt.Fprintf(&b, "%s %v %v\n", describePort(p.Port), p.V6, p.Frontends)
		for _, tier := range p.Tiers {
			fmt.Fprintf(&b, "  tier %d\n", tier.Share)
			for _, g := range tier.Groups {
				fmt.Fprintf(&b, "    %s %d *%d", g.Cluster, g.ID, g.Weight)
				for _, x := range g.Backends {
					fmt.Fprintf(&b, " %v:%d@%d%v", x.Address, x.Port, x.Node, x.Terminating)
				}
				b.WriteByte('\n')
			}
		}
	}
	return b.String()
}

// twinMerge is Merge, slow and obvious: the settings are read as sentences, and
// every question is answered by going through all endpoints again.
func twinMerge(in MergeInput) []MergedPort {
	own := in.Views[in.Local].Service(in.Name)
	if own == nil {
		return nil
	}
	var order [][]string // clusters tier by tier
	var others, named []string
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		if name != in.Local && in.Views[name] != nil {
			others = append(others, name)
		}
	}
	if len(own.Failover) <= 2 {
		for _, name := range own.Failover {
			if slices.Contains(others, name) {
				named = append(named, name)
			}
		}
	}
	rest := slices.DeleteFunc(slices.Clone(others), func(s string) bool { return slices.Contains(named, s) })
	local := []string{in.Local}
	var one [][]string
	for _, name := range named {
		one = append(one, []string{name})
	}
	switch {
	case own.Affinity == AffinityLocal, own.Affinity == "" && len(own.Failover) > 0:
		order = append(append([][]string{local}, one...), rest)
	case own.Affinity == AffinityRemote:
		order = append(one, rest, local)
	default:
		order = append([][]string{append(local, rest...)}, one...)
	}
	var out []MergedPort
	for _, p := range own.Ports {
		v6 := own.Frontends[0].Is6()
		out = append(out, MergedPort{Port: p, V6: v6, Frontends: own.Frontends, Tiers: twinPort(in, own, order, p, v6)})
	}
	return out
}

// twinEndpoints are a cluster's endpoints of a port by address, the better state of duplicates.
func twinEndpoints(in MergeInput, own *Service, cluster string, p Port, v6 bool) map[netip.Addr]located {
	s := in.Views[cluster].Service(in.Name)
	if cluster != in.Local && (s == nil || !own.Global || !s.Global || !s.Shared) {
		return nil
	}
	score := func(e located) int {
		n := 0
		if !e.Terminating {
			n += 4
		}
		if e.Ready {
			n += 2
		}
		if e.Serving {
			n++
		}
		return n
	}
	all := map[netip.Addr]located{}
	for slice := range in.Views[cluster].Slices(in.Name) {
		for _, q := range slice.Ports {
			if q.Name != p.Name || q.Protocol != p.Protocol {
				continue
			}
			for _, e := range slice.Endpoints {
				if old, ok := all[e.Address]; e.Address.Is6() == v6 && (!ok || score(located{e, 0}) > score(old)) {
					all[e.Address] = located{e, q.Port}
				}
			}
		}
	}
	return all
}

func twinPort(in MergeInput, own *Service, order [][]string, p Port, v6 bool) []Tier {
	usable, total := map[string][]Backend{}, map[string]int{}
	for _, fallback := range []bool{false, true} {
		if len(usable) > 0 {
			break
		}
		for cluster := range in.Views {
			s := in.Views[cluster].Service(in.Name)
			for _, e := range twinEndpoints(in, own, cluster, p, v6) {
				ready := !e.Terminating && (e.Ready || s.PublishNotReady)
				if !e.Terminating && !fallback {
					total[cluster]++
				}
				if !fallback && ready || fallback && e.Terminating && e.Serving {
					usable[cluster] = append(usable[cluster], Backend{e.Address, e.port, e.Node, e.Zone, e.Terminating})
				}
			}
		}
	}
	weight := func(cluster string) uint16 {
		if s := in.Views[cluster].Service(in.Name); s.HasWeight {
			return s.Weight
		}
		return 1
	}
	// Clusters of weight 0 go where the last cluster with a weight is.
	last := -1
	for i, tier := range order {
		for _, c := range tier {
			if len(usable[c]) > 0 && weight(c) > 0 {
				last = i
			}
		}
	}
	place := make([][]string, len(order))
	for i, tier := range order {
		for _, c := range tier {
			to := i
			if in.Views[c].Service(in.Name) != nil && weight(c) == 0 && last >= 0 {
				to = last
			}
			place[to] = append(place[to], c)
		}
	}
	minHealthy, _ := ParseMinHealthy(own.MinHealthy)
	var tiers []Tier
	var health []int64
	for _, tier := range place {
		slices.Sort(tier)
		var t Tier
		h, n := 0, 0
		for _, c := range tier {
			backends := usable[c]
			slices.SortFunc(backends, func(a, b Backend) int { return a.Address.Compare(b.Address) })
			if len(backends) > 0 {
				t.Groups = append(t.Groups, Group{c, clusterID(c), weight(c), backends})
			}
			if len(backends)+total[c] > 0 && (weight(c) > 0 || last < 0) {
				h, n = h+len(backends), n+max(total[c], fallbackCount(backends))
			}
		}
		if len(t.Groups) > 0 {
			tiers, health = append(tiers, t), append(health, int64(minHealthy.Share(h, n)))
		}
	}
	for i := range tiers {
		tiers[i].Share = twinShare(health, i)
	}
	return tiers
}

func fallbackCount(backends []Backend) int {
	if len(backends) > 0 && backends[0].Terminating {
		return len(backends)
	}
	return 0
}

// twinShare is the documented formula in exact fractions.
func twinShare(health []int64, i int) uint16 {
	sum, before := int64(0), int64(0)
	for j, h := range health {
		sum += h
		if j < i {
			before += h
		}
	}
	left := min(sum, ShareAll) - before
	if i == len(health)-1 || left <= health[i] {
		return ShareAll
	}
	f := new(big.Rat).Mul(big.NewRat(ShareAll, 1), big.NewRat(health[i], left))
	return uint16(new(big.Int).Quo(f.Num(), f.Denom()).Int64())
}
