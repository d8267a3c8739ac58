package agent

import "testing"

func tiersOf(row ServiceRow) (tiers [][]uint16) {
	for _, t := range row.Tiers[:row.NumTiers] {
		var ids []uint16
		for _, g := range row.Groups[t.First : t.First+t.Groups] {
			ids = append(ids, g.Cluster)
		}
		tiers = append(tiers, ids)
	}
	return tiers
}

func rowOf(tiers ...[]uint16) (row ServiceRow) {
	for _, ids := range tiers {
		var groups []Group
		for _, id := range ids {
			groups = append(groups, Group{Cluster: id, Weight: 1, Count: 2})
		}
		appendTier(&row, groups, 65535)
	}
	return row
}

// A restarted agent knows its own cluster first. Groups of clusters it has not
// heard of stay in the tier they were in: beside others they would hand them
// traffic that was not theirs.
func TestCarriedGroupsKeepTheirTier(t *testing.T) {
	for name, c := range map[string]struct{ old, now, want ServiceRow }{
		"remote first: the own cluster stays behind": {
			old: rowOf([]uint16{2}, []uint16{1}), now: rowOf([]uint16{1}), want: rowOf([]uint16{2}, []uint16{1})},
		"local first": {
			old: rowOf([]uint16{1}, []uint16{2}), now: rowOf([]uint16{1}), want: rowOf([]uint16{1}, []uint16{2})},
		"one tier": {
			old: rowOf([]uint16{1, 2, 3}), now: rowOf([]uint16{1}), want: rowOf([]uint16{1, 2, 3})},
		"a known cluster that is gone leaves": {
			old: rowOf([]uint16{2}, []uint16{1}), now: rowOf(), want: rowOf([]uint16{2})},
		"a cluster that is new comes last": {
			old: rowOf([]uint16{2}), now: rowOf([]uint16{1}), want: rowOf([]uint16{2}, []uint16{1})},
		"all known: what is merged counts": {
			old: rowOf([]uint16{2}, []uint16{1}), now: rowOf([]uint16{1}, []uint16{2}), want: rowOf([]uint16{1}, []uint16{2})},
	} {
		t.Run(name, func(t *testing.T) {
			row := c.now
			carryGroups(c.old, &row, func(id uint16) bool { return id != 1 })
			if row != c.want {
				t.Errorf("tiers %v, want %v", tiersOf(row), tiersOf(c.want))
			}
		})
	}
}
