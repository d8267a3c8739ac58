package clustermesh

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

var anywhere = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}

// drawRecords are records of a small set of keys, so that they meet.
func drawFew(t *rapid.T) Record {
	r := genRecord.Draw(t, "record")
	few := rapid.SampledFrom([]string{"a", "b", "c"})
	switch r := r.(type) {
	case *Node:
		r.Name = few.Draw(t, "node")
		r.Number, r.WireGuardKey = rapid.Uint16Range(1, 3).Draw(t, "n"), [32]byte{rapid.Byte().Draw(t, "k") % 4}
	case *Service:
		r.Name = ServiceName{"ns", few.Draw(t, "service")}
	case *EndpointSlice:
		r.Name = SliceName{ServiceName{"ns", few.Draw(t, "service")}, few.Draw(t, "slice")}
	case *IdentityRecord:
		r.ID = MakeIdentity(1, rapid.Uint32Range(1, 3).Draw(t, "number"))
	case *Address:
		r.Name = AddressName{few.Draw(t, "node"), netip.PrefixFrom(addr4(10<<24|rapid.Uint32Range(1, 3).Draw(t, "address")), 32)}
	}
	return r
}

// twin is a view as one obviously would write it.
type twin struct {
	records map[Key]Record
	waiting map[string]*Node
}

func (w *twin) conflict(n *Node) bool {
	for _, r := range w.records {
		if o, ok := r.(*Node); ok && o.Name != n.Name && (o.Number == n.Number || n.WireGuardKey != [32]byte{} && o.WireGuardKey == n.WireGuardKey) {
			return true
		}
	}
	return false
}

func (w *twin) apply(c Change) (ok bool) {
	if c.Record == nil {
		delete(w.records, c.Key)
		if c.Key.Kind == KindNode {
			delete(w.waiting, c.Key.Name)
		}
		return true
	}
	if n, isNode := c.Record.(*Node); isNode {
		if w.conflict(n) {
			w.waiting[n.Name] = n
			return false
		}
		delete(w.waiting, n.Name)
	}
	w.records[c.Key] = c.Record
	return true
}

func (w *twin) settle() {
	for again := true; again; {
		again = false
		for _, name := range slices.Sorted(maps.Keys(w.waiting)) {
			n := w.waiting[name]
			delete(w.waiting, name)
			if w.apply(Change{KeyOf(ScopeExport, "aws", n), n}) {
				again = true
			}
		}
	}
}

func TestViewAgainstTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := NewView(Admission{Cluster: "aws", ID: 1, PodPrefixes: anywhere}, ScopeExport)
		w := &twin{map[Key]Record{}, map[string]*Node{}}
		for range rapid.IntRange(0, 60).Draw(t, "changes") {
			r := drawFew(t)
			c := Change{KeyOf(ScopeExport, "aws", r), r}
			if c.Key.Kind != KindCluster && rapid.IntRange(0, 2).Draw(t, "delete") == 0 {
				c.Record = nil
			}
			refused := v.Apply(c) != nil
			v.settle()
			if refused == w.apply(c) {
				t.Fatalf("refused %v: %+v", refused, c)
			}
			w.settle()
			checkView(t, v, w)
		}
	})
}

func checkView(t *rapid.T, v *View, w *twin) {
	if got, want := v.Dump(), Dump(w.records); got != want {
		t.Fatalf("the view holds\n%sthe twin\n%s", got, want)
	}
	if v.Len() != len(w.records) {
		t.Fatalf("Len is %d of %d", v.Len(), len(w.records))
	}
	for k, r := range w.records {
		if got := v.Get(k); !reflect.DeepEqual(got, r) {
			t.Fatalf("Get(%v) is\n%+v\nnot\n%+v", k, got, r)
		}
		if n, ok := r.(*Node); ok && v.NodeByNumber(n.Number) != n {
			t.Fatalf("node %d is %+v", n.Number, v.NodeByNumber(n.Number))
		}
	}
	if len(w.records) == 0 && v.bytes != 0 {
		t.Fatalf("an empty view of %d bytes", v.bytes)
	}
	if list := slices.Collect(v.Slices(ServiceName{"ns", "a"})); !slices.IsSortedFunc(list, func(a, b *EndpointSlice) int {
		return cmpStrings(a.Name.Slice, b.Name.Slice)
	}) {
		t.Fatal("slices are not sorted")
	}
}

func cmpStrings(a, b string) int {
	if a < b {
		return -1
	}
	return 1
}

// TestDiff: applying the difference of two views makes one the other.
func TestDiff(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		make1 := func() *View {
			v := NewView(Admission{Cluster: "aws", ID: 1, PodPrefixes: anywhere}, ScopeExport)
			for range rapid.IntRange(0, 30).Draw(t, "records") {
				_ = v.put(drawFew(t))
			}
			return v
		}
		a, b := make1(), make1()
		w := &twin{map[Key]Record{}, map[string]*Node{}}
		for r := range a.records() {
			w.records[KeyOf(ScopeExport, "aws", r)] = r
		}
		for c := range Diff(a, b) {
			if c.Record == nil {
				delete(w.records, c.Key)
			} else {
				w.records[c.Key] = c.Record
			}
		}
		if b.self == nil && a.self != nil {
			delete(w.records, Key{ScopeExport, "aws", KindCluster, ""})
		}
		if got, want := Dump(w.records), b.Dump(); got != want {
			t.Fatalf("the difference leads to\n%snot to\n%s", got, want)
		}
		for c := range Diff(a, a) {
			t.Fatalf("a view differs from itself: %+v", c)
		}
	})
}

func TestRowTableAgainstMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table, twin := newRowTable[uint16, int](), map[uint16]int{}
		for i := range rapid.IntRange(0, 300).Draw(t, "steps") {
			k := rapid.Uint16Range(0, 40).Draw(t, "key")
			if rapid.IntRange(0, 2).Draw(t, "delete") == 0 {
				table.delete(k)
				delete(twin, k)
				continue
			}
			row, had := table.upsert(k)
			if _, want := twin[k]; had != want {
				t.Fatalf("key %d: had is %v", k, had)
			}
			*row, twin[k] = i, i
		}
		got := map[uint16]int{}
		table.all(func(k uint16, row *int) bool { got[k] = *row; return true })
		if !maps.Equal(got, twin) || table.used != len(twin) {
			t.Fatalf("%v instead of %v", got, twin)
		}
		for k := range uint16(41) {
			row, want := table.get(k), twin[k]
			if _, ok := twin[k]; ok != (row != nil) || ok && *row != want {
				t.Fatalf("key %d", k)
			}
		}
	})
}

func TestUUID(t *testing.T) {
	for s, want := range map[string]bool{
		"0b0f8a4e-5c1d-4a6e-9a57-1f2e3d4c5b6a": true, "0B0F8A4E-5C1D-4A6E-9A57-1F2E3D4C5B6A": false, "": false,
		"0b0f8a4e-5c1d-4a6e-9a57-1f2e3d4c5b6g": false, "0b0f8a4e05c1d-4a6e-9a57-1f2e3d4c5b6a": false,
	} {
		if id, ok := parseUUID(s); ok != want || ok && formatUUID(id) != s {
			t.Errorf("%q: %v, %q", s, ok, formatUUID(id))
		}
	}
}

// TestViewBudgetsMemory holds the view to what five peers may take of an agent.
func TestViewMemory(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("measures the heap")
	}
	if got := viewHeap(t, makeWorld(t, 1000, 5000, 20000, 50000)); got > 12.5 {
		t.Errorf("the view of the large cluster takes %.1f MiB; 12.5 were promised", got)
	}
}
