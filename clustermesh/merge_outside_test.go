package clustermesh

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// TestMergeOutside: what clients outside need is the local Service's, by family.
func TestMergeOutside(t *testing.T) {
	m := newMesh(t, "a", "b")
	ip := func(s string) External { return External{netip.MustParseAddr(s), ExternalIP} }
	lb := func(s string) External { return External{netip.MustParseAddr(s), ExternalLoadBalancer} }
	s := checkout()
	s.Frontends = addresses("172.20.0.1", "fd01::1")
	s.Outside = &Outside{
		Addresses:    []External{lb("203.0.113.9"), ip("198.51.100.7"), ip("203.0.113.9"), ip("2001:db8::7"), ip("198.51.100.7")},
		SourceRanges: prefixes("192.0.2.0/24"),
	}
	s.HealthCheckPort, s.Distribution = 32000, DistributionSameZone
	m.put(m.Views["a"], s)
	other := checkout()
	other.Outside = &Outside{Addresses: []External{ip("198.51.100.66")}, SourceRanges: prefixes("0.0.0.0/0")}
	other.ExternalLocal, other.InternalLocal, other.HealthCheckPort = true, true, 32001
	m.put(m.Views["b"], other)
	got := Merge(m.MergeInput)
	if len(got.Ports) != 2 {
		t.Fatalf("%d ports", len(got.Ports))
	}
	if want := []External{ip("198.51.100.7"), lb("203.0.113.9")}; !slices.Equal(got.Ports[0].External, want) {
		t.Errorf("IPv4: %v instead of %v", got.Ports[0].External, want)
	}
	if want := []External{ip("2001:db8::7")}; !slices.Equal(got.Ports[1].External, want) {
		t.Errorf("IPv6: %v instead of %v", got.Ports[1].External, want)
	}
	if !slices.Equal(got.SourceRanges, prefixes("192.0.2.0/24")) || got.HealthCheckPort != 32000 || got.Distribution != DistributionSameZone || got.ExternalLocal || got.InternalLocal {
		t.Errorf("of the service: %+v", got)
	}
}

// TestMergeLocal: with a traffic policy each node chooses by itself among the own
// cluster's endpoints, so that it must see those that terminate while others are
// ready elsewhere. What the whole mesh uses is not changed by that.
func TestMergeLocal(t *testing.T) {
	tests := []struct {
		name   string
		own    func(*Service)
		states string
		local  string // last byte of the address of each, with a t where it terminates
		tiers  string
	}{
		{"no policy", func(*Service) {}, "rs", "", "a(1) b(1)"},
		{"external", func(s *Service) { s.ExternalLocal = true }, "rnst", "1 3t", "a(1) b(1)"},
		{"internal", func(s *Service) { s.InternalLocal = true }, "rnst", "1 3t", "a(1) b(1)"},
		{"all terminate here", func(s *Service) { s.ExternalLocal = true }, "ss", "1t 2t", "b(1)"},
		{"not ready, published", func(s *Service) { s.ExternalLocal, s.PublishNotReady = true, true }, "nst", "1 2t", "a(1) b(1)"},
		{"not global", func(s *Service) { s.ExternalLocal, s.Global = true, false }, "rs", "1 2t", "a(1)"},
		{"weight 0", func(s *Service) { s.ExternalLocal, s.HasWeight = true, true }, "r", "1", "a*0(1) b(1)"},
		{"none here", func(s *Service) { s.ExternalLocal = true }, "", "", "b(1)"},
	}
	for _, test := range tests {
		m := newMesh(t, "a", "b")
		s := checkout()
		test.own(s)
		m.put(m.Views["a"], s)
		m.put(m.Views["b"], checkout())
		m.backends("a", test.states)
		m.backends("b", "r")
		got := Merge(m.MergeInput)
		var local []string
		for _, b := range got.Ports[0].Local {
			text := string('0' + rune(b.Address.As4()[3]))
			if b.Terminating {
				text += "t"
			}
			local = append(local, text)
		}
		if strings.Join(local, " ") != test.local || show(got) != test.tiers {
			t.Errorf("%s: own %v and %s; want %s and %s", test.name, local, show(got), test.local, test.tiers)
		}
		for word, on := range map[string]bool{"externalTrafficPolicy Local": s.ExternalLocal, "internalTrafficPolicy Local": s.InternalLocal} {
			if takes("a", got.Ports) && strings.Contains(got.Clusters[0].Reason, word) != on {
				t.Errorf("%s: %q has no word, or a wrong one, of %s", test.name, got.Clusters[0].Reason, word)
			}
		}
	}
}

// TestMergeHints: hints reach the backends they are about.
func TestMergeHints(t *testing.T) {
	m := newMesh(t, "a")
	m.put(m.Views["a"], checkout(), &EndpointSlice{Name: SliceName{m.Name, "s1"}, Ports: []Port{{"http", TCP, 8080, 0}}, Endpoints: []Endpoint{
		{Address: netip.MustParseAddr("10.1.0.1"), Node: 1, Zone: "eu-1a", Ready: true, Serving: true, Hints: MakeHints([]string{"eu-1a"}, []uint16{1})},
		{Address: netip.MustParseAddr("10.1.0.2"), Node: 2, Ready: true, Serving: true},
	}})
	got := Merge(m.MergeInput).Ports[0].Tiers[0].Groups[0].Backends
	want := []Backend{
		{Address: netip.MustParseAddr("10.1.0.1"), Port: 8080, Node: 1, Zone: "eu-1a", Hints: MakeHints([]string{"eu-1a"}, []uint16{1})},
		{Address: netip.MustParseAddr("10.1.0.2"), Port: 8080, Node: 2},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v instead of %v", got, want)
	}
}
