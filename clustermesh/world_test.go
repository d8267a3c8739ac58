package clustermesh

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

// world is a cluster of a given size, published.
type world struct {
	admission Admission
	marker    []byte
	events    []kvstore.Event
}

// makeWorld is the data set of the benchmarks: what the design's targets are
// stated for is makeWorld(1000, 5000, 20000, 50000).
func makeWorld(tb testing.TB, nodes, services, identities, addresses int) *world {
	tb.Helper()
	w := &world{admission: Admission{Cluster: "aws", ID: 1, PodPrefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}
	records := []Record{&Cluster{Name: "aws", ID: 1, Incarnation: 7, PodPrefixes: w.admission.PodPrefixes}}
	origin := OriginAt(time.Unix(1_700_000_000, 0))
	for i := range nodes {
		n := &Node{
			Name: fmt.Sprintf("ip-10-20-%d-%d.eu-central-1.compute.internal", i/250, i%250), Number: uint16(i + 1),
			UnderlayAddresses: []netip.Addr{addr4(192<<24 | 168<<16 | uint32(i))},
			TunnelAddresses:   []netip.Addr{addr4(10<<24 | uint32(i)<<8 | 1)},
			PodPrefixes:       []netip.Prefix{netip.PrefixFrom(addr4(10<<24|uint32(i)<<8), 24)},
			WireGuardEndpoint: fmt.Sprintf("192.168.%d.%d:51820", i/250, i%250), Zone: fmt.Sprintf("eu-central-1%c", 'a'+i%3), Origin: origin,
		}
		binary.BigEndian.PutUint32(n.WireGuardKey[:], uint32(i)+1)
		records = append(records, n)
	}
	for i := range services {
		name := ServiceName{fmt.Sprintf("namespace-%d", i%200), fmt.Sprintf("service-%d", i)}
		ports := []Port{{Name: "http", Protocol: TCP, Port: 80}, {Name: "metrics", Protocol: TCP, Port: 9090}}
		records = append(records, &Service{
			Name: name, Ports: ports, Frontends: []netip.Addr{addr4(172<<24 | 20<<16 | uint32(i))},
			Global: true, Shared: true, Affinity: AffinityLocal, Origin: origin,
		})
		slice := &EndpointSlice{Name: SliceName{name, fmt.Sprintf("service-%d-x%04x", i, i*7)}, Ports: []Port{
			{Name: "http", Protocol: TCP, Port: 8080}, {Name: "metrics", Protocol: TCP, Port: 9090},
		}, Origin: origin}
		for j := range 4 {
			at := i*4 + j
			slice.Endpoints = append(slice.Endpoints, Endpoint{
				Address: addr4(10<<24 | uint32(at%1000)<<8 | uint32(10+at/1000)), Node: uint16(at%1000 + 1),
				Zone: fmt.Sprintf("eu-central-1%c", 'a'+at%3), Ready: true, Serving: true,
			})
		}
		records = append(records, slice)
	}
	for i := range identities {
		records = append(records, &IdentityRecord{ID: MakeIdentity(1, uint32(i+1)), Labels: []Label{
			{"app.kubernetes.io/name", fmt.Sprintf("app-%d", i)}, {"k8s.io/namespace", fmt.Sprintf("namespace-%d", i%200)},
			{"k8s.io/serviceaccount", "default"}, {LabelCluster, "aws"}, {"version", fmt.Sprintf("v%d", i%10)},
		}, Origin: origin})
	}
	for i := range addresses {
		records = append(records, &Address{
			Name: AddressName{Node: fmt.Sprintf("ip-10-20-%d-%d.eu-central-1.compute.internal", i%1000/250, i%1000%250),
				Prefix: netip.PrefixFrom(addr4(10<<24|uint32(i%1000)<<8|uint32(10+i/1000)), 32)},
			Identity:  MakeIdentity(1, uint32(i%20000+1)),
			Owner:     fmt.Sprintf("%08x-1234-4abc-8def-%012x", uint32(i)*2654435761, i),
			Namespace: fmt.Sprintf("namespace-%d", i%200), Pod: fmt.Sprintf("service-%d-7d9c5b8f4-%05x", i%5000, i), Origin: origin,
		})
	}
	w.add(tb, records...)
	return w
}

func (w *world) add(tb testing.TB, records ...Record) {
	tb.Helper()
	for _, r := range records {
		value, err := Encode(r)
		if err != nil {
			tb.Fatal(err)
		}
		if r.Kind() == KindCluster {
			w.marker = value
		}
		w.events = append(w.events, kvstore.Event{KV: kvstore.KV{Key: KeyOf(ScopeExport, w.admission.Cluster, r).String(), Value: value}})
	}
	slices.SortFunc(w.events, func(a, b kvstore.Event) int {
		if a.KV.Key < b.KV.Key {
			return -1
		}
		return 1
	})
}

// read lists the world through r in chunks.
func (w *world) read(tb testing.TB, r *Reader) {
	tb.Helper()
	if err := r.Begin(kvstore.Position{StoreID: 1, Revision: 5}, w.marker); err != nil {
		tb.Fatal(err)
	}
	for chunk := range slices.Chunk(w.events, 1000) {
		if err := r.Apply(kvstore.Position{StoreID: 1, Revision: 5}, chunk); err != nil {
			tb.Fatal(err)
		}
	}
	r.Synced(kvstore.Position{StoreID: 1, Revision: 5})
}

func (w *world) view(tb testing.TB) *View {
	tb.Helper()
	var v *View
	w.read(tb, NewReader(ReaderConfig{Admission: w.admission, Out: func(u Update) {
		if len(u.Refused) > 0 {
			tb.Fatalf("refused: %v", u.Refused)
		}
		v = u.View
	}}))
	return v
}

func addr4(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}
