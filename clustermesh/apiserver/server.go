package apiserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// Run is the mesh API server: it reads the source, publishes records, serves the
// mesh port and the admin socket, until ctx ends; then it stops in order and
// returns nil. An error says what to do about it.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	state, err := openState(cfg.StateDir)
	if err != nil {
		return err
	}
	defer state.close()
	handle, err := cfg.Open(ctx)
	if err != nil {
		return err
	}
	if handle.Close != nil {
		defer handle.Close()
	}
	s, err := newServer(ctx, cfg, state, handle)
	if err != nil {
		return err
	}
	if err := s.port.refuseOtherCA(ctx); err != nil {
		return err
	}
	return s.run(ctx)
}

// server is all parts of one mesh API server.
type server struct {
	cfg      Config
	log      *slog.Logger
	handle   StoreHandle
	cache    *kvstore.Memory
	core     *core
	leader   *leader
	exports  *Exports // nil = not asked for
	memory   *storeMemory
	copy     *lastGood
	gate     *gate
	problems *Problems
	registry *registry
	gossip   *gossipKeys
	caFiles  *caFiles      // where the CA is kept: in files,
	caKept   *keptCA       // or elsewhere
	bundle   func() []byte // to announce: the CA's
	port     *Port
	admin    *Admin
	follow   atomic.Pointer[kvstore.FollowStatus] // of the watch cache

	meshPeers atomic.Pointer[[]*pb.MeshPeerStatus] // resources, by the part that looks after them
}

func newServer(ctx context.Context, cfg Config, state *stateDir, handle StoreHandle) (*server, error) {
	s := newPublishing(cfg, state, handle)
	if err := s.openPort(ctx); err != nil {
		return nil, err
	}
	s.admin = NewAdmin(AdminConfig{
		Port: s.port, Store: s.cache, Status: s.status, Problems: s.problems.All, Confirm: s.confirm, Log: cfg.Log,
	})
	return s, nil
}

// newPublishing makes the parts between the source and the store, and the watch
// cache; not the port and the admin socket.
func newPublishing(cfg Config, state *stateDir, handle StoreHandle) *server {
	if len(handle.Replicas) == 0 {
		handle.Replicas = []kvstore.Store{handle.Store}
	}
	s := &server{
		cfg: cfg, log: cfg.Log, handle: handle,
		cache:    kvstore.NewReplica(kvstore.MemoryOptions{Log: cfg.Log}),
		problems: NewProblems(cfg.Log),
		memory:   openStoreMemory(cfg.StateDir, cfg.Log),
		bundle:   func() []byte { return nil },
	}
	if cfg.Multicluster {
		s.exports = NewExports(cfg.Cluster, cfg.ID, cfg.Log)
	}
	s.core = newCore(cfg, handle.Store, s.cache, s.problems)
	s.copy = openLastGood(cfg.StateDir, cfg.Cluster, s.cache, cfg.Log)
	s.memory.seen(s.copy.position())
	s.copy.saved = s.memory.seen
	s.gate = &gate{
		Sink: s.cache.Sink(), cluster: cfg.Cluster, cache: s.cache, store: handle.Store, problems: s.problems,
		changed: func(at kvstore.Position) {
			if s.memory.older(at) {
				s.leader.restart()
			}
		},
	}
	s.registry = &registry{cfg: cfg, core: s.core, store: handle.Store, published: s.published}
	s.gossip = &gossipKeys{cluster: cfg.Cluster, period: cfg.GossipRotation, core: s.core, store: handle.Store, cache: s.cache, ready: s.published}
	s.leader = newLeader(leaderConfig{
		Store: handle.Store, Key: privateKey(cfg.Cluster, "leader", "apiserver"), Holder: state.replica, TTL: cfg.LeaseTTL, Log: cfg.Log,
	})
	return s
}

// openPort opens the CA and the leaf and makes the mesh port.
func (s *server) openPort(ctx context.Context) error {
	ca, err := s.openCA(ctx)
	if err != nil {
		return err
	}
	leaf, err := certs.NewLeaf(filepath.Join(s.cfg.StateDir, "leaf"), certs.APIServer(s.cfg.Cluster), s.log)
	if err != nil {
		return err
	}
	s.port, err = NewPort(PortConfig{
		Store: s.handle.Store, Cache: s.cache, Watched: s.cache, CA: ca, Leaf: leaf, Bundles: certs.NewBundles(),
		Registrar: s.registry, ReviewNode: s.cfg.ReviewNode, Exports: s.exports, GossipKeys: s.gossip.hand,
		Own: func() clustermesh.Cluster { return *s.core.own.Load() },
		Log: s.log,
	})
	if err == nil {
		s.bundle = func() []byte { return s.port.ca().Bundle() }
	}
	return err
}

// run starts all parts and waits for the end of ctx, or for one that fails.
func (s *server) run(ctx context.Context) error {
	mesh, err := net.Listen("tcp", s.cfg.Listen)
	if err != nil {
		return fmt.Errorf("mesh port: %w; choose another with --listen", err)
	}
	defer mesh.Close()
	socket, err := ListenAdmin(s.cfg.Socket)
	if err != nil {
		return err
	}
	defer socket.Close()
	var metrics net.Listener
	if s.cfg.Metrics != "" {
		if metrics, err = net.Listen("tcp", s.cfg.Metrics); err != nil {
			return fmt.Errorf("metrics: %w; choose another address with --metrics", err)
		}
		defer metrics.Close()
	}

	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var parts sync.WaitGroup
	start := func(name string, run func(context.Context) error) {
		parts.Go(func() {
			if err := run(ctx); err != nil && ctx.Err() == nil {
				stop(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	s.startPublishing(start)
	start("mesh port", func(ctx context.Context) error { return s.port.Run(ctx, mesh) })
	start("CA", func(ctx context.Context) error { s.followCA(ctx); return nil })
	start("admin socket", func(ctx context.Context) error { return s.admin.Run(ctx, socket) })
	if metrics != nil {
		start("metrics", func(ctx context.Context) error { return serveProbes(ctx, metrics, metricsHandler(s)) })
	}
	s.log.Info("mesh API server is up", "cluster", s.cfg.Cluster, "id", uint16(s.cfg.ID), "listen", mesh.Addr().String(), "store", s.handle.Text, "fingerprint", s.port.ca().Fingerprint())
	if s.cfg.Ready != nil {
		s.cfg.Ready()
	}
	<-ctx.Done()
	parts.Wait()
	s.cache.Close()
	s.memory.save()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// startPublishing starts the way from the source to the store.
func (s *server) startPublishing(start func(string, func(context.Context) error)) {
	start("watch cache", func(ctx context.Context) error {
		s.gate.ctx = ctx
		return ended(ctx, kvstore.Follow(ctx, kvstore.FollowConfig{
			Stores: s.handle.Replicas, Prefix: clustermesh.Root, Sink: s.gate, Log: s.log, Status: s.followed,
		}))
	})
	start("registrations", func(ctx context.Context) error {
		select {
		case <-s.cache.Ready():
		case <-ctx.Done():
			return nil
		}
		return ended(ctx, kvstore.Follow(ctx, kvstore.FollowConfig{
			Stores: []kvstore.Store{s.cache}, Prefix: privatePrefix(s.cfg.Cluster), Sink: &claimsSink{core: s.core, log: s.log}, Log: s.log,
		}))
	})
	if s.exports != nil {
		s.core.d.cfg.Namespace = s.exports.setNamespace // before the core runs
		start("exports", func(ctx context.Context) error { return s.exports.run(ctx, s.cache) })
	}
	start("core", func(ctx context.Context) error { s.core.run(ctx); return nil })
	start("source", func(ctx context.Context) error {
		return s.cfg.Source.Run(ctx, func(o Objects) { s.core.deliver(ctx, o) })
	})
	start("leader", func(ctx context.Context) error {
		s.leader.run(ctx, func(ctx context.Context, f *fence) error {
			t := &term{core: s.core, store: s.handle.Store, fence: f, bundle: s.bundle, memory: s.memory, copy: s.copy, held: s.gate.holds}
			keys := Part{Name: "gossip keys", Leading: true, Run: func(ctx context.Context, _ *Running) error { return s.gossip.run(ctx, f) }}
			return s.beside(ctx, t.run, keys)
		})
		return nil
	})
	for _, p := range s.cfg.Parts {
		if !p.Leading {
			start(p.Name, func(ctx context.Context) error { p.keep(ctx, s.running()); return nil })
		}
	}
	start("copy", func(ctx context.Context) error {
		select {
		case <-s.cache.Ready():
			s.copy.run(ctx)
		case <-ctx.Done():
		}
		return nil
	})
	start("notes", func(ctx context.Context) error {
		for ctx.Err() == nil {
			pause(ctx, 5*time.Second)
			s.memory.save()
			s.problems.Set("copy", s.copy.problems())
		}
		return nil
	})
}

// published: the store holds a publication, and the cache shows that store. A
// registration taken before could come in the way of what is put back.
func (s *server) published() bool { return s.gate.held.Load() == 0 && s.copy.marked() }

// ended makes nothing of an error that only says that ctx ended.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// followed notes where the watch cache stands.
func (s *server) followed(st kvstore.FollowStatus) {
	s.follow.Store(&st)
	if st.LastError == nil {
		s.problems.Set("cache", nil)
		return
	}
	s.problems.Set("cache", []Problem{{
		Object: "store", What: "does not answer", Why: printable(st.LastError.Error()),
		Fix: "see that etcd runs and can be reached; until then readers are served what is known and nothing is published",
	}})
}

// status fills in what the port does not know.
func (s *server) status(ctx context.Context, out *pb.StatusResponse) error {
	leads, _, _ := s.leader.status()
	at := s.cache.Position()
	out.Leader, out.StoreId, out.Revision = leads, at.StoreID, at.Revision
	out.Store, out.Version = s.handle.Text, s.cfg.Version
	if list := s.meshPeers.Load(); list != nil {
		out.MeshPeers = *list
	}
	out.Records = make(map[string]int64)
	_, err := s.cache.List(ctx, clustermesh.Root, kvstore.Position{}, func(kvs []kvstore.KV) error {
		for _, kv := range kvs {
			out.Keys++
			if key, err := clustermesh.ParseKey(kv.Key); err == nil {
				out.Records[string(key.Scope)+"/"+string(key.Kind)]++
				if key.Kind == clustermesh.KindNode && key.Scope == clustermesh.ScopeExport && key.Cluster == s.cfg.Cluster {
					out.Nodes = append(out.Nodes, key.Name)
				}
				if key.Kind == clustermesh.KindCluster && key.Cluster == s.cfg.Cluster {
					if r, err := clustermesh.Decode(key, kv.Value); err == nil {
						out.Cluster.Incarnation = r.(*clustermesh.Cluster).Incarnation
					}
				}
			}
		}
		return nil
	})
	if err != nil && at.StoreID == 0 {
		return nil // nothing has been read yet: a problem says so
	}
	return err
}

// confirm lets held deletes go ahead; kind "" = all.
func (s *server) confirm(kind string) int {
	n := 0
	ctx, cancel := context.WithTimeout(context.Background(), ensureTime)
	defer cancel()
	// An error means that the server stops: nothing was released.
	_ = s.core.ask(ctx, func() { n = s.core.confirm(kind) })
	pub := s.core.publisher.Load()
	if pub == nil {
		return n
	}
	for _, h := range pub.Held() {
		if kind == "" || kind == h.Kind {
			n += pub.Confirm(h.Kind)
		}
	}
	return n
}

// replicaName is how this replica signs the leader key: the host's name helps
// people, the random part makes it unique.
func replicaName(dir string) (string, error) {
	path := filepath.Join(dir, "replica")
	text, err := os.ReadFile(path)
	if err == nil && len(strings.TrimSpace(string(text))) > 0 {
		return strings.TrimSpace(string(text)), nil
	}
	if err != nil && !os.IsNotExist(err) {
		return "", err
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	name := fmt.Sprintf("%s-%016x", host, newIncarnation())
	return name, certs.WriteFile(path, []byte(name+"\n"), 0o600)
}
