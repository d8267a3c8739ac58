package main

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// scale says how large a cluster is.
type scale struct{ nodes, services, endpoints, identities, addresses int }

// large is the cluster of the published goals: 81,000 keys and the marker.
var large = scale{nodes: 1000, services: 5000, endpoints: 4, identities: 20000, addresses: 50000}

// scales of synthetic peers.
var scales = map[string]scale{"large": large, "small": {nodes: 10, services: 500, endpoints: 4, identities: 100, addresses: 200}}

// prefixes of a synthetic cluster: its pods are in 10.<id>.0.0/16 and one
// address family, so that 50,000 of them fit.
func podPrefix(id clustermesh.ID) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(id), 0, 0}), 16)
}

// pod is the address of pod number i.
func pod(id clustermesh.ID, i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(id), byte(i >> 8), byte(i)})
}

// dataset is everything a cluster exports, the marker last. Names are drawn
// from word lists and random suffixes as Kubernetes makes them, so that they
// compress like real ones and not better.
func dataset(name string, id clustermesh.ID, s scale) ([]clustermesh.Record, error) {
	rng := rand.New(rand.NewPCG(uint64(id), 42))
	origin := clustermesh.OriginAt(time.Now())
	var all []clustermesh.Record
	perNode := 1 << 16 / 1024 // addresses of a node's pod prefix
	for i := range s.nodes {
		first := pod(id, i*perNode)
		n := &clustermesh.Node{Name: fmt.Sprintf("ip-10-%d-%d-%d.ec2.internal", rng.IntN(256), rng.IntN(256), i), Number: uint16(i + 1),
			UnderlayAddresses: []netip.Addr{netip.AddrFrom4([4]byte{192, byte(id), byte(i >> 8), byte(i)})},
			TunnelAddresses:   []netip.Addr{first.Next()}, PodPrefixes: []netip.Prefix{netip.PrefixFrom(first, 26)},
			WireGuardEndpoint: fmt.Sprintf("192.%d.%d.%d:51871", id, i>>8, i&255), Zone: zones[i%len(zones)], Origin: origin}
		for j := range n.WireGuardKey {
			n.WireGuardKey[j] = byte(rng.Uint32())
		}
		all = append(all, n)
	}
	for i := range s.services {
		all = append(all, service(rng, i, origin))
	}
	for i := range s.services {
		all = append(all, slice(rng, id, i, s, origin))
	}
	for i := range s.identities {
		all = append(all, identity(rng, name, id, i, origin))
	}
	for i := range s.addresses {
		addr := pod(id, i%s.nodes*perNode+2+i/s.nodes) // 50 pods on each node
		node := all[i%s.nodes].(*clustermesh.Node)
		all = append(all, &clustermesh.Address{Name: clustermesh.AddressName{Node: node.Name, Prefix: netip.PrefixFrom(addr, 32)},
			Identity: clustermesh.MakeIdentity(id, uint32(i%s.identities+1)), Owner: uid(rng), Namespace: words[i%len(words)],
			Pod: fmt.Sprintf("%s-%s", words[i%len(words)], suffix(rng)), Origin: origin})
	}
	return all, nil
}

func serviceName(i int) clustermesh.ServiceName {
	return clustermesh.ServiceName{Namespace: words[i%len(words)], Name: fmt.Sprintf("%s-%s-%d", words[i/len(words)%len(words)], words[(i*7)%len(words)], i)}
}

func service(rng *rand.Rand, i int, origin clustermesh.Origin) *clustermesh.Service {
	return &clustermesh.Service{Name: serviceName(i), Ports: []clustermesh.Port{{Name: "http", Protocol: clustermesh.TCP, Port: 80}},
		Frontends: []netip.Addr{netip.AddrFrom4([4]byte{172, 20, byte(i >> 8), byte(i)})},
		Global:    true, Shared: true, Origin: origin}
}

func slice(rng *rand.Rand, id clustermesh.ID, i int, s scale, origin clustermesh.Origin) *clustermesh.EndpointSlice {
	sl := &clustermesh.EndpointSlice{Name: clustermesh.SliceName{Service: serviceName(i), Slice: suffix(rng)},
		Ports: []clustermesh.Port{{Name: "http", Protocol: clustermesh.TCP, Port: 8080}}, Origin: origin}
	for e := range s.endpoints {
		node := (i*s.endpoints + e) % s.nodes
		sl.Endpoints = append(sl.Endpoints, clustermesh.Endpoint{Address: pod(id, node*64+2+(i/s.nodes*7+e)%60), Node: uint16(node + 1),
			Zone: zones[node%len(zones)], Ready: true, Serving: true})
	}
	return sl
}

func identity(rng *rand.Rand, cluster string, id clustermesh.ID, i int, origin clustermesh.Origin) *clustermesh.IdentityRecord {
	return &clustermesh.IdentityRecord{ID: clustermesh.MakeIdentity(id, uint32(i+1)), Origin: origin, Labels: []clustermesh.Label{
		{Key: "app.kubernetes.io/name", Value: words[i%len(words)] + "-" + suffix(rng)},
		{Key: "app.kubernetes.io/version", Value: fmt.Sprintf("%d.%d.%d", rng.IntN(4), rng.IntN(30), rng.IntN(9))},
		{Key: "io.kubernetes.pod.namespace", Value: words[(i*3)%len(words)]},
		{Key: "io.kubernetes.serviceaccount", Value: words[(i*5)%len(words)]},
		{Key: clustermesh.LabelCluster, Value: cluster},
	}}
}

// suffix is like the end of a pod's name.
func suffix(rng *rand.Rand) string {
	const letters = "bcdfghjklmnpqrstvwxz2456789"
	b := make([]byte, 16)
	for i := range b {
		b[i] = letters[rng.IntN(len(letters))]
	}
	b[10] = '-'
	return string(b)
}

func uid(rng *rand.Rand) string {
	return fmt.Sprintf("%08x-%04x-4%03x-%04x-%012x", rng.Uint32(), rng.IntN(1<<16), rng.IntN(1<<12), rng.IntN(1<<16), rng.Uint64()>>16)
}

// encode turns records into keys and values under a cluster's export prefix.
func encode(cluster string, records []clustermesh.Record) ([]kvstore.KV, error) {
	kvs := make([]kvstore.KV, 0, len(records))
	for _, r := range records {
		v, err := clustermesh.Encode(r)
		if err != nil {
			return nil, err
		}
		kvs = append(kvs, kvstore.KV{Key: clustermesh.KeyOf(clustermesh.ScopeExport, cluster, r).String(), Value: v})
	}
	return kvs, nil
}

var zones = []string{"eu-central-1a", "eu-central-1b", "eu-central-1c"}

var words = []string{"checkout", "cart", "payments", "inventory", "search", "catalog", "frontend", "gateway", "auth", "users",
	"orders", "shipping", "pricing", "recommend", "reviews", "media", "mailer", "billing", "ledger", "fraud", "metrics",
	"logging", "tracing", "scheduler", "worker", "cache", "sessions", "profile", "wallet", "loyalty", "coupons", "returns"}
