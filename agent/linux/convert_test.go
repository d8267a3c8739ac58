package linux

import (
	"testing"
	"unsafe"

	"pgregory.net/rapid"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/bpf"
)

func roundTrip[A comparable, B any](t *testing.T, name string, gen *rapid.Generator[A], to func(A) B, from func(B) A) {
	t.Run(name, rapid.MakeCheck(func(t *rapid.T) {
		a := gen.Draw(t, "row")
		if back := from(to(a)); back != a {
			t.Fatalf("%+v came back as %+v", a, back)
		}
	}))
}

func TestRoundTrips(t *testing.T) {
	roundTrip(t, "service key", rapid.Make[agent.ServiceKey](), toServiceKey, fromServiceKey)
	roundTrip(t, "service", rapid.Make[agent.ServiceRow](), toService, fromService)
	roundTrip(t, "slot key", rapid.Make[agent.SlotKey](), toSlotKey, fromSlotKey)
	roundTrip(t, "slot", rapid.Make[agent.SlotRow](), toSlot, fromSlot)
	roundTrip(t, "node key", rapid.Make[agent.NodeKey](), toNodeKey, fromNodeKey)
	roundTrip(t, "cluster key", rapid.Make[agent.ClusterKey](), toClusterKey, fromClusterKey)
	roundTrip(t, "health", rapid.Make[agent.HealthRow](), toHealth, fromHealth)
	roundTrip(t, "ipcache", rapid.Make[agent.IPCacheRow](), toIPCache, fromIPCache)
	roundTrip(t, "prefix", rapid.Make[agent.Prefix](), toPrefix, fromPrefix)
	roundTrip(t, "address", rapid.Make[agent.Addr](), toAddr, fromAddr)
	roundTrip(t, "endpoint", rapid.Make[agent.EndpointRow](), toEndpoint, fromEndpoint)
	roundTrip(t, "policy key", rapid.Custom(drawPolicyKey), toPolicyKey, fromPolicyKey)
	roundTrip(t, "policy", rapid.Make[agent.PolicyRow](), toPolicy, fromPolicy)
	roundTrip(t, "subject key", rapid.Make[agent.SubjectKey](), toSubjectKey, fromSubjectKey)
	roundTrip(t, "subject", rapid.Make[agent.SubjectRow](), toSubject, fromSubject)
	roundTrip(t, "class", rapid.Make[agent.ClassRow](), toClass, fromClass)
	roundTrip(t, "range key", rapid.Make[agent.RangeKey](), toRangeKey, fromRangeKey)
	roundTrip(t, "range", rapid.Make[agent.RangeRow](), toRange, fromRange)
	roundTrip(t, "maglev key", rapid.Make[agent.MaglevKey](), toMaglevKey, fromMaglevKey)
	roundTrip(t, "maglev", rapid.Make[agent.MaglevRow](), toMaglev, fromMaglev)
	roundTrip(t, "config", rapid.Make[agent.ConfigRow](), toConfig, fromConfig)
}

// drawPolicyKey draws keys as they are made: nothing below the bits that count.
func drawPolicyKey(t *rapid.T) agent.PolicyKey {
	k := rapid.Make[agent.PolicyKey]().Draw(t, "key")
	k.Bits = uint8(rapid.IntRange(0, 16).Draw(t, "bits"))
	if k.Proto == 0 {
		k.Bits = 0
	}
	k.Port &^= uint16(1<<(16-k.Bits) - 1)
	return k
}

// The rows of package agent and those of the C header hold the same: neither
// has a field that the other lacks (sizes without padding), and limits agree.
func TestSizes(t *testing.T) {
	for _, c := range []struct {
		name      string
		bpf, want uintptr
	}{
		{"service key", unsafe.Sizeof(bpf.ServiceKey{}), 16 + 2 + 1 + 1},
		{"service", unsafe.Sizeof(bpf.Service{}), 8 + 1 + 1 + 6 + agent.MaxTiers*4 + agent.MaxGroups*8},
		{"slot key", unsafe.Sizeof(bpf.SlotKey{}), 8 + 4 + 2 + 2},
		{"slot", unsafe.Sizeof(bpf.Slot{}), 16 + 2 + 2 + 2 + 2},
		{"node key", unsafe.Sizeof(bpf.NodeKey{}), 4},
		{"health", unsafe.Sizeof(bpf.Health{}), 8},
		{"ipcache", unsafe.Sizeof(bpf.IPCache{}), 8},
		{"prefix", unsafe.Sizeof(bpf.Prefix{}), 20},
		{"endpoint", unsafe.Sizeof(bpf.Endpoint{}), 8 + 4 + 4 + 6 + 6 + 4},
		{"policy key", unsafe.Sizeof(bpf.PolicyKey{}), 4 + 8 + 8 + 1 + 1 + 2},
		{"policy", unsafe.Sizeof(bpf.Policy{}), 8 + 8 + 4 + 4},
		{"subject", unsafe.Sizeof(bpf.Subject{}), 4 + 4},
		{"class", unsafe.Sizeof(bpf.Class{}), 8},
		{"range key", unsafe.Sizeof(bpf.RangeKey{}), 4 + 8 + 16},
		{"range", unsafe.Sizeof(bpf.Range{}), 4},
		{"maglev key", unsafe.Sizeof(bpf.MaglevKey{}), 8 + 4 + 4},
		{"maglev", unsafe.Sizeof(bpf.Maglev{}), agent.MaglevChunk * 4},
		{"config", unsafe.Sizeof(bpf.Config{}), 4*16 + 4 + 4*2 + 4},
	} {
		if c.bpf != c.want {
			t.Errorf("%s has %d bytes, expected %d: has the C header changed?", c.name, c.bpf, c.want)
		}
	}
	if agent.MaxTiers != bpf.MaxTiers || agent.MaxGroups != bpf.MaxGroups {
		t.Errorf("limits differ: %d, %d and %d, %d", agent.MaxTiers, agent.MaxGroups, bpf.MaxTiers, bpf.MaxGroups)
	}
	for _, c := range []struct {
		name        string
		agent, want uint64
	}{
		{"buckets of a row", agent.MaglevChunk, uint64(bpf.MaglevChunk)},
		{"scope outside", uint64(agent.ScopeOutside), uint64(bpf.ScopeOutside)},
		{"service local", uint64(agent.ServiceLocal), uint64(bpf.ServiceLocal)},
		{"service keeps source", uint64(agent.ServiceKeepSource), uint64(bpf.ServiceKeepSource)},
		{"service has ranges", uint64(agent.ServiceRanges), uint64(bpf.ServiceRanges)},
		{"service is drained", uint64(agent.ServiceDrained), uint64(bpf.ServiceDrained)},
		{"tunnel address", uint64(agent.IPTunnelAddress), uint64(bpf.IPTunnelAddress)},
		{"encrypted", uint64(agent.IPEncrypted), uint64(bpf.IPEncrypted)},
		{"here", uint64(agent.IPHere), uint64(bpf.IPHere)},
		{"across", uint64(agent.IPAcross), uint64(bpf.IPAcross)},
		{"gateway", uint64(agent.Gateway), uint64(bpf.Gateway)},
		{"isolated in", uint64(agent.IsolatedIn), uint64(bpf.IsolatedIn)},
		{"isolated out", uint64(agent.IsolatedOut), uint64(bpf.IsolatedOut)},
		{"classes in", uint64(agent.ClassesIn), uint64(bpf.ClassesIn)},
		{"classes out", uint64(agent.ClassesOut), uint64(bpf.ClassesOut)},
		{"closed", uint64(agent.SubjectClosed), uint64(bpf.SubjectClosed)},
		{"anybody", uint64(agent.PeerAny), bpf.PolicyPeerAny},
		{"class", uint64(agent.PeerClass), bpf.PolicyPeerClass},
		{"encrypt all", uint64(agent.EncryptAll), uint64(bpf.EncryptAll)},
		{"masquerade", uint64(agent.Masquerade), uint64(bpf.Masquerade)},
	} {
		if c.agent != c.want {
			t.Errorf("%s: %#x and %#x", c.name, c.agent, c.want)
		}
	}
}

// Ports are in network byte order in memory, identities are not.
func TestByteOrder(t *testing.T) {
	k := toServiceKey(agent.ServiceKey{Port: 0x1234})
	if b := (*[2]byte)(unsafe.Pointer(&k.Port)); *b != [2]byte{0x12, 0x34} {
		t.Errorf("port in memory: %x", *b)
	}
	p := toPolicyKey(agent.PolicyKey{Subject: 0x0102030405060708, Peer: 9, Proto: 6, Port: 0x1230, Bits: 12})
	if b := (*[2]byte)(unsafe.Pointer(&p.Port)); *b != [2]byte{0x12, 0x30} || p.Bits != 144+12 || p.Subject != [2]uint32{0x05060708, 0x01020304} || p.Peer != [2]uint32{9, 0} {
		t.Errorf("policy key in memory: %x bits %d subject %x", *b, p.Bits, p.Subject)
	}
	if c := toIPCache(agent.IPCacheRow{Identity: 0x12345678}); c.Identity != 0x12345678 {
		t.Errorf("identity %x", c.Identity)
	}
}
