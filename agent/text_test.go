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
		return RouteKey{drawPrefix(t), RouteKind(rapid.IntRange(1, 5).Draw(t, "kind"))}, v
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
	stage := func(t *rapid.T) PolicyStage {
		return PolicyStage{rapid.Uint32().Draw(t, "rule"), rapid.Uint16().Draw(t, "rank"), Verdict(rapid.IntRange(0, 3).Draw(t, "verdict"))}
	}
	roundTrip(t, PolicyText, func(t *rapid.T) (PolicyKey, PolicyRow) {
		k := PolicyKey{Subject: SubjectKey(rapid.Uint64().Draw(t, "subject")), Dir: Direction(rapid.IntRange(0, 1).Draw(t, "direction"))}
		k.Peer = rapid.SampledFrom([]PolicyPeer{PeerAny, PeerClass, PeerClass | 77, 0, 7<<20 | 5}).Draw(t, "peer")
		if rapid.Bool().Draw(t, "ports") {
			k.Proto, k.Bits = rapid.Uint8Range(1, 255).Draw(t, "proto"), rapid.Uint8Range(0, 16).Draw(t, "bits")
			k.Port = rapid.Uint16().Draw(t, "port") &^ uint16(1<<(16-k.Bits)-1)
		}
		return k, PolicyRow{Admin: stage(t), Base: stage(t), Allow: rapid.Uint32().Draw(t, "allow")}
	})
	roundTrip(t, SubjectText, func(t *rapid.T) (SubjectKey, SubjectRow) {
		return SubjectKey(rapid.Uint64().Draw(t, "subject")), SubjectRow{SubjectFlags(rapid.Uint32().Draw(t, "flags"))}
	})
	class := func(t *rapid.T) ClassRow { return ClassRow{PolicyPeer(rapid.Uint64().Draw(t, "class"))} }
	roundTrip(t, ClassText, func(t *rapid.T) (Addr, ClassRow) { return drawAddr(t), class(t) })
	roundTrip(t, ClassPrefixText, func(t *rapid.T) (Prefix, ClassRow) { return drawPrefix(t), class(t) })
	roundTrip(t, RangeText, func(t *rapid.T) (RangeKey, RangeRow) {
		return RangeKey{rapid.Uint64().Draw(t, "service"), drawPrefix(t)}, RangeRow{rapid.Bool().Draw(t, "allow")}
	})
	roundTrip(t, MaglevText, func(t *rapid.T) (k MaglevKey, v MaglevRow) {
		for i := range 5 {
			v.Entry[rapid.IntRange(0, MaglevChunk-1).Draw(t, "bucket")] = rapid.Uint32().Draw(t, "entry") + uint32(i)
		}
		return MaglevKey{rapid.Uint64().Draw(t, "service"), rapid.Uint32().Draw(t, "chunk")}, v
	})
	roundTrip(t, ConfigText, func(t *rapid.T) (k ConfigKey, v ConfigRow) {
		v = ConfigRow{Flags: ConfigFlags(rapid.Uint32().Draw(t, "flags")), Cluster: rapid.Uint16().Draw(t, "cluster"), Node: rapid.Uint16().Draw(t, "node"),
			PortMin: rapid.Uint16().Draw(t, "min"), PortMax: rapid.Uint16().Draw(t, "max"), TunnelMTU: rapid.Uint16().Draw(t, "mtu")}
		for _, a := range []*Addr{&v.Node4, &v.Node6, &v.Tunnel4, &v.Tunnel6} {
			if rapid.Bool().Draw(t, "has") {
				*a = drawAddr(t)
			}
		}
		return k, v
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

func TestPolicyTextIsReadable(t *testing.T) {
	got := PolicyText.Print(map[PolicyKey]PolicyRow{
		{Subject: 1, Peer: PeerAny, Dir: Egress}:                         {Base: PolicyStage{7, 2, Deny}},
		{Subject: 1, Peer: 2<<20 | 5, Proto: 6, Port: 8080, Bits: 12}:    {Allow: 0xabc},
		{Subject: 1, Peer: PeerClass | 9, Proto: 17, Port: 53, Bits: 16}: {Admin: PolicyStage{8, 1, Accept}},
		{Subject: 1, Peer: 2 << 20, Proto: 132}:                          {},
	}) + SubjectText.Print(map[SubjectKey]SubjectRow{1: {IsolatedIn | ClassesOut | SubjectClosed}, 2: {}})
	want := `0000000000000001 ingress 2:0 sctp
0000000000000001 ingress 2:5 tcp/8080-8095 allow=00000abc
0000000000000001 ingress class:8000000000000009 udp/53 admin=accept:1:00000008
0000000000000001 egress any any base=deny:2:00000007
0000000000000001 flags=isolated-in,classes-out,closed
0000000000000002 flags=-
`
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	for _, line := range []string{
		"1 ingress any any", "0000000000000001 sideways any any", "0000000000000001 ingress 5 any", "0000000000000001 ingress any tcp/1-3",
		"0000000000000001 ingress any tcp/8081-8096", "0000000000000001 ingress any any admin=maybe:1:1", "0000000000000001 ingress any any admin=deny",
	} {
		if k, v, err := PolicyText.Parse(line); err == nil {
			t.Errorf("%q was read as %v %v", line, k, v)
		}
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
