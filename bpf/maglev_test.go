package bpf

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"testing"

	"github.com/cilium/ebpf"
)

// The twin of src/maglev.h.

// asker is struct tmb_asker.
type asker struct {
	Client, Frontend [16]byte
	ClientPort, Port uint16 // network order
	Proto            uint8
	Pad              [3]uint8
}

func (a asker) hash() uint32 {
	buf := new(bytes.Buffer)
	binary.Write(buf, binary.LittleEndian, a)
	h := uint32(0x7462)
	for b := buf.Bytes(); len(b) > 0; b = b[4:] {
		h ^= bits.RotateLeft32(binary.LittleEndian.Uint32(b)*0xcc9e2d51, 15) * 0x1b873593
		h = bits.RotateLeft32(h, 13)*5 + 0xe6546b64
	}
	h ^= uint32(buf.Len())
	h ^= h >> 16
	h *= 0x85ebca6b
	h ^= h >> 13
	h *= 0xc2b2ae35
	return h ^ h>>16
}

// maglevTwin is a table's buckets; 0 = an entry that is not there.
type maglevTwin []uint32

func (m maglevTwin) choose(svc Service, t *tablesTwin, hash uint32) pickTwin {
	if size := uint64(len(m)); size > 0 {
		bucket := uint64(hash) * size >> 32
		for i := range min(64, size) {
			e := m[(bucket+i)%size]
			at := SlotKey{Service: svc.Id, Cluster: uint16(e >> 16), Slot: e & 0xffff}
			if slot, ok := t.slots[at]; ok && e != 0 && t.up(slot) {
				return pickTwin{slot, at, true, true}
			}
		}
	}
	seed := random((uint64(hash) + 1) * 0x9e3779b97f4a7c15)
	return t.choose(svc, &seed)
}

// outsideRequest is struct request of src/maglev_test.c.
type outsideRequest struct {
	Key  ServiceKey
	Who  asker
	Hash uint32
	At   struct {
		Service uint64
		Slot    uint32
		Cluster uint16
		Pad     uint16
	}
	Slot struct {
		Addr                     [16]byte
		Port, Cluster, Node, Pad uint16
	}
	RNG                    uint64
	Found, Up, Blind, Zero uint32
	Result                 uint32
	Pad                    uint32
}

func outsideProgram(t *testing.T, m *Maps) *ebpf.Program {
	t.Helper()
	spec, err := loadMaglev()
	if err != nil {
		t.Fatal(err)
	}
	coll, err := loadCollection(spec, m)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(coll.Close)
	return coll.Programs[maglevProgTmbPickOutside]
}

func askOutside(t *testing.T, prog *ebpf.Program, req outsideRequest) (got outsideRequest) {
	t.Helper()
	buf := bytes.NewBuffer(make([]byte, 14))
	binary.Write(buf, binary.LittleEndian, req)
	verdict, out, err := prog.Test(buf.Bytes())
	if err != nil || verdict != verdictNext {
		t.Fatalf("verdict %d, %v", verdict, err)
	}
	if err := binary.Read(bytes.NewReader(out[14:]), binary.LittleEndian, &got); err != nil {
		t.Fatal(err)
	}
	return got
}

// The C and the Go hash and choose alike, on tables from whole to ruined.
func TestMaglevDifferential(t *testing.T) {
	o, _ := load(t)
	prog := outsideProgram(t, o.Maps)
	seed := rand.Uint64()
	t.Logf("seed %#x", seed)
	r := rand.New(rand.NewPCG(seed, 4))
	key := ServiceKey{Addr: addr("192.0.2.7"), Port: port(80), Proto: 6, Scope: ScopeOutside}
	kinds := map[string]int{}
	for id := uint64(1); id <= 200; id++ {
		svc, twin := randomTables(r, id)
		var table maglevTwin
		if r.IntN(5) > 0 {
			table = make(maglevTwin, []int{251, 1021}[r.IntN(2)])
			holes := r.Float64() * r.Float64()
			for i := range table {
				if r.Float64() >= holes {
					table[i] = uint32(1+r.IntN(12))<<16 | uint32(r.IntN(9))
				}
			}
		}
		svc.Maglev = uint16(len(table))
		for k, v := range twin.slots {
			put(t, o.Maps.Slots, k, v)
		}
		for k := range twin.nodeDown {
			put(t, o.Maps.NodeHealth, k, Health{})
		}
		for k := range twin.clusterDown {
			put(t, o.Maps.ClusterHealth, k, Health{})
		}
		for i := 0; i < len(table); i += MaglevChunk {
			var row Maglev
			copy(row.Entry[:], table[i:])
			put(t, o.Maps.Maglev, MaglevKey{Service: id, Chunk: uint32(i / MaglevChunk)}, row)
		}
		put(t, o.Maps.Services, key, svc)
		for range 40 {
			who := asker{Frontend: key.Addr.B, Port: key.Port, Proto: 6, ClientPort: uint16(r.Uint32())}
			for i := range who.Client {
				who.Client[i] = byte(r.Uint32())
			}
			got := askOutside(t, prog, outsideRequest{Key: key, Who: who})
			want := table.choose(svc, twin, who.hash())
			same := got.Hash == who.hash() && (got.Result == 2) == want.found
			if want.found {
				same = same && Addr{B: got.Slot.Addr} == want.slot.Addr && got.Slot.Port == want.slot.Port && (got.Up == 1) == want.up &&
					got.At.Slot == want.at.Slot && got.At.Cluster == want.at.Cluster && got.At.Service == id
			}
			if !same {
				t.Fatalf("service %+v, table of %d\nC:  %+v\nGo: %+v, hash %#x", svc, len(table), got, want, who.hash())
			}
			switch {
			case !want.found:
				kinds["none"]++
			case len(table) == 0:
				kinds["no table"]++
			case want.up:
				kinds["up"]++
			default:
				kinds["down"]++
			}
		}
		clearTables(t, o.Maps, twin)
	}
	t.Logf("%v", kinds)
	for _, k := range []string{"none", "no table", "up", "down"} {
		if kinds[k] < 80 {
			t.Errorf("too few of kind %q: the tables test little", k)
		}
	}
}

// Clients spread evenly over buckets, whatever of them differs: the port alone,
// the address alone, one bit.
func TestMaglevHashSpreads(t *testing.T) {
	const size, n = 251, 251 * 400
	for name, who := range map[string]func(i int) asker{
		"ports": func(i int) asker {
			return asker{Client: addr("198.51.100.1").B, Frontend: addr("192.0.2.7").B, Port: port(80), Proto: 6, ClientPort: uint16(i), Pad: [3]uint8{}}
		},
		"addresses": func(i int) asker {
			a := asker{Client: addr("10.0.0.0").B, Frontend: addr("192.0.2.7").B, Port: port(80), Proto: 6}
			a.Client[13], a.Client[14], a.Client[15] = byte(i>>16), byte(i>>8), byte(i)
			return a
		},
	} {
		limit := n
		if name == "ports" {
			limit = 1 << 16
		}
		var buckets [size]int
		for i := range limit {
			buckets[uint64(who(i).hash())*size>>32]++
		}
		mean := float64(limit) / size
		var chi float64
		for _, b := range buckets {
			chi += (float64(b) - mean) * (float64(b) - mean) / mean
		}
		// Chi-squared with 250 degrees of freedom: above 350 once in 30,000 times.
		if chi > 350 {
			t.Errorf("%s: chi-squared %.0f over %d buckets, about %d expected", name, chi, size, size-1)
		}
	}
}

// Two nodes whose slots are numbered differently send a client one way, as long as
// buckets lead to the same backends; also past one that is down.
func TestMaglevTwoNodes(t *testing.T) {
	const backends, size = 7, 251
	key := ServiceKey{Addr: addr("192.0.2.7"), Port: port(80), Proto: 6, Scope: ScopeOutside}
	var progs [2]*ebpf.Program
	for n := range progs {
		o, _ := load(t)
		progs[n] = outsideProgram(t, o.Maps)
		slot := func(backend int) uint32 { return uint32((backend + 3*n) % backends) }
		put(t, o.Services, key, Service{Id: 5, NumTiers: 1, Maglev: size, Tiers: [4]Tier{{Groups: 1, Share: all}}, Groups: [20]Group{{Cluster: 1, Weight: 1, Count: backends}}})
		for b := range backends {
			put(t, o.Slots, SlotKey{Service: 5, Cluster: 1, Slot: slot(b)}, Slot{Addr: Addr{B: [16]byte{15: byte(b)}}, Port: port(80), Cluster: 1, Node: uint16(b)})
		}
		for i := 0; i < size; i += MaglevChunk {
			var row Maglev
			for j := range row.Entry {
				row.Entry[j] = 1<<16 | slot((i+j)*5%backends)
			}
			put(t, o.Maglev, MaglevKey{Service: 5, Chunk: uint32(i / MaglevChunk)}, row)
		}
		o.nodeDown(t, 1, 2, true)
	}
	used := make(map[byte]bool)
	for i := range 500 {
		who := asker{Client: addr("198.51.100.1").B, Frontend: key.Addr.B, Port: key.Port, Proto: 6, ClientPort: uint16(i)}
		one, two := askOutside(t, progs[0], outsideRequest{Key: key, Who: who}), askOutside(t, progs[1], outsideRequest{Key: key, Who: who})
		if one.Result != 2 || one.Slot != two.Slot {
			t.Fatalf("client port %d: one node chose %+v, the other %+v", i, one, two)
		}
		used[one.Slot.Addr[15]] = true
	}
	if len(used) != backends-1 || used[2] {
		t.Errorf("backends used: %v, expected all but the one whose node is down", used)
	}
}
