package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// subject is the content that a Subject is the hash of, with indexes to it.
type subject struct {
	id    Subject
	text  string
	flags SubjectFlags
	sides [2]side
	// policies that apply, by direction: those that isolate or have rules.
	policies [2][]string
}

// side is one direction of a subject: its rules in the order of evaluation, with
// indexes from peers to them.
type side struct {
	rules      []placed
	any        []int
	bySelector map[string][]int
	byBlock    map[string][]int
	named      []int // rules with ports by name, egress only
}

// placed is a rule in its place. Ingress: names have become the pod's own ports.
type placed struct {
	*rule
	tier  Tier
	rank  uint16 // within the tier, from 1; 0 in the NetworkPolicy tier
	ports []ports
	named []portName
}

// maxRank is the most rules a tier has per subject and direction.
const maxRank = 65535

// makeSubject puts the policies that select a pod together. nil: there are none.
func makeSubject(selected []*policy, own []clustermesh.NamedPort) (*subject, error) {
	if len(selected) == 0 {
		return nil, nil
	}
	selected = slices.Clone(selected)
	slices.SortFunc(selected, func(a, b *policy) int {
		return cmp.Or(cmp.Compare(a.tier, b.tier), cmp.Compare(a.priority, b.priority), compareNames(a.name, b.name))
	})
	s := &subject{}
	for d := range s.sides {
		if err := s.place(Direction(d), selected, own); err != nil {
			return nil, err
		}
	}
	s.text = s.dump()
	s.id = subjectOf(s.text)
	return s, nil
}

func (s *subject) place(d Direction, selected []*policy, own []clustermesh.NamedPort) error {
	side := &s.sides[d]
	side.bySelector, side.byBlock = map[string][]int{}, map[string][]int{}
	var ranks [3]int
	for _, p := range selected {
		if p.isolates[d] {
			s.flags |= IsolatedIn << d
		}
		if p.isolates[d] || len(p.rules[d]) > 0 {
			s.policies[d] = append(s.policies[d], p.name.String())
		}
		for _, r := range p.rules[d] {
			at := placed{rule: r, tier: p.tier, ports: r.ports, named: r.named}
			if d == Ingress {
				at.ports, at.named = tidy(slices.Concat(r.ports, resolve(r.named, own))), nil
			}
			if p.tier != TierNetworkPolicy {
				if ranks[p.tier]++; ranks[p.tier] > maxRank {
					return fmt.Errorf("more than %d rules of the %s tier apply to one pod", maxRank, p.tier)
				}
				at.rank = uint16(ranks[p.tier])
			}
			side.add(at)
		}
	}
	if len(side.byBlock)+len(side.named) > 0 {
		s.flags |= ClassesIn << d
	}
	return nil
}

func (s *side) add(r placed) {
	i := len(s.rules)
	s.rules = append(s.rules, r)
	if r.any {
		s.any = append(s.any, i)
	}
	for _, sel := range r.selectors {
		s.bySelector[sel.text] = append(s.bySelector[sel.text], i)
	}
	for _, b := range r.blocks {
		s.byBlock[b.text] = append(s.byBlock[b.text], i)
	}
	if len(r.named) > 0 {
		s.named = append(s.named, i)
	}
}

// dump is the subject as text, which is what is hashed.
func (s *subject) dump() string {
	var b strings.Builder
	fmt.Fprintf(&b, "flags %s\n", s.flags)
	for d := range s.sides {
		for _, r := range s.sides[d].rules {
			at := r.tier.String()
			if r.rank > 0 {
				at += fmt.Sprintf(" %d", r.rank)
			}
			with := "to"
			if Direction(d) == Ingress {
				with = "from"
			}
			fmt.Fprintf(&b, "%s %s %s %s %s on %s: %s", Direction(d), at, r.verdict, with, r.peersText(), portsText(r.all, r.ports, r.named), r.name)
			if r.note != "" {
				fmt.Fprintf(&b, " (closed: %s)", r.note)
			}
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// on says whether the rule covers a port, names aside.
func (r *placed) on(proto clustermesh.Protocol, port uint16) bool {
	return r.all || contains(r.ports, proto, port)
}

// into adds what a rule that matches says to a row. Rules come in order.
func (r *placed) into(row *Row) {
	stage := &row.Admin
	switch r.tier {
	case TierNetworkPolicy:
		if row.Allow == 0 {
			row.Allow = r.id
		}
		return
	case TierBaseline:
		stage = &row.Base
	}
	if stage.Rank == 0 {
		*stage = Stage{Rule: r.id, Rank: r.rank, Verdict: r.verdict}
	}
}
