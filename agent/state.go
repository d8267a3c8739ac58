package agent

import (
	"fmt"
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
	own    string
	ownID  clustermesh.ID
	node   string
	onLink []netip.Prefix
	mtu    uint16
	t      *tableSet

	clusters map[string]*clusterState
	exports  map[string]*clustermesh.View // scope export, by cluster: what Merge takes
	blank    map[clustermesh.ID]bool      // peers of which nothing is known: no view at all
	removed  map[clustermesh.ID]bool      // were peers since the start, and are not

	pods     map[string]LocalPod // by UID
	podsSet  bool
	podAddrs map[netip.Addr]string // UID

	services  map[clustermesh.ServiceName]appliedService
	frontends map[ServiceKey]clustermesh.ServiceName
	contested map[ServiceKey][]clustermesh.ServiceName
	dirty     map[clustermesh.ServiceName]struct{} // to be merged again
	first     []clustermesh.ServiceName            // of these, before the others
	hurry     bool

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
	claims   map[netip.Prefix][]string    // address records whose prefix several nodes name, or a node not known
}

// NewState makes an empty state that writes its wishes into the deltas.
func newState(cfg Config, tables Tables) *State {
	s := &State{
		own: cfg.Cluster, ownID: cfg.ClusterID, node: cfg.Node, onLink: cfg.OnLink, mtu: cfg.UnderlayMTU,
		clusters: map[string]*clusterState{}, exports: map[string]*clustermesh.View{}, blank: map[clustermesh.ID]bool{}, removed: map[clustermesh.ID]bool{},
		pods: map[string]LocalPod{}, podAddrs: map[netip.Addr]string{},
		services: map[clustermesh.ServiceName]appliedService{}, frontends: map[ServiceKey]clustermesh.ServiceName{},
		contested: map[ServiceKey][]clustermesh.ServiceName{}, dirty: map[clustermesh.ServiceName]struct{}{},
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
		tunnels: map[netip.Addr][]string{}, claims: map[netip.Prefix][]string{},
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
	if id == ownerNode {
		return s.podsSet
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

// SetPeers says which clusters are admitted, all of them. One that is no longer
// there, or has another ID, takes its rows along.
func (s *State) SetPeers(peers []*clustermesh.Peer) {
	slices.SortFunc(peers, func(a, b *clustermesh.Peer) int { return compareStrings(a.Name, b.Name) })
	wanted := map[string]*clustermesh.Peer{}
	ids := map[clustermesh.ID]string{s.ownID: s.own}
	for _, p := range peers {
		if other, twice := ids[p.ID]; twice || p.Name == s.own {
			s.problems["peer "+p.Name] = clustermesh.Problem{
				What: fmt.Sprintf("peer %s is not followed", p.Name),
				Why:  fmt.Sprintf("its cluster ID %d is that of cluster %s", p.ID, other),
				Fix:  "remove the peer and let it join again with an ID of its own",
			}
			continue
		}
		delete(s.problems, "peer "+p.Name)
		ids[p.ID] = p.Name
		wanted[p.Name] = p
	}
	for name, c := range s.clusters {
		if c.peer == nil {
			continue
		}
		if p := wanted[name]; p == nil || p.ID != c.id {
			s.removeCluster(c)
			delete(s.problems, "peer "+name)
		}
	}
	for name, p := range wanted {
		c := s.clusters[name]
		if c == nil {
			c = newClusterState(name, p.ID, p)
			s.clusters[name] = c
			delete(s.removed, c.id)
			s.setBlank(c)
			s.touchAll()
		}
		c.peer = p
	}
	s.planDirty, s.peersDirty = true, true
	s.release()
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

func (s *State) setBlank(c *clusterState) {
	if c.peer != nil && c.export() == nil {
		s.blank[c.id] = true
		return
	}
	delete(s.blank, c.id)
}

// removeCluster takes everything away that a cluster said.
func (s *State) removeCluster(c *clusterState) {
	if v := c.export(); v != nil {
		c.views = map[clustermesh.Scope]*clustermesh.View{}
		delete(s.exports, c.name)
		s.forgetView(c, v)
	}
	delete(s.blank, c.id)
	delete(s.clusters, c.name)
	s.removed[c.id] = true
	s.touchAll()
	s.planDirty = true
}

// release lets rows go that were kept for clusters not known before.
func (s *State) release() {
	for _, d := range s.t.all() {
		if d.Held() > 0 {
			d.Release()
		}
	}
}

// Apply takes an update of a cluster's scope in. live says that it came from the
// store itself, not from a snapshot. It returns what was refused because of the
// cluster's other records.
func (s *State) Apply(u clustermesh.Update, live bool) []clustermesh.Refusal {
	c := s.clusters[u.Cluster]
	if c == nil || u.Lost != nil {
		return nil
	}
	old := c.views[u.Scope]
	view, changes, refused := u.Into(old)
	if view == nil {
		return refused
	}
	c.views[u.Scope] = view
	if u.Scope == clustermesh.ScopeExport {
		s.exports[u.Cluster] = view
	}
	peers := false
	if old == nil {
		s.takeView(c, view)
		peers = true
	} else {
		peers = s.takeChanges(c, old, view, changes, u.View != nil)
	}
	if s.blank[c.id] {
		s.setBlank(c)
		s.touchAll()
	}
	if c.peer == nil && peers {
		s.takePeers(c)
	}
	if u.View != nil && live {
		s.nowLive(c, u.Scope)
	}
	return refused
}

// takeChanges takes in how a view changed, and reports whether peers did.
func (s *State) takeChanges(c *clusterState, old, view *clustermesh.View, changes iter.Seq[clustermesh.Change], list bool) (peers bool) {
	s.setHurry(!list)
	defer s.setHurry(false)
	if list {
		s.dropChangedIdentities(c, old, view)
	}
	for ch := range changes {
		s.take(c, ch)
		peers = peers || ch.Key.Kind == clustermesh.KindPeer
	}
	if list && len(c.claims) > 0 {
		// Origins decide among several claims, and a difference of origins
		// alone is no change.
		s.retakeIPs(c, func(a clustermesh.AddressName) bool { _, ok := c.claims[a.Prefix]; return ok }, nil)
	}
	return peers
}

// nowLive notes that a scope of a cluster is complete, and lets go what was kept
// for its sake.
func (s *State) nowLive(c *clusterState, scope clustermesh.Scope) {
	if c.live[scope] {
		return
	}
	c.live[scope] = true
	s.healthDirty = true
	if c.peer == nil && c.synced() {
		s.touchAll() // clusters that are no peers lose what was kept for them
	}
	s.release()
}

// takePeers learns who the peers are, once this node itself is known as well:
// without it their routes would lack a source.
func (s *State) takePeers(own *clusterState) {
	if v := own.views[clustermesh.ScopeLocal]; v != nil && own.export() != nil {
		s.SetPeers(slices.Collect(v.Peers()))
	}
}

// take notes one change of a view.
func (s *State) take(c *clusterState, ch clustermesh.Change) {
	switch ch.Key.Kind {
	case clustermesh.KindNode:
		s.takeNode(c, ch.Key.Name)
	case clustermesh.KindAddress:
		if name, ok := addressName(ch.Key); ok {
			s.takeAddress(c, name.Node, name.Prefix)
		}
	case clustermesh.KindService, clustermesh.KindEndpointSlice:
		if name, ok := clustermesh.Affected(ch); ok {
			s.touchService(name)
		}
	}
}

// takeView takes a cluster's first view in, without a list of its changes.
func (s *State) takeView(c *clusterState, v *clustermesh.View) {
	for n := range v.Nodes() {
		s.indexNode(c, n)
	}
	for n := range v.Nodes() {
		s.nodeRows(c, n)
	}
	for a := range v.Addresses() {
		s.takeFirst(c, &a)
	}
	for svc := range v.Services() {
		s.touchService(svc.Name)
	}
	s.planDirty = true
}

// forgetView takes the rows away that came from a view that is gone.
func (s *State) forgetView(c *clusterState, v *clustermesh.View) {
	nodes := slices.Collect(maps.Values(c.nodes))
	c.nodes, c.claims = map[string]*clustermesh.Node{}, map[netip.Prefix][]string{}
	c.prefixes, c.tunnels = map[netip.Prefix][]string{}, map[netip.Addr][]string{}
	for a := range v.Addresses() {
		s.setIP(c, a.Name.Prefix, nil)
	}
	for _, n := range nodes {
		s.nodeRows(c, n)
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
	s.setHurry(true)
	for _, name := range s.first {
		if _, ok := s.dirty[name]; ok {
			delete(s.dirty, name)
			s.mergeService(name)
		}
	}
	s.first = s.first[:0]
	s.setHurry(false)
	if s.planDirty {
		s.planDirty, s.healthDirty = false, true
		s.plan()
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
	in := PlanInput{OnLink: s.onLink, UnderlayMTU: s.mtu}
	for _, c := range s.clusters {
		nodes := slices.Collect(maps.Values(c.nodes))
		if c.peer == nil {
			in.Own, in.OwnNodes = c.nodes[s.node], nodes
			continue
		}
		in.Remote = append(in.Remote, PlanCluster{Name: c.name, PodPrefixes: c.peer.PodPrefixes, Nodes: nodes})
	}
	peers, routes, problems := Plan(in)
	s.planProblems = problems
	for _, p := range s.pods {
		for _, a := range p.Addresses {
			if s.podAddrs[a] == p.UID {
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
	for _, key := range slices.Sorted(maps.Keys(s.problems)) {
		out = append(out, s.problems[key])
	}
	return out
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
