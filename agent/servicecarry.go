package agent

import (
	"slices"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// carrier keeps groups of clusters that nothing is known of: what the kernel had
// of them before.
type carrier struct {
	keep func(cluster uint16) bool
	row  func(ServiceKey) (ServiceRow, bool) // in the kernel
	slot func(SlotKey) (SlotRow, bool)       // in the kernel
}

// groups gives row the groups back that it had at k, and reports whether the
// kernel has such a row.
func (c *carrier) groups(k ServiceKey, row *ServiceRow) bool {
	old, ok := c.row(k)
	if !ok || old.ID != row.ID {
		return false
	}
	carryGroups(old, row, c.keep)
	return true
}

// carry returns how to keep groups of clusters that nothing is known of; nil
// when all are known. Until the own cluster has said who the peers are, any
// cluster may be one that was not seen to be removed.
func (s *State) carry() *carrier {
	own := s.clusters[s.own].synced()
	if len(s.blank) == 0 && own {
		return nil
	}
	return &carrier{
		keep: func(id uint16) bool {
			if s.byID(clustermesh.ID(id)) == nil {
				return !own && !s.removed[clustermesh.ID(id)]
			}
			return s.blank[clustermesh.ID(id)]
		},
		row: s.t.services.Actual, slot: s.t.slots.Actual,
	}
}

// carryGroups gives row back the groups that old has of clusters for which keep
// is true: clusters of which nothing is known at present, so that nothing about
// them may be taken away. Which tier such a group belongs in cannot be said
// without knowing its cluster, and putting it beside others would send them its
// share of traffic: so the order of old's tiers stays in force, with present
// weights and counts of the groups that are known.
func carryGroups(old ServiceRow, row *ServiceRow, keep func(uint16) bool) {
	if !slices.ContainsFunc(groupsOf(&old), func(g Group) bool { return keep(g.Cluster) && !hasGroup(row, g.Cluster) }) {
		return
	}
	now := *row
	row.NumTiers, row.Tiers, row.Groups = 0, [MaxTiers]Tier{}, [MaxGroups]Group{}
	for _, t := range old.Tiers[:min(int(old.NumTiers), MaxTiers)] {
		var groups []Group
		for _, g := range old.Groups[min(int(t.First), MaxGroups):min(int(t.First)+int(t.Groups), MaxGroups)] {
			if present, ok := groupOf(&now, g.Cluster); ok {
				groups = append(groups, present)
			} else if keep(g.Cluster) {
				groups = append(groups, g)
			}
		}
		appendTier(row, groups, t.Share)
	}
	// What old did not have comes last.
	for _, t := range now.Tiers[:now.NumTiers] {
		fresh := slices.DeleteFunc(slices.Clone(now.Groups[t.First:t.First+t.Groups]), func(g Group) bool { return hasGroup(row, g.Cluster) })
		appendTier(row, fresh, t.Share)
	}
}

// appendTier adds a tier of groups, or to the last one if there is no room for
// another; what no longer fits is left out.
func appendTier(row *ServiceRow, groups []Group, share uint16) {
	used := len(groupsOf(row))
	groups = groups[:min(len(groups), MaxGroups-used)]
	if len(groups) == 0 {
		return
	}
	copy(row.Groups[used:], groups)
	if row.NumTiers == MaxTiers {
		row.Tiers[MaxTiers-1].Groups += uint8(len(groups))
		return
	}
	row.Tiers[row.NumTiers] = Tier{First: uint8(used), Groups: uint8(len(groups)), Share: share}
	row.NumTiers++
}

func groupOf(row *ServiceRow, cluster uint16) (Group, bool) {
	for _, g := range groupsOf(row) {
		if g.Cluster == cluster {
			return g, true
		}
	}
	return Group{}, false
}

func hasGroup(row *ServiceRow, cluster uint16) bool {
	_, ok := groupOf(row, cluster)
	return ok
}

// groupsOf are the groups in use.
func groupsOf(row *ServiceRow) []Group {
	n := 0
	for _, t := range row.Tiers[:min(int(row.NumTiers), MaxTiers)] {
		n = max(n, int(t.First)+int(t.Groups))
	}
	return row.Groups[:min(n, MaxGroups)]
}
