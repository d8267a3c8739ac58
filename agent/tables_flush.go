package agent

// flush writes what differs, at most budget rows of each table, and reports
// whether rows are left that could be written now. The order is the contract:
// no reference to something absent is ever in the kernel. Within one call it is
//
//	rows whose meaning changed leave, policy rows for them change
//	in:  node, blackholes, peers, routes, policy, ipcache, classes, subjects,
//	     endpoints, source ranges, slots, consistent tables, services
//	out: services and so on in reverse, blackholes last
//	then the epoch, if anything changed that verdicts depend on
//
// and a row whose reference did not make it (the kernel refused it, or the
// budget ended) waits for it, alone.
func (t *tableSet) flush(budget int) (more bool) {
	f := flushing{tableSet: t, budget: budget}
	before := t.verdictWrites()
	t.ips.FlushDrops()
	t.ipPrefixes.FlushDrops()
	f.count(t.config.FlushPuts(budget, nil))
	f.paths()
	f.policyIn()
	f.servicesIn()

	f.servicesOut()
	f.policyOut()
	f.pathsOut()
	f.count(t.config.FlushDeletes(budget, nil))
	t.epoch.flush(t.verdictWrites() != before)
	return f.full
}

// flushing is one flush.
type flushing struct {
	*tableSet
	budget int
	full   bool // some table has more than the budget allowed
}

func (f *flushing) count(n int) { f.full = f.full || n >= f.budget }

// blackhole tells the routes that answer where no other one leads.
func blackhole(k RouteKey, _ RouteRow) bool {
	return k.Kind == RouteBlackhole || k.Kind == RouteUnreachable
}

func (f *flushing) paths() {
	f.count(f.routes.FlushPuts(f.budget, blackhole))
	f.count(f.peers.FlushPuts(f.budget, nil))
	f.count(f.routes.FlushPuts(f.budget, f.guarded()))
}

// policyIn lets policy rows in, then what programs find them by.
func (f *flushing) policyIn() {
	f.count(f.policy.FlushDeletes(f.budget, f.unnamed())) // frees room, and goes before a number means something else
	f.count(f.policy.FlushPuts(f.budget, f.meant()))
	f.closeSubjects()
	unreachable, undecided := f.pendingPaths(), f.undecided()
	f.count(f.ipPrefixes.FlushPuts(f.budget, func(k Prefix, v IPCacheRow) bool {
		return !unreachable.covers(k.Netip()) && !undecided[PolicyPeer(v.Identity)]
	}))
	f.count(f.ips.FlushPuts(f.budget, func(k Addr, v IPCacheRow) bool {
		return !unreachable.covers(single(k)) && !undecided[PolicyPeer(v.Identity)]
	}))
	f.count(f.classPrefixes.FlushPuts(f.budget, func(_ Prefix, v ClassRow) bool { return !undecided[v.ID] }))
	f.count(f.classes.FlushPuts(f.budget, func(_ Addr, v ClassRow) bool { return !undecided[v.ID] }))
	f.count(f.subjects.FlushPuts(f.budget, f.decided()))
	f.closeEndpoints()
	f.count(f.endpoints.FlushPuts(f.budget, f.withSubject()))
}

func (f *flushing) policyOut() {
	f.count(f.endpoints.FlushDeletes(f.budget, nil))
	f.count(f.subjects.FlushDeletes(f.budget, f.abandoned()))
	f.count(f.classes.FlushDeletes(f.budget, nil))
	f.count(f.classPrefixes.FlushDeletes(f.budget, nil))
	f.count(f.ips.FlushDeletes(f.budget, nil))
	f.count(f.ipPrefixes.FlushDeletes(f.budget, nil))
	f.count(f.policy.FlushDeletes(f.budget, f.unnamed()))
}

func (f *flushing) servicesIn() {
	f.count(f.sourceRanges.FlushPuts(f.budget, nil))
	f.count(f.slots.FlushPuts(f.budget, nil))
	f.count(f.maglev.FlushPuts(f.budget, f.withSlots()))
	f.count(f.services.FlushPuts(f.budget, f.complete()))
}

func (f *flushing) servicesOut() {
	f.count(f.services.FlushDeletes(f.budget, nil))
	named := f.namedServices()
	f.count(f.maglev.FlushDeletes(f.budget, func(k MaglevKey, _ MaglevRow) bool { return !named[k.Service] }))
	for k, rows := range f.maglev.pending() {
		if rows[0] != nil {
			named[k.Service] = true
		}
	}
	f.count(f.slots.FlushDeletes(f.budget, func(k SlotKey, _ SlotRow) bool { return !named[k.Service] }))
	f.count(f.sourceRanges.FlushDeletes(f.budget, func(k RangeKey, _ RangeRow) bool { return !named[k.Service] }))
}

func (f *flushing) pathsOut() {
	if pendingDeletes(f.ips)+pendingDeletes(f.ipPrefixes) > 0 {
		return
	}
	f.count(f.routes.FlushDeletes(f.budget, func(k RouteKey, v RouteRow) bool { return !blackhole(k, v) }))
	f.count(f.peers.FlushDeletes(f.budget, nil))
	f.count(f.routes.FlushDeletes(f.budget, f.coversNothing()))
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
		if rows[1] != nil && k.Kind != RoutePod && k.Kind != RouteUnreachable {
			s.add(k.Prefix.Netip())
		}
	}
	return &s
}

// withSlots tells which pieces of consistent tables have all slots of their
// service in the kernel.
func (t *tableSet) withSlots() func(MaglevKey, MaglevRow) bool {
	if t.slots.Pending() == 0 {
		return nil
	}
	waiting := map[uint64]bool{}
	entering(t.slots, waiting, func(k SlotKey) uint64 { return k.Service })
	return func(k MaglevKey, _ MaglevRow) bool { return !waiting[k.Service] }
}

// complete tells which service rows have all that they refer to in the kernel.
func (t *tableSet) complete() func(ServiceKey, ServiceRow) bool {
	if t.slots.Pending()+t.maglev.Pending()+t.sourceRanges.Pending() == 0 {
		return nil
	}
	waiting := map[uint64]bool{}
	entering(t.slots, waiting, func(k SlotKey) uint64 { return k.Service })
	entering(t.maglev, waiting, func(k MaglevKey) uint64 { return k.Service })
	entering(t.sourceRanges, waiting, func(k RangeKey) uint64 { return k.Service })
	return func(_ ServiceKey, v ServiceRow) bool { return !waiting[v.ID] }
}

// entering notes what the rows that are still to be written belong to.
func entering[K, V comparable, ID comparable](d *Delta[K, V], into map[ID]bool, id func(K) ID) {
	if d.Pending() == 0 {
		return
	}
	for k, rows := range d.pending() {
		if rows[1] != nil {
			into[id(k)] = true
		}
	}
}

// namedServices are those whose row in the kernel may still name anything that
// is not wanted any more.
func (t *tableSet) namedServices() map[uint64]bool {
	named := map[uint64]bool{}
	if t.services.Pending()+t.services.Held() == 0 {
		return named
	}
	for _, rows := range t.services.pending() {
		for _, row := range rows {
			if row != nil {
				named[row.ID] = true
			}
		}
	}
	for _, row := range t.services.HeldRows() {
		named[row.ID] = true
	}
	return named
}

// coversNothing tells which blackholes guard no route that is still to leave.
func (t *tableSet) coversNothing() func(RouteKey, RouteRow) bool {
	leaving := map[Prefix]struct{}{}
	for k, rows := range t.routes.pending() {
		if rows[1] == nil && !blackhole(k, RouteRow{}) {
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
