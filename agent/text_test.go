package agent

import (
	"bytes"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func drawAddr(t *rapid.T) Addr {
	if rapid.Bool().Draw(t, "v6") {
		a := Addr(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "addr"))
		if a.IP().Is4() {
			a[0] = 0xfd
		}
		return a
	}
	return MakeAddr(netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "addr"))))
}

func drawPrefix(t *rapid.T) Prefix {
	ip := drawAddr(t).IP()
	p, err := ip.Prefix(rapid.IntRange(0, ip.BitLen()).Draw(t, "bits"))
	if err != nil {
		t.Fatal(err)
	}
	return MakePrefix(p)
}

func drawService(t *rapid.T) ServiceRow {
	v := ServiceRow{ID: rapid.Uint64().Draw(t, "id"), Flags: ServiceFlags(rapid.Uint8().Draw(t, "flags"))}
	v.NumTiers = uint8(rapid.IntRange(0, MaxTiers).Draw(t, "tiers"))
	next := uint8(0)
	for i := range int(v.NumTiers) {
		n := uint8(rapid.IntRange(0, MaxGroups/MaxTiers).Draw(t, "groups"))
		v.Tiers[i] = Tier{First: next, Groups: n, Share: rapid.Uint16().Draw(t, "share")}
		for range n {
			v.Groups[next] = Group{rapid.Uint16().Draw(t, "cluster"), rapid.Uint16().Draw(t, "weight"), rapid.Uint32().Draw(t, "count")}
			next++
		}
	}
	return v
}

func roundTrip[K comparable, V comparable](t *testing.T, text Text[K, V], draw func(*rapid.T) (K, V)) {
	t.Helper()
	rapid.Check(t, func(t *rapid.T) {
		rows := map[K]V{}
		for range rapid.IntRange(0, 5).Draw(t, "rows") {
			k, v := draw(t)
			rows[k] = v
		}
		printed := text.Print(rows)
		read, err := text.Read(printed)
		if err != nil {
			t.Fatalf("%v\n%s", err, printed)
		}
		if !maps.Equal(read, rows) {
			t.Fatalf("printed and read back:\n%s\n%v\n%v", printed, read, rows)
		}
		if again := text.Print(read); again != printed {
			t.Fatalf("printed twice:\n%s\n%s", printed, again)
		}
	})
}

func TestTextRoundTrips(t *testing.T) {
	roundTrip(t, PeerText, func(t *rapid.T) (k PeerKey, v PeerRow) {
		copy(k[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "key"))
		if rapid.Bool().Draw(t, "endpoint") {
			v.Endpoint = netip.AddrPortFrom(drawAddr(t).IP(), rapid.Uint16().Draw(t, "port"))
		}
		var allowed []netip.Prefix
		for range rapid.IntRange(0, 3).Draw(t, "allowed") {
			allowed = append(allowed, drawPrefix(t).Netip())
		}
		v.Allowed = formatAllowed(allowed)
		return k, v
	})
	roundTrip(t, RouteText, func(t *rapid.T) (RouteKey, RouteRow) {
		v := RouteRow{IfIndex: rapid.Uint32().Draw(t, "if"), MTU: rapid.Uint16().Draw(t, "mtu")}
		if rapid.Bool().Draw(t, "via") {
			v.Via, v.Source = drawAddr(t), drawAddr(t)
		}
		return RouteKey{drawPrefix(t), RouteKind(rapid.IntRange(1, 4).Draw(t, "kind"))}, v
	})
	ip := func(t *rapid.T) IPCacheRow {
		return IPCacheRow{rapid.Uint32().Draw(t, "identity"), rapid.Uint16().Draw(t, "node"), IPFlags(rapid.Uint16().Draw(t, "flags"))}
	}
	roundTrip(t, IPPrefixText, func(t *rapid.T) (Prefix, IPCacheRow) { return drawPrefix(t), ip(t) })
	roundTrip(t, IPText, func(t *rapid.T) (Addr, IPCacheRow) { return drawAddr(t), ip(t) })
	roundTrip(t, EndpointText, func(t *rapid.T) (Addr, EndpointRow) {
		mac := func() [6]byte { return [6]byte(rapid.SliceOfN(rapid.Byte(), 6, 6).Draw(t, "mac")) }
		return drawAddr(t), EndpointRow{rapid.Uint32().Draw(t, "if"), mac(), mac(), rapid.Uint32().Draw(t, "identity"),
			rapid.Uint64().Draw(t, "subject"), rapid.Bool().Draw(t, "closed")}
	})
	roundTrip(t, SlotText, func(t *rapid.T) (SlotKey, SlotRow) {
		return SlotKey{rapid.Uint64().Draw(t, "service"), rapid.Uint16().Draw(t, "cluster"), rapid.Uint32().Draw(t, "slot")},
			SlotRow{drawAddr(t), rapid.Uint16().Draw(t, "port"), rapid.Uint16().Draw(t, "cluster"), rapid.Uint16().Draw(t, "node")}
	})
	roundTrip(t, ServiceText, func(t *rapid.T) (ServiceKey, ServiceRow) {
		return ServiceKey{drawAddr(t), rapid.Uint16().Draw(t, "port"), rapid.Uint8().Draw(t, "proto"), Scope(rapid.IntRange(0, 1).Draw(t, "scope"))}, drawService(t)
	})
	since := func(t *rapid.T) HealthRow { return HealthRow{rapid.Uint64().Draw(t, "since")} }
	roundTrip(t, NodeHealthText, func(t *rapid.T) (NodeKey, HealthRow) {
		return NodeKey{rapid.Uint16().Draw(t, "cluster"), rapid.Uint16().Draw(t, "node")}, since(t)
	})
	roundTrip(t, ClusterHealthText, func(t *rapid.T) (ClusterKey, HealthRow) {
		return ClusterKey(rapid.Uint16().Draw(t, "cluster")), since(t)
	})
}

func TestTextIsReadable(t *testing.T) {
	row := ServiceRow{ID: 0x0123456789abcdef, NumTiers: 2}
	row.Tiers[0] = Tier{0, 1, 30000}
	row.Tiers[1] = Tier{1, 2, 65535}
	row.Groups = [MaxGroups]Group{{1, 1, 2}, {2, 3, 4}, {3, 1, 1}}
	got := ServiceText.Print(map[ServiceKey]ServiceRow{
		{MakeAddr(netip.MustParseAddr("172.20.0.1")), 80, 6, ScopeInside}: row,
		{MakeAddr(netip.MustParseAddr("fd00::1")), 53, 17, ScopeOutside}:  {},
	})
	want := "172.20.0.1:80/tcp id=0123456789abcdef flags=0 tier0=30000[1*1#2] tier1=65535[2*3#4,3*1#1]\n" +
		"[fd00::1]:53/udp/outside id=0000000000000000 flags=0\n"
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestTextRefusesMistakes(t *testing.T) {
	for _, line := range []string{
		"", "10.0.0.1", "10.0.0.1:80", "10.0.0.1:80/xyz id=00", "10.0.0.1:80/tcp id=1", "10.0.0.1:80/tcp id=0123456789abcdef flags=300",
		"10.0.0.1:80/tcp id=0123456789abcdef tier0=1", "10.0.0.1:80/tcp id=0123456789abcdef tier0=1[2]", "10.0.0.1:80/tcp id=0123456789abcdef colour=red",
		"10.0.0.1:80/tcp id=0123456789abcdef tier0=1[" + strings.Repeat("1*1#1,", MaxGroups+1) + "]",
	} {
		if k, v, err := ServiceText.Parse(line); err == nil {
			t.Errorf("%q was read as %v %v", line, k, v)
		}
	}
	if _, err := IPText.Read("10.0.0.1 identity=1:2 node=1\n10.0.0.1 identity=1:2 node=1\n"); err == nil {
		t.Error("a key twice was taken")
	}
}

func FuzzServiceText(f *testing.F) {
	f.Add("172.20.0.1:80/tcp id=0123456789abcdef flags=0 tier0=30000[1*1#2] tier1=65535[2*3#4,3*1#1]")
	f.Fuzz(func(t *testing.T, line string) {
		k, v, err := ServiceText.Parse(line)
		if err != nil {
			return
		}
		again := ServiceText.Format(k, v)
		k2, v2, err := ServiceText.Parse(again)
		if err != nil || k != k2 || v != v2 {
			t.Fatalf("%q → %q: %v", line, again, err)
		}
	})
}

func TestAddrOrder(t *testing.T) {
	a, b := MakeAddr(netip.MustParseAddr("10.0.0.1")), MakeAddr(netip.MustParseAddr("10.0.0.2"))
	if bytes.Compare(a[:], b[:]) >= 0 || compareAddrs(a, b) >= 0 {
		t.Error("addresses sort by their bytes")
	}
}
