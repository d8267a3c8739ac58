package agent

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

var shopWeb = clustermesh.ServiceName{Namespace: "shop", Name: "web"}

// rowWorld is one service in two clusters, seen from a node of the first one.
type rowWorld struct {
	at     vantage
	own    *clustermesh.Service
	slices []*clustermesh.EndpointSlice // of the own cluster
	peer   *clustermesh.Service
	theirs []*clustermesh.EndpointSlice
}

func (w *rowWorld) merged() clustermesh.Merged {
	view := func(name string, id clustermesh.ID, svc *clustermesh.Service, list []*clustermesh.EndpointSlice) *clustermesh.View {
		v := clustermesh.NewView(clustermesh.Admission{Cluster: name, ID: id, Local: true}, clustermesh.ScopeExport)
		for _, r := range append([]clustermesh.Record{svc}, asRecords(list)...) {
			if err := v.Apply(clustermesh.Change{Key: clustermesh.KeyOf(clustermesh.ScopeExport, name, r), Record: r}); err != nil {
				panic(err)
			}
		}
		return v
	}
	return clustermesh.Merge(clustermesh.MergeInput{Name: shopWeb, Local: "c1", Views: map[string]*clustermesh.View{
		"c1": view("c1", 1, w.own, w.slices), "c2": view("c2", 2, w.peer, w.theirs),
	}})
}

func asRecords(list []*clustermesh.EndpointSlice) (out []clustermesh.Record) {
	for _, s := range list {
		out = append(out, s)
	}
	return out
}

func randomRowWorld(r *rand.Rand) *rowWorld {
	flip := func() bool { return r.IntN(2) == 0 }
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	addrs := func(texts ...string) (out []netip.Addr) {
		for _, s := range texts {
			if flip() {
				out = append(out, netip.MustParseAddr(s))
			}
		}
		return out
	}
	w := &rowWorld{at: vantage{cluster: 1, number: uint16(r.IntN(4)), zone: pick("", "a", "b"), ports: addrs("192.0.2.1", "192.0.2.2", "2001:db8::1")}}
	w.at.all = w.at.ports
	w.own = &clustermesh.Service{
		Name: shopWeb, Global: flip(), Shared: true, Frontends: addrs("172.20.0.1", "fd20::1"), PublishNotReady: r.IntN(6) == 0,
		ExternalLocal: flip(), InternalLocal: r.IntN(3) == 0, SessionAffinity: time.Duration(r.IntN(2)*10800) * time.Second,
		Affinity: clustermesh.Affinity(pick("", "local", "remote", "none")),
		Ports: []clustermesh.Port{{Name: "web", Protocol: clustermesh.TCP, Port: 80, NodePort: uint16(r.IntN(2) * 30080)},
			{Name: "dns", Protocol: clustermesh.UDP, Port: 53, NodePort: uint16(r.IntN(2) * 30053)}},
	}
	if flip() {
		w.own.Outside = &clustermesh.Outside{}
		for _, a := range addrs("203.0.113.1", "203.0.113.2", "2001:db8:f::1", "172.20.0.1", "192.0.2.1") {
			w.own.Outside.Addresses = append(w.own.Outside.Addresses, clustermesh.External{Address: a, Kind: clustermesh.ExternalKind(1 + r.IntN(2))})
		}
		for _, s := range []string{"10.0.0.0/8", "198.51.100.0/24", "fd00::/8", "0.0.0.0/0"} {
			if r.IntN(4) == 0 {
				w.own.Outside.SourceRanges = append(w.own.Outside.SourceRanges, netip.MustParsePrefix(s))
			}
		}
	}
	w.slices = randomSlices(r, "10.1.0.", "fd00:1::", true)
	w.peer = &clustermesh.Service{Name: shopWeb, Global: true, Shared: flip()}
	w.theirs = randomSlices(r, "10.2.0.", "fd00:2::", false)
	return w
}

func randomSlices(r *rand.Rand, v4, v6 string, hints bool) (out []*clustermesh.EndpointSlice) {
	hintOdds := r.IntN(3) // none, some, all
	for i, base := range []string{v4, v6} {
		s := &clustermesh.EndpointSlice{Name: clustermesh.SliceName{Service: shopWeb, Slice: fmt.Sprint("s", i)},
			Ports: []clustermesh.Port{{Name: "web", Protocol: clustermesh.TCP, Port: 8080}, {Name: "dns", Protocol: clustermesh.UDP, Port: 5353}}}
		for n := range r.IntN(5) {
			e := clustermesh.Endpoint{Address: netip.MustParseAddr(base + fmt.Sprint(n+1)), Node: uint16(1 + r.IntN(3)), Ready: r.IntN(3) > 0, Serving: r.IntN(4) > 0}
			e.Terminating = r.IntN(4) == 0
			if e.Terminating {
				e.Ready = r.IntN(4) == 0 // of a service that publishes whatever there is
			}
			if hints && (hintOdds == 2 || hintOdds == 1 && r.IntN(2) == 0) {
				e.Hints = clustermesh.MakeHints([]string{[]string{"a", "b"}[r.IntN(2)]}, []uint16{e.Node}[:r.IntN(2)])
			}
			s.Endpoints = append(s.Endpoints, e)
		}
		out = append(out, s)
	}
	return out
}

// twinRows says for each frontend what is behind it, in the words of
// kube-proxy's rules and nothing else: no IDs, no slots.
func (w *rowWorld) twinRows() map[string]string {
	out := map[string]string{}
	m := w.merged()
	for _, p := range m.Ports {
		all := w.twinAll(p)
		here := w.twinHere(p)
		any := all != "" || here != ""
		put := func(a netip.Addr, port uint16, scope Scope, behind string, flags ServiceFlags) {
			k := ServiceKey{MakeAddr(a), port, uint8(p.Port.Protocol), scope}.String()
			if _, is := out[k]; !is {
				out[k] = fmt.Sprintf("flags=%d affinity=%d %s", flags, w.own.SessionAffinity/time.Second, behind)
			}
		}
		outside, outsideFlags := all, ServiceFlags(0)
		if w.own.ExternalLocal {
			if outside = here; any {
				outsideFlags = ServiceLocal | ServiceKeepSource
			}
		}
		for _, a := range w.own.Frontends {
			if a.Is6() != p.V6 {
				continue
			}
			if w.own.InternalLocal {
				flags := ServiceFlags(0)
				if any {
					flags = ServiceLocal
				}
				put(a, p.Port.Port, ScopeInside, here, flags)
			} else {
				put(a, p.Port.Port, ScopeInside, all, 0)
			}
		}
		if w.own.Outside != nil {
			for _, kind := range []clustermesh.ExternalKind{clustermesh.ExternalLoadBalancer, clustermesh.ExternalIP} {
				for _, e := range w.own.Outside.Addresses {
					if e.Kind != kind || e.Address.Is6() != p.V6 {
						continue
					}
					put(e.Address, p.Port.Port, ScopeInside, all, 0)
					flags := outsideFlags
					if kind == clustermesh.ExternalLoadBalancer && w.twinBounded(p.V6) {
						flags |= ServiceRanges
					}
					put(e.Address, p.Port.Port, ScopeOutside, outside, flags)
				}
			}
		}
		if p.Port.NodePort != 0 {
			for _, a := range w.at.ports {
				if a.Is6() == p.V6 {
					put(a, p.Port.NodePort, ScopeInside, all, 0)
					put(a, p.Port.NodePort, ScopeOutside, outside, outsideFlags)
				}
			}
		}
	}
	return out
}

func (w *rowWorld) twinBounded(v6 bool) bool {
	ours, everybody := false, false
	for _, p := range w.own.Outside.SourceRanges {
		if p.Bits() == 0 {
			everybody = true
			if p.Addr().Is6() == v6 {
				return false
			}
		} else if p.Addr().Is6() == v6 {
			ours = true
		}
	}
	return ours || len(w.own.Outside.SourceRanges) > 0 && !everybody
}

// endpoints are the own cluster's, for a port of a family.
func (w *rowWorld) endpoints(p clustermesh.MergedPort) (out []clustermesh.Endpoint, port uint16) {
	for _, s := range w.slices {
		for _, q := range s.Ports {
			if q.Name == p.Port.Name {
				port = q.Port
			}
		}
		for _, e := range s.Endpoints {
			if e.Address.Is6() == p.V6 {
				out = append(out, e)
			}
		}
	}
	return out, port
}

func (w *rowWorld) ready(e clustermesh.Endpoint) bool {
	return e.Ready || !e.Terminating && w.own.PublishNotReady
}

func (w *rowWorld) twinHere(p clustermesh.MergedPort) string {
	endpoints, port := w.endpoints(p)
	for _, usable := range []func(clustermesh.Endpoint) bool{w.ready, func(e clustermesh.Endpoint) bool { return e.Terminating && e.Serving }} {
		var list []string
		for _, e := range endpoints {
			if e.Node == w.at.number && usable(e) {
				list = append(list, netip.AddrPortFrom(e.Address, port).String())
			}
		}
		if len(list) > 0 {
			return fmt.Sprintf("tier[1*1%v]", list)
		}
	}
	return ""
}

// twinAll is the mesh's tiers with the own cluster's endpoints chosen by hints.
func (w *rowWorld) twinAll(p clustermesh.MergedPort) string {
	endpoints, _ := w.endpoints(p)
	allNodes, allZones, forNode, forZone := true, true, false, false
	for _, e := range endpoints {
		if !w.ready(e) {
			continue
		}
		allNodes, allZones = allNodes && len(e.Hints.Nodes()) > 0, allZones && len(e.Hints.Zones()) > 0
		forNode = forNode || slices.Contains(e.Hints.Nodes(), w.at.number)
		forZone = forZone || slices.Contains(e.Hints.Zones(), w.at.zone)
	}
	meant := func(b clustermesh.Backend) bool {
		switch {
		case b.Terminating:
			return true
		case allNodes && forNode:
			return slices.Contains(b.Hints.Nodes(), w.at.number)
		case allZones && forZone:
			return slices.Contains(b.Hints.Zones(), w.at.zone)
		}
		return true
	}
	var tiers []string
	for _, t := range p.Tiers {
		var groups []string
		for _, g := range t.Groups {
			var list []string
			for _, b := range g.Backends {
				if g.ID != 1 || meant(b) {
					list = append(list, netip.AddrPortFrom(b.Address, b.Port).String())
				}
			}
			groups = append(groups, fmt.Sprintf("%d*%d%v", g.ID, g.Weight, list))
		}
		tiers = append(tiers, fmt.Sprintf("tier[%s]", strings.Join(groups, " ")))
	}
	return strings.Join(tiers, " ")
}

// readBack says of rows what the twin says of the world.
func readBack(rows serviceRows) map[string]string {
	out := map[string]string{}
	for i, k := range rows.keys {
		row := rows.rows[i]
		var tiers []string
		for _, t := range row.Tiers[:row.NumTiers] {
			var groups []string
			for _, g := range row.Groups[t.First : t.First+t.Groups] {
				var list []string
				for n := range g.Count {
					s, _ := rows.slotAt(SlotKey{Service: row.ID, Cluster: g.Cluster, Slot: n})
					list = append(list, hostPort(s.Addr, s.Port))
				}
				groups = append(groups, fmt.Sprintf("%d*%d%v", g.Cluster, g.Weight, list))
			}
			tiers = append(tiers, fmt.Sprintf("tier[%s]", strings.Join(groups, " ")))
		}
		out[k.String()] = fmt.Sprintf("flags=%d affinity=%d %s", row.Flags, row.Affinity, strings.Join(tiers, " "))
	}
	return out
}

func TestServiceRowsAgreeWithTheTwin(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 0))
	kinds := map[string]int{} // that the cases are worth something
	for n := range 20_000 {
		w := randomRowWorld(r)
		rows := makeServiceRows(rowInput{merged: w.merged(), cluster: "c1", at: w.at})
		want := w.twinRows()
		if got := readBack(rows); !maps.Equal(got, want) {
			t.Fatalf("seed %d case %d: service %+v outside %+v at %+v\nslices %+v\ngot  %v\nwant %v", seed, n, w.own, w.own.Outside, w.at, w.slices[0], got, want)
		}
		checkRows(t, rows, kinds)
		for _, p := range w.merged().Ports {
			if _, topology := nearTiers(p.Tiers, w.at); topology != TopologyAll {
				kinds["near "+string(topology)]++
			}
		}
	}
	for _, kind := range []string{"local", "keep", "ranges", "maglev", "affinity", "near zone", "near node", "empty"} {
		if kinds[kind] < 100 {
			t.Errorf("only %d rows of kind %s: %v", kinds[kind], kind, kinds)
		}
	}
}

// checkRows checks what the twin has no words for.
func checkRows(t *testing.T, rows serviceRows, kinds map[string]int) {
	t.Helper()
	seen := map[slotRange]bool{}
	for _, s := range rows.slot {
		at := slotRange{service: s.service, cluster: s.cluster}
		if seen[at] {
			t.Fatalf("group %d of %016x has two lists of slots", s.cluster, s.service)
		}
		seen[at] = true
	}
	for i, k := range rows.keys {
		row := rows.rows[i]
		if k.Scope == ScopeInside && (row.Flags&(ServiceKeepSource|ServiceRanges) != 0 || row.Maglev != 0) {
			t.Fatalf("%v: flags %d, maglev %d from inside", k, row.Flags, row.Maglev)
		}
		if isHostPort(row) {
			t.Fatalf("%v looks like a host port", k)
		}
		backends := MaglevBackends(row, rows.slotAt)
		if wants := k.Scope == ScopeOutside && len(backends) > 1; wants != (row.Maglev > 0) || wants && row.Maglev != MaglevSize(len(backends)) {
			t.Fatalf("%v: %d backends and maglev %d", k, len(backends), row.Maglev)
		}
		for n := range uint32(row.Maglev) / MaglevChunk {
			if _, is := rows.outside.chunks[MaglevKey{row.ID, n}]; !is {
				t.Fatalf("%v: chunk %d is missing", k, n)
			}
		}
		for name, is := range map[string]bool{"local": row.Flags&ServiceLocal != 0, "keep": row.Flags&ServiceKeepSource != 0, "ranges": row.Flags&ServiceRanges != 0,
			"maglev": row.Maglev > 0, "affinity": row.Affinity > 0, "empty": row.NumTiers == 0} {
			if is {
				kinds[name]++
			}
		}
	}
}
