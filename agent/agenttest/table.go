// Package agenttest holds what tests of tables share: the conformance suite
// that the fake and the tables on a real kernel both run.
package agenttest

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"testing"

	"github.com/tombolo-mesh/tombolo/agent"
)

// Row makes row number i of a table, in one of several versions: the same key,
// another value.
type Row[K comparable, V comparable] func(i, version int) (K, V)

// Rows are n rows of one version.
func Rows[K comparable, V comparable](row Row[K, V], n, version int) map[K]V {
	rows := map[K]V{}
	for i := range n {
		k, v := row(i, version)
		rows[k] = v
	}
	return rows
}

// Options of TestTable.
type Options struct {
	// Size is how many rows fit; 0 = the table has no limit that is tested.
	Size int
	// Rows is how many rows the tests write; 0 = 10.
	Rows int
	// SameValue: rows have a key only, a second version equals the first.
	SameValue bool
}

// TestTable checks the rules of agent.Table. newTable makes an empty table, or
// at least one without any of row's keys; a table that holds other rows must
// keep them throughout.
func TestTable[K comparable, V comparable](t *testing.T, newTable func(t *testing.T) agent.Table[K, V], row Row[K, V], o Options) {
	n := o.Rows
	if n == 0 {
		n = 10
	}
	t.Run("empty", func(t *testing.T) {
		table := newTable(t)
		lacks(t, table, row, n)
		must(t, table.Put(map[K]V{}))
		must(t, table.Delete(nil))
	})
	t.Run("put", func(t *testing.T) {
		table := newTable(t)
		rows := Rows(row, n, 0)
		must(t, table.Put(rows))
		holds(t, table, rows)
		must(t, table.Put(rows)) // idempotent
		holds(t, table, rows)
	})
	t.Run("overwrite", func(t *testing.T) {
		if o.SameValue {
			t.Skip("rows of this table have no value")
		}
		table := newTable(t)
		must(t, table.Put(Rows(row, n, 0)))
		must(t, table.Put(Rows(row, n/2, 1)))
		want := Rows(row, n, 0)
		maps.Copy(want, Rows(row, n/2, 1))
		holds(t, table, want)
	})
	t.Run("delete", func(t *testing.T) {
		table := newTable(t)
		rows := Rows(row, n, 0)
		must(t, table.Put(rows))
		k, _ := row(0, 0)
		must(t, table.Delete([]K{k}))
		must(t, table.Delete([]K{k})) // deleting what is absent is not an error
		delete(rows, k)
		holds(t, table, rows)
		var all []K
		for k := range Rows(row, n, 0) {
			all = append(all, k) // one of them absent
		}
		must(t, table.Delete(all))
		lacks(t, table, row, n)
	})
	t.Run("dump may be left early", func(t *testing.T) {
		table := newTable(t)
		must(t, table.Put(Rows(row, n, 0)))
		for range table.Dump() {
			break
		}
		holds(t, table, Rows(row, n, 0))
	})
	t.Run("change while dumping", func(t *testing.T) {
		table := newTable(t)
		must(t, table.Put(Rows(row, n, 0)))
		for k := range table.Dump() {
			must(t, table.Delete([]K{k}))
		}
		must(t, table.DumpErr())
		lacks(t, table, row, n)
	})
	t.Run("full", func(t *testing.T) {
		if o.Size == 0 {
			t.Skip("this table has no limit that is tested")
		}
		table := newTable(t)
		must(t, table.Put(Rows(row, o.Size, 0)))
		err := table.Put(Rows(row, o.Size+1, 0))
		if !errors.Is(err, agent.ErrFull) {
			t.Fatalf("one row more than the %d that fit: got %v, want ErrFull", o.Size, err)
		}
		holds(t, table, Rows(row, o.Size, 0))
		if !o.SameValue {
			must(t, table.Put(Rows(row, o.Size, 1))) // overwriting needs no room
		}
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func dump[K comparable, V comparable](t *testing.T, table agent.Table[K, V]) map[K]V {
	t.Helper()
	rows := map[K]V{}
	for k, v := range table.Dump() {
		rows[k] = v
	}
	must(t, table.DumpErr())
	return rows
}

func holds[K comparable, V comparable](t *testing.T, table agent.Table[K, V], want map[K]V) {
	t.Helper()
	got := dump(t, table)
	for k, v := range want {
		if have, ok := got[k]; !ok || have != v {
			t.Fatalf("row %v: have %v (%v), want %v", k, have, ok, v)
		}
	}
}

func lacks[K comparable, V comparable](t *testing.T, table agent.Table[K, V], row Row[K, V], n int) {
	t.Helper()
	got := dump(t, table)
	for k := range Rows(row, n, 0) {
		if v, ok := got[k]; ok {
			t.Fatalf("row %v = %v is there, should not be", k, v)
		}
	}
}

func addr(i int) agent.Addr {
	return agent.MakeAddr(netip.AddrFrom4([4]byte{10, 99, byte(i >> 8), byte(i)}))
}

// IP is rows of the table of single addresses.
func IP(i, version int) (agent.Addr, agent.IPCacheRow) {
	return addr(i), agent.IPCacheRow{Identity: uint32(7<<20 + i), Node: uint16(1 + version)}
}

// IPPrefix is rows of the table of prefixes.
func IPPrefix(i, version int) (agent.Prefix, agent.IPCacheRow) {
	p := agent.MakePrefix(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 24))
	if i%2 == 1 {
		p = agent.MakePrefix(netip.MustParsePrefix(fmt.Sprintf("fd00:%x::/64", i)))
	}
	return p, agent.IPCacheRow{Identity: 7 << 20, Node: uint16(1 + version)}
}

// Endpoint is rows of the table of local pods.
func Endpoint(i, version int) (agent.Addr, agent.EndpointRow) {
	return addr(i), agent.EndpointRow{IfIndex: uint32(i + 2), PodMAC: [6]byte{2, byte(i)}, HostMAC: [6]byte{2, 1, byte(i)}, Identity: uint32(version)}
}

// Slot is rows of the table of backends.
func Slot(i, version int) (agent.SlotKey, agent.SlotRow) {
	return agent.SlotKey{Service: 0xfeed, Cluster: 7, Slot: uint32(i)}, agent.SlotRow{Addr: addr(i), Port: 8080, Cluster: 7, Node: uint16(1 + version)}
}

// Service is rows of the table of frontends.
func Service(i, version int) (agent.ServiceKey, agent.ServiceRow) {
	row := agent.ServiceRow{ID: 0xfeed, NumTiers: 1}
	row.Tiers[0] = agent.Tier{Groups: 1, Share: 65535}
	row.Groups[0] = agent.Group{Cluster: 7, Weight: 1, Count: uint32(1 + version)}
	return agent.ServiceKey{Addr: addr(i), Port: 80, Proto: 6}, row
}

// NodeHealth is rows of the table of nodes that are down.
func NodeHealth(i, version int) (agent.NodeKey, agent.HealthRow) {
	return agent.NodeKey{Cluster: 4000, Node: uint16(i + 1)}, agent.HealthRow{Since: uint64(1000 + version)}
}

// ClusterHealth is rows of the table of clusters that are down.
func ClusterHealth(i, version int) (agent.ClusterKey, agent.HealthRow) {
	return agent.ClusterKey(3000 + i), agent.HealthRow{Since: uint64(1000 + version)}
}

// Policy is rows of the table of policy.
func Policy(i, version int) (agent.PolicyKey, agent.PolicyRow) {
	k := agent.PolicyKey{Subject: 0xfeed0000, Peer: agent.PolicyPeer(7<<20 + i/4), Dir: agent.Direction(i % 2)}
	switch i % 4 {
	case 1:
		k.Proto = 6
	case 2:
		k.Proto, k.Port, k.Bits = 17, 53, 16
	case 3:
		k.Proto, k.Port, k.Bits, k.Peer = 6, 8080, 12, agent.PeerClass|agent.PolicyPeer(i)
	}
	return k, agent.PolicyRow{
		Admin: agent.PolicyStage{Rule: 1, Rank: uint16(1 + version), Verdict: agent.Pass}, Allow: uint32(i),
		Base: agent.PolicyStage{Rule: 3, Rank: 1, Verdict: agent.Deny},
	}
}

// Subject is rows of the table of subjects.
func Subject(i, version int) (agent.SubjectKey, agent.SubjectRow) {
	return agent.SubjectKey(0xfeed0000_00000000 + uint64(i)), agent.SubjectRow{Flags: agent.IsolatedIn | agent.SubjectFlags(version)<<1}
}

// Class is rows of the table of classes of single addresses.
func Class(i, version int) (agent.Addr, agent.ClassRow) {
	return addr(i), agent.ClassRow{ID: agent.PeerClass | agent.PolicyPeer(version)}
}

// ClassPrefix is rows of the table of classes of prefixes.
func ClassPrefix(i, version int) (agent.Prefix, agent.ClassRow) {
	k, _ := IPPrefix(i, 0)
	return k, agent.ClassRow{ID: agent.PeerClass | agent.PolicyPeer(version)}
}

// Range is rows of the table of sources that may reach a service.
func Range(i, version int) (agent.RangeKey, agent.RangeRow) {
	p, _ := IPPrefix(i, 0)
	return agent.RangeKey{Service: 0xfeed0000_00000000 + uint64(i%2), Prefix: p}, agent.RangeRow{Allow: version == 0}
}

// Maglev is rows of the table of consistent tables.
func Maglev(i, version int) (agent.MaglevKey, agent.MaglevRow) {
	row := agent.MaglevRow{}
	for j := range row.Entry {
		row.Entry[j] = 7<<16 | uint32(j%(2+version))
	}
	return agent.MaglevKey{Service: 0xfeed, Chunk: uint32(i)}, row
}

// Config is the row of the node itself; there is one (Options.Rows).
func Config(_, version int) (agent.ConfigKey, agent.ConfigRow) {
	return agent.ConfigKey{}, agent.ConfigRow{Cluster: 7, Node: uint16(1 + version), Node4: addr(1), PortMin: 32768, PortMax: 60999, TunnelMTU: 1420}
}
