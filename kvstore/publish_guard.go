package kvstore

import (
	"sort"
	"time"
)

func (g *GuardConfig) defaults() {
	if g.Fraction <= 0 {
		g.Fraction = 0.5
	}
	if g.Count <= 0 {
		g.Count = 10
	}
	if g.Delay <= 0 {
		g.Delay = 30 * time.Second
	}
}

// excessive reports whether deleting n of the existing keys of a kind needs a
// second opinion.
func (g *GuardConfig) excessive(n, existing int) bool {
	return !g.Off && n > g.Count && float64(n) > g.Fraction*float64(existing)
}

// sweep decides what becomes of the extra keys: deleted, or held. listed says
// that the source has just been listed completely, which is what can agree with
// an earlier list. Callers hold mu.
func (p *Publisher) sweep(listed bool) {
	if !p.listed || p.relisting || p.storeID == 0 || len(p.extra) == 0 {
		return
	}
	if !listed && p.heldKeys() == len(p.extra) {
		return // all of it is held already
	}
	byKind := map[string][]string{}
	for key := range p.extra {
		kind := p.c.Kind(key)
		byKind[kind] = append(byKind[kind], key)
	}
	for kind, keys := range byKind {
		sort.Strings(keys)
		p.sweepKind(kind, keys, listed)
	}
}

func (p *Publisher) sweepKind(kind string, keys []string, listed bool) {
	now := time.Now()
	held := p.held[kind]
	if !p.c.Guard.excessive(len(keys), p.kinds[kind]) {
		if held != nil && !listed {
			return // what is held waits for a list to say otherwise
		}
		p.doom(keys)
		return
	}
	var agreed []string
	for _, key := range keys {
		since, ok := held[key]
		switch {
		case !ok:
			if held == nil {
				held = map[string]time.Time{}
				p.held[kind] = held
				p.c.Log.Error("sweep held: the source's list lacks more than half of the existing records",
					"kind", kind, "missing", len(keys), "existing", p.kinds[kind],
					"released", "by a second list later, or by confirming the kind")
			}
			held[key] = now
		case listed && now.Sub(since) >= p.c.Guard.Delay:
			agreed = append(agreed, key)
		}
	}
	p.doom(agreed)
}

// doom has extra keys deleted. Callers hold mu.
func (p *Publisher) doom(keys []string) {
	for _, key := range keys {
		p.explicit[key] = struct{}{}
		p.reconsider(key)
	}
}

// heldKeys counts what is held. Held keys are always extra. Callers hold mu.
func (p *Publisher) heldKeys() (n int) {
	for _, keys := range p.held {
		n += len(keys)
	}
	return n
}

// release ends a hold on key. Callers hold mu.
func (p *Publisher) release(key string) {
	if len(p.held) == 0 {
		return
	}
	kind := p.c.Kind(key)
	held := p.held[kind]
	delete(held, key)
	if held != nil && len(held) == 0 {
		delete(p.held, kind)
	}
}

// Held are the sweeps that the guard holds, by kind.
func (p *Publisher) Held() []Held {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []Held
	for kind, keys := range p.held {
		h := Held{Kind: kind, Keys: len(keys), Of: p.kinds[kind]}
		for key, since := range keys {
			if h.Since.IsZero() || since.Before(h.Since) {
				h.Since = since
			}
			h.Sample = append(h.Sample, key)
		}
		sort.Strings(h.Sample)
		h.Sample = h.Sample[:min(5, len(h.Sample))]
		out = append(out, h)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Kind < out[j].Kind })
	return out
}

// Confirm releases the sweep held for kind and returns how many keys that
// deletes; 0 if none is held.
func (p *Publisher) Confirm(kind string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	var keys []string
	for key := range p.held[kind] {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	p.doom(keys)
	p.poke()
	return len(keys)
}
