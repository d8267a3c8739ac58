package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// This file is what the records of an extent are. Services are those of the own
// cluster, addresses those of all: one cluster may not have that many keys.

func clusterName(c int) string { return fmt.Sprintf("bench-%d", c+1) }

func nodeOf(i int) string { return fmt.Sprintf("node-%d", i) }

// clusterOf and node of address i: they are dealt out.
func (e extent) clusterOf(i int) int { return i % e.Clusters }
func (e extent) node(i int) int      { return i / e.Clusters % e.Nodes }

// perNode is the size of a node's pod prefix: a /20.
const perNode = 1 << 12

func podPrefixOf(cluster, node int) netip.Prefix {
	n := node * perNode
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10 + byte(cluster), byte(n >> 16), byte(n >> 8), 0}), 20)
}

func prefixOf(cluster int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10 + byte(cluster)}), 8)
}

// address i, in the prefix of its node.
func (e extent) address(i int) netip.Addr {
	a := podPrefixOf(e.clusterOf(i), e.node(i)).Addr().As4()
	n := i/e.Clusters/e.Nodes + 2
	a[2], a[3] = a[2]+byte(n>>8), byte(n)
	return netip.AddrFrom4(a)
}

// backend b of service i: addresses of the own cluster.
func (e extent) backend(i, b int) int { return (i*e.Backends + b) * e.Clusters % e.Addresses }

func (e extent) slice(i int, port uint16) *clustermesh.EndpointSlice {
	s := &clustermesh.EndpointSlice{Name: clustermesh.SliceName{Service: named(i), Slice: "1"},
		Ports: []clustermesh.Port{{Name: "http", Protocol: clustermesh.TCP, Port: port}}}
	for b := range e.Backends {
		n := e.backend(i, b)
		s.Endpoints = append(s.Endpoints, clustermesh.Endpoint{Address: e.address(n), Node: uint16(e.node(n) + 1), Ready: true, Serving: true})
	}
	return s
}

func (e extent) identity(i, number int) clustermesh.Identity {
	return clustermesh.MakeIdentity(clustermesh.ID(e.clusterOf(i)+1), uint32(number))
}

func (e extent) record(i int, identity clustermesh.Identity) *clustermesh.Address {
	return &clustermesh.Address{Name: clustermesh.AddressName{Node: nodeOf(e.node(i)), Prefix: netip.PrefixFrom(e.address(i), 32)}, Identity: identity}
}

func named(i int) clustermesh.ServiceName {
	return clustermesh.ServiceName{Namespace: "bench", Name: serviceName(i)}
}

// records of cluster c, the one that says that all are there last.
func (e extent) records(c int) []kvstore.KV {
	var all []kvstore.KV
	put := func(r clustermesh.Record) { all = append(all, keyed(c, clustermesh.ScopeExport, r)) }
	for i := range e.Nodes {
		p := podPrefixOf(c, i)
		n := &clustermesh.Node{Name: nodeOf(i), Number: uint16(i + 1), PodPrefixes: []netip.Prefix{p},
			TunnelAddresses: []netip.Addr{p.Addr().Next()}, WireGuardEndpoint: fmt.Sprintf("192.0.%d.%d:51871", c, i&255)}
		binary.BigEndian.PutUint32(n.WireGuardKey[:], uint32(c*e.Nodes+i+1))
		put(n)
	}
	for i := range e.Services {
		if c > 0 {
			break
		}
		f := frontend(i)
		put(&clustermesh.Service{Name: named(i), Frontends: []netip.Addr{f.Addr()}, Ports: []clustermesh.Port{{Name: "http", Protocol: clustermesh.TCP, Port: f.Port()}}})
		put(e.slice(i, serverPort))
	}
	for i := c; i < e.Addresses; i += e.Clusters {
		put(e.record(i, e.identity(i, i%100_000+1)))
	}
	for p := 1; p < e.Clusters && c == 0; p++ {
		all = append(all, keyed(0, clustermesh.ScopeLocal, &clustermesh.Peer{Name: clusterName(p), ID: clustermesh.ID(p + 1), PodPrefixes: []netip.Prefix{prefixOf(p)}}))
	}
	put(&clustermesh.Cluster{Name: clusterName(c), ID: clustermesh.ID(c + 1), Incarnation: 1, PodPrefixes: []netip.Prefix{prefixOf(c)}, Version: "bench"})
	return all
}

// keyed encodes a record of our own making: it cannot be refused.
func keyed(cluster int, scope clustermesh.Scope, r clustermesh.Record) kvstore.KV {
	v, err := clustermesh.Encode(r)
	if err != nil {
		panic(fmt.Sprintf("encode %+v: %v", r, err))
	}
	return kvstore.KV{Key: clustermesh.KeyOf(scope, clusterName(cluster), r).String(), Value: v}
}

// connector gives the agent the stores of clusters, which are in the process.
type connector map[string]*kvstore.Memory

func (c connector) Stores(_ context.Context, cluster string, _ *clustermesh.Peer) ([]kvstore.Store, func(), error) {
	if c[cluster] == nil {
		return nil, nil, fmt.Errorf("no cluster %s", cluster)
	}
	return []kvstore.Store{c[cluster]}, func() {}, nil
}

// putAll commits as publishers do, some at a time.
func putAll(ctx context.Context, store kvstore.Store, kvs ...kvstore.KV) error {
	for len(kvs) > 0 {
		n := min(100, len(kvs))
		ops := make([]kvstore.Op, 0, n)
		for _, kv := range kvs[:n] {
			ops = append(ops, kvstore.Put(kv.Key, kv.Value, 0))
		}
		if _, err := store.Commit(ctx, ops...); err != nil {
			return err
		}
		kvs = kvs[n:]
	}
	return nil
}

// swap is a port in network byte order.
func swap(port uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], port)
	return binary.NativeEndian.Uint16(b[:])
}
