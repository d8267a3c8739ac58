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
		{"endpoint", unsafe.Sizeof(bpf.Endpoint{}), 20},
	} {
		if c.bpf != c.want {
			t.Errorf("%s has %d bytes, expected %d: has the C header changed?", c.name, c.bpf, c.want)
		}
	}
	if agent.MaxTiers != bpf.MaxTiers || agent.MaxGroups != bpf.MaxGroups {
		t.Errorf("limits differ: %d, %d and %d, %d", agent.MaxTiers, agent.MaxGroups, bpf.MaxTiers, bpf.MaxGroups)
	}
}

// Ports are in network byte order in memory, identities are not.
func TestByteOrder(t *testing.T) {
	k := toServiceKey(agent.ServiceKey{Port: 0x1234})
	if b := (*[2]byte)(unsafe.Pointer(&k.Port)); *b != [2]byte{0x12, 0x34} {
		t.Errorf("port in memory: %x", *b)
	}
	if c := toIPCache(agent.IPCacheRow{Identity: 0x12345678}); c.Identity != 0x12345678 {
		t.Errorf("identity %x", c.Identity)
	}
}
