package agent

import (
	"cmp"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
)

// Gossip joins the agents of the own cluster: who is there, and what each says of
// the nodes that it probes. All methods may be called from any goroutine, and
// none waits.
type Gossip interface {
	// SetPeers says where agents of the own cluster may be, by node name.
	SetPeers(map[string][]netip.Addr)
	// Report says which nodes this agent's probes miss, and how often in a row; all
	// of them, the latest word counts.
	Report(missing map[NodeKey]uint8)
	// View is what is known now.
	View() GossipView
	// Changed is signalled (it is buffered by one) when View may be another.
	Changed() <-chan struct{}
}

// GossipView is what gossip knows at one moment.
type GossipView struct {
	Alive   []string                     // node names, this one among them
	Dead    []string                     // gone without a word, a short time ago
	Missing map[string]map[NodeKey]uint8 // by who said so: misses in a row, 0 = none
}

const (
	// probersOf is how many agents probe a node at the full rate.
	probersOf = 5
	// voteFrom is how many round trips in a row one that misses a node must have lost
	// for its word to count, and lostInSum how many they must have lost together. Loss
	// of 20 % in each direction takes p = 36 % of the round trips. All five may be in a
	// run of losses in 2,400 ways that make 40 together, and they are probed 200,000
	// times in ten minutes if one or another is suspected all the time: 2,400 p⁴⁰
	// 200,000 = 10⁻⁹ false verdicts for a node. If what they lose is lost on the node's
	// own link, all at once, their losses are not each other's proof: so each must have
	// heard nothing for at least eight probes, 120 ms, and the time of the last.
	voteFrom  = 8
	lostInSum = 40
	// slowProbes is how much more seldom the other agents probe.
	slowProbes = 15
)

// council decides what the agents of this cluster find together. It is a value:
// what it answers depends on nothing but what it was made of. nil = there is no
// gossip, and every agent is on its own.
type council struct {
	self    string
	nodes   int // registered in the own cluster, this one included
	live    []prober
	dead    map[NodeKey]bool // the own cluster's nodes whose agents are gone without a word
	missing map[string]map[NodeKey]uint8
	accused map[NodeKey]bool     // named in missing, by others
	chosen  map[NodeKey][]prober // found out already
}

type prober struct {
	name string
	node NodeKey
	hash uint64
}

// newCouncil: registered are the own cluster's nodes by name, this one included.
func newCouncil(self string, registered map[string]NodeKey, v GossipView) *council {
	c := &council{self: self, nodes: len(registered), missing: v.Missing, dead: map[NodeKey]bool{},
		accused: map[NodeKey]bool{}, chosen: map[NodeKey][]prober{}}
	for _, name := range v.Alive {
		if node, is := registered[name]; is {
			h := fnv.New64a()
			h.Write([]byte(name))
			c.live = append(c.live, prober{name, node, h.Sum64()})
		}
	}
	slices.SortFunc(c.live, func(a, b prober) int { return cmp.Compare(a.name, b.name) })
	for _, name := range v.Dead {
		if node, is := registered[name]; is {
			c.dead[node] = true
		}
	}
	for name, missing := range v.Missing {
		for node := range missing {
			c.accused[node] = c.accused[node] || name != self
		}
	}
	return c
}

// keepChosen takes over who was chosen for each node, which takes long to find out,
// if the members are the same. It reports whether they are.
func (c *council) keepChosen(old *council) bool {
	if c == nil || old == nil || c.sits() != old.sits() || c.self != old.self || !slices.Equal(c.live, old.live) {
		return false
	}
	c.chosen = old.chosen
	return true
}

// lost reports whether a node's own agent is gone without a word.
func (c *council) lost(node NodeKey) bool { return c != nil && c.dead[node] }

// accuse reports whether another agent misses a node.
func (c *council) accuse(node NodeKey) bool { return c != nil && c.accused[node] }

// newWord reports whether somebody chosen for it speaks against a node who did not
// before.
func (c *council) newWord(node NodeKey, old *council) bool {
	return slices.ContainsFunc(c.probers(node), func(p prober) bool {
		return p.name != c.self && c.missing[p.name][node] > 0 && (old == nil || old.missing[p.name][node] == 0)
	})
}

// sits reports whether verdicts can be given: an agent that sees fewer than half
// of the registered nodes may be the one that is cut off. It has its own probes
// then, and so it has when it is alone.
func (c *council) sits() bool { return c != nil && len(c.live) > 1 && 2*len(c.live) >= c.nodes }

// probers are those that probe node at the full rate: chosen by rendezvous
// hashing, so that one that comes or goes moves only its own share, and all who
// see the same members choose the same. No node probes itself.
func (c *council) probers(node NodeKey) []prober {
	if found, is := c.chosen[node]; is {
		return found
	}
	var best [probersOf]struct {
		weight uint64
		prober
	}
	n := 0
	for _, p := range c.live {
		if p.node == node {
			continue
		}
		w := rendezvous(p.hash, node)
		if n == probersOf && w <= best[n-1].weight {
			continue
		}
		n = min(n+1, probersOf)
		i := n - 1
		for ; i > 0 && best[i-1].weight < w; i-- {
			best[i] = best[i-1]
		}
		best[i].weight, best[i].prober = w, p
	}
	out := make([]prober, n)
	for i := range out {
		out[i] = best[i].prober
	}
	c.chosen[node] = out
	return out
}

// rendezvous mixes as splitmix64 does.
func rendezvous(member uint64, node NodeKey) uint64 {
	x := member ^ (uint64(node.Cluster)<<16|uint64(node.Node))*0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// chose reports whether this agent is to probe node at the full rate.
func (c *council) chose(node NodeKey) bool {
	return !c.sits() || slices.ContainsFunc(c.probers(node), func(p prober) bool { return p.name == c.self })
}

// down is the verdict: a majority of the live probers of node misses it, and they
// have lost enough round trips in a row together. own are this agent's misses.
func (c *council) down(node NodeKey, own int) (is bool, by []string) {
	if !c.sits() || own == 0 && !c.accused[node] {
		return false, nil
	}
	probers, sum := c.probers(node), 0
	for _, p := range probers {
		lost := int(c.missing[p.name][node])
		if p.name == c.self {
			lost = own
		}
		if lost >= voteFrom {
			sum += lost
			by = append(by, p.name)
		}
	}
	if 2*len(by) <= len(probers) || sum < lostInSum {
		return false, nil
	}
	slices.Sort(by)
	return true, by
}

// reportLevels are the numbers of misses in a row that are worth a word. The first
// has those chosen for the node probe it fast, too; with each of the others so many
// make the sum: five, four, three, two, one.
var reportLevels = []uint8{3, 8, 10, 14, 20, 40}

// reportLevel is what is said of so many misses in a row; 0 = nothing.
func reportLevel(misses int) (level uint8) {
	for _, l := range reportLevels {
		if misses >= int(l) {
			level = l
		}
	}
	return level
}

// verdict joins what the council says with this node's own probes, which count
// for oneself: what they find dead is dead for this node, and what answers them
// is alive, whatever others say. A node that is probed at the full rate has
// evidence of its own at any time; another one needs answers that came after the
// others spoke: since counts the probes of that time.
func verdict(own Evidence, council, full bool, since, up int) (down bool) {
	switch {
	case own.Down || !council:
		return own.Down
	case full:
		return own.Misses > 0
	default:
		return min(own.Good, since) < up
	}
}

// healthMembers are the nodes of the own cluster that are registered, by name.
func (s *State) healthMembers() map[string]NodeKey {
	c := s.clusters[s.own]
	members := make(map[string]NodeKey, len(c.nodes))
	for name, n := range c.nodes {
		if n.Number != 0 && n.WireGuardKey != [32]byte{} {
			members[name] = NodeKey{uint16(c.id), n.Number}
		}
	}
	return members
}

// gossipPeers are where their agents may be found.
func (s *State) gossipPeers() map[string][]netip.Addr {
	c := s.clusters[s.own]
	peers := make(map[string][]netip.Addr, len(c.nodes))
	for name := range maps.Keys(s.healthMembers()) {
		if name != s.node {
			peers[name] = c.nodes[name].UnderlayAddresses
		}
	}
	return peers
}
