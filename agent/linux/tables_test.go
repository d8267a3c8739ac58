package linux

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/bpf"
)

// makeMap makes a BPF map for n rows that nobody else sees.
func makeMap[RK, RV any](t testing.TB, typ ebpf.MapType, n uint32) *ebpf.Map {
	t.Helper()
	needRoot(t)
	var k RK
	var v RV
	spec := &ebpf.MapSpec{Type: typ, KeySize: uint32(unsafe.Sizeof(k)), ValueSize: uint32(unsafe.Sizeof(v)), MaxEntries: n, Flags: unix.BPF_F_NO_PREALLOC}
	m, err := ebpf.NewMap(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func dump[K comparable, V any](t testing.TB, table agent.Table[K, V]) map[K]V {
	t.Helper()
	rows := map[K]V{}
	for k, v := range table.Dump() {
		if _, twice := rows[k]; twice {
			t.Fatalf("row %v twice in a dump", k)
		}
		rows[k] = v
	}
	if err := table.DumpErr(); err != nil {
		t.Fatal(err)
	}
	return rows
}

// conform holds a table against a map of Go in a random history of puts,
// overwrites, deletes of what is there and of what is not, and repeats.
func conform[K, V comparable](t *testing.T, table agent.Table[K, V], keys []K, value func(int) V) {
	t.Helper()
	twin := dump(t, table)
	rng := rand.New(rand.NewPCG(1, 2))
	for step := range 30 {
		if rng.IntN(3) > 0 {
			rows := map[K]V{}
			for range 1 + rng.IntN(len(keys)) {
				rows[keys[rng.IntN(len(keys))]] = value(rng.IntN(1000))
			}
			for range 1 + rng.IntN(2) { // idempotent
				if err := table.Put(rows); err != nil {
					t.Fatalf("step %d: put %d rows: %v", step, len(rows), err)
				}
			}
			maps.Copy(twin, rows)
		} else {
			var gone []K
			for range 1 + rng.IntN(len(keys)) {
				gone = append(gone, keys[rng.IntN(len(keys))])
			}
			if err := table.Delete(gone); err != nil {
				t.Fatalf("step %d: delete %d rows: %v", step, len(gone), err)
			}
			for _, k := range gone {
				delete(twin, k)
			}
		}
		if have := dump(t, table); !maps.Equal(have, twin) {
			t.Fatalf("step %d: the kernel holds\n%v\nexpected\n%v", step, have, twin)
		}
	}
	if err := table.Put(nil); err != nil {
		t.Error(err)
	}
	if err := table.Delete(nil); err != nil {
		t.Error(err)
	}
	for range table.Dump() {
		break // a reader may stop early
	}
}

func addr(i int) agent.Addr {
	if i%2 == 0 {
		return agent.MakeAddr(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
	}
	return agent.MakeAddr(netip.AddrFrom16([16]byte{0: 0xfd, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)}))
}

func TestMapTables(t *testing.T) {
	const n = 9000 // more than two batches
	serviceKeys, slotKeys, addrs := make([]agent.ServiceKey, n), make([]agent.SlotKey, n), make([]agent.Addr, n)
	prefixes, nodes := make([]agent.Prefix, 500), make([]agent.NodeKey, n)
	for i := range n {
		addrs[i] = addr(i)
		serviceKeys[i] = agent.ServiceKey{Addr: addrs[i], Port: uint16(i), Proto: 6}
		slotKeys[i] = agent.SlotKey{Service: uint64(i % 100), Cluster: uint16(i % 3), Slot: uint32(i)}
		nodes[i] = agent.NodeKey{Cluster: uint16(i % 5), Node: uint16(i)}
	}
	for i := range prefixes {
		prefixes[i] = agent.MakePrefix(netip.PrefixFrom(addr(i<<8).IP(), 24))
	}
	t.Run("services", func(t *testing.T) {
		m := makeMap[bpf.ServiceKey, bpf.Service](t, ebpf.Hash, n)
		conform(t, newMap("services", m, toServiceKey, fromServiceKey, toService, fromService), serviceKeys, func(i int) agent.ServiceRow {
			return agent.ServiceRow{ID: uint64(i), NumTiers: 1, Tiers: [4]agent.Tier{{Groups: 1, Share: 65535}}, Groups: [20]agent.Group{{Cluster: 1, Weight: 1, Count: uint32(i)}}}
		})
	})
	t.Run("slots", func(t *testing.T) {
		m := makeMap[bpf.SlotKey, bpf.Slot](t, ebpf.Hash, n)
		conform(t, newMap("slots", m, toSlotKey, fromSlotKey, toSlot, fromSlot), slotKeys, func(i int) agent.SlotRow {
			return agent.SlotRow{Addr: addr(i), Port: uint16(i), Cluster: 2, Node: uint16(i)}
		})
	})
	t.Run("ipcache", func(t *testing.T) {
		m := makeMap[bpf.Addr, bpf.IPCache](t, ebpf.Hash, n)
		conform(t, newMap("ipcache", m, toAddr, fromAddr, toIPCache, fromIPCache), addrs, func(i int) agent.IPCacheRow {
			return agent.IPCacheRow{Identity: uint32(i), Node: 7}
		})
	})
	t.Run("ipcache prefixes", func(t *testing.T) {
		m := makeMap[bpf.Prefix, bpf.IPCache](t, ebpf.LPMTrie, n)
		conform(t, newMap("ipcache (prefixes)", m, toPrefix, fromPrefix, toIPCache, fromIPCache), prefixes, func(i int) agent.IPCacheRow {
			return agent.IPCacheRow{Identity: uint32(i)}
		})
	})
	t.Run("node health", func(t *testing.T) {
		m := makeMap[bpf.NodeKey, bpf.Health](t, ebpf.Hash, n)
		conform(t, newMap("node_health", m, toNodeKey, fromNodeKey, toHealth, fromHealth), nodes, func(i int) agent.HealthRow { return agent.HealthRow{Since: uint64(i)} })
	})
	t.Run("singly", func(t *testing.T) {
		m := makeMap[bpf.Addr, bpf.Endpoint](t, ebpf.Hash, n)
		table := newMap("endpoints", m, toAddr, fromAddr, toEndpoint, fromEndpoint)
		table.single = true // as on a kernel without batch calls
		conform(t, table, addrs[:600], func(i int) agent.EndpointRow { return agent.EndpointRow{IfIndex: uint32(i), HostMAC: [6]byte{2}} })
	})
}

func TestMapFull(t *testing.T) {
	for _, single := range []bool{false, true} {
		m := makeMap[bpf.Addr, bpf.IPCache](t, ebpf.Hash, 100)
		table := newMap("ipcache", m, toAddr, fromAddr, toIPCache, fromIPCache)
		table.single = single
		rows := map[agent.Addr]agent.IPCacheRow{}
		for i := range 150 {
			rows[addr(i)] = agent.IPCacheRow{Identity: 1}
		}
		err := table.Put(rows)
		if !errors.Is(err, agent.ErrFull) || !strings.Contains(err.Error(), "map ipcache holds 100 rows") {
			t.Errorf("a full map said %v", err)
		}
		if n := len(dump(t, table)); n != 100 {
			t.Errorf("%d rows are in", n)
		}
	}
	m := makeMap[bpf.Prefix, bpf.IPCache](t, ebpf.LPMTrie, 2)
	table := newMap("ipcache (prefixes)", m, toPrefix, fromPrefix, toIPCache, fromIPCache)
	rows := map[agent.Prefix]agent.IPCacheRow{}
	for i := range 3 {
		rows[agent.MakePrefix(netip.PrefixFrom(addr(i<<9).IP(), 24))] = agent.IPCacheRow{Identity: 1}
	}
	if err := table.Put(rows); !errors.Is(err, agent.ErrFull) {
		t.Errorf("a full trie said %v", err)
	}
}

func prefix(text string) agent.Prefix { return agent.MakePrefix(netip.MustParsePrefix(text)) }
func ipAddr(text string) agent.Addr   { return agent.MakeAddr(netip.MustParseAddr(text)) }

// routesIn is a namespace with an uplink (192.0.2.1/24, fd01::1/64) and, as its
// tunnel device, one end of a veth.
func routesIn(t *testing.T) (*ns, *routes) {
	n := newNS(t)
	n.ip("link", "add", "name", "under", "type", "veth", "peer", "name", "peer")
	n.ip("addr", "add", "192.0.2.1/24", "dev", "under")
	n.ip("addr", "add", "fd01::1/64", "dev", "under", "nodad")
	n.ip("link", "set", "under", "up")
	n.ip("link", "set", "peer", "up")
	n.ip("link", "add", "name", "tun", "type", "veth", "peer", "name", "tunpeer")
	n.ip("link", "set", "tun", "up")
	n.ip("link", "set", "tunpeer", "up")
	n.ip("addr", "add", "10.1.0.1/32", "dev", "lo")
	n.ip("addr", "add", "fd00:1::1/128", "dev", "lo", "nodad")
	d := n.openDevice("tun", 51820)
	return n, &routes{nl: d.nl, device: "tun"}
}

func TestRoutesTable(t *testing.T) {
	n, table := routesIn(t)
	before := n.ip("route") + n.ip("-6", "route")
	rows := map[agent.RouteKey]agent.RouteRow{
		{Prefix: prefix("10.2.0.0/16"), Kind: agent.RouteBlackhole}:        {},
		{Prefix: prefix("10.2.0.0/16"), Kind: agent.RouteTunnel}:           {Source: ipAddr("10.1.0.1"), MTU: 1420},
		{Prefix: prefix("fd00:2::/48"), Kind: agent.RouteBlackhole}:        {},
		{Prefix: prefix("fd00:2::/48"), Kind: agent.RouteTunnel}:           {Source: ipAddr("fd00:1::1"), MTU: 1420},
		{Prefix: prefix("10.1.2.0/24"), Kind: agent.RouteDirect}:           {Via: ipAddr("192.0.2.2"), Source: ipAddr("10.1.0.1"), MTU: 1420},
		{Prefix: prefix("fd00:1:2::/64"), Kind: agent.RouteDirect}:         {Via: ipAddr("fd01::2"), Source: ipAddr("fd00:1::1")},
		{Prefix: prefix("10.1.0.7/32"), Kind: agent.RoutePod}:              {IfIndex: index(t, n, "peer")},
		{Prefix: prefix("fd00:1::7/128"), Kind: agent.RoutePod}:            {IfIndex: index(t, n, "peer")},
		{Prefix: prefix("2001:db8::ffff:0:0/96"), Kind: agent.RouteTunnel}: {},
	}
	if err := table.Put(rows); err != nil {
		t.Fatal(err)
	}
	if have := dump(t, table); !maps.Equal(have, rows) {
		t.Fatalf("kernel: %v\nwanted: %v\n%s%s", have, rows, n.ip("route"), n.ip("-6", "route"))
	}
	// A process with no memory reads the same; a changed row replaces, it does not add.
	table = &routes{nl: table.nl, device: "tun"}
	k := agent.RouteKey{Prefix: prefix("fd00:2::/48"), Kind: agent.RouteTunnel}
	rows[k] = agent.RouteRow{Source: ipAddr("fd00:1::1"), MTU: 1300}
	k4 := agent.RouteKey{Prefix: prefix("10.2.0.0/16"), Kind: agent.RouteTunnel}
	rows[k4] = agent.RouteRow{MTU: 1300}
	if err := table.Put(map[agent.RouteKey]agent.RouteRow{k: rows[k], k4: rows[k4]}); err != nil {
		t.Fatal(err)
	}
	if have := dump(t, table); !maps.Equal(have, rows) {
		t.Fatalf("after a change: %v\nwanted: %v", have, rows)
	}
	var keys []agent.RouteKey
	for k := range rows {
		keys = append(keys, k)
	}
	for range 2 {
		if err := table.Delete(keys); err != nil {
			t.Fatal(err)
		}
	}
	if after := n.ip("route") + n.ip("-6", "route"); after != before {
		t.Errorf("routes before:\n%s\nafter:\n%s", before, after)
	}
}

func TestRoutesConform(t *testing.T) {
	_, table := routesIn(t)
	var keys []agent.RouteKey
	for i := range 60 {
		bits := 24
		if i%2 == 1 {
			bits = 120
		}
		for _, kind := range []agent.RouteKind{agent.RouteBlackhole, agent.RouteTunnel} {
			keys = append(keys, agent.RouteKey{Prefix: agent.MakePrefix(netip.PrefixFrom(addr(i<<8+i%2).IP(), bits)), Kind: kind})
		}
	}
	conform(t, agent.Table[agent.RouteKey, agent.RouteRow](table), keys, func(i int) agent.RouteRow {
		return agent.RouteRow{MTU: uint16(1280 + i)}
	})
}

// Routes of others to the same prefixes, also with our metric, are never listed
// and never deleted.
func TestRoutesOfOthers(t *testing.T) {
	n, table := routesIn(t)
	n.ip("route", "add", "10.9.0.0/16", "dev", "tun", "metric", fmt.Sprint(metricTunnel))
	n.ip("-6", "route", "add", "fd09::/64", "dev", "tun", "metric", fmt.Sprint(metricTunnel))
	n.ip("route", "add", "blackhole", "10.8.0.0/16")
	n.ip("route", "add", "10.7.0.0/16", "dev", "tun", "proto", fmt.Sprint(RouteProtocol), "metric", "5") // ours by number, no kind of ours
	if rows := dump(t, table); len(rows) != 0 {
		t.Errorf("foreign routes in the dump: %v", rows)
	}
	before := n.ip("route") + n.ip("-6", "route")
	err := table.Delete([]agent.RouteKey{
		{Prefix: prefix("10.9.0.0/16"), Kind: agent.RouteTunnel}, {Prefix: prefix("fd09::/64"), Kind: agent.RouteTunnel},
		{Prefix: prefix("10.8.0.0/16"), Kind: agent.RouteBlackhole},
	})
	if err != nil {
		t.Error(err)
	}
	if after := n.ip("route") + n.ip("-6", "route"); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

func index(t *testing.T, n *ns, dev string) uint32 {
	t.Helper()
	d := n.openDevice("none", 1)
	link, err := d.nl.LinkByName(dev)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(link.Attrs().Index)
}

// The device dies under its routes: the blackholes take over in the same
// instant, what needs the tunnel waits, and comes back with it.
func TestBlackholeOutlivesDevice(t *testing.T) {
	n := newNS(t)
	dev := unique()
	proc := n.startTunnel(dev)
	n.ip("link", "add", "name", "under", "type", "veth", "peer", "name", "peer")
	n.ip("addr", "add", "192.0.2.1/24", "dev", "under")
	n.ip("link", "set", "under", "up")
	n.ip("link", "set", "peer", "up")
	n.ip("route", "add", "default", "via", "192.0.2.2") // where a leak would go
	n.ip("-6", "route", "add", "default", "dev", "under")
	d := n.openDevice(dev, 51821)
	if st, err := d.Ensure(1420, nil); err != nil || !st.Present || st.Kernel {
		t.Fatalf("%+v %v", st, err)
	}
	table := &routes{nl: d.nl, device: dev}
	rows := map[agent.RouteKey]agent.RouteRow{
		{Prefix: prefix("10.2.0.0/16"), Kind: agent.RouteBlackhole}: {},
		{Prefix: prefix("10.2.0.0/16"), Kind: agent.RouteTunnel}:    {MTU: 1420},
		{Prefix: prefix("fd00:2::/48"), Kind: agent.RouteBlackhole}: {},
		{Prefix: prefix("fd00:2::/48"), Kind: agent.RouteTunnel}:    {MTU: 1420},
	}
	if err := table.Put(rows); err != nil {
		t.Fatal(err)
	}
	if out := n.ip("route", "get", "10.2.3.4"); !strings.Contains(out, dev) {
		t.Errorf("route to the tunnel: %s", out)
	}
	proc.Process.Kill()
	proc.Wait()
	for end := time.Now().Add(5 * time.Second); exec.Command("ip", "-n", n.name, "link", "show", dev).Run() == nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the device outlives its process")
		}
	}
	for _, to := range []string{"10.2.3.4", "fd00:2::4"} {
		out, err := exec.Command("ip", "-n", n.name, "route", "get", to).CombinedOutput()
		if err == nil && !strings.Contains(string(out), "blackhole") {
			t.Errorf("%s has a way out: %s", to, out)
		}
	}
	if have := dump(t, table); len(have) != 2 {
		t.Errorf("left: %v", have)
	}
	err := table.Put(rows)
	if !errors.Is(err, ErrNoTunnel) || !strings.Contains(err.Error(), "2 routes wait") || !strings.Contains(err.Error(), "tombolo-agent tunnel --device "+dev) {
		t.Errorf("put without a device: %v", err)
	}
	if _, err := d.Ensure(1420, nil); !errors.Is(err, ErrNoTunnel) {
		t.Errorf("ensure without a device: %v", err)
	}
	n.startTunnel(dev)
	if st, err := d.Ensure(1420, nil); err != nil || !st.Present {
		t.Fatalf("%+v %v", st, err)
	}
	if err := table.Put(rows); err != nil {
		t.Fatal(err)
	}
	if have := dump(t, table); !maps.Equal(have, rows) {
		t.Errorf("after its return: %v", have)
	}
}

// Somebody else flushes our routes: that is told at once, for both families; the
// comings and goings of pods are not.
func TestWatchRoutes(t *testing.T) {
	n := newNS(t)
	n.ip("link", "add", "name", "pod", "type", "veth", "peer", "name", "peer")
	n.ip("link", "set", "pod", "up")
	d := n.openDevice(unique(), 51824)
	table := &routes{nl: d.nl, device: "none"}
	podRoute := agent.RouteKey{Prefix: prefix("10.77.1.9/32"), Kind: agent.RoutePod}
	guards := []agent.RouteKey{{Prefix: prefix("10.2.0.0/16"), Kind: agent.RouteBlackhole}, {Prefix: prefix("fd00:2::/48"), Kind: agent.RouteBlackhole}}
	ctx, cancel := context.WithCancel(context.Background())
	lost, done := make(chan struct{}, 100), make(chan error, 1)
	go n.in(func() error {
		done <- WatchRoutes(ctx, func() { lost <- struct{}{} })
		return nil
	})
	told := func(within time.Duration) bool {
		select {
		case <-lost:
			return true
		case <-time.After(within):
			return false
		}
	}
	put := func() {
		rows := map[agent.RouteKey]agent.RouteRow{podRoute: {IfIndex: uint32(ifindex(t, n, "pod"))}}
		for _, g := range guards {
			rows[g] = agent.RouteRow{}
		}
		if err := table.Put(rows); err != nil {
			t.Fatal(err)
		}
	}
	ready := false
	for end := time.Now().Add(10 * time.Second); !ready && time.Now().Before(end); { // until it listens
		put()
		n.ip("route", "flush", "proto", "84")
		ready = told(50 * time.Millisecond)
	}
	for told(100 * time.Millisecond) {
	}
	put()
	if err := table.Delete([]agent.RouteKey{podRoute}); err != nil || told(200*time.Millisecond) {
		t.Errorf("the route of a pod: %v", err)
	}
	n.ip("-6", "route", "flush", "proto", "84")
	if !ready || !told(5*time.Second) {
		t.Errorf("a flush is not told (listening: %v)", ready)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func ifindex(t *testing.T, n *ns, name string) (index int) {
	n.in(func() error {
		link, err := netlink.LinkByName(name)
		if err == nil {
			index = link.Attrs().Index
		}
		return err
	})
	return index
}

func TestPeersTable(t *testing.T) {
	n := newNS(t)
	dev := unique()
	n.startTunnel(dev)
	d := n.openDevice(dev, 51822)
	if _, err := d.Ensure(1420, nil); err != nil {
		t.Fatal(err)
	}
	keys := make([]agent.PeerKey, 20)
	for i := range keys {
		keys[i] = agent.PeerKey{0: 0xff, 1: 0xff, 2: 0xff, 3: byte(i)} // greater than ours: no yielding
	}
	t.Run("conform", func(t *testing.T) {
		table := newPeers(d.wg, dev)
		for i, k := range keys { // each value names its peer: allowed IPs move between peers otherwise
			conform(t, table, []agent.PeerKey{k}, func(v int) agent.PeerRow {
				row := agent.PeerRow{Allowed: fmt.Sprintf("10.%d.%d.0/24,10.%d.0.0/16,fd00:%x::/64", 100+i, v%256, 200+i, 1+i)}
				if v%2 == 0 {
					row.Endpoint = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), uint16(1000+v))
				} else {
					row.Endpoint = netip.MustParseAddrPort(fmt.Sprintf("[fd01::%x]:%d", i, 1000+v))
				}
				return row
			})
		}
		if err := table.Delete(keys); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("unchanged peers are not touched", func(t *testing.T) {
		wg, err := wgctrl.New()
		if err != nil {
			t.Fatal(err)
		}
		defer wg.Close()
		table := newPeers(wg, dev)
		row := agent.PeerRow{Endpoint: netip.MustParseAddrPort("192.0.2.9:51820"), Allowed: "10.9.0.0/16"}
		if err := table.Put(map[agent.PeerKey]agent.PeerRow{keys[0]: row}); err != nil {
			t.Fatal(err)
		}
		other := newPeers(wg, dev) // no memory
		if have := dump(t, other); have[keys[0]] != row {
			t.Errorf("read back %+v", have)
		}
		if err := other.Put(map[agent.PeerKey]agent.PeerRow{keys[0]: row, keys[1]: {Allowed: "10.8.0.0/16"}}); err != nil {
			t.Fatal(err)
		}
		got, err := wg.Device(dev)
		if err != nil || len(got.Peers) != 2 || got.Peers[0].PersistentKeepaliveInterval != keepalive {
			t.Errorf("%+v %v", got, err)
		}
	})
	t.Run("a new peer with a smaller key may speak first", func(t *testing.T) {
		table := newPeers(d.wg, dev)
		small := agent.PeerKey{31: 1}
		row := agent.PeerRow{Endpoint: netip.MustParseAddrPort("192.0.2.7:51820"), Allowed: "10.7.0.0/16"}
		if err := table.Put(map[agent.PeerKey]agent.PeerRow{small: row}); err != nil {
			t.Fatal(err)
		}
		find := func() wgtypes.Peer {
			got, err := d.wg.Device(dev)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range got.Peers {
				if agent.PeerKey(p.PublicKey) == small {
					return p
				}
			}
			t.Fatal("the peer is not there")
			return wgtypes.Peer{}
		}
		if p := find(); len(p.AllowedIPs) != 0 || p.PersistentKeepaliveInterval != 0 {
			t.Errorf("spoken to at once: %+v", p)
		}
		if have := dump(t, table); have[small] != row {
			t.Errorf("meanwhile it reads as %+v", have[small])
		}
		table.complete(map[agent.PeerKey]agent.PeerRow{small: row}) // what the timer does
		if p := find(); len(p.AllowedIPs) != 1 || p.PersistentKeepaliveInterval != keepalive || p.Endpoint.String() != "192.0.2.7:51820" {
			t.Errorf("not completed: %+v", p)
		}
		if err := table.Delete([]agent.PeerKey{small}); err != nil {
			t.Fatal(err)
		}
		table.complete(map[agent.PeerKey]agent.PeerRow{small: row})
		if have := dump(t, newPeers(d.wg, dev)); len(have[small].Allowed) != 0 {
			t.Error("a deleted peer came back")
		}
	})
	t.Run("prefixes read in the order of the plan", func(t *testing.T) {
		table := newPeers(d.wg, dev)
		row := agent.PeerRow{Allowed: "10.7.2.0/24,10.7.10.0/24,fd00:7::/64"}
		if err := table.Put(map[agent.PeerKey]agent.PeerRow{keys[2]: row}); err != nil {
			t.Fatal(err)
		}
		if have := dump(t, newPeers(d.wg, dev)); have[keys[2]] != row {
			t.Errorf("read back %+v", have[keys[2]])
		}
	})
	t.Run("prefixes move and nothing else changes", func(t *testing.T) {
		table := newPeers(d.wg, dev)
		end := netip.MustParseAddrPort("192.0.2.9:51820")
		before := map[agent.PeerKey]agent.PeerRow{keys[3]: {Endpoint: end, Allowed: "10.6.1.0/24,10.6.2.0/24"}, keys[4]: {Allowed: "10.6.3.0/24"}}
		after := map[agent.PeerKey]agent.PeerRow{keys[3]: {Endpoint: end, Allowed: "10.6.1.0/24"}, keys[4]: {Allowed: "10.6.2.0/24,10.6.3.0/24"}}
		if err := table.Put(before); err != nil {
			t.Fatal(err)
		}
		// Both were heard from elsewhere since; so is the one that never had an endpoint.
		roamed := map[agent.PeerKey]string{keys[3]: "198.51.100.1:7", keys[4]: "198.51.100.2:8"}
		for key, at := range roamed {
			if err := d.wg.ConfigureDevice(dev, wgtypes.Config{Peers: []wgtypes.PeerConfig{{PublicKey: wgtypes.Key(key), UpdateOnly: true,
				Endpoint: net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at))}}}); err != nil {
				t.Fatal(err)
			}
		}
		table.now = func() time.Time { return time.Time{}.Add(fresh / 2) } // no handshake took place here
		for _, rows := range []map[agent.PeerKey]agent.PeerRow{before, after, before} {
			if err := table.Put(rows); err != nil {
				t.Fatal(err)
			}
			have := dump(t, table)
			for key, row := range rows {
				if have[key] != row {
					t.Errorf("%x reads as %+v, want %+v", key[3], have[key], row)
				}
			}
		}
		got, err := d.wg.Device(dev)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range got.Peers {
			if at, ok := roamed[agent.PeerKey(p.PublicKey)]; ok && p.Endpoint.String() != at {
				t.Errorf("%v was pushed back to %v", p.PublicKey, p.Endpoint)
			}
		}
		// An agent without memory leaves them where they are, too.
		other := newPeers(d.wg, dev)
		other.now = table.now
		if err := other.Put(before); err != nil {
			t.Fatal(err)
		}
		if have := dump(t, other); have[keys[3]] != before[keys[3]] || have[keys[4]] != before[keys[4]] {
			t.Errorf("after a restart: %+v", have)
		}
		// A new endpoint in the record counts.
		moved := map[agent.PeerKey]agent.PeerRow{keys[3]: {Endpoint: netip.MustParseAddrPort("192.0.2.77:51820"), Allowed: "10.6.1.0/24,10.6.2.0/24"}}
		if err := other.Put(moved); err != nil {
			t.Fatal(err)
		}
		other.now = time.Now
		if have := dump(t, other); have[keys[3]] != moved[keys[3]] {
			t.Errorf("moved: %+v", have[keys[3]])
		}
	})
	t.Run("absent", func(t *testing.T) {
		table := newPeers(d.wg, unique())
		for range table.Dump() {
			t.Error("a row of a device that is not there")
		}
		if err := table.DumpErr(); !errors.Is(err, ErrNoTunnel) {
			t.Errorf("dump: %v", err)
		}
		if err := table.Put(map[agent.PeerKey]agent.PeerRow{keys[0]: {}}); !errors.Is(err, ErrNoTunnel) {
			t.Errorf("put: %v", err)
		}
	})
}
