package sim

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime"

	"github.com/tombolo-mesh/tombolo/agent/agenttest"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

const (
	export = clustermesh.ScopeExport
	local  = clustermesh.ScopeLocal
)

// cluster is one cluster: its Kubernetes, its store, its mesh API servers, and
// what its nodes register.
type cluster struct {
	agenttest.Facts
	prefixes []netip.Prefix // of its pods
	s        *sim
	kube     *objects
	servers  []*server
	agents   []*node
	hub      *hub

	mu       sync.Mutex
	memory   *kvstore.Memory
	nodes    map[int]bool
	pods     map[[2]int]pod
	services map[string]service
	peers    map[int]bool // by cluster, 0 = the first
	lives    int          // of pods so far
	gone     []pod        // to be registered off
	kick     chan struct{}

	commits sync.Mutex
	victim  *cluster // about whom it tells lies; nil = it does not
	backup  []kvstore.KV
	copyID  uint64 // of the store that the backup is of

	steady  steady
	numbers sync.Map // of nodes, by name
}

// server is one mesh API server.
type server struct {
	c         *cluster
	n         int
	dir       string
	door      *door
	pub       *apiserver.Publishing // nil = it does not run
	replica   string
	leaderKey string
	end       func()
}

func (c *cluster) store() *kvstore.Memory {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.memory
}

// start starts a server, unless it runs.
func (s *server) start() bool {
	c := s.c
	if s.running() != nil {
		return false
	}
	s.door = newDoor(c, s, c.s.draw())
	src := &source{of: c.kube, changes: make(chan apiserver.Objects, 1024)}
	pub, err := apiserver.OpenPublishing(context.Background(), apiserver.Config{
		Cluster: c.Name, ID: c.ID, StateDir: s.dir, Source: src, SlicesGiven: true, PodPrefixes: c.prefixes,
		Listen: "192.0.2.1:4443", Socket: "none", Version: "v1.0.0",
		Open: func(context.Context) (apiserver.StoreHandle, error) { return apiserver.StoreHandle{Store: s.door}, nil },
	})
	if err != nil {
		c.s.t.Fatal(err)
	}
	s.replica, s.leaderKey = pub.Replica(), pub.LeaderKey()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := pub.Run(ctx); err != nil {
			c.s.fail("server", "%s: mesh API server %d ended: %v", c.Name, s.n, err)
		}
	}()
	c.mu.Lock()
	s.pub = pub
	c.mu.Unlock()
	s.end = func() { cancel(); <-done }
	return true
}

// stop ends a server; killed, it gets no word out any more.
func (s *server) stop(killed bool) bool {
	if s.running() == nil {
		return false
	}
	if killed {
		s.door.shut(errDark)
	}
	s.c.mu.Lock()
	s.pub = nil
	s.c.mu.Unlock()
	s.c.s.net.cutWatches(s.c, s.n)
	s.end()
	return true
}

func (s *server) running() *apiserver.Publishing {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.pub
}

// found is what every cluster begins with: nodes with a pod each, a service that
// always has a backend, and all others as peers.
func (c *cluster) found(nodes int) {
	changes := map[apiserver.Ref]runtime.Object{}
	for n := 1; n <= nodes; n++ {
		c.addNode(n, changes)
		c.addPod(n, 10, n%2, changes)
	}
	c.setService("always", service{host: 1, weight: 1, global: true, shared: true, pods: [][3]int{{1, 10, 1}}}, changes)
	c.kube.apply(changes)
	for i := range c.s.clusters {
		c.setPeer(i, true)
	}
}

type changes = map[apiserver.Ref]runtime.Object

func (c *cluster) addNode(n int, ch changes) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodes[n] = true
	ch[nodeRef(c.NodeName(n))] = nodeObject(c.Facts, n)
}

func (c *cluster) removeNode(n int, ch changes) {
	c.mu.Lock()
	delete(c.nodes, n)
	var pods []pod
	for _, p := range c.pods {
		if p.n == n {
			pods = append(pods, p)
		}
	}
	c.mu.Unlock()
	for _, p := range pods {
		c.removePod(p, ch)
	}
	ch[nodeRef(c.NodeName(n))] = nil
	c.steady.forgetNode(c.NodeName(n))
}

func (c *cluster) addPod(n, p, app int, ch changes) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lives++
	life := pod{n: n, p: p, app: app, life: c.lives}
	c.pods[[2]int{n, p}] = life
	c.steady.had(c.Pod(n, p), life.label())
	ch[refOf(apiserver.KindPod, life.name())] = life.object(c.Facts)
}

func (c *cluster) removePod(p pod, ch changes) {
	c.mu.Lock()
	delete(c.pods, [2]int{p.n, p.p})
	c.gone = append(c.gone, p)
	c.mu.Unlock()
	c.steady.forgetPod(c.Pod(p.n, p.p))
	ch[refOf(apiserver.KindPod, p.name())] = nil
}

func (c *cluster) setService(name string, svc service, ch changes) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.services[name] = svc
	ch[refOf(apiserver.KindService, name)] = svc.object(c.Facts, name)
	ch[refOf(apiserver.KindEndpointSlice, name+"-1")] = svc.slice(c.Facts, name)
}

func (c *cluster) deleteService(name string, ch changes) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.services, name)
	ch[refOf(apiserver.KindService, name)] = nil
	ch[refOf(apiserver.KindEndpointSlice, name+"-1")] = nil
}

// setPeer admits another cluster, or removes it, as the calls of the operator do.
func (c *cluster) setPeer(other int, on bool) {
	o := c.s.clusters[other]
	if o == c {
		return
	}
	c.peers[other] = on
	if !on {
		c.steady.forgetPeer(o.ID)
	}
	peer := o.Peer()
	key := clustermesh.KeyOf(local, c.Name, peer).String()
	op := kvstore.Delete(key)
	if on {
		value, err := clustermesh.Encode(peer)
		if err != nil {
			c.s.t.Fatal(err)
		}
		op = kvstore.Put(key, value, 0)
	}
	if _, err := c.store().Commit(context.Background(), op); err != nil {
		c.s.t.Fatal(err)
	}
}

// save takes a backup of the store.
func (c *cluster) save() {
	store := c.store()
	c.backup = nil
	at, err := store.List(context.Background(), "", kvstore.Position{}, func(kvs []kvstore.KV) error {
		for _, kv := range kvs {
			if kv.Lease == 0 {
				c.backup = append(c.backup, kvstore.KV{Key: kv.Key, Value: bytes.Clone(kv.Value)})
			}
		}
		return nil
	})
	if err != nil {
		c.s.t.Fatal(err)
	}
	c.copyID = at.StoreID
}

// replace puts another store in the place of the cluster's: an empty one, or the
// backup, which has the same ID and counts again from an older revision.
func (c *cluster) replace(id uint64, content []kvstore.KV) {
	fresh := kvstore.NewMemory(kvstore.MemoryOptions{StoreID: id})
	for len(content) > 0 {
		var ops []kvstore.Op
		n := min(len(content), kvstore.MaxOps)
		for _, kv := range content[:n] {
			ops = append(ops, kvstore.Put(kv.Key, kv.Value, 0))
		}
		if _, err := fresh.Commit(context.Background(), ops...); err != nil {
			c.s.t.Fatal(err)
		}
		content = content[n:]
	}
	c.mu.Lock()
	old := c.memory
	c.memory = fresh
	c.mu.Unlock()
	for _, s := range c.servers {
		if s.door != nil {
			s.door.Swap(ledger{fresh, s.door})
		}
	}
	old.Close()
}

// register keeps what the nodes say registered, as their agents do: at once, and
// again every now and then.
func (c *cluster) register(ctx context.Context) {
	for ctx.Err() == nil {
		wait := 20 * time.Second
		if !c.registerAll(ctx) {
			wait = time.Second
		}
		select {
		case <-ctx.Done():
		case <-c.kick:
		case <-time.After(wait):
		}
	}
}

// runRegistrations starts register, until the end of the run.
func (c *cluster) runRegistrations() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); c.register(ctx) }()
	c.s.stops = append(c.s.stops, func() { cancel(); <-done })
}

func (c *cluster) registerSoon() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

func (c *cluster) registerAll(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var to apiserver.Registrar
	for _, s := range c.servers {
		if pub := s.running(); pub != nil {
			to = pub.Registrar()
			break
		}
	}
	if to == nil {
		return false
	}
	c.mu.Lock()
	var nodes []int
	var pods []pod
	for n := range c.nodes {
		nodes = append(nodes, n)
	}
	for _, p := range c.pods {
		pods = append(pods, p)
	}
	gone := c.gone
	c.gone = nil
	c.mu.Unlock()
	ok := true
	for _, p := range gone {
		_, err := to.RegisterEndpoint(ctx, c.registration(p, true))
		if err != nil {
			ok = false
			c.mu.Lock()
			c.gone = append(c.gone, p)
			c.mu.Unlock()
		}
	}
	for _, n := range nodes {
		f := c.Node(n)
		_, err := to.RegisterNode(ctx, apiserver.NodeRegistration{
			Node: f.Name, UnderlayAddresses: f.UnderlayAddresses, WireGuardKey: f.WireGuardKey, WireGuardEndpoint: f.WireGuardEndpoint,
		})
		ok = ok && err == nil
	}
	for _, p := range pods {
		_, err := to.RegisterEndpoint(ctx, c.registration(p, false))
		ok = ok && err == nil
	}
	return ok
}

func (c *cluster) registration(p pod, remove bool) apiserver.EndpointRegistration {
	r := apiserver.EndpointRegistration{
		Node: c.NodeName(p.n), Namespace: namespace, Pod: p.name(), Owner: p.uid(), Ready: true, Remove: remove,
	}
	if !remove {
		r.Addresses = append(r.Addresses, c.Pod(p.n, p.p))
	}
	return r
}

func newCluster(s *sim, i int) *cluster {
	c := &cluster{
		Facts: agenttest.Facts{Name: fmt.Sprint("c", i+1), ID: clustermesh.ID(i + 1)}, s: s, kube: newObjects(),
		memory: kvstore.NewMemory(kvstore.MemoryOptions{StoreID: s.draw() | 1}),
		nodes:  map[int]bool{}, pods: map[[2]int]pod{}, services: map[string]service{}, peers: map[int]bool{},
		kick: make(chan struct{}, 1),
	}
	c.hub, c.prefixes = newHub(c), c.Prefixes()[:1]
	c.steady.reset()
	for n := range s.sched.Replicas {
		c.servers = append(c.servers, &server{c: c, n: n + 1, dir: filepath.Join(s.dir, fmt.Sprintf("%s-server%d", c.Name, n+1))})
	}
	return c
}
