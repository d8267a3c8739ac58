package agent

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

type unreachable struct{}

func (unreachable) Stores(context.Context, string, *clustermesh.Peer) ([]kvstore.Store, func(), error) {
	return nil, nil, errors.New("not in this test")
}

// A service that is still to be merged again is not in the kernel as wanted:
// the rows that could be compared are those of before.
func TestExplainKnowsWhatIsPending(t *testing.T) {
	a, err := New(Config{Cluster: "aws", ClusterID: 1, Node: "n1", Connector: unreachable{}}, NewFakes())
	if err != nil {
		t.Fatal(err)
	}
	name := clustermesh.ServiceName{Namespace: "shop", Name: "cart"}
	view := clustermesh.NewView(clustermesh.Admission{Cluster: "aws", ID: 1, Local: true}, clustermesh.ScopeExport)
	service := &clustermesh.Service{Name: name, Global: true, Shared: true, Frontends: []netip.Addr{netip.MustParseAddr("172.20.0.1")},
		Ports: []clustermesh.Port{{Name: "http", Protocol: clustermesh.TCP, Port: 80}}}
	if err := view.Apply(clustermesh.Change{Key: clustermesh.KeyOf(clustermesh.ScopeExport, "aws", service), Record: service}); err != nil {
		t.Fatal(err)
	}
	s := a.state
	if done, err := s.t.services.Resync(100); !done || err != nil {
		t.Fatal("cannot read an empty table", err)
	}
	s.clusters["aws"].views[clustermesh.ScopeExport], s.exports["aws"] = view, view
	inKernel := func() bool {
		e, err := a.explain(name)
		if err != nil || len(e.Ports) != 1 {
			t.Fatalf("%+v %v", e, err)
		}
		return e.Ports[0].InKernel
	}
	for range 2 { // new, and then merged again
		s.touchService(name)
		if inKernel() {
			t.Error("in the kernel before it was merged")
		}
		s.mergeService(name)
		delete(s.dirty, name)
		s.t.services.FlushPuts(100, nil)
		if !inKernel() {
			t.Error("not in the kernel after all was written")
		}
	}
}
