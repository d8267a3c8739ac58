package sim

import (
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// steady is what a cluster has had without interruption since all was at rest
// last, and what was true of it at any time since then. It knows no delays: what
// holds of it holds at every moment, on every node.
type steady struct {
	mu    sync.Mutex
	pods  map[netip.Addr]bool
	nodes map[string]bool
	peers map[clustermesh.ID]bool
	// labels are those that an address had, and meanings what a number stood for.
	labels   map[netip.Addr][]string
	meanings map[clustermesh.Identity][]string
}

func (y *steady) reset() {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.pods, y.nodes, y.peers = map[netip.Addr]bool{}, map[string]bool{}, map[clustermesh.ID]bool{}
	y.labels, y.meanings = map[netip.Addr][]string{}, map[clustermesh.Identity][]string{}
}

// settle notes what is there now that all is at rest.
func (c *cluster) settle() {
	c.steady.reset()
	c.mu.Lock()
	pods, nodes := c.pods, c.nodes
	for _, p := range pods {
		c.steady.had(c.Pod(p.n, p.p), p.label())
	}
	c.steady.mu.Lock()
	for _, p := range pods {
		c.steady.pods[c.Pod(p.n, p.p)] = true
	}
	for n := range nodes {
		c.steady.nodes[c.NodeName(n)] = true
	}
	for i, on := range c.peers {
		if on {
			c.steady.peers[c.s.clusters[i].ID] = true
		}
	}
	c.steady.mu.Unlock()
	c.mu.Unlock()
	c.learn()
}

// learn notes what the identities of the store mean. It is asked after every step.
func (c *cluster) learn() {
	for text, value := range contentOf(c.store(), clustermesh.KindPrefix(export, c.Name, clustermesh.KindNode)) {
		key, err := clustermesh.ParseKey(text)
		if err != nil {
			continue
		}
		if r, err := clustermesh.Decode(key, value); err == nil {
			c.numbers.Store(r.(*clustermesh.Node).Name, r.(*clustermesh.Node).Number)
		}
	}
	for text, value := range contentOf(c.store(), clustermesh.KindPrefix(export, c.Name, clustermesh.KindIdentity)) {
		c.steady.means(text, value)
	}
}

// numberOf is the number that node n was given.
func (c *cluster) numberOf(n int) (agent.NodeKey, bool) {
	number, is := c.numbers.Load(c.NodeName(n))
	if !is {
		return agent.NodeKey{}, false
	}
	return agent.NodeKey{Cluster: uint16(c.ID), Node: number.(uint16)}, true
}

func (y *steady) means(text string, value []byte) {
	key, err := clustermesh.ParseKey(text)
	if err != nil {
		return
	}
	r, err := clustermesh.Decode(key, value)
	if err != nil {
		return
	}
	id := r.(*clustermesh.IdentityRecord)
	y.mu.Lock()
	defer y.mu.Unlock()
	for _, l := range id.Labels {
		if strings.HasPrefix(l.Value, "app") && !slices.Contains(y.meanings[id.ID], l.Value) {
			y.meanings[id.ID] = append(y.meanings[id.ID], l.Value)
		}
	}
}

func (y *steady) had(a netip.Addr, label string) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if !slices.Contains(y.labels[a], label) {
		y.labels[a] = append(y.labels[a], label)
	}
}

func (y *steady) forgetPod(a netip.Addr) {
	y.mu.Lock()
	defer y.mu.Unlock()
	delete(y.pods, a)
}

func (y *steady) forgetNode(name string) {
	y.mu.Lock()
	defer y.mu.Unlock()
	delete(y.nodes, name)
}

func (y *steady) forgetPeer(id clustermesh.ID) {
	y.mu.Lock()
	defer y.mu.Unlock()
	delete(y.peers, id)
}

func (y *steady) lasts(a netip.Addr) bool {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.pods[a]
}

func (y *steady) node(name string) bool {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.nodes[name]
}

func (y *steady) peer(id clustermesh.ID) bool {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.peers[id]
}

// checkMeaning: what an identity has stood for is what the pod at the address has
// been, at some time since the last rest: an agent may be behind, but never beside.
func (y *steady) checkMeaning(n *node, a netip.Addr, id clustermesh.Identity) {
	y.mu.Lock()
	defer y.mu.Unlock()
	means, was := y.meanings[id], y.labels[a]
	if len(means) == 0 || len(was) == 0 || !n.s.begun.Load() {
		return // not published at the time of the last step
	}
	for _, m := range means {
		if slices.Contains(was, m) {
			return
		}
	}
	n.s.fail("meaning", "%s: address %v has identity %d, which stands for %v; the pod there has been %v", n.name, a, id, means, was)
}
