package sim

import (
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
)

// paths remembers, of every way from an agent's node to a node, when it was last
// anything but well, and when it last let anything through.
type paths struct {
	bad  map[[2]site]time.Time
	open map[[2]site]time.Time
}

const (
	// wellFor is how long a way must have been well for it to be known everywhere:
	// answers, words of others that get old, and the pause between two returns.
	wellFor = 45 * time.Second
	// deadFor2 is how long a way must have been cut for it to be known.
	deadFor2 = 45 * time.Second
)

// note looks at all ways. It is called before and after every change of them, and
// after every step.
func (s *sim) notePaths() {
	now := time.Now()
	s.pathsMu.Lock()
	defer s.pathsMu.Unlock()
	for _, c := range s.clusters {
		for _, n := range c.agents {
			for _, o := range s.clusters {
				for i := 1; i <= maxNodes; i++ {
					to := site{int(o.ID), i}
					if to == n.site() {
						continue
					}
					out, back := s.net.way(n.site(), to), s.net.way(to, n.site())
					there := o.hasNode(i)
					pair := [2]site{n.site(), to}
					if !there || out != (way{}) || back != (way{}) {
						s.paths.bad[pair] = now
					}
					if !there || !out.cut && !back.cut {
						s.paths.open[pair] = now
					}
				}
			}
		}
	}
}

func (c *cluster) hasNode(n int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[n]
}

// badWithin says whether the way from any agent of a cluster to a node was
// anything but well a short time ago: agents of one cluster believe each other.
func (s *sim) badWithin(c *cluster, to site, d time.Duration) bool {
	s.pathsMu.Lock()
	defer s.pathsMu.Unlock()
	for _, n := range c.agents {
		if at, was := s.paths.bad[[2]site{n.site(), to}]; was && time.Since(at) < d {
			return true
		}
	}
	return false
}

// checkDown: no node is judged down while the way to it is well.
func (n *node) checkDown(k agent.NodeKey) {
	if to, is := n.s.numbered(k); is && !n.s.badWithin(n.of, to, wellFor) {
		n.s.fail("verdict", "%s: node %v is judged down, and the way there is well", n.name, to)
	}
}

// checkShut: a cluster is not judged down while the way to one of its nodes is well.
func (n *node) checkShut(k agent.ClusterKey) {
	c := n.s.clusters[int(k)-1]
	known := false
	for i := 1; i <= maxNodes; i++ {
		if !c.hasNode(i) {
			continue
		}
		known = true
		if n.s.badWithin(n.of, site{int(c.ID), i}, wellFor) {
			return
		}
	}
	if known {
		n.s.fail("verdict", "%s: cluster %s is judged down, and the ways there are well", n.name, c.Name)
	}
}

// checkVerdicts: what has been well for long is up, and what has been cut for long
// is down, where an agent runs whose tables work.
func (n *node) checkVerdicts() {
	if n.a == nil || n.broken.Load() || n.drifted.Load() || time.Now().UnixNano() < n.stalled.Load()+int64(wellFor) || time.Since(n.ups) < wellFor {
		return
	}
	for k := range n.down.Rows() {
		if to, is := n.s.numbered(k); is && !n.s.badWithin(n.of, to, wellFor) {
			n.s.fail("verdict", "%s: node %v is still down, and the way there has been well for long", n.name, to)
		}
	}
	for _, c := range n.s.clusters {
		for i := 1; i <= maxNodes; i++ {
			k, is := c.numberOf(i)
			if !is || !n.of.admits(c) || !c.steady.node(c.NodeName(i)) || !n.of.steady.node(n.name) {
				continue
			}
			n.s.pathsMu.Lock()
			open := n.s.paths.open[[2]site{n.site(), {int(c.ID), i}}]
			n.s.pathsMu.Unlock()
			if _, judged := n.down.Get(k); !judged && time.Since(open) > deadFor2 && (site{int(c.ID), i}) != n.site() {
				n.s.fail("verdict", "%s: node %d of %s is up, and nothing has come through for long", n.name, i, c.Name)
			}
		}
	}
}
