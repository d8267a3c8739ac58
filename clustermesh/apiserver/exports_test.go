package apiserver

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/mcs"
)

func exported(namespace, name string, change func(*clustermesh.Service)) *clustermesh.Service {
	s := &clustermesh.Service{Name: clustermesh.ServiceName{Namespace: namespace, Name: name}, Ports: []clustermesh.Port{{Protocol: clustermesh.TCP, Port: 80}}}
	if change == nil {
		s.Export = &clustermesh.Export{Created: 1, IPv4: true}
	} else {
		change(s)
	}
	return s
}

func imports(target string) func(*clustermesh.Service) {
	return func(s *clustermesh.Service) { s.Import = target }
}

// tells hands over all that a cluster says in a scope.
func tells(t *testing.T, x *Exports, cluster string, id clustermesh.ID, scope clustermesh.Scope, records ...clustermesh.Record) {
	t.Helper()
	v := clustermesh.NewView(clustermesh.Admission{Cluster: cluster, ID: id, Local: cluster == x.own, PodPrefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}, scope)
	for _, r := range records {
		if err := v.Apply(clustermesh.Change{Key: clustermesh.KeyOf(scope, cluster, r), Record: r}); err != nil {
			t.Fatal(err)
		}
	}
	x.Take(clustermesh.Update{Cluster: cluster, Scope: scope, View: v})
}

func exporters(exports []mcs.Export) (names []string) {
	for _, e := range exports {
		names = append(names, fmt.Sprintf("%s(%d)", e.Cluster, len(e.Slices)))
	}
	return names
}

// What clusters export is known by who is admitted, and only once all that this
// cluster says of itself has been read; silence takes nothing away.
func TestExportsOfPeers(t *testing.T) {
	x := NewExports("aws", 1, nil)
	cart := clustermesh.ServiceName{Namespace: "shop", Name: "cart"}
	slice := &clustermesh.EndpointSlice{Name: clustermesh.SliceName{Service: cart, Slice: "a"}, Ports: []clustermesh.Port{{Protocol: clustermesh.TCP, Port: 80}},
		Endpoints: []clustermesh.Endpoint{{Address: netip.MustParseAddr("10.2.1.5"), Ready: true}}}
	expect := func(want, wantUnknown []string) {
		t.Helper()
		got, unknown := x.Of(cart)
		if !slices.Equal(exporters(got), want) || !slices.Equal(unknown, wantUnknown) {
			t.Errorf("exports %v, unknown %v; want %v, %v", exporters(got), unknown, want, wantUnknown)
		}
	}
	if tells(t, x, "aws", 1, clustermesh.ScopeLocal); x.Known() {
		t.Error("known before the exported records were read")
	}
	if tells(t, x, "aws", 1, clustermesh.ScopeExport, exported("shop", "cart", nil)); !x.Known() {
		t.Error("not known although all was read")
	}
	tells(t, x, "gcp", 2, clustermesh.ScopeExport, exported("shop", "cart", nil)) // a stranger
	expect([]string{"aws(0)"}, nil)
	x.SetPeers([]*clustermesh.Peer{{Name: "gcp", ID: 2}, {Name: "azure", ID: 3}})
	expect([]string{"aws(0)"}, []string{"azure", "gcp"})
	tells(t, x, "gcp", 2, clustermesh.ScopeExport, exported("shop", "cart", nil), slice, exported("shop", "own", func(*clustermesh.Service) {}))
	expect([]string{"aws(0)", "gcp(1)"}, []string{"azure"})
	x.Take(clustermesh.Update{Cluster: "gcp", Scope: clustermesh.ScopeExport, Lost: errors.New("no answer")})
	expect([]string{"aws(0)", "gcp(1)"}, []string{"azure"})
	tells(t, x, "azure", 3, clustermesh.ScopeExport, exported("shop", "other", nil))
	if got := fmt.Sprint(x.Names()); got != "[shop/cart shop/other]" {
		t.Errorf("names: %s", got)
	}
	x.SetPeers([]*clustermesh.Peer{{Name: "azure", ID: 3}})
	expect([]string{"aws(0)"}, nil)
	x.SetPeers([]*clustermesh.Peer{{Name: "azure", ID: 3}, {Name: "gcp", ID: 2}})
	expect([]string{"aws(0)"}, []string{"gcp"}) // what it said before is forgotten
}

// The address of an import is the service that says so, of several the first by
// name, whichever came first; it is found again when that one goes.
func TestExportsAddress(t *testing.T) {
	x := NewExports("aws", 1, nil)
	cart := clustermesh.ServiceName{Namespace: "shop", Name: "cart"}
	address := func() string {
		if s := x.Address(cart); s != nil {
			return s.Name.Name
		}
		return ""
	}
	for _, step := range []struct {
		says []clustermesh.Record
		want string
	}{
		{[]clustermesh.Record{exported("shop", "cart", nil)}, ""},
		{[]clustermesh.Record{exported("shop", "derived-b", imports("cart"))}, "derived-b"},
		{[]clustermesh.Record{exported("shop", "derived-b", imports("cart")), exported("shop", "derived-a", imports("cart"))}, "derived-a"},
		{[]clustermesh.Record{exported("shop", "derived-b", imports("cart")), exported("shop", "derived-a", imports("other"))}, "derived-b"},
		{[]clustermesh.Record{exported("shop", "derived-a", imports("other"))}, ""},
	} {
		tells(t, x, "aws", 1, clustermesh.ScopeLocal, step.says...)
		if got := address(); got != step.want {
			t.Errorf("after %v the address is %q, want %q", step.says, got, step.want)
		}
	}
}

// Watchers begin with everything, and are then told the names that changed: of the
// service itself, of its slices, and of what it imports.
func TestExportsWatch(t *testing.T) {
	x := NewExports("aws", 1, nil)
	w := x.Watch()
	took := func(wantAll bool, want ...string) {
		t.Helper()
		select {
		case <-w.C:
		default:
		}
		names, all := w.Take()
		var got []string
		for _, n := range names {
			got = append(got, n.String())
		}
		slices.Sort(got)
		if all != wantAll || !slices.Equal(got, want) {
			t.Errorf("told %v, all %v; want %v, %v", got, all, want, wantAll)
		}
	}
	took(true)
	took(false)
	tells(t, x, "aws", 1, clustermesh.ScopeLocal) // the first list of a view: anything may be
	took(true)
	tells(t, x, "aws", 1, clustermesh.ScopeLocal, exported("shop", "cart", nil), exported("shop", "derived", imports("books")))
	took(false, "shop/books", "shop/cart", "shop/derived")
	tells(t, x, "aws", 1, clustermesh.ScopeLocal, exported("shop", "cart", nil), exported("shop", "derived", imports("music")))
	took(false, "shop/books", "shop/derived", "shop/music")
	x.SetPeers([]*clustermesh.Peer{{Name: "gcp", ID: 2}})
	took(true)
	x.SetPeers([]*clustermesh.Peer{{Name: "gcp", ID: 2}})
	took(false)
	w.Stop()
	tells(t, x, "aws", 1, clustermesh.ScopeLocal)
	took(false)
}
