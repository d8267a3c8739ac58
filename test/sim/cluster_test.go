package sim

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"

	"github.com/tombolo-mesh/tombolo/agent/agenttest"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// cluster is one cluster's control plane: what it has to say, a publisher, and
// the store it writes.
type cluster struct {
	agenttest.Facts
	s *sim
	r *rand.Rand

	want   map[string]clustermesh.Record // by key: what the publisher is told
	nodes  map[int]bool
	pods   map[[2]int]bool
	peers  map[string]bool
	backup []kvstore.KV
	copyID uint64 // store the backup is of

	pub  *kvstore.Publisher
	up   bool
	stop func()
}

// start runs a publisher on the present store, as a mesh API server that starts.
func (c *cluster) start() {
	marker := clustermesh.ClusterKey(clustermesh.ScopeExport, c.Name)
	incarnation := c.r.Uint64() | 1
	c.pub = kvstore.NewPublisher(kvstore.PublishConfig{
		Store:    c.s.mesh.Store(c.Name),
		Prefixes: []string{clustermesh.ScopePrefix(clustermesh.ScopeExport, c.Name), clustermesh.ScopePrefix(clustermesh.ScopeLocal, c.Name)},
		Marker:   marker, Same: clustermesh.Same, Kind: clustermesh.KindOf, Guard: kvstore.GuardConfig{Off: true},
		MarkerValue: func(_ bool, old []byte) []byte {
			if old != nil {
				return old
			}
			return c.encode(c.Facts.Cluster(incarnation))
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	pub := c.pub
	go func() {
		defer close(done)
		_ = pub.Run(ctx) // ends with ctx
	}()
	c.up = true
	c.stop = sync.OnceFunc(func() { cancel(); <-done; c.up = false })
	for key, r := range c.want {
		pub.Set(key, c.encode(r))
	}
	pub.Listed()
}

func (c *cluster) running() bool { return c.up }

func (c *cluster) encode(r clustermesh.Record) []byte {
	value, err := clustermesh.Encode(r)
	if err != nil {
		c.s.t.Fatal(err)
	}
	return value
}

func (c *cluster) set(scope clustermesh.Scope, r clustermesh.Record) {
	key := clustermesh.KeyOf(scope, c.Name, r).String()
	c.want[key] = r
	c.pub.Set(key, c.encode(r))
}

func (c *cluster) delete(scope clustermesh.Scope, r clustermesh.Record) {
	key := clustermesh.KeyOf(scope, c.Name, r).String()
	delete(c.want, key)
	c.pub.Delete(key)
}

const (
	export = clustermesh.ScopeExport
	local  = clustermesh.ScopeLocal
)

// found is what every cluster begins with: two nodes, and a service that always
// has a backend.
func (c *cluster) found() {
	for n := 1; n <= 2; n++ {
		c.addNode(n)
	}
	c.set(export, c.Identity(1))
	c.set(export, c.Identity(2))
	c.addPod(1, 10)
	c.set(export, c.Facts.Service("always", 1))
	c.set(export, c.Slice("always", [2]int{1, 10}))
	for _, other := range c.s.clusters {
		if other != c {
			c.setPeer(other, true)
		}
	}
}

func (c *cluster) addNode(n int) {
	c.nodes[n] = true
	c.set(export, c.Facts.Node(n))
}

func (c *cluster) addPod(n, p int) {
	c.pods[[2]int{n, p}] = true
	c.set(export, c.Address(n, p, uint32(1+(n+p)%2)))
}

func (c *cluster) setPeer(other *cluster, on bool) {
	c.peers[other.Name] = on
	if on {
		c.set(local, other.Peer())
	} else {
		c.delete(local, other.Peer())
	}
}

// change makes one random change of what the cluster has to say.
func (c *cluster) change() string {
	switch c.r.IntN(8) {
	case 0:
		n := 2 + c.r.IntN(3)
		if !c.nodes[n] {
			c.addNode(n)
			return fmt.Sprintf("%s adds node %d", c.Name, n)
		}
		delete(c.nodes, n)
		for pod := range c.pods {
			if pod[0] == n {
				delete(c.pods, pod)
				c.delete(export, c.Address(pod[0], pod[1], 1))
			}
		}
		c.delete(export, c.Facts.Node(n))
		return fmt.Sprintf("%s removes node %d", c.Name, n)
	case 1, 2:
		n, p := 1+c.r.IntN(2), 20+c.r.IntN(5)
		if c.pods[[2]int{n, p}] {
			delete(c.pods, [2]int{n, p})
			c.delete(export, c.Address(n, p, 1))
			return fmt.Sprintf("%s removes pod %d/%d", c.Name, n, p)
		}
		c.addPod(n, p)
		return fmt.Sprintf("%s adds pod %d/%d", c.Name, n, p)
	case 3:
		name := c.serviceName()
		svc := c.Facts.Service(name, 2+int(name[1]-'0'))
		if c.r.IntN(3) == 0 {
			c.delete(export, svc)
			c.delete(export, c.Slice(name))
			return fmt.Sprintf("%s deletes service %s", c.Name, name)
		}
		svc.Affinity = []clustermesh.Affinity{"", clustermesh.AffinityLocal, clustermesh.AffinityRemote, clustermesh.AffinityNone}[c.r.IntN(4)]
		svc.Weight, svc.HasWeight = uint16(c.r.IntN(4)), true
		svc.Shared = c.r.IntN(4) > 0
		scope, other := export, local
		if c.r.IntN(4) == 0 {
			svc.Global, scope, other = false, local, export
		}
		c.delete(other, svc)
		c.delete(other, c.Slice(name))
		c.set(scope, svc)
		c.set(scope, c.randomSlice(name))
		return fmt.Sprintf("%s sets service %s in %s: affinity %q weight %d shared %v", c.Name, name, scope, svc.Affinity, svc.Weight, svc.Shared)
	case 4, 5, 6:
		name := c.serviceName()
		if c.want[clustermesh.KeyOf(export, c.Name, c.Facts.Service(name, 0)).String()] == nil {
			return fmt.Sprintf("%s: no service %s", c.Name, name)
		}
		s := c.randomSlice(name)
		c.set(export, s)
		return fmt.Sprintf("%s: %d endpoints for %s", c.Name, len(s.Endpoints), name)
	default:
		other := c.s.clusters[c.r.IntN(len(c.s.clusters))]
		if other == c {
			return "nothing"
		}
		c.setPeer(other, !c.peers[other.Name])
		return fmt.Sprintf("%s: peer %s is now %v", c.Name, other.Name, c.peers[other.Name])
	}
}

func (c *cluster) serviceName() string { return fmt.Sprintf("s%d", c.r.IntN(4)) }

func (c *cluster) randomSlice(name string) *clustermesh.EndpointSlice {
	var pods [][2]int
	for p := range c.r.IntN(6) {
		pods = append(pods, [2]int{1 + c.r.IntN(2), 20 + p})
	}
	s := c.Slice(name, pods...)
	for i := range s.Endpoints {
		s.Endpoints[i].Ready = c.r.IntN(5) > 0
		s.Endpoints[i].Serving = true
	}
	return s
}

// save takes a backup of the store.
func (c *cluster) save() string {
	store := c.s.mesh.Store(c.Name)
	c.backup = nil
	at, err := store.List(context.Background(), "", kvstore.Position{}, func(kvs []kvstore.KV) error {
		for _, kv := range kvs {
			c.backup = append(c.backup, kvstore.KV{Key: kv.Key, Value: bytes.Clone(kv.Value)})
		}
		return nil
	})
	if err != nil {
		c.s.t.Fatal(err)
	}
	c.copyID = at.StoreID
	return c.Name + ": backup"
}

// replace gives the cluster another store: an empty one, or the backup, which
// has the same store ID and counts again from an older revision. The mesh API
// server starts on it, boot time later.
func (c *cluster) replace(id uint64, content []kvstore.KV) {
	c.stop()
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
	old := c.s.mesh.Store(c.Name)
	c.s.mesh.SetStore(c.Name, fresh)
	old.Close()
}

// views are what the store says now, read by the slow obvious way.
func (c *cluster) views(a clustermesh.Admission) map[clustermesh.Scope]*clustermesh.View {
	out := map[clustermesh.Scope]*clustermesh.View{}
	for _, scope := range []clustermesh.Scope{export, local} {
		v := clustermesh.NewView(a, scope)
		_, err := c.s.mesh.Store(c.Name).List(context.Background(), clustermesh.ScopePrefix(scope, c.Name), kvstore.Position{}, func(kvs []kvstore.KV) error {
			for _, kv := range kvs {
				k, err := clustermesh.ParseKey(kv.Key)
				if err != nil {
					return err
				}
				r, err := clustermesh.Decode(k, kv.Value)
				if err != nil {
					return err
				}
				if err := v.Apply(clustermesh.Change{Key: k, Record: r}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			c.s.t.Fatal(err)
		}
		out[scope] = v
	}
	return out
}

func inside(prefixes []netip.Prefix, a netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
