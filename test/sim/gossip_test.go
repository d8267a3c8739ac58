package sim

import (
	"maps"
	"net/netip"
	"sync"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
)

// hub carries the gossip of one cluster's agents over the simulated network:
// words are late, come twice, overtake each other and get lost.
type hub struct {
	c *cluster

	mu      sync.Mutex
	members map[int]*member // by node number
	lives   int
}

// member is one agent in it; agent.Gossip.
type member struct {
	h       *hub
	node    *node
	life    int
	changed chan struct{}

	// Guarded by the hub.
	said  map[agent.NodeKey]uint8
	seq   int
	heard map[string]heard
	seen  map[string]time.Time // when each other one was in reach last
	ended bool
}

type heard struct {
	life, seq int
	missing   map[agent.NodeKey]uint8
	at        time.Time
}

const (
	aliveFor  = 2 * time.Second  // without a sign of life
	deadFor   = 30 * time.Second // that it is remembered
	reportFor = 15 * time.Second
	sayAgain  = 5 * time.Second
	sayLate   = 200 * time.Millisecond
)

func newHub(c *cluster) *hub { return &hub{c: c, members: map[int]*member{}} }

// join is what an agent does when it starts.
func (h *hub) join(n *node) *member {
	h.mu.Lock()
	h.lives++
	m := &member{h: h, node: n, life: h.lives, changed: make(chan struct{}, 1), heard: map[string]heard{}, seen: map[string]time.Time{}}
	h.members[n.n] = m
	h.mu.Unlock()
	h.look()
	go m.repeat()
	return m
}

// leave ends a member, with a word or without.
func (h *hub) leave(m *member, word bool) {
	h.mu.Lock()
	m.ended = true
	if h.members[m.node.n] == m {
		delete(h.members, m.node.n)
	}
	if word {
		for _, o := range h.members {
			delete(o.seen, m.node.name)
			delete(o.heard, m.node.name)
		}
	}
	h.mu.Unlock()
	h.look()
}

// look has all see anew who is there, now and when silence has lasted.
func (h *hub) look() {
	h.signal()
	time.AfterFunc(aliveFor+time.Millisecond, h.signal)
}

func (h *hub) signal() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range h.members {
		m.signal()
	}
}

func (m *member) signal() {
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// SetPeers implements agent.Gossip: where others are is known to the hub.
func (*member) SetPeers(map[string][]netip.Addr) {}

// Changed implements agent.Gossip.
func (m *member) Changed() <-chan struct{} { return m.changed }

// Report implements agent.Gossip.
func (m *member) Report(missing map[agent.NodeKey]uint8) {
	m.h.mu.Lock()
	defer m.h.mu.Unlock()
	m.said = maps.Clone(missing)
	m.seq++
	m.send()
}

// repeat says again what holds still, as long as there is something.
func (m *member) repeat() {
	for {
		time.Sleep(sayAgain)
		m.h.mu.Lock()
		if m.ended {
			m.h.mu.Unlock()
			return
		}
		if len(m.said) > 0 {
			m.seq++
			m.send()
		}
		m.signal() // what others said gets old
		m.h.mu.Unlock()
	}
}

// send puts what is said on its way to each other member. Callers hold the lock.
func (m *member) send() {
	word := heard{life: m.life, seq: m.seq, missing: m.said}
	net := m.h.c.s.net
	for _, to := range m.h.members {
		if to == m {
			continue
		}
		w := net.way(m.node.site(), to.node.site())
		if w.cut || net.chance(w.loss) {
			continue
		}
		deliver := func() { to.hear(m.node.name, word) }
		time.AfterFunc(w.delay+net.jitter(sayLate), deliver)
		if net.chance(20) {
			time.AfterFunc(w.delay+net.jitter(10*sayLate), deliver)
		}
	}
}

// hear takes a word in, unless a newer one was heard before.
func (m *member) hear(from string, word heard) {
	m.h.mu.Lock()
	defer m.h.mu.Unlock()
	old, had := m.heard[from]
	if had && (old.life > word.life || old.life == word.life && old.seq >= word.seq) {
		return
	}
	word.at = time.Now()
	m.heard[from] = word
	m.signal()
}

// View implements agent.Gossip. A member is there if it is in reach, directly or
// by a third one.
func (m *member) View() agent.GossipView {
	m.h.mu.Lock()
	defer m.h.mu.Unlock()
	now := time.Now()
	v := agent.GossipView{Alive: []string{m.node.name}, Missing: map[string]map[agent.NodeKey]uint8{}}
	for _, o := range m.h.members {
		if o != m && m.h.joined(m, o) {
			m.seen[o.node.name] = now
		}
	}
	for name, at := range m.seen {
		switch since := now.Sub(at); {
		case since < aliveFor:
			v.Alive = append(v.Alive, name)
			if word, said := m.heard[name]; said && now.Sub(word.at) < reportFor {
				v.Missing[name] = word.missing
			}
		case since < deadFor:
			v.Dead = append(v.Dead, name)
		}
	}
	return v
}

// joined says whether two members reach each other. Callers hold the lock.
func (h *hub) joined(a, b *member) bool {
	direct := func(a, b *member) bool {
		x, y := a.node.site(), b.node.site()
		return !h.c.s.net.way(x, y).cut && !h.c.s.net.way(y, x).cut
	}
	if direct(a, b) {
		return true
	}
	for _, m := range h.members {
		if m != a && m != b && direct(a, m) && direct(m, b) {
			return true
		}
	}
	return false
}
