package agent

import (
	"net/netip"
	"slices"
)

// claim is who was given a prefix: a node, or with node "" a whole cluster.
// Cluster "" is the own one.
type claim struct{ cluster, node string }

// label is how problems name a node.
func (c claim) label() string {
	if c.cluster == "" {
		return c.node
	}
	return c.cluster + "/" + c.node
}

// String names what a prefix belongs to.
func (c claim) String() string {
	if c.node == "" {
		return "this cluster"
	}
	return "node " + c.label()
}

// claims are the prefixes given away so far. It answers in a few steps whether a
// prefix overlaps another cluster's: there are as many prefixes as nodes, and
// few different lengths.
type claims struct {
	lengths map[bool][]int // in use, by family: true = IPv4; ascending
	exact   map[netip.Prefix]claim
	// below are, for a prefix of a length in use, clusters with a claim inside
	// it: one claim of each.
	below map[netip.Prefix][]claim
}

func newClaims(in PlanInput) *claims {
	c := &claims{lengths: map[bool][]int{}, exact: map[netip.Prefix]claim{}, below: map[netip.Prefix][]claim{}}
	note := func(prefixes []netip.Prefix) {
		for _, p := range prefixes {
			v4 := p.Addr().Is4()
			if i, found := slices.BinarySearch(c.lengths[v4], p.Bits()); !found {
				c.lengths[v4] = slices.Insert(c.lengths[v4], i, p.Bits())
			}
		}
	}
	note(in.OwnPrefixes)
	if in.Own != nil {
		note(in.Own.PodPrefixes)
	}
	for _, n := range in.OwnNodes {
		note(n.PodPrefixes)
	}
	for _, r := range in.Remote {
		for _, n := range r.Nodes {
			note(n.PodPrefixes)
		}
	}
	return c
}

// same is who was given exactly this prefix.
func (c *claims) same(p netip.Prefix) (claim, bool) {
	who, ok := c.exact[p.Masked()]
	return who, ok
}

// add gives a prefix away; who has it already keeps it.
func (c *claims) add(p netip.Prefix, who claim) {
	p = p.Masked()
	if had, taken := c.exact[p]; !taken || had.node == "" {
		c.exact[p] = who
	}
	for wider := range c.around(p) {
		if !hasCluster(c.below[wider], who.cluster) {
			c.below[wider] = append(c.below[wider], who)
		}
	}
}

// find is a claim of another cluster that overlaps p.
func (c *claims) find(p netip.Prefix, cluster string) (claim, bool) {
	p = p.Masked()
	for wider := range c.around(p) {
		if who, taken := c.exact[wider]; taken && who.cluster != cluster {
			return who, true
		}
	}
	for _, who := range c.below[p] {
		if who.cluster != cluster {
			return who, true
		}
	}
	return claim{}, false
}

// around yields p and every wider prefix of a length in use, the narrowest first.
func (c *claims) around(p netip.Prefix) func(func(netip.Prefix) bool) {
	return func(yield func(netip.Prefix) bool) {
		for _, bits := range slices.Backward(c.lengths[p.Addr().Is4()]) {
			if bits > p.Bits() {
				continue
			}
			if wider, err := p.Addr().Prefix(bits); err == nil && !yield(wider) {
				return
			}
		}
	}
}

func hasCluster(list []claim, cluster string) bool {
	for _, who := range list {
		if who.cluster == cluster {
			return true
		}
	}
	return false
}
