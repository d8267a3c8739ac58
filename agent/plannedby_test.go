package agent

import (
	"net/netip"
	"testing"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// Of a cluster's own record only what Plan looks at has it plan again.
func TestClusterRecordPlans(t *testing.T) {
	base := func() *clustermesh.Cluster {
		return &clustermesh.Cluster{Name: "a", ID: 1, Version: "v1", PodPrefixes: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}
	}
	for name, c := range map[string]struct {
		change    func(*clustermesh.Cluster)
		own, peer bool
	}{
		"nothing":      {func(*clustermesh.Cluster) {}, false, false},
		"origin":       {func(r *clustermesh.Cluster) { r.Origin++ }, false, false},
		"version":      {func(r *clustermesh.Cluster) { r.Version = "v2" }, false, false},
		"addresses":    {func(r *clustermesh.Cluster) { r.MeshAddresses = []string{"x:1"} }, false, false},
		"topology":     {func(r *clustermesh.Cluster) { r.Topology = clustermesh.TopologyGateway }, true, true},
		"pod prefixes": {func(r *clustermesh.Cluster) { r.PodPrefixes = nil }, true, false},
	} {
		r := base()
		c.change(r)
		for own, want := range map[bool]bool{true: c.own, false: c.peer} {
			state := newClusterState("a", 1, &clustermesh.Peer{})
			if own {
				state.peer = nil
			}
			if got := state.plannedBy(base()) != state.plannedBy(r); got != want {
				t.Errorf("%s, own %v: planned again %v, want %v", name, own, got, want)
			}
		}
	}
}
