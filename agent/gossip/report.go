package gossip

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/tombolo-mesh/tombolo/agent"
)

// part is what one agent says of the nodes of one cluster whose numbers have one
// high byte: small enough for a packet, however many nodes are down at once. It
// replaces what the same agent said of them before.
type part struct {
	prober  string
	cluster uint16
	block   uint8
	life    uint64          // of the prober's process; its members' entry says the same
	seq     uint64          // grows within a life
	missing map[uint8]uint8 // by the number's low byte: misses in a row
}

// partKey names a part, whoever's version it is.
type partKey struct {
	prober  string
	cluster uint16
	block   uint8
}

func (p part) key() partKey { return partKey{p.prober, p.cluster, p.block} }

const partVersion = 1

// encode: version, life, seq, cluster, block, length and text of the name, pairs.
func (p part) encode() []byte {
	b := append(make([]byte, 0, 32+len(p.prober)+2*len(p.missing)), partVersion)
	b = binary.BigEndian.AppendUint64(b, p.life)
	b = binary.BigEndian.AppendUint64(b, p.seq)
	b = binary.BigEndian.AppendUint16(b, p.cluster)
	b = append(b, p.block, byte(len(p.prober)))
	b = append(b, p.prober...)
	for _, low := range slices.Sorted(maps.Keys(p.missing)) {
		b = append(b, low, p.missing[low])
	}
	return b
}

var errPart = errors.New("a report that is cut short or malformed")

// decode reads what encode writes and nothing else.
func decode(b []byte) (p part, err error) {
	const fixed = 1 + 8 + 8 + 2 + 1 + 1
	if len(b) < fixed {
		return p, errPart
	}
	if b[0] != partVersion {
		return p, fmt.Errorf("a report of version %d; this agent reads version %d", b[0], partVersion)
	}
	p.life, p.seq = binary.BigEndian.Uint64(b[1:]), binary.BigEndian.Uint64(b[9:])
	p.cluster, p.block = binary.BigEndian.Uint16(b[17:]), b[19]
	name := int(b[20])
	if len(b) < fixed+name || (len(b)-fixed-name)%2 != 0 || name == 0 {
		return p, errPart
	}
	p.prober = string(b[fixed : fixed+name])
	p.missing = map[uint8]uint8{}
	last := -1
	for b = b[fixed+name:]; len(b) > 0; b = b[2:] {
		if int(b[0]) <= last || b[1] == 0 {
			return p, errPart
		}
		last = int(b[0])
		p.missing[b[0]] = b[1]
	}
	return p, nil
}

// parts takes apart what one agent says; life and seq are left to the caller.
func parts(prober string, missing map[agent.NodeKey]uint8) map[partKey]part {
	out := map[partKey]part{}
	for node, lost := range missing {
		k := partKey{prober, node.Cluster, uint8(node.Node >> 8)}
		p, is := out[k]
		if !is {
			p = part{prober: prober, cluster: k.cluster, block: k.block, missing: map[uint8]uint8{}}
			out[k] = p
		}
		p.missing[uint8(node.Node)] = lost
	}
	return out
}
