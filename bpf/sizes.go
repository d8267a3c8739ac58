package bpf

import (
	"cmp"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strconv"
	"strings"
)

// DefaultSizes are the sizes of maps for a machine with that much memory (bytes).
//
// Maps that the agent fills cost 16 bytes for each row that they could hold, and
// the rest only for rows in use: they get room for a whole mesh, at a cost of
// about a thousandth of the memory each for the two large ones. Maps that
// programs fill (flows, sockets) have all their rows from the start: together
// they take about a three-hundredth of the memory. Every size has a floor that a
// small machine can afford and a ceiling beyond which nothing was measured.
func DefaultSizes(memory uint64) Sizes {
	gib := memory >> 30
	scale := func(perGiB, least, most uint64) uint32 {
		return uint32(floorPower(min(max(gib*perGiB, least), most)))
	}
	return Sizes{
		Services:      scale(32<<10, 64<<10, 1<<20),
		Slots:         scale(128<<10, 512<<10, 8<<20),
		NodeHealth:    16 << 10,
		ClusterHealth: 4 << 10,
		IPCache:       scale(128<<10, 512<<10, 8<<20),
		IPPrefixes:    64 << 10,
		Endpoints:     4 << 10,
		Subjects:      4 << 10,
		Policy:        scale(64<<10, 256<<10, 4<<20),
		Classes:       scale(16<<10, 64<<10, 1<<20),
		ClassPrefixes: 16 << 10,
		Maglev:        scale(16<<10, 64<<10, 1<<20),
		SourceRanges:  16 << 10,
		Flows:         scale(8<<10, 16<<10, 4<<20),
		Fragments:     scale(512, 2<<10, 64<<10),
		Affinity:      scale(2<<10, 8<<10, 512<<10),
		Events:        1 << 20,
		SocketReverse: scale(4<<10, 16<<10, 1<<20),
		UDPChoice:     scale(2<<10, 8<<10, 256<<10),
	}
}

// floorPower is the largest power of two that is not above n.
func floorPower(n uint64) uint64 {
	if n == 0 {
		return 0
	}
	return 1 << (bits.Len64(n) - 1)
}

// sizeNames are what users call the sizes.
func (s *Sizes) byName() map[string]*uint32 {
	return map[string]*uint32{
		"services": &s.Services, "slots": &s.Slots, "node_health": &s.NodeHealth, "cluster_health": &s.ClusterHealth,
		"ips": &s.IPCache, "ipprefixes": &s.IPPrefixes, "endpoints": &s.Endpoints, "subjects": &s.Subjects,
		"policy": &s.Policy, "classes": &s.Classes, "classprefixes": &s.ClassPrefixes, "maglev": &s.Maglev,
		"sourceranges": &s.SourceRanges, "flows": &s.Flows, "fragments": &s.Fragments, "affinity": &s.Affinity,
		"events": &s.Events, "sockets": &s.SocketReverse, "datagrams": &s.UDPChoice,
	}
}

// SizeNames are the names that Set knows, in order.
func SizeNames() []string { return slices.Sorted(maps.Keys(new(Sizes).byName())) }

// mostRows bounds a size that somebody typed: beyond it a map would take tens of
// gigabytes, which is more likely a slip than a wish.
const mostRows = 64 << 20

// Set changes one size by "name=rows".
func (s *Sizes) Set(text string) error {
	name, value, ok := strings.Cut(text, "=")
	if !ok {
		return fmt.Errorf("map size %q: want NAME=ROWS, for example services=262144", text)
	}
	size := s.byName()[name]
	if size == nil {
		return fmt.Errorf("map size %q: there is no map %q; the maps are %s", text, name, strings.Join(SizeNames(), ", "))
	}
	n, err := strconv.ParseUint(value, 10, 32)
	if err != nil || n == 0 || n > mostRows {
		return fmt.Errorf("map size %q: want a number of rows from 1 to %d", text, mostRows)
	}
	if name == "events" && (n < 4096 || n&(n-1) != 0) {
		return fmt.Errorf("map size %q: the ring of events has a size in bytes, a power of two of at least 4096", text)
	}
	*size = uint32(n)
	return nil
}

// Or is s with the sizes of other where s has none.
func (s Sizes) Or(other Sizes) Sizes {
	theirs := other.byName()
	for name, size := range s.byName() {
		*size = cmp.Or(*size, *theirs[name])
	}
	return s
}
