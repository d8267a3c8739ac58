package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// liveClass is what rules by address can tell of some addresses: the blocks that
// contain them and, of a pod whose named ports a rule names, its identity and
// those ports.
type liveClass struct {
	id       Class
	text     string
	blocks   []string // sorted
	named    bool
	identity clustermesh.Identity
	ports    []clustermesh.NamedPort
	uses     int // prefixes and addresses that have it
}

// takeClasses brings classes up to date, and says which address has which.
func (e *Engine) takeClasses() {
	changed := map[netip.Prefix]struct{}{}
	if e.dirtyBlocks {
		e.dirtyBlocks = false
		e.takeBlocks(changed)
		for name := range e.names {
			for a := range e.byPort[name] {
				e.dirtyAddresses[a] = struct{}{}
			}
		}
	}
	for a := range e.dirtyAddresses {
		e.takeAddress(a)
		changed[netip.PrefixFrom(a, a.BitLen())] = struct{}{}
	}
	clear(e.dirtyAddresses)
	for p := range changed {
		e.sayClass(p)
	}
}

// sayClass tells the class of a prefix: that of the pod whose address it is, or
// what blocks make of it.
func (e *Engine) sayClass(p netip.Prefix) {
	now, ok := Class(0), false
	if c, is := e.base[p]; is {
		if ok = true; c != nil {
			now = c.id
		}
	}
	if p.IsSingleIP() {
		if st := e.addresses[p.Addr()]; st != nil && st.class != nil {
			now, ok = st.class.id, true
		}
	}
	was, had := e.said[p]
	switch {
	case ok && (!had || was != now):
		e.said[p] = now
		e.sink.SetClass(p, now)
	case !ok && had:
		delete(e.said, p)
		e.sink.DeleteClass(p)
	}
}

// takeAddress finds the class of a pod's address, if rules name ports it has.
func (e *Engine) takeAddress(a netip.Addr) {
	st := e.addresses[a]
	if st == nil {
		return
	}
	was := st.class
	st.class = nil
	var relevant []clustermesh.NamedPort
	for _, p := range st.Ports {
		if e.names[p.Name] > 0 {
			relevant = append(relevant, p)
		}
	}
	if len(relevant) > 0 {
		slices.SortFunc(relevant, func(a, b clustermesh.NamedPort) int {
			return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
		})
		c := &liveClass{blocks: e.blocksOf(a), named: true, identity: st.Identity, ports: slices.Compact(relevant)}
		st.class = e.hold(c)
	}
	e.letGo(was)
}

// blocksOf are the blocks that contain an address.
func (e *Engine) blocksOf(a netip.Addr) []string {
	family := 0
	if a.Is6() {
		family = 1
	}
	for _, bits := range e.baseBits[family] {
		if p, err := a.Prefix(bits); err == nil {
			if c, ok := e.base[p]; ok {
				if c == nil {
					return nil
				}
				return c.blocks
			}
		}
	}
	return nil
}

// hold finds or makes the class of some content, and counts its use.
func (e *Engine) hold(c *liveClass) *liveClass {
	if len(c.blocks) == 0 && !c.named {
		return nil
	}
	c.text = c.describe()
	c.id = classOf(c.text)
	if have := e.classes[c.id]; have != nil {
		c = have
	} else {
		e.classes[c.id] = c
		if c.named {
			if e.classesOf[c.identity] == nil {
				e.classesOf[c.identity] = map[*liveClass]struct{}{}
			}
			e.classesOf[c.identity][c] = struct{}{}
		}
		for _, s := range e.subjects {
			e.setClassRows(s, c)
		}
	}
	c.uses++
	return c
}

func (e *Engine) letGo(c *liveClass) {
	if c != nil {
		c.uses--
	}
}

func (e *Engine) dropClass(c *liveClass) {
	delete(e.classes, c.id)
	if delete(e.classesOf[c.identity], c); len(e.classesOf[c.identity]) == 0 {
		delete(e.classesOf, c.identity)
	}
	for _, s := range e.subjects {
		for d := range s.sides {
			e.put(s, Direction(d), c.id, nil)
		}
	}
}

func (c *liveClass) describe() string {
	parts := slices.Clone(c.blocks)
	if c.named {
		parts = append(parts, "identity "+PeerOf(c.identity).String())
		for _, p := range c.ports {
			parts = append(parts, fmt.Sprintf("%s/%q=%d", protoName(p.Protocol), p.Name, p.Port))
		}
	}
	return strings.Join(parts, "; ")
}

// setClassRows writes the rows of a class in a subject.
func (e *Engine) setClassRows(s *liveSubject, c *liveClass) {
	for d := range s.sides {
		if !s.flags.classes(Direction(d)) {
			continue
		}
		var now *rows
		if matches := e.classMatches(&s.subject.sides[d], Direction(d), c); len(matches) > 0 {
			now = &rows{compile(matches)}
		}
		e.put(s, Direction(d), c.id, now)
	}
}

// classMatches are the rules that match a class, in order, with what is not said
// of its identity: all ports where a block is the peer, else those by name.
func (e *Engine) classMatches(s *side, d Direction, c *liveClass) []match {
	byBlock := map[int]bool{}
	for _, b := range c.blocks {
		for _, i := range s.byBlock[b] {
			byBlock[i] = true
		}
	}
	var byIdentity []int
	if c.named && d == Egress && len(s.named) > 0 {
		byIdentity = e.rulesOf(s, c.identity)
	}
	var out []match
	for i := range s.rules {
		r := &s.rules[i]
		m := match{rule: r, own: true}
		if byBlock[i] {
			m.all, m.ports = r.all, r.ports
		}
		if len(r.named) > 0 && c.named && (r.any || byBlock[i] || slices.Contains(byIdentity, i)) {
			m.ports = tidy(slices.Concat(m.ports, resolve(r.named, c.ports)))
		}
		if m.all || len(m.ports) > 0 {
			out = append(out, m)
		}
	}
	return out
}
