package agent

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

func maglevPods(n int) []MaglevBackend {
	out := make([]MaglevBackend, n)
	for i := range out {
		out[i] = MaglevBackend{
			Name:    netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 8080).String(),
			Cluster: 1, Slot: uint32(i), Share: 1,
		}
	}
	return out
}

// named is whom each bucket leads to, by name.
func named(backends []MaglevBackend) []string {
	names := make(map[uint32]string)
	for _, b := range backends {
		names[uint32(b.Cluster)<<16|b.Slot] = b.Name
	}
	var out []string
	for _, e := range maglevTable(backends) {
		out = append(out, names[e])
	}
	return out
}

func counts(buckets []string) map[string]int {
	out := make(map[string]int)
	for _, b := range buckets {
		out[b]++
	}
	return out
}

// Sizes are primes, fit their field, and leave each backend enough buckets.
func TestMaglevSize(t *testing.T) {
	for _, size := range maglevSizes {
		for d := 2; d*d <= int(size); d++ {
			if int(size)%d == 0 {
				t.Errorf("%d is no prime", size)
			}
		}
	}
	for n, want := range map[int]uint16{-1: 0, 0: 0, 1: 251, 3: 251, 4: 1021, 15: 1021, 16: 4093, 63: 4093, 64: 16381, 255: 16381, 256: 65521, 1 << 20: 65521} {
		if got := MaglevSize(n); got != want {
			t.Errorf("%d backends: %d buckets, expected %d", n, got, want)
		}
	}
}

// Each backend gets its share, within a bucket of it per round of the draw.
func TestMaglevBalance(t *testing.T) {
	for _, n := range []int{1, 2, 3, 10, 100, 1000} {
		backends := maglevPods(n)
		table := named(backends)
		got := counts(table)
		even := float64(len(table)) / float64(n)
		for _, b := range backends {
			if d := math.Abs(float64(got[b.Name]) - even); d > 1 {
				t.Errorf("%d backends: %s has %d of %d buckets, an even share is %.1f", n, b.Name, got[b.Name], len(table), even)
			}
		}
	}
	r := rand.New(rand.NewPCG(7, 7))
	for range 50 {
		backends := maglevPods(1 + r.IntN(40))
		var sum uint64
		for i := range backends {
			backends[i].Share = 1 + r.Uint64N(1000)
			sum += backends[i].Share
		}
		table := named(backends)
		got := counts(table)
		for _, b := range backends {
			want := float64(len(table)) * float64(b.Share) / float64(sum)
			if d := math.Abs(float64(got[b.Name]) - want); d > 2 {
				t.Errorf("%d backends: %s of share %d/%d has %d of %d buckets, expected %.1f", len(backends), b.Name, b.Share, sum, got[b.Name], len(table), want)
			}
		}
	}
}

// A backend that goes gives up its buckets; hardly any other changes hands. The
// bound leaves room above what the paper measures for as many buckets per backend.
func TestMaglevDisruption(t *testing.T) {
	for _, n := range []int{3, 10, 50, 200, 1000} {
		backends := maglevPods(n)
		before := named(backends)
		for _, gone := range []int{0, n / 2, n - 1} {
			fewer := slices.Delete(slices.Clone(backends), gone, gone+1)
			for i := range fewer { // slots close up, as in the tables
				fewer[i].Slot = uint32(i)
			}
			if MaglevSize(n) != MaglevSize(n-1) {
				t.Fatalf("%d and %d backends have tables of different size: nothing to compare", n, n-1)
			}
			after := named(fewer)
			moved := 0
			for i := range before {
				if before[i] != after[i] && before[i] != backends[gone].Name {
					moved++
				}
			}
			if limit := len(before) / 20; moved > limit {
				t.Errorf("%d backends, the %d. goes: %d of %d buckets of others moved, at most %d may", n, gone, moved, len(before), limit)
			}
		}
	}
}

// The order in which backends are listed, and the numbers of their slots, change
// nothing: any node makes the same table of names.
func TestMaglevOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 9))
	backends := maglevPods(37)
	for i := range backends {
		backends[i].Share = 1 + r.Uint64N(9)
	}
	want := named(backends)
	for range 20 {
		other := slices.Clone(backends)
		r.Shuffle(len(other), func(i, j int) { other[i], other[j] = other[j], other[i] })
		for i := range other {
			other[i].Slot = uint32(i)
		}
		if !slices.Equal(named(other), want) {
			t.Fatal("another order of backends gave another table")
		}
	}
	// Only relations between shares count.
	for i := range backends {
		backends[i].Share *= 1 << 30
	}
	if !slices.Equal(named(backends), want) {
		t.Error("the same shares in another unit gave another table")
	}
}

func TestMaglevRows(t *testing.T) {
	size, rows := MaglevRows(99, maglevPods(10))
	if size != 1021 || len(rows) != 8 {
		t.Fatalf("%d buckets in %d rows", size, len(rows))
	}
	table := maglevTable(maglevPods(10))
	for i, want := range table {
		if got := rows[MaglevKey{99, uint32(i / MaglevChunk)}].Entry[i%MaglevChunk]; got != want {
			t.Fatalf("bucket %d is %#x, expected %#x", i, got, want)
		}
	}
	last := rows[MaglevKey{99, 7}]
	if slices.Max(last.Entry[1021%MaglevChunk:]) != 0 {
		t.Error("there is something behind the last bucket")
	}
	if size, rows := MaglevRows(99, nil); size != 0 || len(rows) != 0 {
		t.Errorf("no backends: %d buckets, %d rows", size, len(rows))
	}
	if size, _ := MaglevRows(99, []MaglevBackend{{Name: "a", Cluster: 1}}); size != 0 {
		t.Error("a backend without a share got buckets")
	}
}

func TestMaglevBackends(t *testing.T) {
	slots := func(k SlotKey) (SlotRow, bool) {
		a := netip.AddrFrom4([4]byte{10, byte(k.Cluster), 0, byte(k.Slot)})
		return SlotRow{Addr: MakeAddr(a), Port: 80, Cluster: k.Cluster}, k.Slot != 5
	}
	for _, c := range []struct {
		name string
		row  ServiceRow
		want map[uint16]float64 // by cluster: of all traffic
	}{
		{"no tiers", ServiceRow{}, nil},
		{"one tier, by weight whatever the count",
			ServiceRow{NumTiers: 1, Tiers: [MaxTiers]Tier{{0, 2, 65535}}, Groups: [MaxGroups]Group{{1, 1, 4}, {2, 3, 1}}},
			map[uint16]float64{1: .25, 2: .75}},
		{"the second tier waits",
			ServiceRow{NumTiers: 2, Tiers: [MaxTiers]Tier{{0, 1, 65535}, {1, 1, 65535}}, Groups: [MaxGroups]Group{{1, 1, 2}, {2, 1, 2}}},
			map[uint16]float64{1: 1}},
		{"a tier that keeps a third",
			ServiceRow{NumTiers: 2, Tiers: [MaxTiers]Tier{{0, 1, 21845}, {1, 1, 0}}, Groups: [MaxGroups]Group{{1, 1, 2}, {2, 1, 2}}},
			map[uint16]float64{1: 1. / 3, 2: 2. / 3}},
		{"no weight beside a weight",
			ServiceRow{NumTiers: 1, Tiers: [MaxTiers]Tier{{0, 2, 65535}}, Groups: [MaxGroups]Group{{1, 0, 4}, {2, 3, 1}}},
			map[uint16]float64{2: 1}},
		{"no weight anywhere",
			ServiceRow{NumTiers: 1, Tiers: [MaxTiers]Tier{{0, 2, 65535}}, Groups: [MaxGroups]Group{{1, 0, 4}, {2, 0, 1}}},
			map[uint16]float64{1: .5, 2: .5}},
		{"a first tier without backends",
			ServiceRow{NumTiers: 2, Tiers: [MaxTiers]Tier{{0, 1, 65535}, {1, 1, 65535}}, Groups: [MaxGroups]Group{{1, 1, 0}, {2, 1, 2}}},
			map[uint16]float64{2: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			backends := MaglevBackends(c.row, slots)
			got, sum := map[uint16]float64{}, 0.
			for _, b := range backends {
				got[b.Cluster] += float64(b.Share)
				sum += float64(b.Share)
				if want := fmt.Sprintf("10.%d.0.%d:80", b.Cluster, b.Slot); b.Name != want {
					t.Errorf("name %s, expected %s", b.Name, want)
				}
			}
			for cluster := range got {
				got[cluster] /= sum
			}
			if !maps.EqualFunc(got, c.want, func(a, b float64) bool { return math.Abs(a-b) < 1e-3 }) {
				t.Errorf("shares %v, expected %v", got, c.want)
			}
		})
	}
	// A slot that is not there (yet) is left out.
	row := ServiceRow{NumTiers: 1, Tiers: [MaxTiers]Tier{{0, 1, 65535}}, Groups: [MaxGroups]Group{{1, 1, 7}}}
	if got := MaglevBackends(row, slots); len(got) != 6 {
		t.Errorf("%d backends of 6 slots", len(got))
	}
}
