package sim

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

// verb is something that a step can do. It returns what it came to, for the
// transcript, and false if it made no sense.
type verb struct {
	args string
	do   func(s *sim, st step) bool
}

var verbs map[string]verb

func init() {
	verbs = map[string]verb{
		// Changes of what there is.
		"node":     {"cluster node", onCluster((*cluster).doNode)},
		"pod":      {"cluster node pod app: comes, is replaced by one with other labels, or (app 0) goes", onCluster((*cluster).doPod)},
		"service":  {"cluster number affinity weight kind: 0 global, 1 local, 2 not shared, 3 gone", onCluster((*cluster).doService)},
		"backends": {"cluster number bits ready: which pods, which of them are ready", onCluster((*cluster).doBackends)},
		"peer":     {"cluster other: is admitted, or no longer", onCluster((*cluster).doPeer)},

		// The network. A way is from cluster a to cluster b; 0 = all; node -1 = all.
		"cut":    {"a b: nothing gets from a to b", onWay(func(*step) rule { return rule{cut: true} })},
		"lose":   {"a b percent: of probes and gossip", onWay(func(st *step) rule { return rule{loss: st.arg(2)} })},
		"late":   {"a b ms", onWay(func(st *step) rule { return rule{delay: time.Duration(st.arg(2)) * time.Millisecond} })},
		"flaky":  {"a b percent: of batches, at which connections break", onWay(func(st *step) rule { return rule{flaky: st.arg(2)} })},
		"mend":   {"a b", onWay(nil)},
		"island": {"cluster node on: the node is cut off from everything", onCluster((*cluster).doIsland)},
		"dark":   {"cluster on: its control plane is out of reach", onCluster((*cluster).doDark)},

		// Control planes and their stores.
		"hangup":  {"cluster: all readers' connections break", onCluster(func(c *cluster, _ step) bool { c.s.net.cutWatches(c, 0); return true })},
		"compact": {"cluster: history is forgotten, connections break", onCluster((*cluster).doCompact)},
		"server":  {"cluster replica what: 0 starts, 1 stops, 2 dies, 3 dies and starts", onServer((*server).doRun)},
		"stopped": {"cluster replica ms: the process is stopped for so long", onServer(func(v *server, st step) bool {
			return v.withDoor(func(d *door) { d.hold(time.Duration(st.arg(2)) * time.Millisecond) })
		})},
		"slow": {"cluster replica ms: every call to the store takes that long", onServer(func(v *server, st step) bool {
			return v.withDoor(func(d *door) { d.slow(time.Duration(st.arg(2)) * time.Millisecond) })
		})},
		"clock": {"cluster replica seconds: its clock is so far ahead, or behind", onServer(func(v *server, st step) bool {
			return v.withDoor(func(d *door) { d.clock(time.Duration(st.arg(2)) * time.Second) })
		})},
		"unlead":  {"cluster: the leader key is gone, as if its lease were over", onCluster((*cluster).doUnlead)},
		"faulty":  {"cluster replica percent: calls to the store fail, also after they took effect", onServer((*server).doFaulty)},
		"wipe":    {"cluster: its store is another one, and empty", onCluster((*cluster).doWipe)},
		"backup":  {"cluster", onCluster(func(c *cluster, _ step) bool { c.save(); return true })},
		"restore": {"cluster: its store is as it was at the backup", onCluster((*cluster).doRestore)},
		"lie":     {"cluster other: it tells all others lies about that one; 0 = the truth", onCluster((*cluster).doLie)},

		// Agents and kernels.
		"agent":  {"cluster node what: 0 starts, 1 stops, 2 dies, 3 dies and starts", onNode((*node).doRun)},
		"die":    {"cluster node calls: dies in the middle of the call of a table after so many, a second later it starts", onNode((*node).doDie)},
		"reboot": {"cluster node: the kernel is empty, the agent starts", onNode((*node).doReboot)},
		"tables": {"cluster node what: 0 work, 1 fail now and then, 2 are full now and then", onNode((*node).doTables)},
		"stall": {"cluster node ms: calls of tables take that long, all of them", onNode(func(n *node, st step) bool {
			n.stall(time.Duration(st.arg(2)) * time.Millisecond)
			return true
		})},
		"drift": {"cluster node rows: rows vanish", onNode(func(n *node, st step) bool {
			if n.a == nil {
				return false
			}
			n.drift(st.arg(2))
			return true
		})},

		"rest": {"all faults end, and everything comes to what it should be", func(s *sim, _ step) bool { s.rest(); return true }},
	}
}

func onCluster(do func(*cluster, step) bool) func(*sim, step) bool {
	return func(s *sim, st step) bool {
		i := st.arg(0)
		return i >= 1 && i <= len(s.clusters) && do(s.clusters[i-1], st)
	}
}

func onServer(do func(*server, step) bool) func(*sim, step) bool {
	return onCluster(func(c *cluster, st step) bool {
		i := st.arg(1)
		return i >= 1 && i <= len(c.servers) && do(c.servers[i-1], st)
	})
}

func onNode(do func(*node, step) bool) func(*sim, step) bool {
	return onCluster(func(c *cluster, st step) bool {
		i := st.arg(1)
		return i >= 1 && i <= len(c.agents) && do(c.agents[i-1], st)
	})
}

func onWay(make func(*step) rule) func(*sim, step) bool {
	return func(s *sim, st step) bool {
		r := rule{}
		if make != nil {
			r = make(&st)
		}
		r.from, r.to = site{st.arg(0), -1}, site{st.arg(1), -1}
		s.net.set(make == nil, r)
		return true
	}
}

func (c *cluster) doNode(st step) bool {
	n := st.arg(1)
	if n <= c.s.sched.Nodes || n > maxNodes {
		return false // the first ones stay: agents and backends are there
	}
	ch := changes{}
	if c.hasNode(n) {
		c.removeNode(n, ch)
	} else {
		c.addNode(n, ch)
	}
	c.kube.apply(ch)
	c.registerSoon()
	return true
}

func (c *cluster) doPod(st step) bool {
	n, p, app := st.arg(1), st.arg(2), st.arg(3)
	if !c.hasNode(n) || p == 10 && n == 1 || p < 2 || p > 250 {
		return false // that one is the backend that is always there
	}
	c.mu.Lock()
	old, had := c.pods[[2]int{n, p}]
	c.mu.Unlock()
	ch := changes{}
	if had {
		c.removePod(old, ch)
		c.kube.apply(ch)
		ch = changes{}
	}
	if app > 0 {
		c.addPod(n, p, app, ch)
		c.kube.apply(ch)
	}
	c.registerSoon()
	return had || app > 0
}

func serviceName(n int) string { return fmt.Sprint("s", n) }

func (c *cluster) doService(st step) bool {
	name, ch := serviceName(st.arg(1)), changes{}
	c.mu.Lock()
	svc, had := c.services[name]
	c.mu.Unlock()
	if st.arg(4) == 3 {
		c.deleteService(name, ch)
		c.kube.apply(ch)
		return had
	}
	svc.host, svc.affinity, svc.weight = 2+st.arg(1)%200, st.arg(2)%len(affinities), st.arg(3)
	svc.global, svc.shared = st.arg(4) != 1, st.arg(4) != 2
	c.setService(name, svc, ch)
	c.kube.apply(ch)
	return true
}

func (c *cluster) doBackends(st step) bool {
	name, ch := serviceName(st.arg(1)), changes{}
	c.mu.Lock()
	svc, had := c.services[name]
	c.mu.Unlock()
	if !had {
		return false
	}
	svc.pods = nil
	for i := range 6 {
		if n := 1 + i%2; st.arg(2)>>i&1 != 0 && n <= c.s.sched.Nodes {
			svc.pods = append(svc.pods, [3]int{n, 20 + i, st.arg(3) >> i & 1})
		}
	}
	c.setService(name, svc, ch)
	c.kube.apply(ch)
	return true
}

func (c *cluster) doPeer(st step) bool {
	i := st.arg(1) - 1
	if i < 0 || i >= len(c.s.clusters) || c.s.clusters[i] == c {
		return false
	}
	c.setPeer(i, !c.peers[i])
	return true
}

func (c *cluster) doIsland(st step) bool {
	x, all := site{int(c.ID), st.arg(1)}, site{0, -1}
	c.s.net.set(st.arg(2) == 0, rule{from: x, to: all, cut: true}, rule{from: all, to: x, cut: true})
	return true
}

func (c *cluster) doDark(st step) bool {
	x, all := site{int(c.ID), 0}, site{0, -1}
	c.s.net.set(st.arg(1) == 0, rule{from: x, to: all, cut: true}, rule{from: all, to: x, cut: true})
	return true
}

func (c *cluster) doCompact(step) bool {
	for _, v := range c.servers {
		if pub := v.running(); pub != nil {
			pub.Cache().Compact(pub.Cache().Position().Revision)
		}
	}
	c.store().Compact(c.store().Position().Revision)
	c.store().CutWatches(errCut)
	c.s.net.cutWatches(c, 0)
	return true
}

func (v *server) doRun(st step) bool {
	switch st.arg(2) {
	case 0:
		return v.start()
	case 1, 2:
		return v.stop(st.arg(2) == 2)
	}
	return v.stop(true) && v.start()
}

func (v *server) withDoor(do func(*door)) bool {
	if v.running() == nil {
		return false
	}
	do(v.door)
	return true
}

func (v *server) doFaulty(st step) bool {
	return v.withDoor(func(d *door) { d.fail(float64(st.arg(2)) / 100) })
}

func (c *cluster) doUnlead(step) bool {
	key := c.servers[0].leaderKey
	_, err := c.store().Commit(context.Background(), kvstore.Delete(key))
	return err == nil
}

func (c *cluster) doWipe(step) bool {
	c.replace(c.s.draw()|1, nil)
	return true
}

func (c *cluster) doRestore(step) bool {
	if c.backup == nil || c.store().Position().StoreID != c.copyID {
		return false
	}
	for _, o := range c.s.clusters {
		c.steady.forgetPeer(o.ID) // who was admitted or removed since is so again
	}
	c.replace(c.copyID, slices.Clone(c.backup))
	return true
}

func (c *cluster) doLie(st step) bool {
	i := st.arg(1) - 1
	if i >= len(c.s.clusters) || i == int(c.ID)-1 {
		return false
	}
	c.mu.Lock()
	c.victim = nil
	if i >= 0 {
		c.victim = c.s.clusters[i]
	}
	c.mu.Unlock()
	c.s.net.cutWatches(c, 0)
	return true
}

func (n *node) doRun(st step) bool {
	switch st.arg(2) {
	case 0:
		return n.start()
	case 1, 2:
		return n.stop(st.arg(2) == 2)
	}
	return n.stop(true) && n.start()
}

func (n *node) doDie(st step) bool {
	if n.a == nil {
		return false
	}
	n.broken.Store(true)
	n.failAt(st.arg(2))
	n.s.later(time.Second, func() { n.stop(true); n.start() })
	return true
}

func (n *node) doReboot(step) bool {
	n.stop(true)
	n.boot()
	n.start()
	return true
}

func (n *node) doTables(st step) bool {
	if st.arg(2) == 0 {
		n.heal()
	} else {
		n.fail(n.s.draw(), st.arg(2) == 2)
	}
	return true
}
