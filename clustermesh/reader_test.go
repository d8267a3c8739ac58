package clustermesh

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

// reading is a Reader with an owner that keeps the view.
type reading struct {
	*Reader
	t       *testing.T
	view    *View
	last    Update
	changes []string // of the last update
	refused []string // of the last update, both kinds
	at      int64
}

func newReading(t *testing.T, a Admission, scope Scope) *reading {
	r := &reading{t: t}
	r.Reader = NewReader(ReaderConfig{Admission: a, Scope: scope, Out: r.out})
	return r
}

func (r *reading) out(u Update) {
	r.last, r.changes, r.refused = u, nil, nil
	if u.Lost != nil {
		return
	}
	view, changes, refused := u.Into(r.view)
	for c := range changes {
		verb := "+ "
		if c.Record == nil {
			verb = "- "
		}
		r.changes = append(r.changes, verb+strings.TrimPrefix(c.Key.String(), ScopePrefix(c.Key.Scope, c.Key.Cluster)))
	}
	slices.Sort(r.changes)
	for _, x := range append(u.Refused, refused...) {
		r.refused = append(r.refused, string(x.Class))
	}
	r.view = view
}

func (r *reading) event(rec Record) kvstore.Event {
	value, err := Encode(rec)
	if err != nil {
		r.t.Fatal(err)
	}
	return kvstore.Event{KV: kvstore.KV{Key: KeyOf(r.cfg.Scope, r.cfg.Admission.Cluster, rec).String(), Value: value}}
}

func (r *reading) gone(rec Record) kvstore.Event {
	e := r.event(rec)
	e.Delete, e.KV.Value = true, nil
	return e
}

func (r *reading) list(c *Cluster, events ...kvstore.Event) {
	r.t.Helper()
	r.at++
	marker := r.event(c)
	if err := r.Begin(kvstore.Position{StoreID: 1, Revision: r.at}, marker.KV.Value); err != nil {
		r.t.Fatal(err)
	}
	if r.cfg.Scope != ScopeLocal {
		events = append(events, marker)
	}
	for _, e := range events {
		if err := r.Apply(kvstore.Position{StoreID: 1, Revision: r.at}, []kvstore.Event{e}); err != nil {
			r.t.Fatal(err)
		}
	}
	r.Synced(kvstore.Position{StoreID: 1, Revision: r.at})
}

func (r *reading) watch(events ...kvstore.Event) {
	r.t.Helper()
	r.at++
	if err := r.Apply(kvstore.Position{StoreID: 1, Revision: r.at}, events); err != nil {
		r.t.Fatal(err)
	}
}

func (r *reading) want(changes, refused string) {
	r.t.Helper()
	if got := strings.Join(r.changes, ", "); got != changes {
		r.t.Errorf("changes are %q; want %q", got, changes)
	}
	if got := strings.Join(r.refused, ", "); got != refused {
		r.t.Errorf("refused are %q; want %q", got, refused)
	}
}

var (
	gcp      = Admission{Cluster: "gcp", ID: 2, PodPrefixes: prefixes("10.2.0.0/16")}
	gcpFirst = &Cluster{Name: "gcp", ID: 2, Incarnation: 1}
)

func service(name string) *Service {
	return &Service{Name: ServiceName{"shop", name}, Global: true, Shared: true}
}

func TestReader(t *testing.T) {
	r := newReading(t, gcp, ScopeExport)
	if r.Prefix() != "/tombolo/v1/export/gcp/" || r.Marker() != "/tombolo/v1/export/gcp/cluster" {
		t.Fatal(r.Prefix(), r.Marker())
	}
	r.list(gcpFirst, r.event(service("a")), r.event(address("n", "10.2.0.5/32", MakeIdentity(2, 1))))
	r.want("+ address/n/10.2.0.5, + cluster, + service/shop/a", "")
	if r.last.View == nil || r.last.Incarnation != 1 || r.view.Cluster().Name != "gcp" || r.view.Len() != 3 {
		t.Fatalf("%+v, %d records", r.last, r.view.Len())
	}
	r.watch(r.event(service("b")), r.gone(service("a")), r.event(address("n", "10.2.0.5/32", MakeIdentity(2, 2))))
	r.want("+ address/n/10.2.0.5, + service/shop/b, - service/shop/a", "")
	if r.last.Position.Revision != 2 {
		t.Errorf("position %+v", r.last.Position)
	}
	r.watch() // progress
	r.want("", "")

	// Silence is not deletion.
	r.Lost(errors.New("reset"))
	if r.last.Lost == nil || r.view.Len() != 3 {
		t.Fatal("lost changed the view")
	}
	// A list that breaks off changes nothing either.
	if err := r.Begin(kvstore.Position{StoreID: 1, Revision: 9}, r.event(gcpFirst).KV.Value); err != nil {
		t.Fatal(err)
	}
	r.Lost(errors.New("reset"))
	if r.view.Len() != 3 {
		t.Fatal("half a list changed the view")
	}
	r.list(gcpFirst, r.event(service("b")), r.event(service("c")))
	r.want("+ service/shop/c, - address/n/10.2.0.5", "")
}

func TestReaderKeepsLastGood(t *testing.T) {
	r := newReading(t, gcp, ScopeExport)
	good := slice("shop", "a", "s1", endpoint("10.2.0.5", 1))
	bad := slice("shop", "a", "s1", endpoint("10.9.0.5", 1))
	broken := r.event(service("a"))
	broken.KV.Value = []byte("pnonsense")
	foreign := kvstore.Event{KV: kvstore.KV{Key: "/tombolo/v1/export/aws/service/shop/a", Value: r.event(service("a")).KV.Value}}
	future := kvstore.Event{KV: kvstore.KV{Key: "/tombolo/v1/export/gcp/quota/x", Value: []byte("p")}}

	r.list(gcpFirst, r.event(good), r.event(service("a")))
	r.watch(r.event(bad), broken, foreign, future)
	r.want("", "prefix, value, key, key")
	r.list(gcpFirst, r.event(bad), broken) // a whole list has no other effect
	r.want("", "prefix, value")
	if r.view.Service(ServiceName{"shop", "a"}) == nil || r.view.Slices(ServiceName{"shop", "a"}) == nil {
		t.Fatal("the last good records are gone")
	}
	if n := r.RefusedCounts(); n[RefusedPrefix] != 2 || n[RefusedValue] != 2 || n[RefusedKey] != 2 {
		t.Errorf("counts %v", n)
	}
	r.watch(r.gone(good)) // but a delete is believed
	r.want("- endpointslice/shop/a/s1", "")
	r.list(gcpFirst) // and so is a list that lacks the key
	r.want("- service/shop/a", "")
}

func TestReaderBoundsRefusals(t *testing.T) {
	r := newReading(t, gcp, ScopeExport)
	var events []kvstore.Event
	for i := range 300 {
		events = append(events, r.event(address("n", fmt.Sprintf("10.9.%d.%d/32", i/250, i%250), MakeIdentity(2, 1))))
	}
	r.list(gcpFirst, events...)
	if len(r.last.Refused) != maxRefusals || r.last.RefusedTotal != 300 {
		t.Errorf("%d told of %d", len(r.last.Refused), r.last.RefusedTotal)
	}
}

func TestReaderIncarnation(t *testing.T) {
	r := newReading(t, gcp, ScopeExport)
	r.list(gcpFirst, r.event(service("a")))
	second := &Cluster{Name: "gcp", ID: 2, Incarnation: 2}
	for name, events := range map[string][]kvstore.Event{
		"a new incarnation":     {r.gone(service("a")), r.event(second)},
		"everything is deleted": {r.gone(gcpFirst), r.gone(service("a"))},
	} {
		if err := r.Apply(kvstore.Position{StoreID: 1, Revision: 9}, events); err == nil {
			t.Errorf("%s: no error, so no new list", name)
		}
		if r.view.Len() != 2 {
			t.Errorf("%s: the view changed", name)
		}
	}
	r.list(second, r.event(service("b")))
	r.want("+ cluster, + service/shop/b, - service/shop/a", "")
	if r.last.Incarnation != 2 {
		t.Errorf("incarnation %d", r.last.Incarnation)
	}
}

func TestReaderComplete(t *testing.T) {
	r := newReading(t, gcp, ScopeExport)
	value := func(c *Cluster) []byte { return r.event(c).KV.Value }
	for want, marker := range map[string][]byte{
		"published nothing complete": nil,
		"value is empty":             {},
		"calls itself":               value(&Cluster{Name: "aws", ID: 2}),
		"its ID is 3":                value(&Cluster{Name: "gcp", ID: 3}),
	} {
		for what, err := range map[string]error{"Complete": r.Complete(marker), "Begin": r.Begin(kvstore.Position{}, marker)} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v; want %q", what, err, want)
			}
		}
	}
	if err := r.Complete(value(gcpFirst)); err != nil {
		t.Error(err)
	}
}

func TestReaderScopeLocal(t *testing.T) {
	r := newReading(t, Admission{Cluster: "gcp", ID: 2, Local: true}, ScopeLocal)
	if r.Prefix() != "/tombolo/v1/local/gcp/" || r.Marker() != "/tombolo/v1/export/gcp/cluster" {
		t.Fatal(r.Prefix(), r.Marker())
	}
	r.list(gcpFirst, r.event(service("a")), r.event(&Peer{Name: "aws", ID: 1}))
	r.want("+ peer/aws, + service/shop/a", "")
	if r.view.Cluster() == nil || r.view.Peer("aws") == nil {
		t.Error("cluster or peer missing")
	}
}

// TestNodeMoves: a number or key that moves from one node to another ends up
// with the new one in whatever order the changes come.
func TestNodeMoves(t *testing.T) {
	node := func(name string, number uint16, key byte) *Node {
		return &Node{Name: name, Number: number, WireGuardKey: [32]byte{key}}
	}
	r := newReading(t, gcp, ScopeExport)
	r.list(gcpFirst, r.event(node("a", 1, 1)), r.event(node("b", 2, 2)))
	r.watch(r.event(node("c", 1, 3)), r.event(node("d", 4, 2)))
	r.want("", "number, wireguard")
	r.watch(r.gone(node("a", 1, 1)), r.gone(node("b", 2, 2)))
	r.want("+ node/c, + node/d, - node/a, - node/b", "")
	if r.view.NodeByNumber(1).Name != "c" || r.view.Len() != 3 {
		t.Error("the number did not move")
	}
	// Two nodes swap their numbers: each waits for the other, until one gives way.
	r.watch(r.event(node("c", 4, 3)))
	r.want("", "number")
	r.watch(r.gone(node("d", 4, 2)), r.event(node("e", 1, 5)))
	r.want("+ node/c, + node/e, - node/d", "") // e was refused only until c had moved
}

func TestBudget(t *testing.T) {
	a := gcp
	a.MaxKeys = 3 // the cluster record and two more
	r := newReading(t, a, ScopeExport)
	r.list(gcpFirst, r.event(service("y")), r.event(service("z")))
	r.watch(r.event(service("a")))
	r.want("", "budget")
	r.watch(r.event(&Service{Name: ServiceName{"shop", "z"}})) // a change is no new key
	r.want("+ service/shop/z", "")
	// In a whole list, what was there stays; what is new is the excess.
	r.list(gcpFirst, r.event(service("a")), r.event(service("b")), r.event(service("y")), r.event(service("z")))
	if r.view.Len() != 3 || r.view.Service(ServiceName{"shop", "y"}) == nil || r.view.Service(ServiceName{"shop", "z"}) == nil {
		t.Errorf("the view holds\n%s", r.view.Dump())
	}
	r.watch(r.gone(service("y")), r.event(service("a")))
	r.want("+ service/shop/a, - service/shop/y", "")

	a.MaxKeys, a.MaxBytes = 0, 500
	r = newReading(t, a, ScopeExport)
	r.list(gcpFirst, r.event(service("a")), r.event(service("b")))
	r.want("+ cluster, + service/shop/a", "budget")
}
