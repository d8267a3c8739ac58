package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// ownerNode is the owner of rows that belong to this node alone (its pods):
// they are known once SetPods was called.
const ownerNode clustermesh.ID = 0

// tableSet is all tables that hold what the clusters say, with their deltas.
type tableSet struct {
	peers      *Delta[PeerKey, PeerRow]
	routes     *Delta[RouteKey, RouteRow]
	ipPrefixes *Delta[Prefix, IPCacheRow]
	ips        *Delta[Addr, IPCacheRow]
	endpoints  *Delta[Addr, EndpointRow]
	slots      *Delta[SlotKey, SlotRow]
	services   *Delta[ServiceKey, ServiceRow]
}

// anyDelta is what can be done with a delta without knowing its rows.
type anyDelta interface {
	Pending() int
	Stuck() int
	Len() int
	Held() int
	Urgent() int
	Resync(n int) (bool, error)
	StopResync()
	Scanned() bool
	Release()
	Hurry(bool)
	Problem() error
	RetryAt() time.Time
	name() string
	counts() (written, removed, failures, drifted uint64)
}

func (d *Delta[K, V]) name() string { return d.Name }

func (d *Delta[K, V]) counts() (written, removed, failures, drifted uint64) {
	return d.written, d.removed, d.failures, d.drifted
}

// newTableSet makes the deltas. byPrefix says whose pod prefix an address range
// lies in; own is this node's cluster.
func newTableSet(t Tables, own clustermesh.ID, byPrefix func(netip.Prefix) clustermesh.ID, known func(clustermesh.ID) bool) *tableSet {
	ofIP := func(v IPCacheRow, p netip.Prefix) clustermesh.ID {
		if c := clustermesh.Identity(v.Identity).Cluster(); c != 0 {
			return c
		}
		return byPrefix(p)
	}
	return &tableSet{
		peers: NewDelta(TablePeers, t.Peers, func(_ PeerKey, v PeerRow) clustermesh.ID {
			for p := range allowedPrefixes(v) {
				return byPrefix(p)
			}
			return own
		}, known),
		routes: NewDelta(TableRoutes, t.Routes, func(k RouteKey, _ RouteRow) clustermesh.ID {
			if k.Kind == RoutePod {
				return ownerNode
			}
			return byPrefix(k.Prefix.Netip())
		}, known),
		ipPrefixes: NewDelta(TableIPPrefixes, t.IPPrefixes, func(k Prefix, v IPCacheRow) clustermesh.ID {
			return ofIP(v, k.Netip())
		}, known),
		ips: NewDelta(TableIPs, t.IPs, func(k Addr, v IPCacheRow) clustermesh.ID {
			return ofIP(v, single(k))
		}, known),
		endpoints: NewDelta(TableEndpoints, t.Endpoints, func(Addr, EndpointRow) clustermesh.ID { return ownerNode }, known),
		slots: NewDelta(TableSlots, t.Slots, func(k SlotKey, _ SlotRow) clustermesh.ID {
			return clustermesh.ID(k.Cluster)
		}, known),
		services: NewDelta(TableServices, t.Services, func(ServiceKey, ServiceRow) clustermesh.ID { return own }, known),
	}
}

// all are the deltas in the order in which references enter.
func (t *tableSet) all() []anyDelta {
	return []anyDelta{t.peers, t.routes, t.ipPrefixes, t.ips, t.endpoints, t.slots, t.services}
}

// dump is a table as text: the rows that are wanted or, with actual, those the
// kernel is known to hold.
func (t *tableSet) dump(name string, actual bool) (string, bool) {
	switch name {
	case TablePeers:
		return dumpDelta(t.peers, PeerText, actual), true
	case TableRoutes:
		return dumpDelta(t.routes, RouteText, actual), true
	case TableIPPrefixes:
		return dumpDelta(t.ipPrefixes, IPPrefixText, actual), true
	case TableIPs:
		return dumpDelta(t.ips, IPText, actual), true
	case TableEndpoints:
		return dumpDelta(t.endpoints, EndpointText, actual), true
	case TableSlots:
		return dumpDelta(t.slots, SlotText, actual), true
	case TableServices:
		return dumpDelta(t.services, ServiceText, actual), true
	}
	return "", false
}

// dumpDelta prints wanted rows, or what the kernel is known to hold. Rows that
// are not known because a write failed half way are left out.
func dumpDelta[K comparable, V comparable](d *Delta[K, V], text Text[K, V], actual bool) string {
	if !actual {
		return text.Print(d.wanted)
	}
	return text.Print(d.actualRows())
}

// actualRows are the rows that the kernel is known to hold.
func (d *Delta[K, V]) actualRows() map[K]V {
	rows := make(map[K]V, len(d.wanted)+len(d.held))
	for k, v := range d.wanted {
		if _, differs := d.differs(k); !differs {
			rows[k] = v
		}
	}
	for _, m := range []map[K]actual[V]{d.dirty, d.leaving, d.stuck} {
		for k, a := range m {
			if a.state == present {
				rows[k] = a.value
			}
		}
	}
	for k, v := range d.held {
		rows[k] = v
	}
	return rows
}

// allowedPrefixes are the prefixes of a WireGuard peer.
func allowedPrefixes(v PeerRow) func(func(netip.Prefix) bool) {
	return func(yield func(netip.Prefix) bool) {
		for s := range strings.SplitSeq(v.Allowed, ",") {
			if p, err := netip.ParsePrefix(s); err == nil && !yield(p) {
				return
			}
		}
	}
}

func single(a Addr) netip.Prefix {
	ip := a.IP()
	return netip.PrefixFrom(ip, ip.BitLen())
}

// prefixSet answers whether an address range lies in one of its prefixes.
type prefixSet struct {
	prefixes map[netip.Prefix]struct{}
	lengths  map[int]struct{} // of both families; few
}

func (s *prefixSet) add(p netip.Prefix) {
	if s.prefixes == nil {
		s.prefixes, s.lengths = map[netip.Prefix]struct{}{}, map[int]struct{}{}
	}
	s.prefixes[p.Masked()] = struct{}{}
	s.lengths[p.Bits()] = struct{}{}
}

func (s *prefixSet) covers(p netip.Prefix) bool {
	for bits := range s.lengths {
		if bits > p.Bits() {
			continue
		}
		if wider, err := p.Addr().Prefix(bits); err == nil {
			if _, ok := s.prefixes[wider]; ok {
				return true
			}
		}
	}
	return false
}

// flush writes what differs, at most budget rows of each table, and reports
// whether rows are left that could be written now. The order is the contract:
// no reference to something absent is ever in the kernel. Within one call it is
//
//	rows whose meaning changed leave
//	in:  blackholes, peers, routes, ipcache, endpoints, slots, services
//	out: services, slots, endpoints, ipcache, routes, peers, blackholes
//
// and a row whose reference did not make it (the kernel refused it, or the
// budget ended) waits for it, alone.
func (t *tableSet) flush(budget int) (more bool) {
	t.ips.FlushDrops()
	t.ipPrefixes.FlushDrops()

	blackhole := func(k RouteKey, _ RouteRow) bool { return k.Kind == RouteBlackhole }
	full := false
	count := func(n int) { full = full || n >= budget }

	count(t.routes.FlushPuts(budget, blackhole))
	count(t.peers.FlushPuts(budget, nil))
	count(t.routes.FlushPuts(budget, t.guarded()))
	unreachable := t.pendingPaths()
	count(t.ipPrefixes.FlushPuts(budget, func(k Prefix, _ IPCacheRow) bool { return !unreachable.covers(k.Netip()) }))
	count(t.ips.FlushPuts(budget, func(k Addr, _ IPCacheRow) bool { return !unreachable.covers(single(k)) }))
	count(t.endpoints.FlushPuts(budget, nil))
	count(t.slots.FlushPuts(budget, nil))
	count(t.services.FlushPuts(budget, t.withSlots()))

	count(t.services.FlushDeletes(budget, nil))
	count(t.slots.FlushDeletes(budget, t.unreferenced()))
	count(t.endpoints.FlushDeletes(budget, nil))
	count(t.ips.FlushDeletes(budget, nil))
	count(t.ipPrefixes.FlushDeletes(budget, nil))
	if pendingDeletes(t.ips) == 0 && pendingDeletes(t.ipPrefixes) == 0 {
		count(t.routes.FlushDeletes(budget, func(k RouteKey, v RouteRow) bool { return !blackhole(k, v) }))
		count(t.peers.FlushDeletes(budget, nil))
		count(t.routes.FlushDeletes(budget, t.coversNothing()))
	}
	return full
}

// guarded tells which routes may enter: not those into the tunnel whose
// blackhole did not make it.
func (t *tableSet) guarded() func(RouteKey, RouteRow) bool {
	missing := map[Prefix]struct{}{}
	for k, rows := range t.routes.pending() {
		if k.Kind == RouteBlackhole && rows[1] != nil {
			missing[k.Prefix] = struct{}{}
		}
	}
	return func(k RouteKey, _ RouteRow) bool {
		_, open := missing[k.Prefix]
		return k.Kind != RouteTunnel || !open
	}
}

// pendingPaths are the prefixes whose peer or route is not in the kernel yet.
func (t *tableSet) pendingPaths() *prefixSet {
	var s prefixSet
	for _, rows := range t.peers.pending() {
		if rows[1] != nil {
			for p := range allowedPrefixes(*rows[1]) {
				s.add(p)
			}
		}
	}
	for k, rows := range t.routes.pending() {
		if rows[1] != nil && k.Kind != RoutePod {
			s.add(k.Prefix.Netip())
		}
	}
	return &s
}

// withSlots tells which service rows have all their slots in the kernel.
func (t *tableSet) withSlots() func(ServiceKey, ServiceRow) bool {
	if t.slots.Pending() == 0 {
		return nil
	}
	waiting := map[uint64]struct{}{}
	for k, rows := range t.slots.pending() {
		if rows[1] != nil {
			waiting[k.Service] = struct{}{}
		}
	}
	return func(_ ServiceKey, v ServiceRow) bool {
		_, wait := waiting[v.ID]
		return !wait
	}
}

// unreferenced tells which slots no service row in the kernel may still name.
func (t *tableSet) unreferenced() func(SlotKey, SlotRow) bool {
	if t.services.Pending()+t.services.Held() == 0 {
		return nil
	}
	named := map[uint64]struct{}{}
	for _, rows := range t.services.pending() {
		for _, row := range rows {
			if row != nil {
				named[row.ID] = struct{}{}
			}
		}
	}
	for _, row := range t.services.HeldRows() {
		named[row.ID] = struct{}{}
	}
	return func(k SlotKey, _ SlotRow) bool {
		_, is := named[k.Service]
		return !is
	}
}

// coversNothing tells which blackholes guard no route that is still to leave.
func (t *tableSet) coversNothing() func(RouteKey, RouteRow) bool {
	leaving := map[Prefix]struct{}{}
	for k, rows := range t.routes.pending() {
		if rows[1] == nil && k.Kind != RouteBlackhole {
			leaving[k.Prefix] = struct{}{}
		}
	}
	return func(k RouteKey, _ RouteRow) bool {
		for p := range leaving {
			if k.Prefix.Netip().Overlaps(p.Netip()) {
				return false
			}
		}
		return true
	}
}

// pendingDeletes counts rows that are to leave and have not.
func pendingDeletes[K comparable, V comparable](d *Delta[K, V]) int {
	n := len(d.leaving)
	for k := range d.stuck {
		if _, wanted := d.wanted[k]; !wanted {
			n++
		}
	}
	return n
}

// problems are the tables that refuse rows.
func (t *tableSet) problems() []clustermesh.Problem {
	var out []clustermesh.Problem
	for _, d := range t.all() {
		if err := d.Problem(); err != nil {
			out = append(out, tableProblem(d.name(), d.Stuck(), d.Len(), err))
		}
	}
	return out
}

func tableProblem(name string, stuck, wanted int, err error) clustermesh.Problem {
	fix := "it is tried again by itself; see the log of the agent and of the kernel"
	if errors.Is(err, ErrFull) {
		fix = fmt.Sprintf("give the agent a larger table %s (it wants %d rows now) and restart it, or take services or clusters away", name, wanted)
	}
	return clustermesh.Problem{
		What: fmt.Sprintf("table %s: %d of %d rows are not in the kernel", name, stuck, wanted),
		Why:  err.Error(),
		Fix:  fix,
	}
}
