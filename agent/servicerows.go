package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// MaxSlots is the largest number of backends of one group.
const MaxSlots = 65535

// serviceRows are the rows of one service.
type serviceRows struct {
	keys    []ServiceKey
	kinds   []frontendKind // one for each key
	rows    []ServiceRow   // one for each key
	slot    []slotRange    // which slots exist
	fill    []slotContents // their contents, in the order of slot
	outside *outsideRows   // nil = nothing of that kind
	noTable bool           // there was no room for a consistent table
	note    []string       // what had to be cut
}

// slotRange are the slots 0…count-1 of a group.
type slotRange struct {
	service uint64
	count   uint32
	cluster uint16
	proto   uint8
}

type slotContents []clustermesh.Backend

// outsideRows are rows that only services have which are reached from outside.
type outsideRows struct {
	ranges []RangeKey
	tables []maglevTableOf
	chunks map[MaglevKey]MaglevRow
}

// maglevTableOf says which pieces of a consistent table there are.
type maglevTableOf struct {
	service uint64
	chunks  uint32
}

// rowInput is all that the rows of a service depend on.
type rowInput struct {
	merged  clustermesh.Merged
	cluster string // the own one
	at      vantage
	carry   *carrier // nil = all clusters are known
	// fill says which backends have the slots of a group; nil = each has its own.
	fill func(clustermesh.ID, []clustermesh.Backend) []clustermesh.Backend
	// room says whether so many pieces of consistent tables may be made.
	room func(chunks int) bool
}

// makeServiceRows turns a merged service into rows. Pure.
//
//	frontend                          from inside       from outside
//	ClusterIP                         all, or here (1)  –
//	external IP, load balancer (3)    all               all, or here (2)
//	node port                         all               all, or here (2)
//
// (1) internalTrafficPolicy Local. (2) externalTrafficPolicy Local: the source is
// kept, as no packet leaves the node again. Whoever asks from inside has left the
// cluster and come back, as it were: on the way it would meet a load balancer, so
// neither policy holds. (3) Source ranges are those of load balancers alone.
func makeServiceRows(in rowInput) serviceRows {
	b := rowBuilder{rowInput: in}
	for i := range in.merged.Ports {
		b.addPort(&in.merged.Ports[i])
	}
	return b.serviceRows
}

type rowBuilder struct {
	rowInput
	serviceRows
}

// backendSet is a set of backends with its ID, as a row that lacks the flags.
type backendSet struct {
	row     ServiceRow
	carries bool // may get back groups of clusters that nothing is known of
}

func (b *rowBuilder) addPort(p *clustermesh.MergedPort) {
	tiers, _ := nearTiers(p.Tiers, b.at)
	all := b.addSet(ServiceID(b.merged.Name, p.Port.Name, p.Port.Protocol, p.V6), p, tiers)
	all.carries = true
	fromOutside := len(p.External) > 0 || p.Port.NodePort != 0
	here := all
	if b.merged.InternalLocal || b.merged.ExternalLocal && fromOutside {
		here = b.addSet(localServiceID(b.merged.Name, p.Port.Name, p.Port.Protocol, p.V6), p, hereTiers(b.cluster, p.Local, b.at))
		if all.row.NumTiers+here.row.NumTiers > 0 {
			here.row.Flags = ServiceLocal
		} // else there is no backend anywhere, which clients are told at once
	}
	inside, outside := all, all
	if b.merged.InternalLocal {
		inside = here
	}
	if b.merged.ExternalLocal {
		outside = here
		if here.row.Flags&ServiceLocal != 0 {
			outside.row.Flags |= ServiceKeepSource
		}
	}
	for _, a := range p.Frontends {
		b.addRow(ServiceKey{Addr: MakeAddr(a), Port: p.Port.Port, Proto: uint8(p.Port.Protocol)}, kindClusterIP, inside)
	}
	if fromOutside {
		b.addTable(&outside, uint8(p.Port.Protocol), b.outsideKeys(p))
		b.addOutside(p, all, outside)
	}
}

// addOutside adds the rows of frontends that are reached from outside as well.
func (b *rowBuilder) addOutside(p *clustermesh.MergedPort, all, outside backendSet) {
	ranged := outside
	ranged.row.Flags |= b.addRanges(outside.row.ID, p.V6)
	for _, e := range p.External {
		kind, set := kindExternalIP, outside
		if e.Kind == clustermesh.ExternalLoadBalancer {
			kind, set = kindLoadBalancer, ranged
		}
		b.addBoth(MakeAddr(e.Address), p.Port.Port, p.Port.Protocol, kind, all, set)
	}
	if p.Port.NodePort != 0 {
		for _, a := range b.at.ports {
			if a.Is6() == p.V6 {
				b.addBoth(MakeAddr(a), p.Port.NodePort, p.Port.Protocol, kindNodePort, all, outside)
			}
		}
	}
}

// outsideKeys are the keys from outside, for what a carrier knows of them.
func (b *rowBuilder) outsideKeys(p *clustermesh.MergedPort) (keys []ServiceKey) {
	add := func(a netip.Addr, port uint16) {
		keys = append(keys, ServiceKey{Addr: MakeAddr(a), Port: port, Proto: uint8(p.Port.Protocol), Scope: ScopeOutside})
	}
	for _, e := range p.External {
		add(e.Address, p.Port.Port)
	}
	for _, a := range b.at.ports {
		if p.Port.NodePort != 0 && a.Is6() == p.V6 {
			add(a, p.Port.NodePort)
		}
	}
	return keys
}

func (b *rowBuilder) addBoth(a Addr, port uint16, proto clustermesh.Protocol, kind frontendKind, inside, outside backendSet) {
	b.addRow(ServiceKey{Addr: a, Port: port, Proto: uint8(proto)}, kind, inside)
	b.addRow(ServiceKey{Addr: a, Port: port, Proto: uint8(proto), Scope: ScopeOutside}, kind, outside)
}

// addRow adds one row. A service that names a frontend twice has it as what it
// said first.
func (b *rowBuilder) addRow(k ServiceKey, kind frontendKind, set backendSet) {
	if slices.Contains(b.keys, k) {
		return
	}
	row := set.row
	if k.Scope == ScopeInside {
		row.Maglev = 0
	}
	if set.carries && b.carry != nil {
		b.carry.groups(k, &row)
	}
	b.keys = append(b.keys, k)
	b.kinds = append(b.kinds, kind)
	b.rows = append(b.rows, row)
}

// addSet adds the slots of a set.
func (b *rowBuilder) addSet(id uint64, p *clustermesh.MergedPort, tiers []clustermesh.Tier) backendSet {
	set := backendSet{row: ServiceRow{ID: id, Affinity: affinitySeconds(b.merged.SessionAffinity)}}
	next := 0
	for _, tier := range tiers {
		if b.rowInput.fill != nil {
			tier.Groups = slices.Clone(tier.Groups)
			for i, g := range tier.Groups {
				tier.Groups[i].Backends = b.rowInput.fill(g.ID, g.Backends)
			}
		}
		next = b.addTier(&set.row, uint8(p.Port.Protocol), next, tier)
	}
	return set
}

// affinitySeconds rounds up: 0 would be none.
func affinitySeconds(d time.Duration) uint32 {
	return uint32((max(d, 0) + time.Second - 1) / time.Second)
}

// addTier appends the groups of a tier that have backends. A tier without any is
// left out: nothing can be drawn from it.
func (s *serviceRows) addTier(row *ServiceRow, proto uint8, next int, tier clustermesh.Tier) int {
	first := next
	for _, g := range tier.Groups {
		if len(g.Backends) == 0 {
			continue
		}
		if g.Drained && row.Affinity > 0 {
			row.Flags |= ServiceDrained
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
		s.slot = append(s.slot, slotRange{service: row.ID, cluster: uint16(g.ID), proto: proto, count: uint32(len(backends))})
		s.fill = append(s.fill, backends)
		next++
	}
	if next > first {
		row.Tiers[row.NumTiers] = Tier{First: uint8(first), Groups: uint8(next - first), Share: tier.Share}
		row.NumTiers++
	}
	return next
}

// slotAt is a slot as it is going to be.
func (s *serviceRows) slotAt(k SlotKey) (SlotRow, bool) {
	for i, r := range s.slot {
		if r.service == k.Service && r.cluster == k.Cluster && k.Slot < r.count {
			return slotRow(k, s.fill[i][k.Slot]), true
		}
	}
	return SlotRow{}, false
}

func slotRow(k SlotKey, b clustermesh.Backend) SlotRow {
	return SlotRow{Addr: MakeAddr(b.Address), Port: b.Port, Cluster: k.Cluster, Node: b.Node}
}
