package agent

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// State is what the clusters say and which pods this node has. It does no I/O:
// taking a fact in changes the wanted rows of the tables, or notes what is to be
// computed by Compute. What it wants depends on the facts, never on their order.
type State struct {
	own        string
	ownID      clustermesh.ID
	node       string
	onLink     []netip.Prefix
	mtu        uint16
	encryptAll bool
	chained    bool
	t          *tableSet
	policy     policyFacts
	config     ConfigRow // what the table has of the configuration

	clusters map[string]*clusterState
	exports  map[string]*clustermesh.View // scope export, by cluster: what Merge takes
	blank    map[clustermesh.ID]bool      // peers of which nothing is known: no view at all
	removed  map[clustermesh.ID]bool      // were peers since the start, and are not

	pods      map[string]LocalPod // by UID
	podsSet   bool
	podAddrs  map[netip.Addr]string // UID
	hostAddrs map[netip.Addr]bool   // see SetHostAddresses

	services  map[clustermesh.ServiceName]appliedService
	imports   imports
	frontends map[ServiceKey]claimant
	contested map[ServiceKey][]claimant // of several services; sorted
	uses      backendUses
	gone      goneBackends
	at        vantage                                           // what the rows of services were computed for
	portRange []netip.Prefix                                    // in which addresses of this node answer to node ports; none = all
	hosting   map[clustermesh.ServiceName]*clustermesh.Workload // pods with host ports that are placed here
	tables    int                                               // pieces of consistent tables wanted
	tableRoom int
	noTable   map[clustermesh.ServiceName]struct{} // for which there was no room

	drains drains
	slow   slowStart
	pass   backgroundPass

	healthPorts       map[clustermesh.ServiceName]HealthPort
	healthPortChanges map[clustermesh.ServiceName]HealthPort

	dirty map[clustermesh.ServiceName]struct{} // to be merged again
	first []clustermesh.ServiceName            // of these, before the others
	hurry bool

	down  map[NodeKey]HealthRow // nodes judged down
	heard bool                  // health has said so at least once
	stand stand

	planDirty    bool
	healthDirty  bool // the nodes to probe changed
	peersDirty   bool // the set of clusters changed
	planProblems []clustermesh.Problem
	problems     map[string]clustermesh.Problem // by what they are about
}

// clusterState is one cluster.
type clusterState struct {
	name  string
	id    clustermesh.ID
	peer  *clustermesh.Peer // what it was admitted for; nil = the own cluster
	views map[clustermesh.Scope]*clustermesh.View
	live  map[clustermesh.Scope]bool // a complete list came from the store itself since the start

	nodes    map[string]*clustermesh.Node // as they are in the tables
	prefixes map[netip.Prefix][]string    // pod prefix → nodes that name it, sorted
	tunnels  map[netip.Addr][]string      // tunnel address → nodes, sorted
	underlay map[netip.Addr][]string      // underlay address → nodes, sorted; own cluster only
	claims   map[netip.Prefix][]string    // address records whose prefix several nodes name, or a node not known
}

// NewState makes an empty state that writes its wishes into the deltas.
func newState(cfg Config, tables Tables) *State {
	s := &State{
		policy: newPolicyFacts(policyOptions(cfg)), config: configRow(cfg), encryptAll: cfg.EncryptAll, chained: cfg.Chained,
		own: cfg.Cluster, ownID: cfg.ClusterID, node: cfg.Node, onLink: cfg.OnLink, mtu: cfg.UnderlayMTU,
		clusters: map[string]*clusterState{}, exports: map[string]*clustermesh.View{}, blank: map[clustermesh.ID]bool{}, removed: map[clustermesh.ID]bool{},
		pods: map[string]LocalPod{}, podAddrs: map[netip.Addr]string{},
		services: map[clustermesh.ServiceName]appliedService{}, imports: newImports(), frontends: map[ServiceKey]claimant{},
		contested: map[ServiceKey][]claimant{}, uses: backendUses{}, gone: newGoneBackends(),
		hosting: map[clustermesh.ServiceName]*clustermesh.Workload{}, noTable: map[clustermesh.ServiceName]struct{}{},
		portRange: cfg.NodePortAddresses, tableRoom: cmp.Or(cfg.MaglevRows, defaultMaglevRows),
		slow:        newSlowStart(cfg.SlowStart),
		healthPorts: map[clustermesh.ServiceName]HealthPort{}, healthPortChanges: map[clustermesh.ServiceName]HealthPort{},
		dirty:    map[clustermesh.ServiceName]struct{}{},
		problems: map[string]clustermesh.Problem{},
	}
	s.t = newTableSet(tables, cfg.ClusterID, s.ownerOf, s.known)
	s.clusters[cfg.Cluster] = newClusterState(cfg.Cluster, cfg.ClusterID, nil)
	return s
}

func newClusterState(name string, id clustermesh.ID, peer *clustermesh.Peer) *clusterState {
	return &clusterState{
		name: name, id: id, peer: peer,
		views: map[clustermesh.Scope]*clustermesh.View{}, live: map[clustermesh.Scope]bool{},
		nodes: map[string]*clustermesh.Node{}, prefixes: map[netip.Prefix][]string{},
		tunnels: map[netip.Addr][]string{}, underlay: map[netip.Addr][]string{}, claims: map[netip.Prefix][]string{},
	}
}

func (c *clusterState) export() *clustermesh.View { return c.views[clustermesh.ScopeExport] }

func (c *clusterState) has(name clustermesh.ServiceName) bool {
	for _, v := range c.views {
		if v != nil && v.Service(name) != nil {
			return true
		}
	}
	return false
}

func (c *clusterState) scopes() []clustermesh.Scope {
	if c.peer == nil {
		return []clustermesh.Scope{clustermesh.ScopeExport, clustermesh.ScopeLocal}
	}
	return []clustermesh.Scope{clustermesh.ScopeExport}
}

// synced reports whether everything of the cluster came from its store since the start.
func (c *clusterState) synced() bool {
	for _, scope := range c.scopes() {
		if !c.live[scope] {
			return false
		}
	}
	return true
}

// byID is the cluster of an ID; nil if there is none.
func (s *State) byID(id clustermesh.ID) *clusterState {
	for _, c := range s.clusters {
		if c.id == id {
			return c
		}
	}
	return nil
}

// known says whether an owner's wishes are complete, so that rows of its that
// nobody wants may be swept: see NewDelta. A cluster that is no peer (any more)
// is known once the own cluster has said who the peers are.
func (s *State) known(id clustermesh.ID) bool {
	switch id {
	case ownerNode:
		return s.podsSet
	case ownerHostPorts:
		return s.podsSet && s.clusters[s.own].synced()
	case ownerPolicy:
		return s.policyKnown()
	}
	if c := s.byID(id); c != nil {
		return c.synced()
	}
	return s.clusters[s.own].synced()
}

// ownerOf is the cluster whose pod prefixes contain p; the own one when no
// peer's do.
func (s *State) ownerOf(p netip.Prefix) clustermesh.ID {
	for _, c := range s.clusters {
		if c.peer == nil {
			continue
		}
		for _, prefix := range c.peer.PodPrefixes {
			if prefix.Overlaps(p) {
				return c.id
			}
		}
	}
	return s.ownID
}

// setHurry says whether the facts that follow go before what waits already.
func (s *State) setHurry(on bool) {
	s.hurry = on
	for _, d := range s.t.all() {
		d.Hurry(on)
	}
}

func compareStrings(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// release lets rows go that were kept for clusters not known before.
func (s *State) release() {
	for _, d := range s.t.all() {
		if d.Held() > 0 {
			d.Release()
		}
	}
}

// touchService has a service merged again.
func (s *State) touchService(name clustermesh.ServiceName) {
	if _, ok := s.dirty[name]; ok && !s.hurry {
		return
	}
	s.dirty[name] = struct{}{}
	if s.hurry {
		s.first = append(s.first, name)
	}
}

// touchAll has every service of this cluster merged again.
func (s *State) touchAll() {
	for name := range s.services {
		s.dirty[name] = struct{}{}
	}
	for _, v := range s.clusters[s.own].views {
		for svc := range v.Services() {
			s.dirty[svc.Name] = struct{}{}
		}
	}
}

// Compute brings the wanted rows up to date, merging at most budget services
// that are not in a hurry; it reports whether work is left.
func (s *State) Compute(budget int) (more bool) {
	s.takeVantage()
	s.takeDrains()
	s.setHurry(true)
	for _, name := range s.first {
		if _, ok := s.dirty[name]; ok {
			delete(s.dirty, name)
			s.mergeService(name)
		}
	}
	s.first = s.first[:0]
	s.setHurry(false)
	s.applyPolicy()
	if s.planDirty && s.mayPlan() {
		s.planDirty, s.healthDirty = false, true
		s.plan()
		s.wantConfig()
	}
	for name := range s.dirty {
		if budget == 0 || s.t.slots.Pending()-s.t.slots.Stuck() >= turnRows {
			return true // what is merged already is written first: it is held twice
		}
		budget--
		delete(s.dirty, name)
		s.mergeService(name)
	}
	return len(s.dirty) > 0
}

// plan computes peers and routes anew and notes the differences.
func (s *State) plan() {
	s.stand.down = s.downGateways()
	in := PlanInput{OwnID: s.ownID, Topology: s.stand.topology, Down: s.stand.down, Astray: s.stand.astray,
		OnLink: s.onLink, UnderlayMTU: s.mtu, EncryptAll: s.encryptAll, Chained: s.chained}
	for _, c := range s.clusters {
		nodes := slices.Collect(maps.Values(c.nodes))
		if c.peer == nil {
			in.Own, in.OwnNodes = c.nodes[s.node], nodes
			if v := c.export(); v != nil && v.Cluster() != nil {
				in.OwnPrefixes = v.Cluster().PodPrefixes
			}
			continue
		}
		in.Remote = append(in.Remote, PlanCluster{Name: c.name, ID: c.id, Joined: c.peer.Joined, PodPrefixes: c.peer.PodPrefixes, Topology: c.topology(), Nodes: nodes})
	}
	peers, routes, problems := Plan(in)
	s.planProblems = problems
	for _, p := range s.pods {
		for _, a := range p.Addresses {
			if s.podAddrs[a] == p.UID && !s.chained { // else the way to it is the other CNI's
				routes[RouteKey{MakePrefix(netip.PrefixFrom(a, a.BitLen())), RoutePod}] = RouteRow{IfIndex: p.IfIndex}
			}
		}
	}
	replace(s.t.peers, peers)
	replace(s.t.routes, routes)
}

// replace makes rows all that is wanted of a table.
func replace[K comparable, V comparable](d *Delta[K, V], rows map[K]V) {
	for k := range d.wanted {
		if _, ok := rows[k]; !ok {
			d.Delete(k)
		}
	}
	for k, v := range rows {
		d.Set(k, v)
	}
}

// Problems are what State itself finds wrong, in a stable order.
func (s *State) Problems() []clustermesh.Problem {
	out := slices.Clone(s.planProblems)
	if p, is := s.tableProblem(); is {
		out = append(out, p)
	}
	for _, key := range slices.Sorted(maps.Keys(s.problems)) {
		out = append(out, s.problems[key])
	}
	return append(out, s.policy.engine.Problems()...)
}

// healthTargets are the nodes to probe: every node of every cluster but this
// one, with its tunnel addresses.
func (s *State) healthTargets() HealthTargets {
	t := HealthTargets{Nodes: map[NodeKey][]netip.Addr{}, Known: map[ClusterKey]bool{}}
	own := s.clusters[s.own].nodes[s.node]
	if own != nil {
		t.From = own.TunnelAddresses
	}
	for _, c := range s.clusters {
		t.Known[ClusterKey(c.id)] = c.synced()
		if c.peer == nil {
			t.Own = ClusterKey(c.id)
		}
		for _, n := range c.nodes {
			if n != own && len(n.TunnelAddresses) > 0 && n.Number != 0 {
				t.Nodes[NodeKey{uint16(c.id), n.Number}] = n.TunnelAddresses
			}
		}
	}
	t.Peers = s.clusters[s.own].synced()
	t.Self, t.Members = s.node, s.healthMembers()
	return t
}

// allServices are the names of this cluster's services, in order.
func (s *State) allServices() []clustermesh.ServiceName {
	names := map[clustermesh.ServiceName]struct{}{}
	for _, v := range s.clusters[s.own].views {
		for svc := range v.Services() {
			names[svc.Name] = struct{}{}
		}
	}
	return slices.SortedFunc(maps.Keys(names), func(a, b clustermesh.ServiceName) int { return compareStrings(a.String(), b.String()) })
}

func sortedKeys[V any](m map[string]V) iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			if !yield(k, m[k]) {
				return
			}
		}
	}
}
