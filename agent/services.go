package agent

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// MaxSlots is the largest number of backends of one group.
const MaxSlots = 65535

// ServiceID names a port of a service in one address family, in every agent of
// every cluster alike: the first 8 bytes of a SHA-256.
func ServiceID(name clustermesh.ServiceName, port string, proto clustermesh.Protocol, v6 bool) uint64 {
	buf := make([]byte, 0, 128)
	buf = append(buf, name.Namespace...)
	buf = append(buf, '/')
	buf = append(buf, name.Name...)
	buf = append(buf, 0)
	buf = append(buf, port...)
	family := byte(4)
	if v6 {
		family = 6
	}
	buf = append(buf, 0, byte(proto), family)
	sum := sha256.Sum256(buf)
	return binary.BigEndian.Uint64(sum[:8])
}

// serviceRows are the rows of one service.
type serviceRows struct {
	keys []ServiceKey   // of the service rows
	rows []ServiceRow   // one for each key
	slot []slotRange    // which slots exist
	fill []slotContents // their contents, in the order of slot
	note []string       // what had to be cut
}

type slotRange struct {
	service uint64
	cluster uint16
	count   uint32
}

type slotContents []clustermesh.Backend

// makeServiceRows turns a merged service into rows. Pure. carry may add groups
// of clusters that nothing is known of yet; nil = none.
func makeServiceRows(m clustermesh.Merged, carry func(ServiceKey, *ServiceRow)) serviceRows {
	var out serviceRows
	for _, p := range m.Ports {
		row := ServiceRow{ID: ServiceID(m.Name, p.Port.Name, p.Port.Protocol, p.V6)}
		next := 0
		for _, tier := range p.Tiers {
			next = out.addTier(&row, next, tier)
		}
		for _, a := range p.Frontends {
			k := ServiceKey{Addr: MakeAddr(a), Port: p.Port.Port, Proto: uint8(p.Port.Protocol)}
			full := row
			if carry != nil {
				carry(k, &full)
			}
			out.keys = append(out.keys, k)
			out.rows = append(out.rows, full)
		}
	}
	return out
}

// addTier appends the groups of a tier that have backends. A tier without any is
// left out: nothing can be drawn from it.
func (s *serviceRows) addTier(row *ServiceRow, next int, tier clustermesh.Tier) int {
	first := next
	for _, g := range tier.Groups {
		if len(g.Backends) == 0 {
			continue
		}
		if next == MaxGroups || int(row.NumTiers) == MaxTiers {
			s.note = append(s.note, fmt.Sprintf("cluster %s is left out: a service has at most %d clusters in %d tiers", g.Cluster, MaxGroups, MaxTiers))
			continue
		}
		backends := g.Backends
		if len(backends) > MaxSlots {
			s.note = append(s.note, fmt.Sprintf("%d backends in cluster %s, the first %d are used", len(backends), g.Cluster, MaxSlots))
			backends = backends[:MaxSlots]
		}
		row.Groups[next] = Group{Cluster: uint16(g.ID), Weight: g.Weight, Count: uint32(len(backends))}
		s.slot = append(s.slot, slotRange{row.ID, uint16(g.ID), uint32(len(backends))})
		s.fill = append(s.fill, backends)
		next++
	}
	if next > first {
		row.Tiers[row.NumTiers] = Tier{First: uint8(first), Groups: uint8(next - first), Share: tier.Share}
		row.NumTiers++
	}
	return next
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

// appliedService is what of a service is in the wanted tables.
type appliedService struct {
	keys []ServiceKey
	slot []slotRange
	note []string
}

// mergeService brings the rows of one service up to date.
func (s *State) mergeService(name clustermesh.ServiceName) {
	var rows serviceRows
	if own := s.clusters[s.own]; own.has(name) {
		rows = makeServiceRows(clustermesh.Merge(s.mergeInput(name)), s.carry())
	}
	old := s.services[name]
	s.putSlots(rows)
	s.dropSlots(old.slot, rows.slot)
	for _, k := range old.keys {
		if !slices.Contains(rows.keys, k) {
			s.unclaim(k, name)
		}
	}
	for i, k := range rows.keys {
		s.claim(k, name, rows.rows[i])
	}
	switch {
	case len(rows.keys) == 0 && len(rows.slot) == 0:
		delete(s.services, name)
	case slices.Equal(old.keys, rows.keys) && slices.Equal(old.slot, rows.slot) && slices.Equal(old.note, rows.note):
	default:
		s.services[name] = appliedService{keys: rows.keys, slot: rows.slot, note: rows.note}
	}
	s.noteService(name, rows.note)
}

func (s *State) mergeInput(name clustermesh.ServiceName) clustermesh.MergeInput {
	return clustermesh.MergeInput{Name: name, Local: s.own, Views: s.exports, Home: s.clusters[s.own].views[clustermesh.ScopeLocal]}
}

func (s *State) noteService(name clustermesh.ServiceName, notes []string) {
	if len(notes) == 0 {
		delete(s.problems, "service "+name.String())
		return
	}
	s.problems["service "+name.String()] = clustermesh.Problem{
		What: "service " + name.String() + " is larger than a row can say", Why: strings.Join(notes, "; "),
		Fix: "split the service, or name fewer clusters",
	}
}

// carry returns how to keep groups of clusters that nothing is known of; nil
// when all are known. Until the own cluster has said who the peers are, any
// cluster may be one that was not seen to be removed.
func (s *State) carry() func(ServiceKey, *ServiceRow) {
	own := s.clusters[s.own].synced()
	if len(s.blank) == 0 && own {
		return nil
	}
	keep := func(id uint16) bool {
		if s.byID(clustermesh.ID(id)) == nil {
			return !own && !s.removed[clustermesh.ID(id)]
		}
		return s.blank[clustermesh.ID(id)]
	}
	return func(k ServiceKey, row *ServiceRow) {
		if old, ok := s.t.services.Actual(k); ok && old.ID == row.ID {
			carryGroups(old, row, keep)
		}
	}
}

func (s *State) putSlots(rows serviceRows) {
	for i, r := range rows.slot {
		for n, b := range rows.fill[i] {
			s.t.slots.Set(SlotKey{Service: r.service, Cluster: r.cluster, Slot: uint32(n)},
				SlotRow{Addr: MakeAddr(b.Address), Port: b.Port, Cluster: r.cluster, Node: b.Node})
		}
	}
}

// dropSlots deletes the slots that old had and now has not.
func (s *State) dropSlots(old, now []slotRange) {
	for _, o := range old {
		from := uint32(0)
		for _, n := range now {
			if n.service == o.service && n.cluster == o.cluster {
				from = n.count
			}
		}
		for i := from; i < o.count; i++ {
			s.t.slots.Delete(SlotKey{Service: o.service, Cluster: o.cluster, Slot: i})
		}
	}
}

// claim wants row at k for a service. Of several services with one frontend the
// first by name has it.
func (s *State) claim(k ServiceKey, name clustermesh.ServiceName, row ServiceRow) {
	holder, taken := s.frontends[k]
	if taken && holder != name {
		s.contest(k, holder, name)
		if s.contested[k][0] != name {
			return
		}
	}
	s.frontends[k] = name
	s.t.services.Set(k, row)
}

func (s *State) contest(k ServiceKey, names ...clustermesh.ServiceName) {
	all := append(s.contested[k], names...)
	slices.SortFunc(all, func(a, b clustermesh.ServiceName) int { return strings.Compare(a.String(), b.String()) })
	all = slices.Compact(all)
	s.contested[k] = all
	s.problems["frontend "+k.String()] = clustermesh.Problem{
		What: fmt.Sprintf("frontend %s is claimed by services %v", k, all),
		Why:  "connections to one address and port lead to one service; " + all[0].String() + " has it",
		Fix:  "give one of them another address or port",
	}
}

// unclaim ends a service's claim on k and lets the next one have it.
func (s *State) unclaim(k ServiceKey, name clustermesh.ServiceName) {
	others := slices.DeleteFunc(slices.Clone(s.contested[k]), func(n clustermesh.ServiceName) bool { return n == name })
	if len(others) < 2 {
		delete(s.contested, k)
		delete(s.problems, "frontend "+k.String())
	} else {
		s.contested[k] = nil
		s.contest(k, others...)
	}
	if s.frontends[k] != name {
		return
	}
	delete(s.frontends, k)
	s.t.services.Delete(k)
	for _, other := range others {
		s.touchService(other)
	}
}
