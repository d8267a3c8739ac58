package agent

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"strings"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// ServiceID names a port of a service in one address family, in every agent of
// every cluster alike: the first 8 bytes of a SHA-256.
func ServiceID(name clustermesh.ServiceName, port string, proto clustermesh.Protocol, v6 bool) uint64 {
	return hashService(name, port, proto, v6, "")
}

// localServiceID names the backends of the same on this node alone.
func localServiceID(name clustermesh.ServiceName, port string, proto clustermesh.Protocol, v6 bool) uint64 {
	return hashService(name, port, proto, v6, "here")
}

func hashService(name clustermesh.ServiceName, port string, proto clustermesh.Protocol, v6 bool, set string) uint64 {
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
	buf = append(buf, set...)
	sum := sha256.Sum256(buf)
	return binary.BigEndian.Uint64(sum[:8])
}

// appliedService is what of a service is in the wanted tables.
type appliedService struct {
	keys    []ServiceKey
	slot    []slotRange
	note    []string
	outside *appliedOutside // nil for most
}

// appliedOutside is what of outsideRows is in the wanted tables.
type appliedOutside struct {
	ranges []RangeKey
	tables []maglevTableOf
}

// mergeService brings the rows of one service up to date.
func (s *State) mergeService(name clustermesh.ServiceName) {
	old := s.services[name]
	rows := s.rowsOf(name, old)
	left := s.putSlots(rows)
	left = s.dropSlots(left, old.slot, rows.slot)
	s.putOutside(old.outside, rows.outside)
	s.countTables(name, old.outside, rows)
	has := keySet(rows.keys)
	for _, k := range old.keys {
		if !has(k) {
			s.unclaim(k, name)
		}
	}
	for i, k := range rows.keys {
		s.claim(k, claimant{name, rows.kinds[i]}, rows.rows[i])
	}
	s.noteApplied(name, old, rows)
	s.noteService(name, rows.note)
	s.noteLeft(name, left)
}

// rowsOf are the rows of a service, or of the host ports of a pod.
func (s *State) rowsOf(name clustermesh.ServiceName, old appliedService) serviceRows {
	if workload, is := hostPortOf(name); is {
		return s.hostPortRows(name, workload)
	}
	if !s.clusters[s.own].has(name) {
		s.noteHealthPort(name, HealthPort{})
		return serviceRows{}
	}
	m := clustermesh.Merge(s.mergeInput(name))
	s.noteHealthPort(name, healthPort(m, s.at))
	free := s.tableRoom - s.tables + tableChunks(old.outside)
	var fill func(clustermesh.ID, []clustermesh.Backend) []clustermesh.Backend
	if !s.slow.nothings {
		fill = func(id clustermesh.ID, b []clustermesh.Backend) []clustermesh.Backend {
			return s.slow.fill(id, b, s.drains.now)
		}
	}
	return makeServiceRows(rowInput{
		fill: fill, merged: m, cluster: s.own, at: s.at, carry: s.carry(),
		room: func(chunks int) bool {
			if chunks > free {
				return false
			}
			free -= chunks
			return true
		},
	})
}

func (s *State) mergeInput(name clustermesh.ServiceName) clustermesh.MergeInput {
	in := clustermesh.MergeInput{Name: name, Local: s.own, Views: s.exports, Home: s.clusters[s.own].views[clustermesh.ScopeLocal]}
	if len(s.drains.in) > 0 || !s.slow.nothings {
		imported := s.imports.of[name]
		in.Left = func(cluster string) uint16 { return s.weightLeft(cluster, name, imported) }
	}
	if !s.slow.nothings {
		in.Used = func(id clustermesh.ID, b clustermesh.Backend) bool { return s.slow.uses(id, b, s.drains.now) }
	}
	return in
}

// weightLeft is how much of its weight a cluster has in a service: what no drain
// has taken, and, of that, what its health allows, which never is nothing.
func (s *State) weightLeft(cluster string, name, imported clustermesh.ServiceName) uint16 {
	left := uint32(s.drains.left(cluster, name, imported))
	if c := s.clusters[cluster]; c != nil && left > 0 {
		left = max(left*uint32(s.slow.weight(c.id, s.drains.now))/clustermesh.ShareAll, 1)
	}
	return uint16(left)
}

// noteApplied remembers what of the service is in the tables, in no more memory
// than it takes.
func (s *State) noteApplied(name clustermesh.ServiceName, old appliedService, rows serviceRows) {
	now := appliedService{keys: rows.keys, slot: rows.slot, note: rows.note}
	if o := rows.outside; o != nil {
		now.outside = &appliedOutside{ranges: o.ranges, tables: o.tables}
	}
	switch {
	case len(now.keys) == 0 && len(now.slot) == 0:
		delete(s.services, name)
	case slices.Equal(old.keys, now.keys) && slices.Equal(old.slot, now.slot) && slices.Equal(old.note, now.note) && old.outside.equal(now.outside):
	default:
		s.services[name] = now
	}
}

func (a *appliedOutside) equal(b *appliedOutside) bool {
	if a == nil || b == nil {
		return a == b
	}
	return slices.Equal(a.ranges, b.ranges) && slices.Equal(a.tables, b.tables)
}

func (s *State) noteService(name clustermesh.ServiceName, notes []string) {
	if len(notes) == 0 {
		delete(s.problems, "service "+name.String())
		return
	}
	what, fix := "service "+name.String()+" is larger than a row can say", "split the service, or name fewer clusters"
	if workload, is := hostPortOf(name); is {
		what, fix = "pod "+workload.String()+" gets a host port that leads to it nowhere", "name an address of the node as hostIP, or none"
	}
	s.problems["service "+name.String()] = clustermesh.Problem{What: what, Why: strings.Join(notes, "; "), Fix: fix}
}

// keySet is for a look-up in a list that is short for most services.
func keySet(keys []ServiceKey) func(ServiceKey) bool {
	if len(keys) <= 32 {
		return func(k ServiceKey) bool { return slices.Contains(keys, k) }
	}
	set := make(map[ServiceKey]struct{}, len(keys))
	for _, k := range keys {
		set[k] = struct{}{}
	}
	return func(k ServiceKey) bool { _, ok := set[k]; return ok }
}

// putSlots wants the slots of rows, and returns the backends that had one of
// them before.
func (s *State) putSlots(rows serviceRows) (left []BackendKey) {
	for i, r := range rows.slot {
		for n, b := range rows.fill[i] {
			k := SlotKey{Service: r.service, Cluster: r.cluster, Slot: uint32(n)}
			row := slotRow(k, b)
			old, had := s.t.slots.Wanted(k)
			s.t.slots.Set(k, row)
			if had && old == row {
				continue
			}
			s.uses.add(backendOf(row, r.proto))
			if had {
				left = append(left, backendOf(old, r.proto))
				s.uses.remove(backendOf(old, r.proto))
			}
		}
	}
	return left
}

// dropSlots deletes the slots that old had and now has not, and adds the backends
// that had them to left.
func (s *State) dropSlots(left []BackendKey, old, now []slotRange) []BackendKey {
	for _, o := range old {
		from := uint32(0)
		for _, n := range now {
			if n.service == o.service && n.cluster == o.cluster {
				from = n.count
			}
		}
		for i := from; i < o.count; i++ {
			k := SlotKey{Service: o.service, Cluster: o.cluster, Slot: i}
			if row, had := s.t.slots.Wanted(k); had {
				left = append(left, backendOf(row, o.proto))
				s.uses.remove(backendOf(row, o.proto))
			}
			s.t.slots.Delete(k)
		}
	}
	return left
}

// putOutside wants source ranges and consistent tables, and no longer those of old.
func (s *State) putOutside(old *appliedOutside, now *outsideRows) {
	if old == nil && now == nil {
		return
	}
	var was appliedOutside
	if old != nil {
		was = *old
	}
	var is outsideRows
	if now != nil {
		is = *now
	}
	for _, k := range is.ranges {
		s.t.sourceRanges.Set(k, RangeRow{Allow: true})
	}
	for _, k := range was.ranges {
		if !slices.Contains(is.ranges, k) {
			s.t.sourceRanges.Delete(k)
		}
	}
	for k, row := range is.chunks {
		s.t.maglev.Set(k, row)
	}
	for _, t := range was.tables {
		for n := range t.chunks {
			k := MaglevKey{Service: t.service, Chunk: n}
			if _, still := is.chunks[k]; !still {
				s.t.maglev.Delete(k)
			}
		}
	}
}
