package apiserver

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/mcs"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// Exports is what the clusters of the mesh export, and what this one imports: the
// service and endpoint slice records of this cluster, by the watch cache, and of
// its peers, by their mesh ports and within what they were admitted for. Every
// replica follows them; it is safe for concurrent use. Records it returns must
// not be modified.
type Exports struct {
	own string
	id  clustermesh.ID
	log *slog.Logger

	mu         sync.Mutex
	views      map[scoped]*clustermesh.View
	peers      map[string]bool                                     // admitted at present
	namespaces map[string]bool                                     // of this cluster
	imports    map[clustermesh.ServiceName]clustermesh.ServiceName // own service → what it imports
	addresses  map[clustermesh.ServiceName]clustermesh.ServiceName // and back
	watchers   []*ExportChanges
}

type scoped struct {
	cluster string
	scope   clustermesh.Scope
}

// exportKinds are the kinds that are kept of what is followed.
var exportKinds = []clustermesh.Kind{clustermesh.KindService, clustermesh.KindEndpointSlice}

// NewExports knows nothing yet; Run feeds it.
func NewExports(own string, id clustermesh.ID, log *slog.Logger) *Exports {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Exports{
		own: own, id: id, log: log,
		views: make(map[scoped]*clustermesh.View), peers: make(map[string]bool), namespaces: make(map[string]bool),
		imports: make(map[clustermesh.ServiceName]clustermesh.ServiceName), addresses: make(map[clustermesh.ServiceName]clustermesh.ServiceName),
	}
}

// run follows the own cluster's records until ctx ends.
func (x *Exports) run(ctx context.Context, cache *kvstore.Memory) error {
	select {
	case <-cache.Ready():
	case <-ctx.Done():
		return nil
	}
	var follows sync.WaitGroup
	for _, scope := range []clustermesh.Scope{clustermesh.ScopeExport, clustermesh.ScopeLocal} {
		follows.Go(func() {
			x.follow(ctx, clustermesh.Admission{Cluster: x.own, ID: x.id, Local: true}, scope, []kvstore.Store{cache})
		})
	}
	follows.Wait()
	return nil
}

// followPeer follows a peer's records until ctx ends.
func (x *Exports) followPeer(ctx context.Context, peer *clustermesh.Peer, stores []kvstore.Store) {
	x.follow(ctx, clustermesh.AdmissionOf(peer), clustermesh.ScopeExport, stores)
}

func (x *Exports) follow(ctx context.Context, a clustermesh.Admission, scope clustermesh.Scope, stores []kvstore.Store) {
	r := clustermesh.NewReader(clustermesh.ReaderConfig{Admission: a, Scope: scope, Kinds: exportKinds, Out: x.Take, Log: x.log})
	err := kvstore.Follow(ctx, kvstore.FollowConfig{
		Stores: stores, Prefix: r.Prefix(), Marker: r.Marker(), Complete: r.Complete, Sink: r, Log: x.log,
	})
	if err != nil && ctx.Err() == nil {
		x.log.Warn("exports of a cluster are not followed any more", "cluster", a.Cluster, "err", err)
	}
}

// Take takes in what a cluster says.
func (x *Exports) Take(u clustermesh.Update) {
	if u.Lost != nil {
		return // what is known stays
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if u.Cluster != x.own && !x.peers[u.Cluster] {
		return // removed meanwhile
	}
	at := scoped{u.Cluster, u.Scope}
	old := x.views[at]
	view, changes, _ := u.Into(old)
	if view == nil {
		return
	}
	x.views[at] = view
	touched := make(map[clustermesh.ServiceName]bool)
	for c := range changes {
		name, ok := clustermesh.Affected(c)
		if !ok {
			continue
		}
		touched[name] = true
		if u.Cluster == x.own && c.Key.Kind == clustermesh.KindService {
			x.noteImport(name, touched)
		}
	}
	x.tell(touched, old == nil)
}

// noteImport notes what an own service imports now.
func (x *Exports) noteImport(name clustermesh.ServiceName, touched map[clustermesh.ServiceName]bool) {
	var target clustermesh.ServiceName
	if s := x.ownService(name); s != nil && s.Import != "" {
		target = clustermesh.ServiceName{Namespace: name.Namespace, Name: s.Import}
	}
	if old, had := x.imports[name]; had {
		touched[old] = true
		delete(x.imports, name)
		if x.addresses[old] == name {
			delete(x.addresses, old)
			for other, of := range x.imports { // another one of the same, if there is any
				if of == old && (x.addresses[old] == clustermesh.ServiceName{} || other.Name < x.addresses[old].Name) {
					x.addresses[old] = other
				}
			}
		}
	}
	if target.Name == "" {
		return
	}
	touched[target] = true
	x.imports[name] = target
	if present, has := x.addresses[target]; !has || name.Name < present.Name {
		x.addresses[target] = name
	}
}

// ownService is a service of this cluster, in whichever scope.
func (x *Exports) ownService(name clustermesh.ServiceName) *clustermesh.Service {
	for _, scope := range []clustermesh.Scope{clustermesh.ScopeExport, clustermesh.ScopeLocal} {
		if v := x.views[scoped{x.own, scope}]; v != nil {
			if s := v.Service(name); s != nil {
				return s
			}
		}
	}
	return nil
}

// SetPeers says which clusters are admitted. What others said is forgotten.
func (x *Exports) SetPeers(peers []*clustermesh.Peer) {
	x.mu.Lock()
	defer x.mu.Unlock()
	admitted := make(map[string]bool)
	for _, p := range peers {
		admitted[p.Name] = true
	}
	if maps.Equal(admitted, x.peers) {
		return
	}
	x.peers = admitted
	maps.DeleteFunc(x.views, func(at scoped, _ *clustermesh.View) bool { return at.cluster != x.own && !admitted[at.cluster] })
	x.tell(nil, true)
}

// setNamespace notes a namespace of this cluster.
func (x *Exports) setNamespace(name string, exists bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if exists {
		x.namespaces[name] = true
	} else {
		delete(x.namespaces, name)
	}
}

// Known: this cluster's own records have been read. Before that nothing of what
// Exports says is to be believed.
func (x *Exports) Known() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.views[scoped{x.own, clustermesh.ScopeExport}] != nil && x.views[scoped{x.own, clustermesh.ScopeLocal}] != nil
}

// Of are the exports of a service, by cluster, and the clusters of the mesh that
// nothing was heard of since this process started.
func (x *Exports) Of(name clustermesh.ServiceName) (exports []mcs.Export, unknown []string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for at, v := range x.views {
		if at.scope != clustermesh.ScopeExport {
			continue
		}
		if s := v.Service(name); s != nil && s.Export != nil {
			exports = append(exports, mcs.Export{Cluster: at.cluster, Service: s, Slices: slices.Collect(v.Slices(name))})
		}
	}
	slices.SortFunc(exports, func(a, b mcs.Export) int { return cmp.Compare(a.Cluster, b.Cluster) })
	for peer := range x.peers {
		if x.views[scoped{peer, clustermesh.ScopeExport}] == nil {
			unknown = append(unknown, peer)
		}
	}
	slices.Sort(unknown)
	return exports, unknown
}

// Published is this cluster's record of a service as the other clusters see it.
func (x *Exports) Published(name clustermesh.ServiceName) *clustermesh.Service {
	x.mu.Lock()
	defer x.mu.Unlock()
	if v := x.views[scoped{x.own, clustermesh.ScopeExport}]; v != nil {
		return v.Service(name)
	}
	return nil
}

// Address is the service of this cluster whose frontends lead to the exporters
// of another; nil if there is none.
func (x *Exports) Address(name clustermesh.ServiceName) *clustermesh.Service {
	x.mu.Lock()
	defer x.mu.Unlock()
	if derived, ok := x.addresses[name]; ok {
		return x.ownService(derived)
	}
	return nil
}

// Namespace: it exists in this cluster.
func (x *Exports) Namespace(name string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.namespaces[name]
}

// Names are all services that some cluster exports.
func (x *Exports) Names() []clustermesh.ServiceName {
	x.mu.Lock()
	defer x.mu.Unlock()
	all := make(map[clustermesh.ServiceName]bool)
	for at, v := range x.views {
		if at.scope != clustermesh.ScopeExport {
			continue
		}
		for s := range v.Services() {
			if s.Export != nil {
				all[s.Name] = true
			}
		}
	}
	return slices.SortedFunc(maps.Keys(all), func(a, b clustermesh.ServiceName) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
}

// ExportChanges are names whose exports may have changed since they were taken.
type ExportChanges struct {
	// C has something in it when there is something to take.
	C chan struct{}

	x     *Exports
	names map[clustermesh.ServiceName]bool
	all   bool
}

// Watch begins with everything changed. Stop it when it is not needed any more.
func (x *Exports) Watch() *ExportChanges {
	x.mu.Lock()
	defer x.mu.Unlock()
	c := &ExportChanges{C: make(chan struct{}, 1), x: x}
	x.watchers = append(x.watchers, c)
	c.add(nil, true)
	return c
}

// Stop ends it.
func (c *ExportChanges) Stop() {
	c.x.mu.Lock()
	defer c.x.mu.Unlock()
	c.x.watchers = slices.DeleteFunc(c.x.watchers, func(w *ExportChanges) bool { return w == c })
}

// Take takes what has changed; all: anything may have.
func (c *ExportChanges) Take() (names []clustermesh.ServiceName, all bool) {
	c.x.mu.Lock()
	defer c.x.mu.Unlock()
	names, all = slices.Collect(maps.Keys(c.names)), c.all
	c.names, c.all = nil, false
	return names, all
}

func (c *ExportChanges) add(names map[clustermesh.ServiceName]bool, all bool) {
	if c.names == nil {
		c.names = make(map[clustermesh.ServiceName]bool)
	}
	maps.Copy(c.names, names)
	c.all = c.all || all
	select {
	case c.C <- struct{}{}:
	default:
	}
}

func (x *Exports) tell(names map[clustermesh.ServiceName]bool, all bool) {
	if len(names) == 0 && !all {
		return
	}
	for _, c := range x.watchers {
		c.add(names, all)
	}
}
