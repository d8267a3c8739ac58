package clustermesh

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Why explains one cluster's part in a service.
type Why struct {
	Cluster string
	ID      ID
	Tier    int // from 0, counting tiers that are empty at present; -1: in none
	Weight  uint16
	Left    uint16 // of its weight, in 1/65535: see MergeInput.Left
	Healthy int    // addresses that are ready
	Total   int    // addresses known, not counting those that are terminating
	Reason  string // why this tier, or why none
}

// explain says why each cluster does or does not take traffic: all of the mesh,
// as "why not" is the more common question.
func explain(in MergeInput, own *Service, members []member, p tierPlan, ports []MergedPort) []Why {
	var all []Why
	for i := range members {
		all = append(all, explainMember(in, own, &members[i], p, ports))
	}
	for name, v := range in.Views {
		if v == nil || slices.ContainsFunc(members, func(m member) bool { return m.cluster == name }) {
			continue
		}
		w := Why{Cluster: name, ID: v.ID(), Tier: -1, Left: ShareAll}
		switch s := v.services[in.Name]; {
		case own.Import != "":
			w.Reason = fmt.Sprintf("it exports no service %s", own.imported())
		case !own.Global:
			w.Reason = fmt.Sprintf("the service is not global in %s", in.Local)
		case s == nil:
			w.Reason = "it shows no service of this name: none there, not global there, or not shared"
		case !s.Global:
			w.Reason = "the service is not global there"
		default:
			w.Reason = "the service is not shared there"
		}
		all = append(all, w)
	}
	slices.SortFunc(all, func(a, b Why) int { return cmp.Compare(a.Cluster, b.Cluster) })
	return all
}

func explainMember(in MergeInput, own *Service, m *member, p tierPlan, ports []MergedPort) Why {
	w := Why{Cluster: m.cluster, ID: m.id, Tier: m.rank, Weight: m.weight, Left: m.left, Reason: p.reason(in, own, m)}
	if m.cluster == in.Local {
		w.Reason += own.policies()
	}
	w.Healthy, w.Total = m.health()
	if !takes(m.cluster, ports) {
		w.Tier = -1
		w.Reason = m.absence(w, ports)
		return w
	}
	if m.weight == 0 {
		w.Reason += "; weight 0: takes nothing as long as another cluster can"
	}
	switch {
	case m.left == 0 && isDrained(m.cluster, ports):
		w.Reason += "; drained: takes nothing as long as another cluster can"
	case m.left == 0:
		w.Reason += "; drained, but no other cluster has a backend"
	}
	if w.Healthy == 0 {
		w.Reason += "; none is ready anywhere: those that still serve while terminating are used"
	}
	return w
}

// reason is why the member is in its tier.
func (p *tierPlan) reason(in MergeInput, own *Service, m *member) string {
	switch i := slices.Index(p.named, m.cluster); {
	case m.cluster == in.Local && !own.Global && own.Import == "":
		return "the local cluster; the service is not global"
	case m.cluster == in.Local:
		return fmt.Sprintf("the local cluster, affinity %s", p.affinity)
	case i >= 0:
		return fmt.Sprintf("named as number %d in failover, affinity %s", i+1, p.affinity)
	case p.affinity == AffinityNone && len(p.named) == 0:
		return "all clusters are equal, affinity none"
	}
	return fmt.Sprintf("one of the rest, affinity %s", p.affinity)
}

// policies is what the traffic policies of the service change on each node.
func (r *Service) policies() string {
	s := ""
	if r.ExternalLocal {
		s += "; externalTrafficPolicy Local: what comes from outside is served by the node it reaches, or not at all"
	}
	if r.InternalLocal {
		s += "; internalTrafficPolicy Local: clients inside are served by their own node, or not at all"
	}
	return s
}

// health counts addresses, whatever port and family.
func (m *member) health() (healthy, total int) {
	state := map[netip.Addr]bool{}
	for _, s := range m.slices {
		for _, e := range s.Endpoints {
			if !e.ending() {
				state[e.Address] = state[e.Address] || e.Ready || m.service.PublishNotReady
			}
		}
	}
	for _, ready := range state {
		total++
		if ready {
			healthy++
		}
	}
	return healthy, total
}

// isDrained reports whether the cluster stands behind others in any port.
func isDrained(cluster string, ports []MergedPort) bool {
	for _, p := range ports {
		for _, t := range p.Tiers {
			if slices.ContainsFunc(t.Groups, func(g Group) bool { return g.Cluster == cluster && g.Drained }) {
				return true
			}
		}
	}
	return false
}

// takes reports whether the cluster has a group in any tier of any port.
func takes(cluster string, ports []MergedPort) bool {
	for _, p := range ports {
		for _, t := range p.Tiers {
			if slices.ContainsFunc(t.Groups, func(g Group) bool { return g.Cluster == cluster }) {
				return true
			}
		}
	}
	return false
}

// absence is why a cluster that takes part has no group.
func (m *member) absence(w Why, ports []MergedPort) string {
	switch {
	case len(m.slices) == 0 || w.Total == 0:
		return "it has no endpoints"
	case w.Healthy == 0:
		return fmt.Sprintf("none of its %d endpoints is ready", w.Total)
	case len(ports) == 0:
		return "the local service has no frontend"
	case m.imported && !slices.ContainsFunc(ports, func(p MergedPort) bool { return m.service.Exposes(p.Port.Name, p.Port.Protocol, p.Port.Port) }):
		return "it exports no port of the import under the same name, protocol and number"
	}
	for _, p := range ports {
		if f := m.find(p.Port, p.V6); len(f.ready) > 0 {
			return fmt.Sprintf("a tier holds at most %d clusters, and it is full", MaxGroupsPerTier)
		}
	}
	return fmt.Sprintf("its endpoints match no port of the local service in an address family that it has a frontend of: it has %s, the local service %s",
		m.portNames(), wantedNames(ports))
}

func (m *member) portNames() string {
	var names []string
	for _, s := range m.slices {
		if len(s.Endpoints) == 0 {
			continue
		}
		for _, p := range s.Ports {
			names = append(names, portName(p, s.Endpoints[0].Address.Is6()))
		}
	}
	return joinNames(names)
}

func wantedNames(ports []MergedPort) string {
	var names []string
	for _, p := range ports {
		names = append(names, portName(p.Port, p.V6))
	}
	return joinNames(names)
}

func joinNames(names []string) string {
	slices.Sort(names)
	return strings.Join(slices.Compact(names), ", ")
}

func portName(p Port, v6 bool) string {
	name := "unnamed"
	if p.Name != "" {
		name = quote(p.Name)
	}
	family := "IPv4"
	if v6 {
		family = "IPv6"
	}
	return name + "/" + p.Protocol.String() + "/" + family
}

// Affected is the service whose merge a change may alter, so that only those
// are merged again; ok is false for changes that alter none. A cluster that
// appears or leaves as a whole affects every service that it shows.
func Affected(c Change) (name ServiceName, ok bool) {
	switch c.Key.Kind {
	case KindService:
		return serviceName(c.Key.Name), true
	case KindEndpointSlice:
		return sliceName(c.Key.Name).Service, true
	}
	return ServiceName{}, false
}
