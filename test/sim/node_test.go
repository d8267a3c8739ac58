package sim

import (
	"context"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
)

// node is an agent with its kernel. The kernel outlives the agent.
type node struct {
	s    *sim
	of   *cluster
	name string
	dir  string // snapshots
	n    int

	peers    *agent.Fake[agent.PeerKey, agent.PeerRow]
	routes   *agent.Fake[agent.RouteKey, agent.RouteRow]
	prefixes *agent.Fake[agent.Prefix, agent.IPCacheRow]
	ips      *agent.Fake[agent.Addr, agent.IPCacheRow]
	slots    *agent.Fake[agent.SlotKey, agent.SlotRow]
	services *agent.Fake[agent.ServiceKey, agent.ServiceRow]
	down     *agent.Fake[agent.NodeKey, agent.HealthRow]
	shut     *agent.Fake[agent.ClusterKey, agent.HealthRow]
	tables   agent.Tables
	faults   []func(agent.Schedule)
	broken   atomic.Bool  // tables fail: what should be written may not be
	stalled  atomic.Int64 // until then no call of a table returns
	drifting atomic.Bool  // rows vanish behind the agent's back
	drifted  atomic.Bool  // and that is not repaired for sure

	a      *agent.Agent
	gossip *member
	end    func()
	ups    time.Time // when the agent was started
}

func newNode(s *sim, c *cluster, n int) *node {
	x := &node{s: s, of: c, n: n, name: c.NodeName(n), dir: filepath.Join(s.dir, c.NodeName(n))}
	x.boot()
	return x
}

func (n *node) site() site { return site{int(n.of.ID), n.n} }

func faulty[K comparable, V comparable](n *node, f *agent.Fake[K, V]) agent.Table[K, V] {
	t := agent.NewFaulty[K, V](f, agent.NoFaults)
	n.faults = append(n.faults, t.SetSchedule)
	return stallable[K, V]{t, n}
}

// boot gives the node an empty kernel.
func (n *node) boot() {
	n.faults = nil
	n.peers = agent.NewFake[agent.PeerKey, agent.PeerRow](agent.TablePeers, 0)
	n.routes = agent.NewFake[agent.RouteKey, agent.RouteRow](agent.TableRoutes, 0)
	n.prefixes = agent.NewFake[agent.Prefix, agent.IPCacheRow](agent.TableIPPrefixes, 0)
	n.ips = agent.NewFake[agent.Addr, agent.IPCacheRow](agent.TableIPs, 0)
	n.slots = agent.NewFake[agent.SlotKey, agent.SlotRow](agent.TableSlots, 0)
	n.services = agent.NewFake[agent.ServiceKey, agent.ServiceRow](agent.TableServices, 0)
	n.down = agent.NewFake[agent.NodeKey, agent.HealthRow](agent.TableNodeHealth, 0)
	n.shut = agent.NewFake[agent.ClusterKey, agent.HealthRow](agent.TableClusterHealth, 0)
	n.tables = agent.NewFakes()
	n.tables.Peers, n.tables.Routes = faulty(n, n.peers), faulty(n, n.routes)
	n.tables.IPPrefixes, n.tables.IPs = faulty(n, n.prefixes), faulty(n, n.ips)
	n.tables.Slots, n.tables.Services = faulty(n, n.slots), faulty(n, n.services)
	n.tables.NodeHealth, n.tables.ClusterHealth = faulty(n, n.down), faulty(n, n.shut)
	n.tables = n.plantTables(n.tables)
	n.drifted.Store(false)
	n.watch()
}

func (n *node) start() bool {
	if n.a != nil {
		return false
	}
	n.gossip = n.of.hub.join(n)
	a, err := agent.New(agent.Config{
		Cluster: n.of.Name, ClusterID: n.of.ID, Node: n.name, Connector: connector{n.s, n}, SnapshotDir: n.dir,
		Prober: prober{n.s.net, n.site()}, Gossip: n.gossip, Health: agent.HealthConfig{Interval: n.s.probeEvery()},
	}, n.tables)
	if err != nil {
		n.s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = a.Run(ctx) // ends with ctx
	}()
	n.a, n.ups = a, time.Now()
	n.end = sync.OnceFunc(func() { cancel(); <-done })
	return true
}

// stop ends the agent: with a word to the others, or killed.
func (n *node) stop(killed bool) bool {
	if n.a == nil {
		return false
	}
	if killed {
		n.dead()
	}
	n.end()
	n.of.hub.leave(n.gossip, !killed)
	n.a = nil
	if killed {
		n.heal()
	}
	return true
}

// dead lets no further write take effect, as in a process that is no more.
func (n *node) dead() {
	for _, set := range n.faults {
		set(func(agent.FaultOp, int, int) agent.Fault { return agent.Fault{Err: agent.ErrInjected} })
	}
}

// failAt has the agent die in the middle of the call of a table that comes after
// so many others: part of its rows are written, and nothing after them.
func (n *node) failAt(calls int) {
	var done atomic.Int64
	for _, set := range n.faults {
		set(func(op agent.FaultOp, _, rows int) agent.Fault {
			at := done.Add(1)
			switch {
			case op == agent.OpDump:
				done.Add(-1)
				return agent.Fault{}
			case at <= int64(calls):
				return agent.Fault{}
			case at == int64(calls)+1:
				return agent.Fault{Err: agent.ErrInjected, Apply: rows / 2}
			}
			return agent.Fault{Err: agent.ErrInjected}
		})
	}
}

// heal makes the tables work.
func (n *node) heal() {
	for _, set := range n.faults {
		set(agent.NoFaults)
	}
	n.broken.Store(false)
}

// fail makes the tables fail now and then, for want of room or for no reason.
func (n *node) fail(seed uint64, full bool) {
	n.broken.Store(true)
	for i, set := range n.faults {
		random := agent.RandomFaults(seed+uint64(i), 0.3)
		set(func(op agent.FaultOp, k, rows int) agent.Fault {
			f := random(op, k, rows)
			f.Drift = 0
			if full && f.Err != nil && op == agent.OpPut {
				f.Err = agent.ErrFull
			}
			return f
		})
	}
}

// stall holds up every call of a table for a while, as if the process were stopped.
func (n *node) stall(d time.Duration) { n.stalled.Store(time.Now().Add(d).UnixNano()) }

// stallable is a table of a node that can be stalled. It holds no lock meanwhile:
// virtual time stands still while anybody waits for one.
type stallable[K comparable, V any] struct {
	agent.Table[K, V]
	n *node
}

func (t stallable[K, V]) wait() { time.Sleep(time.Until(time.Unix(0, t.n.stalled.Load()))) }

func (t stallable[K, V]) Put(rows map[K]V) error {
	t.wait()
	return t.Table.Put(rows)
}

func (t stallable[K, V]) Delete(keys []K) error {
	t.wait()
	return t.Table.Delete(keys)
}

// drift takes some rows away behind the agent's back.
func (n *node) drift(rows int) {
	n.drifting.Store(true)
	n.drifted.Store(true)
	lose(n.ips, rows)
	lose(n.slots, rows)
	lose(n.services, rows)
	lose(n.routes, rows)
	n.drifting.Store(false)
	n.a.Notify("")
}

func lose[K comparable, V any](f *agent.Fake[K, V], rows int) {
	var keys []K
	for k := range f.Rows() {
		if len(keys) == rows {
			break
		}
		keys = append(keys, k)
	}
	_ = f.Delete(keys) // a fake refuses batches that are too large alone
}
