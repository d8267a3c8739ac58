package agent

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"slices"
)

// The consistent choice for packets from outside (Google's Maglev): a table of
// buckets, each leading to a backend; who asks is hashed to a bucket. Each node
// makes the same table of the same records, so a router may spread the packets
// of one connection over all nodes, and one that starts anew knows as much.
// Every backend walks the buckets in an order of its own, which comes of its name
// alone, and takes the first free one in turn: when a backend goes, its buckets
// are shared out and next to no other changes hands.

// MaglevChunk is how many buckets a row has; the same in bpf/src/maps.h.
const MaglevChunk = 128

// MaglevKey is a piece of a service's consistent table.
type MaglevKey struct {
	Service uint64
	Chunk   uint32
}

// MaglevRow has the buckets from Chunk * MaglevChunk on: cluster << 16 | slot.
type MaglevRow struct{ Entry [MaglevChunk]uint32 }

// maglevSizes are primes, so that every step through the buckets meets all of
// them. Shares are right to about one in size/backends: the first that is at
// least maglevPerBackend times the number of backends is taken.
var maglevSizes = [...]uint16{251, 1021, 4093, 16381, 65521}

const maglevPerBackend = 64

// MaglevSize is how many buckets a service with so many backends has: 251 up to
// 3 of them, 1021 up to 15, 4093 up to 63, 16381 up to 255, then 65521; none
// without any. Another size means another table: crossing one of those numbers
// moves most buckets, once; connections that exist are not asked again.
func MaglevSize(backends int) uint16 {
	if backends <= 0 {
		return 0
	}
	for _, size := range maglevSizes {
		if backends <= int(size)/maglevPerBackend {
			return size
		}
	}
	return maglevSizes[len(maglevSizes)-1]
}

// MaglevBackend is a backend that may be given buckets. Name decides which: the
// same for every node, whatever the number of its slot.
type MaglevBackend struct {
	Name    string // address:port
	Cluster uint16
	Slot    uint32 // at most MaxSlots
	Share   uint64 // of the buckets, compared with the others; 0 = none
}

// MaglevBackends are the backends that a service row would draw now with their
// chances: tier by tier as far as shares let traffic go on, groups by weight,
// evenly within one. Groups without a weight count only if no other has any.
// Health is none of its business: the kernel walks past what is down.
func MaglevBackends(row ServiceRow, slot func(SlotKey) (SlotRow, bool)) []MaglevBackend {
	for _, zero := range []bool{false, true} {
		if out := maglevBackends(row, slot, zero); len(out) > 0 {
			return out
		}
	}
	return nil
}

func maglevBackends(row ServiceRow, slot func(SlotKey) (SlotRow, bool), zero bool) (out []MaglevBackend) {
	weight := func(g Group) uint64 {
		switch {
		case g.Count == 0 || (g.Weight == 0) != zero:
			return 0
		case zero:
			return 1
		}
		return uint64(g.Weight)
	}
	tiers := row.Tiers[:min(int(row.NumTiers), MaxTiers)]
	rest := uint64(65535)
	for i, t := range tiers {
		groups := row.Groups[min(int(t.First), MaxGroups):min(int(t.First)+int(t.Groups), MaxGroups)]
		var sum uint64
		for _, g := range groups {
			sum += weight(g)
		}
		if sum == 0 {
			continue // what would stay here goes on
		}
		stays := rest * uint64(t.Share) / 65535
		if i == len(tiers)-1 {
			stays = rest
		}
		rest -= stays
		for _, g := range groups {
			// At most 16+16 bits, times a weight of 16, then 16 more: 48 bits.
			share := stays << 16 * weight(g) / sum << 16
			for n := range g.Count {
				if share == 0 {
					break
				}
				at := SlotKey{Service: row.ID, Cluster: g.Cluster, Slot: n}
				if s, ok := slot(at); ok {
					out = append(out, MaglevBackend{
						Name:    netip.AddrPortFrom(s.Addr.IP(), s.Port).String(),
						Cluster: g.Cluster, Slot: n, Share: max(1, share/uint64(g.Count)),
					})
				}
			}
		}
	}
	return out
}

// MaglevRows are the rows of a service's table; size is what its service row has
// to say (0 = no table). The order of backends does not matter.
func MaglevRows(service uint64, backends []MaglevBackend) (size uint16, rows map[MaglevKey]MaglevRow) {
	table := maglevTable(backends)
	rows = make(map[MaglevKey]MaglevRow, (len(table)+MaglevChunk-1)/MaglevChunk)
	for i := 0; i < len(table); i += MaglevChunk {
		var row MaglevRow
		copy(row.Entry[:], table[i:])
		rows[MaglevKey{Service: service, Chunk: uint32(i / MaglevChunk)}] = row
	}
	return uint16(len(table)), rows
}

// maglevTable is the table in one piece: an entry is cluster << 16 | slot.
func maglevTable(backends []MaglevBackend) []uint32 {
	backends = slices.DeleteFunc(slices.Clone(backends), func(b MaglevBackend) bool { return b.Share == 0 })
	slices.SortFunc(backends, func(a, b MaglevBackend) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Slot, b.Slot))
	})
	size := uint32(MaglevSize(len(backends)))
	if size == 0 {
		return nil
	}
	most := slices.MaxFunc(backends, func(a, b MaglevBackend) int { return cmp.Compare(a.Share, b.Share) }).Share
	walks := make([]maglevWalk, len(backends))
	for i, b := range backends {
		walks[i] = newMaglevWalk(b.Name, size)
	}
	table := make([]uint32, size)
	taken := make([]bool, size)
	for left := size; left > 0; {
		for i, b := range backends {
			// Who has the largest share takes a bucket each round, others as often
			// as their share has added up to as much.
			w := &walks[i]
			if w.credit += b.Share; w.credit < most || left == 0 {
				continue
			}
			w.credit -= most
			for taken[w.at] {
				w.at = (w.at + w.step) % size
			}
			taken[w.at] = true
			table[w.at] = uint32(b.Cluster)<<16 | b.Slot&MaxSlots
			left--
		}
	}
	return table
}

// maglevWalk is a backend's way through the buckets.
type maglevWalk struct {
	at, step uint32
	credit   uint64
}

func newMaglevWalk(name string, size uint32) maglevWalk {
	sum := sha256.Sum256([]byte(name))
	return maglevWalk{
		at:   uint32(binary.BigEndian.Uint64(sum[:]) % uint64(size)),
		step: uint32(binary.BigEndian.Uint64(sum[8:])%uint64(size-1)) + 1,
	}
}
