package policy

import (
	"encoding/binary"
	"maps"
	"slices"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// liveSubject is a subject that pods have, or had until the next Sweep, with its
// rows.
type liveSubject struct {
	*subject
	pods  int
	sides [2]liveSide
}

type liveSide struct {
	peers map[Peer]*rows
	made  map[string]*rows // by the rules that match: peers alike share their rows
}

// rows of one peer. They never change.
type rows struct{ list []entry }

// liveSelector is a selector in use, and whom it selects at present.
type liveSelector struct {
	*selector
	selected map[clustermesh.Identity]struct{}
	users    map[*liveSubject]struct{}
}

type liveBlock struct {
	*block
	users int
}

// acquire makes a subject live, or counts another pod of it.
func (e *Engine) acquire(s *subject) *liveSubject {
	live := e.subjects[s.id]
	if live == nil {
		live = &liveSubject{subject: s}
		e.subjects[s.id] = live
		e.enter(live)
	}
	live.pods++
	return live
}

func (e *Engine) release(s *liveSubject) {
	if s != nil {
		s.pods--
	}
}

// enter writes the rows of a new subject, and then that they are there.
func (e *Engine) enter(s *liveSubject) {
	for d := range s.sides {
		side := &s.sides[d]
		side.peers, side.made = map[Peer]*rows{}, map[string]*rows{}
		from := &s.subject.sides[d]
		for i := range from.rules {
			e.useRule(from.rules[i].rule, 1)
		}
		e.setPeer(s, Direction(d), PeerAny, from.any)
		matches := map[clustermesh.Identity][]int{}
		for text, rules := range from.bySelector {
			sel := e.useSelector(from.selector(text, rules), s)
			for id := range sel.selected {
				matches[id] = append(matches[id], rules...)
			}
		}
		for id, rules := range matches {
			e.setPeer(s, Direction(d), PeerOf(id), rules)
		}
		for text, rules := range from.byBlock {
			e.useBlock(from.block(text, rules))
		}
		for _, i := range from.named {
			for _, n := range from.rules[i].named {
				e.useName(n.name, 1)
			}
		}
	}
	for _, c := range e.classes {
		e.setClassRows(s, c)
	}
	e.sink.SetSubject(s.id, SubjectRow{s.flags})
}

// leave undoes enter.
func (e *Engine) leave(s *liveSubject) {
	delete(e.subjects, s.id)
	e.sink.DeleteSubject(s.id)
	for d := range s.sides {
		for peer := range s.sides[d].peers {
			e.put(s, Direction(d), peer, nil)
		}
		from := &s.subject.sides[d]
		for i := range from.rules {
			e.useRule(from.rules[i].rule, -1)
		}
		for text := range from.bySelector {
			sel := e.selectors[text]
			if sel == nil {
				continue // both directions used it
			}
			if delete(sel.users, s); len(sel.users) == 0 {
				delete(e.selectors, text)
			}
		}
		for text := range from.byBlock {
			if b := e.blocks[text]; b.users == 1 {
				delete(e.blocks, text)
				e.dirtyBlocks = true
			} else {
				b.users--
			}
		}
		for _, i := range from.named {
			for _, n := range from.rules[i].named {
				e.useName(n.name, -1)
			}
		}
	}
}

func (s *side) selector(text string, rules []int) *selector {
	list := s.rules[rules[0]].selectors
	return list[slices.IndexFunc(list, func(x *selector) bool { return x.text == text })]
}

func (s *side) block(text string, rules []int) *block {
	list := s.rules[rules[0]].blocks
	return list[slices.IndexFunc(list, func(x *block) bool { return x.text == text })]
}

func (e *Engine) useSelector(s *selector, by *liveSubject) *liveSelector {
	sel := e.selectors[s.text]
	if sel == nil {
		sel = &liveSelector{selector: s, selected: map[clustermesh.Identity]struct{}{}, users: map[*liveSubject]struct{}{}}
		e.selectors[s.text] = sel
		for id, labels := range e.identities {
			if s.matches(e.own, id, labels) {
				sel.selected[id] = struct{}{}
			}
		}
	}
	sel.users[by] = struct{}{}
	return sel
}

func (e *Engine) useBlock(b *block) {
	live := e.blocks[b.text]
	if live == nil {
		live = &liveBlock{block: b}
		e.blocks[b.text] = live
		e.dirtyBlocks = true
	}
	live.users++
}

func (e *Engine) useName(name string, by int) {
	before := e.names[name]
	if e.names[name] += by; e.names[name] == 0 {
		delete(e.names, name)
	}
	if before == 0 || e.names[name] == 0 {
		for a := range e.byPort[name] {
			e.dirtyAddresses[a] = struct{}{}
		}
	}
}

// setPeer writes the rows of a peer that rules (in any order, perhaps twice)
// match besides those that match anybody.
func (e *Engine) setPeer(s *liveSubject, d Direction, peer Peer, rules []int) {
	if len(rules) == 0 {
		e.put(s, d, peer, nil)
		return
	}
	slices.Sort(rules)
	rules = slices.Compact(rules)
	side := &s.sides[d]
	key := make([]byte, 0, 2*len(rules))
	for _, i := range rules {
		key = binary.AppendUvarint(key, uint64(i))
	}
	if peer == PeerAny {
		key = append(key, "any"...)
	}
	made := side.made[string(key)]
	if made == nil {
		made = &rows{compile(s.subject.sides[d].matches(rules))}
		side.made[string(key)] = made
	}
	e.put(s, d, peer, made)
}

// matches are the rules given and those that match anybody, in order.
func (s *side) matches(own []int) []match {
	var out []match
	for i, any := 0, 0; i < len(own) || any < len(s.any); {
		switch {
		case i == len(own) || any < len(s.any) && s.any[any] < own[i]:
			out = append(out, s.match(s.any[any], false))
			any++
		default:
			if any < len(s.any) && s.any[any] == own[i] {
				any++
			}
			out = append(out, s.match(own[i], true))
			i++
		}
	}
	return out
}

func (s *side) match(i int, own bool) match {
	r := &s.rules[i]
	return match{rule: r, all: r.all, ports: r.ports, own: own}
}

// put makes the rows of a peer those given; the difference goes to the sink.
func (e *Engine) put(s *liveSubject, d Direction, peer Peer, now *rows) {
	side := &s.sides[d]
	was := side.peers[peer]
	if was == now {
		return
	}
	if now == nil {
		delete(side.peers, peer)
	} else {
		side.peers[peer] = now
	}
	present := map[Key]Row{}
	if was != nil {
		for _, en := range was.list {
			present[en.key(s.id, d, peer)] = en.row
		}
	}
	if now != nil {
		for _, en := range now.list {
			k := en.key(s.id, d, peer)
			if row, ok := present[k]; !ok || row != en.row {
				e.sink.SetRow(k, en.row)
			}
			delete(present, k)
		}
	}
	for k := range present {
		e.sink.DeleteRow(k)
	}
}

func (en *entry) key(s Subject, d Direction, peer Peer) Key {
	return Key{Subject: s, Peer: peer, Dir: d, Proto: en.proto, Bits: en.bits, Port: en.port}
}

// retake brings everything that hangs on an identity up to date.
func (e *Engine) retake(id clustermesh.Identity) {
	labels := e.identities[id]
	changed := map[*liveSubject]struct{}{}
	for _, sel := range e.selectors {
		_, was := sel.selected[id]
		if now := sel.matches(e.own, id, labels); now == was {
			continue
		} else if now {
			sel.selected[id] = struct{}{}
		} else {
			delete(sel.selected, id)
		}
		maps.Copy(changed, sel.users)
	}
	if len(changed) == 0 {
		return
	}
	for s := range changed {
		for d := range s.sides {
			e.setPeer(s, Direction(d), PeerOf(id), e.rulesOf(&s.subject.sides[d], id))
		}
	}
	for c := range e.classesOf[id] {
		for s := range changed {
			e.setClassRows(s, c)
		}
	}
}

// rulesOf are the rules of a side that select an identity.
func (e *Engine) rulesOf(s *side, id clustermesh.Identity) []int {
	var out []int
	for text, rules := range s.bySelector {
		if _, ok := e.selectors[text].selected[id]; ok {
			out = append(out, rules...)
		}
	}
	return out
}
