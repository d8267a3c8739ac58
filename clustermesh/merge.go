package clustermesh

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Limits of a merged service; a row of the kernel's services table has the same.
const (
	MaxTiers         = 4
	MaxGroupsPerTier = 16
	MaxGroups        = 20
)

// MergeInput is everything Merge looks at.
type MergeInput struct {
	Name  ServiceName
	Local string // name of the client's cluster
	// Views are the clusters' export views by cluster name, the client's own
	// included. A cluster that is absent has no backends.
	Views map[string]*View
	// Home is the view of the client's own cluster in scope local (services
	// that are not global or not shared); may be nil. While a service moves
	// between the scopes either view serves.
	Home *View
	// Left is how much of its weight a cluster has at present, in 1/65535; nil = all
	// have all. 0 is drained: it gets new connections only where no other can take
	// them. The less one has the more go to others of its tier, or, if no other of
	// it has more, to the next tier.
	Left func(cluster string) uint16
	// Used says whether a backend takes its part at present, for min-healthy; nil =
	// all do. It stays a backend: whether it is reached is for the row of health.
	Used func(id ID, b Backend) bool
	// Explain fills Merged.Clusters, which costs more than the merge itself.
	Explain bool
}

// Merged is one service as the client's cluster should see it. It depends on
// the input's content alone, never on the order in which it came about.
type Merged struct {
	Name            ServiceName
	Found           bool // the client's cluster has such a service; false: no frontends, no ports
	Global          bool
	Import          string // the exported service that it leads to; "" = itself
	Headless        bool
	SessionAffinity time.Duration // 0 = none
	Affinity        Affinity      // in force: local, remote or none
	ExternalLocal   bool          // from outside, a node sends only to its own endpoints
	InternalLocal   bool          // from inside too
	Distribution    Distribution
	HealthCheckPort uint16 // with ExternalLocal: where a node says whether it has endpoints; 0 = none
	// SourceRanges bound who may dial the load balancer addresses; none =
	// everybody. With ranges of one family alone nobody may dial in the other.
	SourceRanges []netip.Prefix
	// Ports, by position of the local Service's ports; IPv4 before IPv6. A
	// family without frontends has no entry; a port without any backend has an
	// entry without tiers.
	Ports []MergedPort
	// Clusters says for each cluster why it does or does not take traffic, by
	// name; only if MergeInput.Explain.
	Clusters []Why
	// Notes are settings that were skipped or refused, in words.
	Notes []string
}

// MergedPort is one port of one address family: where connections to
// Frontends:Port.Port (or to NodePort) go.
type MergedPort struct {
	Port      Port // of the local Service
	V6        bool
	Frontends []netip.Addr
	External  []External // of the family, as Frontends for clients outside; each address once
	Tiers     []Tier     // at most MaxTiers, none empty
	// Local are the endpoints of the client's cluster that can serve, whatever
	// Tiers holds; only with ExternalLocal or InternalLocal. A node uses those on
	// it that are not terminating, or, where it has none of these, the terminating
	// ones: a choice that is its own, as the others' nodes do not count.
	Local []Backend
}

// Tier is a set of groups that is tried before the next one. Share is how much
// of the traffic that reaches it stays in it, in 1/65535; the last tier keeps all.
type Tier struct {
	Share  uint16
	Groups []Group // at most MaxGroupsPerTier, by cluster name
}

// Group is one cluster's backends.
type Group struct {
	Cluster  string
	ID       ID
	Weight   uint16 // 0 = never drawn, except when it is all there is
	Drained  bool   // clients with session affinity leave it, too
	Backends []Backend
}

// Backend answers for a service.
type Backend struct {
	Address     netip.Addr
	Port        uint16
	Node        uint16 // node number in its cluster
	Zone        string
	Terminating bool // serves while it ends, taken because nothing else is left
	Hints       Hints
}

// member is one cluster that may serve.
type member struct {
	cluster string
	id      ID
	service *Service
	slices  []*EndpointSlice
	weight  uint16
	left    uint16 // of the weight: see MergeInput.Left
	rank    int    // tier, before empty ones are left out
	// imported: it exports the service. A port of the import that is not one of the
	// service, number and all, does not lead to it, though its name may.
	imported bool
}

// Merge joins the services of one name into what a client in cluster Local
// should use. Frontends and ports are the local Service's; affinity, failover,
// min-healthy and session affinity too. Whether a cluster takes part (shared)
// and its weight are its own to say. Backends join a port by name and protocol,
// and an address family by their own.
//
// Tiers, from the affinity:
//
//	local         the local cluster, the failover clusters one by one, the rest
//	remote        the failover clusters one by one, the rest, the local cluster
//	none, unset   all clusters in one tier
//	none          with failover: all others in one tier, the failover clusters one by one
//	unset         with failover: as local
//
// A cluster of weight 0 moves to the end of the last tier that has another: it
// takes nothing as long as anybody else can. One that is drained (Left 0) goes to
// a tier after all others, or, where there are four, to the end of the last one. Endpoints that are ready serve;
// where none is ready in any cluster, those that still serve while terminating do.
//
// A service with Import has no backends of its own: it leads to those of all
// clusters that export the service of that name, by the same rules, but each port
// to those alone that expose it under the same number. Which of them are near is
// not asked of an import, unless it has a Distribution: then unset affinity means
// local.
func Merge(in MergeInput) Merged {
	m := Merged{Name: in.Name}
	own, ownSlices := localService(in)
	if own == nil {
		m.Notes = append(m.Notes, fmt.Sprintf("cluster %s has no service %s: create it there to give it an address", in.Local, in.Name))
		return m
	}
	m.Found, m.Global, m.Import, m.Headless, m.SessionAffinity = true, own.Global, own.Import, own.Headless, own.SessionAffinity
	m.ExternalLocal, m.InternalLocal, m.Distribution, m.HealthCheckPort = own.ExternalLocal, own.InternalLocal, own.Distribution, own.HealthCheckPort
	if own.Outside != nil {
		m.SourceRanges = own.Outside.SourceRanges
	}
	plan := planTiers(in, own, &m)
	members := collect(in, own, ownSlices, plan)
	frontends := [2][]netip.Addr{family(own.Frontends, false), family(own.Frontends, true)}
	for _, p := range own.Ports {
		for i, list := range frontends {
			if v6 := i == 1; len(list) > 0 {
				m.Ports = append(m.Ports, MergedPort{
					Port: p, V6: v6, Frontends: list, External: own.external(v6),
					Tiers: mergePort(in, members, p, v6, plan.minHealthy), Local: ownBackends(in.Local, own, members, p, v6),
				})
			}
		}
	}
	if in.Explain {
		m.Clusters = explain(in, own, members, plan, m.Ports)
	}
	return m
}

// localService is the client's cluster's own Service and its slices, from
// whichever scope has them.
func localService(in MergeInput) (*Service, []*EndpointSlice) {
	var own *Service
	var list []*EndpointSlice
	for _, v := range []*View{in.Views[in.Local], in.Home} {
		if v == nil {
			continue
		}
		if own == nil {
			own = v.services[in.Name]
		}
		if list == nil {
			list = v.slices[in.Name]
			continue
		}
		for _, s := range v.slices[in.Name] {
			if i, found := findSlice(list, s.Name.Slice); !found {
				list = slices.Concat(list[:i], []*EndpointSlice{s}, list[i:])
			}
		}
	}
	return own, list
}

// tierPlan ranks clusters by the local Service's settings.
type tierPlan struct {
	named      []string // failover clusters that exist, in order
	firstNamed int      // rank of named[0]
	local      int      // rank of the local cluster
	rest       int      // rank of all others
	affinity   Affinity
	minHealthy MinHealthy
}

func (p *tierPlan) rank(in MergeInput, cluster string) int {
	if cluster == in.Local {
		return p.local
	}
	if i := slices.Index(p.named, cluster); i >= 0 {
		return p.firstNamed + i
	}
	return p.rest
}

// planTiers reads the settings; what cannot be obeyed becomes a note.
func planTiers(in MergeInput, own *Service, m *Merged) tierPlan {
	var p tierPlan
	var err error
	if p.minHealthy, err = ParseMinHealthy(own.MinHealthy); err != nil {
		m.Notes = append(m.Notes, err.Error()+"; it is ignored")
	}
	p.affinity, err = ParseAffinity(string(own.Affinity))
	if err != nil {
		m.Notes = append(m.Notes, err.Error()+"; it is ignored")
	}
	p.named = failover(in, own, m)
	if p.affinity == AffinityUnset {
		p.affinity = AffinityNone
		if len(own.Failover) > 0 || own.Import != "" && own.Distribution != DistributionUnset {
			p.affinity = AffinityLocal
		}
	}
	switch n := len(p.named); p.affinity {
	case AffinityLocal:
		p.local, p.firstNamed, p.rest = 0, 1, 1+n
	case AffinityRemote:
		p.firstNamed, p.rest, p.local = 0, n, n+1
	default:
		p.local, p.rest, p.firstNamed = 0, 0, 1
	}
	m.Affinity = p.affinity
	return p
}

// failover are the named clusters that exist. A list that is too long is
// refused whole: obeying part of it would order clusters in a way nobody wrote.
func failover(in MergeInput, own *Service, m *Merged) []string {
	if len(own.Failover) == 0 {
		return nil
	}
	if err := checkFailover(own.Failover); err != nil {
		m.Notes = append(m.Notes, err.Error()+"; the list is ignored")
		return nil
	}
	var named []string
	for _, name := range own.Failover {
		switch {
		case name == in.Local:
			m.Notes = append(m.Notes, fmt.Sprintf("failover names %s, the local cluster; it is skipped: affinity says where the local cluster stands", quote(name)))
		case slices.Contains(named, name):
			m.Notes = append(m.Notes, fmt.Sprintf("failover names %s twice; the second is skipped", quote(name)))
		case in.Views[name] == nil:
			m.Notes = append(m.Notes, fmt.Sprintf("failover names %s, which is no known cluster of the mesh; it is skipped", quote(name)))
		default:
			named = append(named, name)
		}
	}
	return named
}

// collect finds the clusters that take part, sorted by name.
func collect(in MergeInput, own *Service, ownSlices []*EndpointSlice, p tierPlan) []member {
	if own.Import != "" {
		return collectExports(in, own, p)
	}
	members := make([]member, 1, 1+len(in.Views))
	members[0] = member{cluster: in.Local, service: own, slices: ownSlices, weight: own.weight(), left: ShareAll, rank: p.local}
	if v := in.Views[in.Local]; v != nil {
		members[0].id = v.ID()
	} else if in.Home != nil {
		members[0].id = in.Home.ID()
	}
	if !own.Global {
		members[0].rank = 0
		return members
	}
	members[0].left = in.left(in.Local)
	for name, v := range in.Views {
		if name == in.Local || v == nil {
			continue
		}
		s := v.services[in.Name]
		if s == nil || !s.Global || !s.Shared {
			continue
		}
		members = append(members, member{
			cluster: name, id: v.ID(), service: s, slices: v.slices[in.Name], weight: s.weight(), left: in.left(name), rank: p.rank(in, name),
		})
	}
	slices.SortFunc(members, func(a, b member) int { return cmp.Compare(a.cluster, b.cluster) })
	return members
}

// imported is the name of the service that an import leads to.
func (r *Service) imported() ServiceName { return ServiceName{r.Name.Namespace, r.Import} }

// collectExports finds the clusters that export what own imports, sorted by
// name; the client's own cluster is one like the others, or none.
func collectExports(in MergeInput, own *Service, p tierPlan) []member {
	var members []member
	in.Name = own.imported()
	for name, v := range in.Views {
		if v == nil {
			continue
		}
		s, list := v.services[in.Name], v.slices[in.Name]
		if name == in.Local {
			s, list = localService(in)
		}
		if s == nil || s.Export == nil {
			continue
		}
		members = append(members, member{cluster: name, id: v.ID(), service: s, slices: list, weight: s.weight(), left: in.left(name), rank: p.rank(in, name), imported: true})
	}
	slices.SortFunc(members, func(a, b member) int { return cmp.Compare(a.cluster, b.cluster) })
	return members
}

// Exposes: is that one of the service's ports?
func (r *Service) Exposes(name string, protocol Protocol, number uint16) bool {
	return slices.ContainsFunc(r.Ports, func(p Port) bool { return p.Name == name && p.Protocol == protocol && p.Port == number })
}

// weight is the cluster's weight; unset reads as 1.
func (r *Service) weight() uint16 {
	if r.HasWeight {
		return r.Weight
	}
	return 1
}

// external are the external addresses of one family, sorted. One that is there
// in both kinds is a load balancer's: source ranges hold for it, however often
// it is named.
func (r *Service) external(v6 bool) []External {
	if r.Outside == nil {
		return nil
	}
	var out []External
	for _, e := range r.Outside.Addresses {
		if e.Address.Is6() == v6 {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b External) int {
		return cmp.Or(a.Address.Compare(b.Address), -cmp.Compare(a.Kind, b.Kind))
	})
	return slices.CompactFunc(out, func(a, b External) bool { return a.Address == b.Address })
}

// ownBackends are MergedPort.Local.
func ownBackends(local string, own *Service, members []member, p Port, v6 bool) []Backend {
	if !own.ExternalLocal && !own.InternalLocal {
		return nil
	}
	i := slices.IndexFunc(members, func(m member) bool { return m.cluster == local })
	if i < 0 {
		return nil // an import of what the client's cluster does not export
	}
	f := members[i].find(p, v6)
	list := slices.Concat(f.ready, f.ending)
	slices.SortFunc(list, func(a, b Backend) int { return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Port, b.Port)) })
	return list
}

// family are the addresses of one family, sorted, each once.
func family(addrs []netip.Addr, v6 bool) []netip.Addr {
	var out []netip.Addr
	for _, a := range addrs {
		if a.Is6() == v6 {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}
