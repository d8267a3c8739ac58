package clustermesh

import (
	"fmt"
	"strings"
	"testing"
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
// terminates, t terminating only, R ready although it terminates.
func (m *mesh) backends(cluster, states string) {
	s := &EndpointSlice{Name: SliceName{m.Name, "s1"}, Ports: []Port{{"http", TCP, 8080, 0}}}
	for i, c := range states {
		s.Endpoints = append(s.Endpoints, Endpoint{
			Address: addr4(10<<24 | uint32(clusterID(cluster))<<16 | uint32(i+1)), Node: 1,
			Ready: c == 'r' || c == 'R', Serving: c == 'r' || c == 's', Terminating: c == 's' || c == 't' || c == 'R',
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
