package policy

import (
	"maps"
	"slices"
)

// Apply computes what follows from all that was set and deleted, and tells sink
// what is different from before. Subjects and classes that nobody has any more
// stay until Sweep.
func (e *Engine) Apply(sink Sink) {
	e.sink = sink
	defer func() { e.sink = nil }()
	for id := range e.dirtyIdentities {
		e.retake(id)
	}
	clear(e.dirtyIdentities)
	var moved []string
	for name := range e.dirtyPods {
		if e.takePod(e.pods[name]) {
			moved = append(moved, name)
		}
	}
	clear(e.dirtyPods)
	e.takeClasses()
	slices.Sort(moved)
	for _, name := range moved {
		sink.SetPod(name, e.pods[name].said)
	}
}

// takePod gives a pod the subject it has now; true if that is another one.
func (e *Engine) takePod(pod *podState) bool {
	s, id, err := e.decide(pod.Pod)
	pod.err = err
	was := pod.subject
	pod.subject = nil
	if s != nil {
		pod.subject = e.acquire(s)
	}
	e.release(was)
	if pod.known && pod.said == id {
		return false
	}
	pod.said, pod.known = id, true
	return true
}

// Sweep removes what nobody has any more. Call it when the kernel holds all that
// was told before: only then is nothing looked up there that goes now. True: what
// it told leaves more to sweep.
func (e *Engine) Sweep(sink Sink) (again bool) {
	e.sink = sink
	defer func() { e.sink = nil }()
	for _, c := range slices.Collect(maps.Values(e.classes)) {
		if c.uses == 0 {
			e.dropClass(c)
		}
	}
	for _, s := range slices.Collect(maps.Values(e.subjects)) {
		if s.pods == 0 {
			e.leave(s)
		}
	}
	e.takeClasses()
	return e.Stale()
}

// Stale reports whether there is something to sweep.
func (e *Engine) Stale() bool {
	for _, s := range e.subjects {
		if s.pods == 0 {
			return true
		}
	}
	for _, c := range e.classes {
		if c.uses == 0 {
			return true
		}
	}
	return false
}
