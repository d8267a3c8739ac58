package kvstore

import "strings"

// part is one prefix of the store that a Publisher reads; it is the Sink of
// that prefix's Follow. Its fields belong to the publisher's lock.
type part struct {
	p      *Publisher
	prefix string
	only   string // if not "", the one key under prefix that counts

	storeID uint64 // of the last complete list; 0 = none yet
	begun   uint64 // the publisher's epoch at Begin
	fresh   map[string]fact
	tombs   []tomb
}

// tomb is a delete of ours that the watch has not shown yet.
type tomb struct {
	key string
	rev int64
}

func (s *part) holds(key string) bool {
	if s.only != "" {
		return key == s.only
	}
	return strings.HasPrefix(key, s.prefix)
}

// partOf is the part that reads key.
func (p *Publisher) partOf(key string) *part {
	for _, s := range p.parts {
		if s.holds(key) {
			return s
		}
	}
	return nil
}

// Begin implements Sink.
func (s *part) Begin(Position, []byte) error {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	s.p.epoch++
	s.begun = s.p.epoch
	s.fresh = map[string]fact{}
	return nil
}

// Apply implements Sink.
func (s *part) Apply(at Position, events []Event) error {
	p := s.p
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range events {
		kv := &events[i].KV
		switch {
		case !s.holds(kv.Key):
		case s.fresh != nil:
			s.fresh[kv.Key] = fact{value: kv.Value, rev: kv.ModRevision, epoch: p.epoch}
		default:
			p.observe(&events[i])
		}
	}
	for len(s.tombs) > 0 && s.tombs[0].rev <= at.Revision {
		if a, ok := p.actual[s.tombs[0].key]; ok && a.absent && a.rev <= at.Revision && !a.unsure {
			p.learn(s.tombs[0].key, nil)
		}
		s.tombs = s.tombs[1:]
	}
	return nil
}

// observe takes in a change that the watch shows: the echo of a commit of ours,
// or somebody else's, which is undone. Callers hold mu.
func (p *Publisher) observe(e *Event) {
	key, rev := e.KV.Key, e.KV.ModRevision
	a, known := p.actual[key]
	if known && rev <= a.rev {
		return // the echo of what we know, or older
	}
	_, flying := p.flying[key]
	foreign := !flying && !a.unsure
	if e.Delete {
		p.learn(key, nil)
	} else {
		p.learn(key, &fact{value: e.KV.Value, rev: rev, epoch: p.epoch})
	}
	if key == p.c.Marker {
		if foreign {
			p.markerDue = true
			p.poke()
		}
		return
	}
	if _, want := p.wanted[key]; foreign && !want && !e.Delete && p.listed {
		if _, refused := p.refused[key]; !refused {
			p.c.Log.Warn("somebody else wrote under our prefix, deleting it", "key", key, "revision", rev)
			p.explicit[key] = struct{}{}
		}
	}
	p.reconsider(key)
}

// Synced implements Sink: the list replaces what was known under the prefix,
// except for commits of ours that ended while it was read.
func (s *part) Synced(at Position) {
	p := s.p
	p.mu.Lock()
	defer p.mu.Unlock()
	same := s.storeID == at.StoreID
	for key, a := range p.actual {
		if !s.holds(key) {
			continue
		}
		if same && a.rev > at.Revision && a.epoch >= s.begun {
			delete(s.fresh, key)
			continue
		}
		if _, ok := s.fresh[key]; !ok {
			p.learn(key, nil)
			p.reconsider(key)
		}
	}
	for key, f := range s.fresh {
		p.learn(key, &f)
	}
	s.fresh, s.tombs, s.storeID = nil, nil, at.StoreID
	p.loaded()
}

// loaded draws the conclusions from a list that has just come in. Nothing is
// written until all parts have been read from the same store. Callers hold mu.
func (p *Publisher) loaded() {
	id := p.parts[0].storeID
	for _, s := range p.parts {
		if s.storeID == 0 || s.storeID != id {
			p.storeID = 0
			return
		}
	}
	if p.storeID != id || p.present == 0 {
		p.storeEmpty = p.present == 0
	}
	p.storeID = id
	p.markerDue, p.bulk = true, true
	for key := range p.wanted {
		p.reconsider(key)
	}
	for key := range p.actual {
		if _, want := p.wanted[key]; !want {
			p.reconsider(key)
		}
	}
	for key := range p.explicit {
		p.reconsider(key)
	}
	for _, held := range p.held {
		for key := range held { // what is gone is not held
			p.reconsider(key)
		}
	}
	p.sweep(false)
	p.poke()
}

// Lost implements Sink. Commits find out for themselves.
func (s *part) Lost(err error) {
	s.p.c.Log.Warn("the publisher does not see its store", "prefix", s.prefix, "error", err)
}
