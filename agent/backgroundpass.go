package agent

import (
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// The background pass merges services again for which shares change: whom they
// reach has changed at once, by a row of health, or does not change at all. It
// leaves the owner's time to what is urgent: passRate services a second, which
// takes about a tenth of a processor.
const (
	passRate  = 2000
	passBurst = passRate / 10
)

// backgroundPass is what waits for it, in the order in which it came, but what
// peers ask for after all that this cluster does.
type backgroundPass struct {
	first, later []clustermesh.ServiceName
	has          map[clustermesh.ServiceName]bool // true: it waits among the first
	credit       float64                          // services that may be merged now
	at           time.Time
	done         uint64 // services
}

func (p *backgroundPass) waiting() int { return len(p.has) }

func (p *backgroundPass) add(name clustermesh.ServiceName, first bool) {
	before, waits := p.has[name]
	if before || waits && !first {
		return
	}
	if p.has == nil {
		p.has = map[clustermesh.ServiceName]bool{}
	}
	p.has[name] = first
	if first {
		p.first = append(p.first, name)
		return
	}
	p.later = append(p.later, name)
}

// pop is the one whose turn it is. One that was called to the front is passed over
// where it waited before.
func (p *backgroundPass) pop() clustermesh.ServiceName {
	for {
		queue := &p.first
		if len(p.first) == 0 {
			queue = &p.later
		}
		name := (*queue)[0]
		*queue = (*queue)[1:]
		if first, waits := p.has[name]; waits && first == (queue == &p.first) {
			delete(p.has, name)
			return name
		}
	}
}

// take are those whose turn it is, and when to come again; zero = nobody waits.
func (p *backgroundPass) take(now time.Time) (due []clustermesh.ServiceName, next time.Time) {
	gone := max(now.Sub(p.at).Seconds(), 0) // a clock that is set back earns nothing
	p.credit, p.at = min(p.credit+gone*passRate, passBurst), now
	n := min(int(p.credit), p.waiting())
	for range n {
		due = append(due, p.pop())
	}
	p.credit -= float64(n)
	p.done += uint64(n)
	if p.waiting() == 0 {
		p.first, p.later = nil, nil
		return due, time.Time{}
	}
	return due, now.Add(time.Second * passBurst / passRate / 2)
}

// passOn says what time it is, and has the services merged again whose turn it is
// in the background pass. It returns when to come again.
func (s *State) passOn(now time.Time) (next time.Time) {
	s.drains.now = now
	next = sooner(s.stepDrains(), s.stepSlowStart(now))
	due, again := s.pass.take(now)
	for _, name := range due {
		s.touchService(name)
	}
	return sooner(next, again)
}
