package sim

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// site is where something runs: a node, or (node 0) a cluster's control plane.
type site struct{ cluster, node int }

// matches: cluster 0 is any, node -1 is any of the cluster's and the control plane.
func (p site) matches(s site) bool {
	return (p.cluster == 0 || p.cluster == s.cluster) && (p.node == -1 || p.node == s.node)
}

// rule is something that is wrong with what goes from some sites to others.
type rule struct {
	from, to site
	cut      bool
	loss     int // per cent, of probes and gossip
	delay    time.Duration
	flaky    int // per cent of batches with which a connection breaks
}

// way is how it is at present from one site to another.
type way struct {
	cut   bool
	loss  int
	delay time.Duration
	flaky int
}

// network joins everything. Links have a direction: what is sent one way may be
// lost while the other way is fine.
type network struct {
	s *sim

	mu      sync.Mutex
	r       *rand.Rand
	rules   []rule
	watches map[*watching]bool
	changed []func() // told when rules change, without the lock
}

// watching is one connection of a reader to a server.
type watching struct {
	from, to site
	server   int
	cut      context.CancelCauseFunc
}

func newNetwork(s *sim) *network {
	return &network{s: s, r: rand.New(rand.NewPCG(s.sched.Seed, 11)), watches: map[*watching]bool{}}
}

func (n *network) way(from, to site) way {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.wayLocked(from, to)
}

func (n *network) wayLocked(from, to site) (w way) {
	for _, r := range n.rules {
		if from != to && r.from.matches(from) && r.to.matches(to) {
			w.cut = w.cut || r.cut
			w.loss, w.delay, w.flaky = max(w.loss, r.loss), max(w.delay, r.delay), max(w.flaky, r.flaky)
		}
	}
	return w
}

// set adds rules, or (with heal) removes those for exactly these sites.
func (n *network) set(heal bool, rules ...rule) {
	n.mu.Lock()
	for _, r := range rules {
		n.rules = slices.DeleteFunc(n.rules, func(o rule) bool { return o.from == r.from && o.to == r.to })
		if !heal {
			n.rules = append(n.rules, r)
		}
	}
	n.mu.Unlock()
	n.apply()
}

// healAll makes everything well.
func (n *network) healAll() {
	n.mu.Lock()
	n.rules = nil
	n.mu.Unlock()
	n.apply()
}

// apply ends the connections that cannot be any more: TCP needs both directions.
func (n *network) apply() {
	n.mu.Lock()
	for w := range n.watches {
		if n.wayLocked(w.from, w.to).cut || n.wayLocked(w.to, w.from).cut {
			w.cut(errCut)
			delete(n.watches, w)
		}
	}
	changed := n.changed
	n.mu.Unlock()
	for _, f := range changed {
		f()
	}
}

var errCut = errors.New("connection lost")

// cutWatches ends the connections to a cluster's server; server 0 = all of them.
func (n *network) cutWatches(c *cluster, server int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for w := range n.watches {
		if w.to.cluster == int(c.ID) && (server == 0 || w.server == server) {
			w.cut(errCut)
			delete(n.watches, w)
		}
	}
}

// connect registers a connection, so that it can be cut; nil if it cannot be.
func (n *network) connect(ctx context.Context, from, to site, server int) (context.Context, func(), error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.wayLocked(from, to).cut || n.wayLocked(to, from).cut {
		return nil, nil, errDark
	}
	ctx, cut := context.WithCancelCause(ctx)
	w := &watching{from, to, server, cut}
	n.watches[w] = true
	return ctx, func() {
		n.mu.Lock()
		delete(n.watches, w)
		n.mu.Unlock()
		cut(nil)
	}, nil
}

// chance draws whether something of so many per cent happens.
func (n *network) chance(percent int) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return percent > 0 && n.r.IntN(100) < percent
}

// jitter draws a time below d.
func (n *network) jitter(d time.Duration) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return time.Duration(n.r.Int64N(int64(d))) + 1
}

// siteOf is where a tunnel address is; false if nobody has it at present.
func (n *network) siteOf(a netip.Addr) (site, bool) {
	b := a.As4()
	at := site{int(b[1]), int(b[2])}
	if at.cluster < 1 || at.cluster > len(n.s.clusters) {
		return at, false
	}
	c := n.s.clusters[at.cluster-1]
	c.mu.Lock()
	defer c.mu.Unlock()
	return at, c.nodes[at.node]
}

// prober asks over the network. Kernels answer, whether an agent runs or not.
type prober struct {
	n    *network
	from site
}

var errLost = errors.New("no answer")

// Probe implements agent.Prober.
func (p prober) Probe(ctx context.Context, _, to netip.Addr, timeout time.Duration) (time.Duration, error) {
	roundTrip := time.Millisecond
	at, there := p.n.siteOf(to)
	out, back := p.n.way(p.from, at), p.n.way(at, p.from)
	roundTrip += out.delay + back.delay
	if !there || out.cut || back.cut || roundTrip > timeout || p.n.chance(out.loss) || p.n.chance(back.loss) {
		wait(ctx, timeout)
		return 0, errLost
	}
	if roundTrip > 2*time.Millisecond {
		wait(ctx, roundTrip)
	}
	return roundTrip, nil
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
