package linux

import (
	"fmt"
	"math"
	"net/netip"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/agent/agenttest"
	"github.com/tombolo-mesh/tombolo/bpf"
)

// suite runs the suite of package agent on a BPF map of 64 rows, with batches
// and without.
func suite[K, V comparable, RK, RV any](t *testing.T, name string, typ ebpf.MapType, row agenttest.Row[K, V], key func(K) RK, unkey func(RK) K, to func(V) RV, from func(RV) V) {
	const size = 64
	for _, single := range []bool{false, true} {
		t.Run(name+map[bool]string{true: " singly"}[single], func(t *testing.T) {
			agenttest.TestTable(t, func(t *testing.T) agent.Table[K, V] {
				table := newMap(name, makeMap[RK, RV](t, typ, size), key, unkey, to, from)
				table.single = single
				return table
			}, row, agenttest.Options{Size: size, Rows: 20})
		})
	}
}

func TestSuite(t *testing.T) {
	suite(t, "services", ebpf.Hash, agenttest.Service, toServiceKey, fromServiceKey, toService, fromService)
	suite(t, "slots", ebpf.Hash, agenttest.Slot, toSlotKey, fromSlotKey, toSlot, fromSlot)
	suite(t, "ipcache", ebpf.Hash, agenttest.IP, toAddr, fromAddr, toIPCache, fromIPCache)
	suite(t, "ipcache prefixes", ebpf.LPMTrie, agenttest.IPPrefix, toPrefix, fromPrefix, toIPCache, fromIPCache)
	suite(t, "endpoints", ebpf.Hash, agenttest.Endpoint, toAddr, fromAddr, toEndpoint, fromEndpoint)
	suite(t, "policy", ebpf.LPMTrie, agenttest.Policy, toPolicyKey, fromPolicyKey, toPolicy, fromPolicy)
	suite(t, "subjects", ebpf.Hash, agenttest.Subject, toSubjectKey, fromSubjectKey, toSubject, fromSubject)
	suite(t, "classes", ebpf.Hash, agenttest.Class, toAddr, fromAddr, toClass, fromClass)
	suite(t, "class prefixes", ebpf.LPMTrie, agenttest.ClassPrefix, toPrefix, fromPrefix, toClass, fromClass)
	suite(t, "source ranges", ebpf.LPMTrie, agenttest.Range, toRangeKey, fromRangeKey, toRange, fromRange)
	suite(t, "maglev", ebpf.Hash, agenttest.Maglev, toMaglevKey, fromMaglevKey, toMaglev, fromMaglev)
	suite(t, "node health", ebpf.Hash, agenttest.NodeHealth, toNodeKey, fromNodeKey, toHealth, fromHealth)
	suite(t, "cluster health", ebpf.Hash, agenttest.ClusterHealth, toClusterKey, fromClusterKey, toHealth, fromHealth)
	t.Run("config", func(t *testing.T) {
		agenttest.TestTable(t, func(t *testing.T) agent.Table[agent.ConfigKey, agent.ConfigRow] {
			return &nodeConfig{m: arrayOf(t, bpf.Config{})}
		}, agenttest.Config, agenttest.Options{Rows: 1})
	})
	t.Run("routes", func(t *testing.T) {
		agenttest.TestTable(t, func(t *testing.T) agent.Table[agent.RouteKey, agent.RouteRow] {
			_, table := routesIn(t)
			return table
		}, routeRow, agenttest.Options{})
	})
	t.Run("peers", func(t *testing.T) {
		agenttest.TestTable(t, func(t *testing.T) agent.Table[agent.PeerKey, agent.PeerRow] {
			n, dev := newNS(t), unique()
			n.startTunnel(dev)
			d := n.openDevice(dev, 51840)
			if _, err := d.Ensure(1420, nil); err != nil {
				t.Fatal(err)
			}
			return newPeers(d.wg, dev)
		}, peerRow, agenttest.Options{})
	})
}

// arrayOf makes a BPF map of one element.
func arrayOf[RV any](t testing.TB, row RV) *ebpf.Map {
	needRoot(t)
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: uint32(unsafe.Sizeof(row)), MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func TestEpochCountsUp(t *testing.T) {
	m := arrayOf(t, uint32(0))
	if err := m.Put(uint32(0), uint32(math.MaxUint32)); err != nil {
		t.Fatal(err)
	}
	for want := range uint32(3) { // it begins again at 0
		if err := (policyEpoch{m}).Next(); err != nil {
			t.Fatal(err)
		}
		var n uint32
		if err := m.Lookup(uint32(0), &n); err != nil || n != want {
			t.Fatalf("the epoch is %d (%v), want %d", n, err, want)
		}
	}
}

// routeRow is a blackhole or an unreachable or, for odd i, the route to the
// tunnel beside it.
func routeRow(i, version int) (agent.RouteKey, agent.RouteRow) {
	p, _ := agenttest.IPPrefix(i/2, 0)
	if i%4 == 2 {
		return agent.RouteKey{Prefix: p, Kind: agent.RouteUnreachable}, agent.RouteRow{MTU: uint16(1300 + version)}
	}
	if i%2 == 0 {
		return agent.RouteKey{Prefix: p, Kind: agent.RouteBlackhole}, agent.RouteRow{MTU: uint16(1300 + version)}
	}
	return agent.RouteKey{Prefix: p, Kind: agent.RouteTunnel}, agent.RouteRow{MTU: uint16(1400 + version)}
}

func peerRow(i, version int) (agent.PeerKey, agent.PeerRow) {
	return agent.PeerKey{0: byte(i), 31: 1}, agent.PeerRow{
		Endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), uint16(51820+version)),
		Allowed:  fmt.Sprintf("10.%d.0.0/16,fd00:%x::/64", i, i+1),
	}
}
