package policy

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// piece is a prefix at which the blocks that contain an address change.
type piece struct {
	prefix     netip.Prefix
	in, out    []string // blocks that begin here, and that leave it out
	onlyV4     bool     // all of IPv4 within an IPv6 prefix: no block of IPv6 means it
	containing []string
}

// takeBlocks divides the addresses into the prefixes at which blocks begin or
// leave out, and gives each the class of the blocks it is in.
func (e *Engine) takeBlocks(changed map[netip.Prefix]struct{}) {
	now := map[netip.Prefix][]string{}
	for _, p := range e.pieces() {
		now[p.prefix] = p.containing
	}
	was := e.base
	e.base = map[netip.Prefix]*liveClass{}
	lengths := [2]map[int]bool{{}, {}}
	for p, blocks := range now {
		e.base[p] = e.hold(&liveClass{blocks: blocks})
		if p.Addr().Is4() {
			lengths[0][p.Bits()] = true
		} else {
			lengths[1][p.Bits()] = true
		}
		changed[p] = struct{}{}
	}
	for p, c := range was {
		e.letGo(c)
		changed[p] = struct{}{}
	}
	for i := range lengths {
		e.baseBits[i] = slices.SortedFunc(maps.Keys(lengths[i]), func(a, b int) int { return cmp.Compare(b, a) })
	}
}

// pieces are the prefixes that must have a row, each with the blocks it is in.
func (e *Engine) pieces() []*piece {
	at := map[netip.Prefix]*piece{}
	get := func(p netip.Prefix) *piece {
		if at[p] == nil {
			at[p] = &piece{prefix: p}
		}
		return at[p]
	}
	aboveV4 := false
	for text, b := range e.blocks {
		if b.isNode {
			for _, a := range e.nodeAddresses(b.block) {
				p := get(netip.PrefixFrom(a, a.BitLen()))
				p.in = append(p.in, text)
			}
			continue
		}
		p := get(b.prefix)
		p.in = append(p.in, text)
		for _, x := range b.except {
			p := get(x)
			p.out = append(p.out, text)
		}
		aboveV4 = aboveV4 || b.prefix.Addr().Is6() && wide(b.prefix).Contains(wide(anyV4).Addr())
	}
	if aboveV4 {
		get(anyV4).onlyV4 = true
	}
	list := slices.SortedFunc(maps.Values(at), func(a, b *piece) int {
		x, y := wide(a.prefix), wide(b.prefix)
		return cmp.Or(x.Addr().Compare(y.Addr()), cmp.Compare(x.Bits(), y.Bits()))
	})
	var above []*piece // those around the present one, the widest first
	return slices.DeleteFunc(list, func(p *piece) bool {
		for len(above) > 0 && !wide(above[len(above)-1].prefix).Contains(wide(p.prefix).Addr()) {
			above = above[:len(above)-1]
		}
		var around []string
		if len(above) > 0 && !p.onlyV4 {
			around = above[len(above)-1].containing
		}
		p.containing = slices.DeleteFunc(slices.Concat(around, p.in), func(b string) bool { return slices.Contains(p.out, b) })
		slices.Sort(p.containing)
		if len(above) == 0 && len(p.containing) == 0 {
			return true
		}
		above = append(above, p)
		return false
	})
}

var anyV4 = netip.MustParsePrefix("0.0.0.0/0")

// wide is a prefix of the 16 bytes that maps have.
func wide(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4() {
		return netip.PrefixFrom(netip.AddrFrom16(p.Addr().As16()), p.Bits()+96)
	}
	return p
}

// nodeAddresses are those of the nodes that a block selects.
func (e *Engine) nodeAddresses(b *block) []netip.Addr {
	var out []netip.Addr
	for _, n := range e.nodes {
		if b.hasNode(n.Labels) {
			for _, a := range n.Addresses {
				out = append(out, a.Unmap().WithZone(""))
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// hasNode: nodes whose labels are not known are matched where that forbids.
func (b *block) hasNode(labels []clustermesh.Label) bool {
	if labels == nil && len(b.nodes) > 0 {
		return b.unknown
	}
	for _, r := range b.nodes {
		if !r.holds(labels) {
			return false
		}
	}
	return true
}
