package apiserver

import "time"

// placedPace is the least time between two records of a node that differ in its
// pods' addresses. The first pod of many is not held back by it; the others of a
// node that starts go together.
const placedPace = 200 * time.Millisecond

// placed paces the records of a chained cluster's nodes.
type placed struct {
	last  time.Time
	timer *time.Timer
}

func newPlaced() *placed {
	p := &placed{timer: time.NewTimer(time.Hour)}
	p.timer.Stop()
	return p
}

// flush has the nodes derived anew that wait for it, or comes back in a while.
func (p *placed) flush(d *deriver) {
	if len(d.placed) == 0 {
		return
	}
	if wait := placedPace - time.Since(p.last); wait > 0 {
		p.timer.Reset(wait)
		return
	}
	p.last = time.Now()
	d.flushPlaced()
}
