package gossip

import (
	"maps"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
)

const (
	// refresh is how often an agent repeats what it says, and validity how long its
	// word counts: what was lost comes again, and who fell silent is forgotten.
	refresh  = 5 * time.Second
	validity = 3 * refresh
	// fresh is how long a member that went without a word is worth a second look.
	fresh = 30 * time.Second
)

// ledger is what is known of the other members. It reads no clock and locks
// nothing.
type ledger struct {
	lives map[string]uint64 // of the members that are there
	dead  map[string]time.Time
	parts map[partKey]heard
}

type heard struct {
	part
	until time.Time
}

func newLedger() *ledger {
	return &ledger{lives: map[string]uint64{}, dead: map[string]time.Time{}, parts: map[partKey]heard{}}
}

// joined notes a member, or that its process is another now.
func (l *ledger) joined(name string, life uint64) {
	l.lives[name] = life
	delete(l.dead, name)
}

// left notes that a member is gone; orderly: it said so.
func (l *ledger) left(name string, orderly bool, now time.Time) {
	delete(l.lives, name)
	if !orderly {
		l.dead[name] = now
	}
}

// take takes in what a member says. It reports whether that is news, which is to
// be told to others. A word of a process that is no more, or that is not known
// yet, is none: the prober repeats it.
func (l *ledger) take(p part, now time.Time) (news bool) {
	if life, is := l.lives[p.prober]; !is || life != p.life {
		return false
	}
	if old, is := l.parts[p.key()]; is && old.life == p.life && old.seq >= p.seq {
		return false
	}
	l.parts[p.key()] = heard{p, now.Add(validity)}
	return true
}

// expire forgets what is too old. It reports whether anything was.
func (l *ledger) expire(now time.Time) (changed bool) {
	for k, h := range l.parts {
		if !now.Before(h.until) {
			delete(l.parts, k)
			changed = changed || len(h.missing) > 0
		}
	}
	for name, at := range l.dead {
		if now.Sub(at) >= fresh {
			delete(l.dead, name)
			changed = true
		}
	}
	return changed
}

// view is what counts now.
func (l *ledger) view() agent.GossipView {
	v := agent.GossipView{Missing: map[string]map[agent.NodeKey]uint8{}}
	for name := range maps.Keys(l.lives) {
		v.Alive = append(v.Alive, name)
	}
	for name := range maps.Keys(l.dead) {
		v.Dead = append(v.Dead, name)
	}
	for _, h := range l.parts {
		if l.lives[h.prober] != h.life || len(h.missing) == 0 {
			continue
		}
		if v.Missing[h.prober] == nil {
			v.Missing[h.prober] = map[agent.NodeKey]uint8{}
		}
		for low, lost := range h.missing {
			v.Missing[h.prober][agent.NodeKey{Cluster: h.cluster, Node: uint16(h.block)<<8 | uint16(low)}] = lost
		}
	}
	return v
}

// all are the parts that count, for a member that has just come.
func (l *ledger) all() (out []part) {
	for _, h := range l.parts {
		if l.lives[h.prober] == h.life && len(h.missing) > 0 {
			out = append(out, h.part)
		}
	}
	return out
}
