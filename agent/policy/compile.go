package policy

import (
	"slices"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// entry is a policy row without subject and peer.
type entry struct {
	proto clustermesh.Protocol
	bits  uint8
	port  uint16
	row   Row
}

// match is a rule that matches a peer, and on which ports it does.
type match struct {
	rule  *placed
	all   bool
	ports []ports
	own   bool // it matches this peer in particular, not anybody
}

func (m *match) on(proto clustermesh.Protocol, port uint16) bool {
	return m.all || proto != 0 && contains(m.ports, proto, port)
}

// compile makes the rows of one peer out of the rules that match it, in order.
// Where no rule of the peer's own is concerned there is no row, and the lookup
// goes on to those of PeerAny; where there is a row, what holds for anybody is in
// it already.
func compile(matches []match) []entry {
	var out []entry
	wide := rowAt(matches, 0, 0)
	hasWide := slices.ContainsFunc(matches, func(m match) bool { return m.own && m.all })
	if hasWide {
		out = append(out, entry{row: wide})
	}
	for _, proto := range []clustermesh.Protocol{clustermesh.TCP, clustermesh.UDP, clustermesh.SCTP} {
		cuts := cutsOf(matches, proto, hasWide)
		if cuts == nil {
			continue
		}
		cells := make([]cell, len(cuts))
		for i, lo := range cuts {
			cells[i] = cell{lo: lo, row: rowAt(matches, proto, lo), own: ownAt(matches, proto, lo)}
		}
		out = appendProto(out, proto, cells, wide, hasWide)
	}
	return out
}

// cell is a range of ports, up to the next cell, on which one row holds.
type cell struct {
	lo  uint16
	row Row
	own bool
}

// cutsOf are the first ports of the ranges in which the same rules hold; nil if
// rows for the protocol would say nothing new.
func cutsOf(matches []match, proto clustermesh.Protocol, wide bool) []uint16 {
	cuts, concerned := []uint16{0}, false
	for i := range matches {
		m := &matches[i]
		for _, p := range m.ports {
			if m.all || p.proto != proto {
				continue
			}
			concerned = concerned || m.own || wide
			cuts = append(cuts, p.lo)
			if p.hi < 65535 {
				cuts = append(cuts, p.hi+1)
			}
		}
	}
	if !concerned {
		return nil
	}
	slices.Sort(cuts)
	return slices.Compact(cuts)
}

func rowAt(matches []match, proto clustermesh.Protocol, port uint16) Row {
	var row Row
	for i := range matches {
		if matches[i].on(proto, port) {
			matches[i].rule.into(&row)
		}
	}
	return row
}

func ownAt(matches []match, proto clustermesh.Protocol, port uint16) bool {
	for i := range matches {
		if matches[i].own && matches[i].on(proto, port) {
			return true
		}
	}
	return false
}

// appendProto covers the cells with prefixes, in the cheaper of two ways: all
// ports, nested, the row for any protocol being there already where wide; or only
// the ports that the peer's own rules concern.
func appendProto(out []entry, proto clustermesh.Protocol, cells []cell, wide Row, hasWide bool) []entry {
	root := newTree(cells, 0, 16)
	var whole, sparse []entry
	var inherited *Row
	if hasWide {
		inherited = &wide
	}
	root.cover(proto, inherited, &whole)
	if hasWide {
		return append(out, whole...)
	}
	root.coverOwn(proto, &sparse)
	if len(sparse) <= len(whole) {
		return append(out, sparse...)
	}
	return append(out, whole...)
}

// tree is a node of the binary tree of ports, cut off where one row holds below.
type tree struct {
	port        uint16
	bits        uint8
	left, right *tree // both or none
	best        []Row // the rows that are cheapest to have here
	own, others bool  // has ports that own rules concern, and others
}

// newTree is the part of the tree with the ports from port on whose upper 16-height
// bits are its. cells are those that reach into it.
func newTree(cells []cell, port uint32, height uint8) *tree {
	t := &tree{port: uint16(port), bits: 16 - height}
	if len(cells) == 1 {
		t.best = []Row{cells[0].row}
		t.own, t.others = cells[0].own, !cells[0].own
		return t
	}
	middle := port + 1<<(height-1)
	i, exact := slices.BinarySearchFunc(cells, uint16(middle), func(c cell, lo uint16) int { return int(c.lo) - int(lo) })
	from := i
	if !exact {
		from = i - 1
	}
	t.left = newTree(cells[:i], port, height-1)
	t.right = newTree(cells[from:], middle, height-1)
	t.own, t.others = t.left.own || t.right.own, t.left.others || t.right.others
	for _, r := range t.left.best {
		if slices.Contains(t.right.best, r) {
			t.best = append(t.best, r)
		}
	}
	if t.best == nil {
		t.best = append(slices.Clone(t.left.best), t.right.best...)
	}
	return t
}

// cover writes the fewest rows that give each port its row; inherited is the one
// that holds here without any (nil: none does).
func (t *tree) cover(proto clustermesh.Protocol, inherited *Row, out *[]entry) {
	if inherited == nil || !slices.Contains(t.best, *inherited) {
		inherited = &t.best[0]
		*out = append(*out, entry{proto, t.bits, t.port, *inherited})
	}
	if t.left != nil {
		t.left.cover(proto, inherited, out)
		t.right.cover(proto, inherited, out)
	}
}

// coverOwn covers the ports that own rules concern, and no others.
func (t *tree) coverOwn(proto clustermesh.Protocol, out *[]entry) {
	switch {
	case !t.own:
	case !t.others:
		t.cover(proto, nil, out)
	default:
		t.left.coverOwn(proto, out)
		t.right.coverOwn(proto, out)
	}
}
