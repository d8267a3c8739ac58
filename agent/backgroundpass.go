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

// backgroundPass is what waits for it, in the order in which it came.
type backgroundPass struct {
	waiting []clustermesh.ServiceName
	has     map[clustermesh.ServiceName]struct{}
	credit  float64 // services that may be merged now
	at      time.Time
	done    uint64 // services
}

func (p *backgroundPass) add(name clustermesh.ServiceName) {
	if _, waits := p.has[name]; waits {
		return
	}
	if p.has == nil {
		p.has = map[clustermesh.ServiceName]struct{}{}
	}
	p.has[name] = struct{}{}
	p.waiting = append(p.waiting, name)
}

// take are those whose turn it is, and when to come again; zero = nobody waits.
func (p *backgroundPass) take(now time.Time) (due []clustermesh.ServiceName, next time.Time) {
	gone := max(now.Sub(p.at).Seconds(), 0) // a clock that is set back earns nothing
	p.credit, p.at = min(p.credit+gone*passRate, passBurst), now
	n := min(int(p.credit), len(p.waiting))
	due, p.waiting = p.waiting[:n:n], p.waiting[n:]
	p.credit -= float64(n)
	p.done += uint64(n)
	for _, name := range due {
		delete(p.has, name)
	}
	if len(p.waiting) == 0 {
		p.waiting = nil
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
