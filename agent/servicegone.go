package agent

import (
	"slices"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// BackendKey is a backend as a socket knows it. Port in host order.
type BackendKey struct {
	Addr  Addr
	Port  uint16
	Proto uint8
}

func backendOf(row SlotRow, proto uint8) BackendKey { return BackendKey{row.Addr, row.Port, proto} }

func (b BackendKey) String() string { return hostPort(b.Addr, b.Port) + "/" + protocolName(b.Proto) }

// backendUses counts the slots of each backend: it has left when none is its.
type backendUses map[BackendKey]uint32

func (u backendUses) add(b BackendKey) { u[b]++ }

func (u backendUses) remove(b BackendKey) {
	if u[b] > 1 {
		u[b]--
		return
	}
	delete(u, b)
}

// maxLingering bounds what is remembered of backends that lost their slots, and
// how many wait to be told of.
const maxLingering = 1 << 16

// goneBackends are the backends to which sockets of this node shall be reset.
//
//	had a slot ──lost the last one──► lingering ──is not there any more──► waiting ──rows left──► told
//	                 ▲                    │
//	                 └──── has a slot ────┘
//
// A backend that lost its slots is left alone while it may still answer those it
// has: Kubernetes lets connections to a terminating or unready endpoint run on.
//
//	UDP  while it is an endpoint that serves: nothing else would tell the client
//	TCP  while it is an endpoint, or its address is anybody's: what is there and
//	     does not want a connection says so itself
type goneBackends struct {
	lingering map[clustermesh.ServiceName][]BackendKey
	services  map[Addr][]clustermesh.ServiceName // that have lingering backends
	count     int
	waiting   map[BackendKey]struct{}
	lost      uint64 // for which there was no room
}

func newGoneBackends() goneBackends {
	return goneBackends{
		lingering: map[clustermesh.ServiceName][]BackendKey{}, services: map[Addr][]clustermesh.ServiceName{},
		waiting: map[BackendKey]struct{}{},
	}
}

// noteLeft takes in which backends lost slots in a merge of a service, and looks
// again at those that it lost before.
func (s *State) noteLeft(name clustermesh.ServiceName, left []BackendKey) {
	before := s.gone.lingering[name]
	if len(left)+len(before) == 0 {
		return
	}
	candidates := slices.Concat(before, left)
	slices.SortFunc(candidates, compareBackends)
	candidates = slices.DeleteFunc(slices.Compact(candidates), func(b BackendKey) bool { return s.uses[b] > 0 })
	var stay []BackendKey
	if len(candidates) > 0 {
		endpoints := s.endpointsOf(name)
		for _, b := range candidates {
			if s.mayAnswer(b, endpoints) {
				stay = append(stay, b)
			} else {
				s.gone.wait(b)
			}
		}
	}
	s.gone.linger(name, before, stay)
}

// mayAnswer reports whether a backend without a slot still serves who has it.
func (s *State) mayAnswer(b BackendKey, endpoints map[BackendKey]bool) bool {
	serving, is := endpoints[b]
	if clustermesh.Protocol(b.Proto) == clustermesh.UDP {
		return serving
	}
	if is {
		return true
	}
	_, known := s.t.ips.Wanted(b.Addr)
	return known
}

// endpointsOf are all endpoints of a service in any cluster, whatever state they
// are in; true = they serve.
func (s *State) endpointsOf(name clustermesh.ServiceName) map[BackendKey]bool {
	out := map[BackendKey]bool{}
	s.eachEndpoint(name, func(k BackendKey, _ NodeKey, e clustermesh.Endpoint) {
		out[k] = out[k] || e.Serving || e.Ready
	})
	return out
}

func (s *State) eachEndpoint(name clustermesh.ServiceName, f func(BackendKey, NodeKey, clustermesh.Endpoint)) {
	take := func(v *clustermesh.View) {
		if v == nil {
			return
		}
		for slice := range v.Slices(name) {
			for _, p := range slice.Ports {
				for _, e := range slice.Endpoints {
					f(BackendKey{MakeAddr(e.Address), p.Port, uint8(p.Protocol)}, NodeKey{uint16(v.ID()), e.Node}, e)
				}
			}
		}
	}
	for _, v := range s.exports {
		take(v)
	}
	take(s.clusters[s.own].views[clustermesh.ScopeLocal])
}

func (g *goneBackends) wait(b BackendKey) {
	if len(g.waiting) >= maxLingering {
		g.lost++
		return
	}
	g.waiting[b] = struct{}{}
}

// linger replaces what lingers of a service.
func (g *goneBackends) linger(name clustermesh.ServiceName, before, now []BackendKey) {
	if room := maxLingering - g.count + len(before); len(now) > room {
		g.lost += uint64(len(now) - room)
		now = now[:room]
	}
	g.count += len(now) - len(before)
	for _, b := range before {
		names := slices.DeleteFunc(g.services[b.Addr], func(n clustermesh.ServiceName) bool { return n == name })
		if g.services[b.Addr] = names; len(names) == 0 {
			delete(g.services, b.Addr)
		}
	}
	for _, b := range now {
		if !slices.Contains(g.services[b.Addr], name) {
			g.services[b.Addr] = append(g.services[b.Addr], name)
		}
	}
	if g.lingering[name] = now; len(now) == 0 {
		delete(g.lingering, name)
	}
}

// addressLeft notes that an address is nobody's any more.
func (s *State) addressLeft(a Addr) {
	for _, name := range s.gone.services[a] {
		s.touchService(name)
	}
}

// takeGone are the backends that are gone and that no slot in the kernel leads to
// any more: who is reset now draws another.
func (s *State) takeGone() []BackendKey {
	if len(s.gone.waiting) == 0 {
		return nil
	}
	type end struct {
		addr Addr
		port uint16
	}
	still := map[end]struct{}{}
	for _, rows := range s.t.slots.pending() {
		if rows[0] != nil {
			still[end{rows[0].Addr, rows[0].Port}] = struct{}{}
		}
	}
	var out []BackendKey
	for b := range s.gone.waiting {
		if s.uses[b] > 0 { // it is back
			delete(s.gone.waiting, b)
			continue
		}
		if _, in := still[end{b.Addr, b.Port}]; !in {
			delete(s.gone.waiting, b)
			out = append(out, b)
		}
	}
	slices.SortFunc(out, compareBackends)
	return out
}

// lingeringOn are the backends on nodes that have lost their slots, and may have
// connections still: endpoints that terminate are not spared by a node's death.
func (s *State) lingeringOn(down func(NodeKey) bool) (out []BackendKey) {
	for name, list := range s.gone.lingering {
		nodes := map[BackendKey]NodeKey{}
		s.eachEndpoint(name, func(k BackendKey, at NodeKey, _ clustermesh.Endpoint) { nodes[k] = at })
		for _, b := range list {
			at, is := nodes[b]
			if row, known := s.t.ips.Wanted(b.Addr); !is && known { // an endpoint no longer, but there
				at = NodeKey{uint16(clustermesh.Identity(row.Identity).Cluster()), row.Node}
			}
			if down(at) {
				out = append(out, b)
			}
		}
	}
	return out
}

// backendsOn are the backends on nodes. It looks at all slots: it is for nodes
// that have been down for a while, when nothing is in a hurry.
func (s *State) backendsOn(down func(NodeKey) bool) []BackendKey {
	var at []SlotKey
	for k, row := range s.t.slots.wanted {
		if down(NodeKey{row.Cluster, row.Node}) {
			at = append(at, k)
		}
	}
	out := s.lingeringOn(down)
	protos := make(map[uint64]uint8, len(s.services))
	if len(at) > 0 {
		for _, svc := range s.services {
			for _, r := range svc.slot {
				protos[r.service] = r.proto
			}
		}
	}
	for _, k := range at {
		row, _ := s.t.slots.Wanted(k)
		out = append(out, backendOf(row, protos[k.Service]))
	}
	slices.SortFunc(out, compareBackends)
	return slices.Compact(out)
}
