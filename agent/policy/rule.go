package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Name of a policy. Without a namespace it is a ClusterNetworkPolicy.
type Name struct{ Namespace, Name string }

func (n Name) String() string {
	if n.Namespace == "" {
		return "ClusterNetworkPolicy " + n.Name
	}
	return "NetworkPolicy " + n.Namespace + "/" + n.Name
}

func compareNames(a, b Name) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// Tier of a policy, in the order of evaluation.
type Tier uint8

const (
	TierAdmin Tier = iota
	TierNetworkPolicy
	TierBaseline
)

func (t Tier) String() string { return [...]string{"Admin", "NetworkPolicy", "Baseline"}[t] }

// policy is one policy, read. It knows no pods.
type policy struct {
	name     Name
	tier     Tier
	priority int
	subject  *selector
	isolates [2]bool // by Direction; NetworkPolicy only
	rules    [2][]*rule
}

// rule is one rule of a policy. It matches a peer if one of any, selectors and
// blocks does, on the ports (all is all protocols and ports) or on ports that the
// pod that is connected to calls by one of the names.
type rule struct {
	name      string // "NetworkPolicy shop/db ingress[0]"
	id        uint32
	verdict   Verdict
	any       bool
	selectors []*selector
	blocks    []*block
	all       bool
	ports     []ports
	named     []portName
	note      string // why it is not what the policy says
}

// block is a set of addresses: a prefix without its exceptions, or those of the
// nodes that a selector selects. Its text is canonical.
type block struct {
	text    string
	prefix  netip.Prefix
	except  []netip.Prefix
	nodes   []requirement
	isNode  bool
	unknown bool // nodes whose labels are not known are in it
}

func ruleName(policy Name, d Direction, i int) string { return fmt.Sprintf("%s %s[%d]", policy, d, i) }

// finish puts a rule into canonical form.
func (r *rule) finish(name string) {
	r.name, r.id = name, RuleID(name)
	slices.SortFunc(r.selectors, func(a, b *selector) int { return strings.Compare(a.text, b.text) })
	r.selectors = slices.CompactFunc(r.selectors, func(a, b *selector) bool { return a.text == b.text })
	slices.SortFunc(r.blocks, func(a, b *block) int { return strings.Compare(a.text, b.text) })
	r.blocks = slices.CompactFunc(r.blocks, func(a, b *block) bool { return a.text == b.text })
	r.ports = tidy(r.ports)
	slices.SortFunc(r.named, func(a, b portName) int { return strings.Compare(a.String(), b.String()) })
	r.named = slices.Compact(r.named)
	if r.all {
		r.ports, r.named = nil, nil
	}
	if r.any {
		r.selectors, r.blocks = nil, nil
	}
}

// closed is what becomes of a rule that cannot be followed, as the API has it:
// one that would accept matches nothing, any other denies everything.
func closed(verdict Verdict, note string) *rule {
	if verdict == Accept {
		return &rule{verdict: Accept, all: true, note: note}
	}
	return &rule{verdict: Deny, any: true, all: true, note: note}
}

func (r *rule) peersText() string {
	if r.any {
		return "anybody"
	}
	var parts []string
	for _, s := range r.selectors {
		parts = append(parts, s.text)
	}
	for _, b := range r.blocks {
		parts = append(parts, b.text)
	}
	if len(parts) == 0 {
		return "nobody"
	}
	return strings.Join(parts, ", ")
}

func portsText(all bool, list []ports, named []portName) string {
	if all {
		return "everything"
	}
	var parts []string
	for _, p := range list {
		parts = append(parts, p.String())
	}
	for _, n := range named {
		parts = append(parts, n.String())
	}
	if len(parts) == 0 {
		return "nothing"
	}
	return strings.Join(parts, ", ")
}

func newBlock(p netip.Prefix, except []netip.Prefix) *block {
	slices.SortFunc(except, netip.Prefix.Compare)
	b := &block{prefix: p, except: slices.Compact(except), text: p.String()}
	for i, e := range b.except {
		if i == 0 {
			b.text += " except"
		}
		b.text += " " + e.String()
	}
	return b
}

func (b *block) has(a netip.Addr) bool {
	if b.isNode || !b.prefix.Contains(a) {
		return false
	}
	for _, e := range b.except {
		if e.Contains(a) {
			return false
		}
	}
	return true
}

// parsePrefix reads a CIDR as Kubernetes does, in either family.
func parsePrefix(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is no CIDR", text)
	}
	if p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%q is IPv4 written as IPv6", text)
	}
	return p.Masked(), nil
}
