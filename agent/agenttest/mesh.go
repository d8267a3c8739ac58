package agenttest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// Mesh is clusters whose stores are in memory. It is the Connector of the
// agents that follow them, and fails on demand.
type Mesh struct {
	mu     sync.Mutex
	stores map[string]*kvstore.Memory
	cut    map[string]error
}

// NewMesh makes a mesh without clusters.
func NewMesh() *Mesh {
	return &Mesh{stores: map[string]*kvstore.Memory{}, cut: map[string]error{}}
}

// Stores implements agent.Connector.
func (m *Mesh) Stores(_ context.Context, cluster string, _ *clustermesh.Peer) ([]kvstore.Store, func(), error) {
	return []kvstore.Store{reach{m, cluster}}, nil, nil
}

// SetStore gives a cluster a store, in place of the one it has.
func (m *Mesh) SetStore(cluster string, s *kvstore.Memory) {
	m.mu.Lock()
	old := m.stores[cluster]
	m.stores[cluster] = s
	m.mu.Unlock()
	if old != nil && old != s {
		old.CutWatches(errors.New("the store was replaced"))
	}
}

// Store is the present store of a cluster.
func (m *Mesh) Store(cluster string) *kvstore.Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stores[cluster]
}

// Cut puts a cluster out of reach of readers (err non-nil), or into it again.
func (m *Mesh) Cut(cluster string, err error) {
	m.mu.Lock()
	if err == nil {
		delete(m.cut, cluster)
	} else {
		m.cut[cluster] = err
	}
	s := m.stores[cluster]
	m.mu.Unlock()
	if err != nil && s != nil {
		s.CutWatches(err)
	}
}

func (m *Mesh) get(cluster string) (*kvstore.Memory, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.cut[cluster]; err != nil {
		return nil, err
	}
	s := m.stores[cluster]
	if s == nil {
		return nil, fmt.Errorf("cluster %s has no store", cluster)
	}
	return s, nil
}

// Put writes records of a cluster in one commit.
func (m *Mesh) Put(t testing.TB, cluster string, scope clustermesh.Scope, records ...clustermesh.Record) {
	t.Helper()
	m.commit(t, cluster, func() (ops []kvstore.Op) {
		for _, r := range records {
			value, err := clustermesh.Encode(r)
			if err != nil {
				t.Fatal(err)
			}
			ops = append(ops, kvstore.Put(clustermesh.KeyOf(scope, cluster, r).String(), value, 0))
		}
		return ops
	}())
}

// Delete deletes records of a cluster in one commit.
func (m *Mesh) Delete(t testing.TB, cluster string, scope clustermesh.Scope, records ...clustermesh.Record) {
	t.Helper()
	var ops []kvstore.Op
	for _, r := range records {
		ops = append(ops, kvstore.Delete(clustermesh.KeyOf(scope, cluster, r).String()))
	}
	m.commit(t, cluster, ops)
}

func (m *Mesh) commit(t testing.TB, cluster string, ops []kvstore.Op) {
	t.Helper()
	s := m.Store(cluster)
	for len(ops) > 0 {
		n := min(len(ops), kvstore.MaxOps)
		if _, err := s.Commit(context.Background(), ops[:n]...); err != nil {
			t.Fatal(err)
		}
		ops = ops[n:]
	}
}

// reach is a store as a reader reaches it.
type reach struct {
	m       *Mesh
	cluster string
}

func (r reach) List(ctx context.Context, prefix string, at kvstore.Position, visit func([]kvstore.KV) error) (kvstore.Position, error) {
	s, err := r.m.get(r.cluster)
	if err != nil {
		return kvstore.Position{}, err
	}
	return s.List(ctx, prefix, at, visit)
}

func (r reach) Watch(ctx context.Context, prefix string, after kvstore.Position) iter.Seq2[kvstore.Batch, error] {
	s, err := r.m.get(r.cluster)
	if err != nil {
		return func(yield func(kvstore.Batch, error) bool) { yield(kvstore.Batch{}, err) }
	}
	return s.Watch(ctx, prefix, after)
}

func (reach) Commit(context.Context, ...kvstore.Op) (kvstore.Position, error) {
	return kvstore.Position{}, kvstore.ErrReadOnly
}

func (reach) Grant(context.Context, time.Duration) (kvstore.Lease, error) {
	return nil, kvstore.ErrReadOnly
}

// Facts makes records of small clusters, all of one shape: cluster id has the
// pod prefixes 10.<id>.0.0/16 and fd00:<id>::/32, node n of it 10.<id>.<n>.0/24
// and fd00:<id>:<n>::/64.
type Facts struct {
	Name string
	ID   clustermesh.ID
}

// Cluster is the cluster's own record.
func (f Facts) Cluster(incarnation uint64) *clustermesh.Cluster {
	return &clustermesh.Cluster{Name: f.Name, ID: f.ID, Incarnation: incarnation, PodPrefixes: f.Prefixes(), Version: "test"}
}

// Prefixes are the cluster's pod prefixes.
func (f Facts) Prefixes() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/16", f.ID)),
		netip.MustParsePrefix(fmt.Sprintf("fd00:%x::/32", f.ID)),
	}
}

// Peer is the cluster as another one admits it.
func (f Facts) Peer() *clustermesh.Peer {
	return &clustermesh.Peer{Name: f.Name, ID: f.ID, PodPrefixes: f.Prefixes(), MeshAddresses: []string{"192.0.2.1:4443"}}
}

// NodeName is the name of node n.
func (f Facts) NodeName(n int) string { return fmt.Sprintf("%s-n%d", f.Name, n) }

// Node is node n, 1–250. Its underlay address is 192.168.<id>.<n>.
func (f Facts) Node(n int) *clustermesh.Node {
	return &clustermesh.Node{
		Name: f.NodeName(n), Number: uint16(n),
		UnderlayAddresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, byte(f.ID), byte(n)})},
		TunnelAddresses:   []netip.Addr{f.Tunnel(n), netip.MustParseAddr(fmt.Sprintf("fd00:%x:%x::1", f.ID, n))},
		PodPrefixes: []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(f.ID), byte(n), 0}), 24),
			netip.MustParsePrefix(fmt.Sprintf("fd00:%x:%x::/64", f.ID, n)),
		},
		WireGuardKey:      [32]byte{byte(f.ID), byte(n), 1},
		WireGuardEndpoint: fmt.Sprintf("192.168.%d.%d:51820", f.ID, n),
	}
}

// Tunnel is the IPv4 tunnel address of node n.
func (f Facts) Tunnel(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(f.ID), byte(n), 1}) }

// Pod is the address of pod p on node n.
func (f Facts) Pod(n, p int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(f.ID), byte(n), byte(p)})
}

// Identity is identity number i with a label that says so.
func (f Facts) Identity(i uint32) *clustermesh.IdentityRecord {
	return &clustermesh.IdentityRecord{ID: clustermesh.MakeIdentity(f.ID, i), Labels: []clustermesh.Label{{Key: "app", Value: fmt.Sprint("app", i)}}}
}

// Address says that pod p of node n has identity number i.
func (f Facts) Address(n, p int, i uint32) *clustermesh.Address {
	a := f.Pod(n, p)
	return &clustermesh.Address{
		Name:     clustermesh.AddressName{Node: f.NodeName(n), Prefix: netip.PrefixFrom(a, 32)},
		Identity: clustermesh.MakeIdentity(f.ID, i), Owner: fmt.Sprintf("uid-%d-%d-%d", f.ID, n, p), Namespace: "shop", Pod: fmt.Sprintf("pod-%d-%d", n, p),
	}
}

// Service is a global, shared service with one TCP port and one frontend,
// 172.20.<id>.<host>:80.
func (f Facts) Service(name string, host int) *clustermesh.Service {
	return &clustermesh.Service{
		Name: clustermesh.ServiceName{Namespace: "shop", Name: name}, Global: true, Shared: true,
		Ports:     []clustermesh.Port{{Name: "http", Protocol: clustermesh.TCP, Port: 80}},
		Frontends: []netip.Addr{netip.AddrFrom4([4]byte{172, 20, byte(f.ID), byte(host)})},
	}
}

// Slice is the endpoint slice of a service with the given pods, as (node, pod) pairs.
func (f Facts) Slice(service string, pods ...[2]int) *clustermesh.EndpointSlice {
	s := &clustermesh.EndpointSlice{
		Name:  clustermesh.SliceName{Service: clustermesh.ServiceName{Namespace: "shop", Name: service}, Slice: service + "-1"},
		Ports: []clustermesh.Port{{Name: "http", Protocol: clustermesh.TCP, Port: 8080}},
	}
	for _, p := range pods {
		s.Endpoints = append(s.Endpoints, clustermesh.Endpoint{Address: f.Pod(p[0], p[1]), Node: uint16(p[0]), Ready: true, Serving: true})
	}
	return s
}
