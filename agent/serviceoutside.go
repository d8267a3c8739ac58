package agent

import (
	"fmt"
	"net/netip"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// addTable makes the consistent table of a set that is reached from outside. One
// backend needs none, and where all tables together would be too large the kernel
// draws at random, as it does from inside: each node then chooses for itself.
func (b *rowBuilder) addTable(set *backendSet, proto uint8, keys []ServiceKey) {
	row := set.row
	slot := b.slotAt
	if set.carries && b.carry != nil {
		for _, k := range keys {
			if b.carry.groups(k, &row) {
				break
			}
		}
		slot = func(k SlotKey) (SlotRow, bool) {
			if s, ok := b.slotAt(k); ok {
				return s, true
			}
			return b.carry.slot(k)
		}
	}
	backends := MaglevBackends(row, slot)
	size := MaglevSize(len(backends))
	chunks := (int(size) + MaglevChunk - 1) / MaglevChunk
	if len(backends) < 2 {
		return
	}
	if b.room != nil && !b.room(chunks) {
		b.noTable = true
		return
	}
	size, rows := MaglevRows(row.ID, backends)
	out := b.forOutside()
	out.tables = append(out.tables, maglevTableOf{row.ID, uint32(len(rows))})
	if out.chunks == nil {
		out.chunks = rows
	} else {
		for k, v := range rows {
			out.chunks[k] = v
		}
	}
	set.row.Maglev = size
}

// addRanges adds the source ranges of a set and says which flag its rows get.
func (b *rowBuilder) addRanges(service uint64, v6 bool) ServiceFlags {
	ranges, bounded := rangesOf(b.merged.SourceRanges, v6)
	if !bounded {
		return 0
	}
	for _, p := range ranges {
		out := b.forOutside()
		out.ranges = append(out.ranges, RangeKey{Service: service, Prefix: MakePrefix(p)})
	}
	return ServiceRanges
}

func (b *rowBuilder) forOutside() *outsideRows {
	if b.outside == nil {
		b.outside = &outsideRows{}
	}
	return b.outside
}

// rangesOf are the ranges of one family; bounded says whether there is a bound at
// all. A range of length 0 is none, as in kube-proxy. A list that bounds one
// family and does not name the other allows nobody in the other: kube-proxy lets
// everybody in there, which nobody asked for who gave a list. Only where the list
// says everybody (0.0.0.0/0 or ::/0) is that taken to mean both.
func rangesOf(all []netip.Prefix, v6 bool) (ranges []netip.Prefix, bounded bool) {
	everybody := false
	for _, p := range all {
		is6 := p.Addr().Is6()
		switch {
		case p.Bits() == 0 && is6 == v6:
			return nil, false
		case p.Bits() == 0:
			everybody = true
		case is6 == v6:
			ranges = append(ranges, p)
		}
	}
	if len(ranges) == 0 && everybody {
		return nil, false
	}
	return ranges, len(all) > 0
}

// defaultMaglevRows is the size of the kernel's table unless it is told otherwise.
const defaultMaglevRows = 65536

func tableChunks(o *appliedOutside) (n int) {
	if o != nil {
		for _, t := range o.tables {
			n += int(t.chunks)
		}
	}
	return n
}

// countTables keeps count of the pieces of consistent tables, and lets services
// that found no room try again when there is some.
func (s *State) countTables(name clustermesh.ServiceName, old *appliedOutside, rows serviceRows) {
	before, now := tableChunks(old), 0
	if rows.outside != nil {
		now = tableChunks(&appliedOutside{tables: rows.outside.tables})
	}
	s.tables += now - before
	delete(s.noTable, name)
	if now < before {
		for other := range s.noTable {
			s.touchService(other)
		}
	}
	if rows.noTable {
		s.noTable[name] = struct{}{}
	}
}

// tableProblem is about services without a consistent table.
func (s *State) tableProblem() (clustermesh.Problem, bool) {
	if len(s.noTable) == 0 {
		return clustermesh.Problem{}, false
	}
	return clustermesh.Problem{
		What: fmt.Sprintf("%d services have no consistent table for clients from outside", len(s.noTable)),
		Why:  fmt.Sprintf("table %s has room for %d rows; without theirs each node chooses a backend for itself, and a client whose packets move to another node may lose its connection", TableMaglev, s.tableRoom),
		Fix:  "give the agent a larger table " + TableMaglev + " and restart it",
	}, true
}
