package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
)

// The ways from pod to pod.
const (
	plain    = "plain"    // routed, dialling the backend itself
	nftables = "nftables" // kube-proxy's rules
	iptables = "iptables" // kube-proxy's rules
	socket   = "socket"   // sock.c at connect()
	packet   = "packet"   // pod.c for each packet
	node     = "node"     // both, as on a node
)

// most is how many services kube-proxy is given.
const most = 10_000

// variant is one way, with so many services and policy rules beside those that
// the traffic meets.
type variant struct {
	Letter          string
	Way             string
	Services, Rules int
}

func (v variant) String() string {
	name := map[string]string{plain: "plain routed veth, no load balancing", nftables: "kube-proxy nftables", iptables: "kube-proxy iptables",
		socket: "Tombolo at the socket", packet: "Tombolo per packet", node: "Tombolo, both as on a node"}[v.Way]
	return v.Letter + " " + name
}

// variants are what the options ask for, the yardstick first. Per packet there
// is one for every number of services and of rules; as on a node, the most rules.
func (o *options) variants() []variant {
	out := []variant{{Letter: "a", Way: plain}}
	for _, w := range []variant{{Letter: "b", Way: nftables}, {Letter: "c", Way: iptables}, {Letter: "d", Way: socket}, {Letter: "e", Way: packet}, {Letter: "f", Way: node}} {
		if !o.wantsVariant(w.Letter) {
			continue
		}
		for _, n := range o.services {
			if (w.Way == nftables || w.Way == iptables) && (n > most || o.kubeProxy == "") {
				continue
			}
			rules := []int{0}
			switch w.Way {
			case packet:
				rules = o.rules
			case node:
				rules = o.rules[len(o.rules)-1:]
			}
			for _, m := range rules {
				out = append(out, variant{w.Letter, w.Way, n, m})
			}
		}
	}
	return out
}

// lane is a variant, ready to be measured.
type lane struct {
	variant
	*world
	name    string // of its folder, cgroup and pins
	cgroup  string // of the generator, if it matters
	pins    string // of Tombolo's programs
	tables  agent.Tables
	targets []netip.AddrPort
	setUp   time.Duration
	port    int // of the next connection
	closers []func()
}

// build makes the lane of a variant.
func (r *runner) build(ctx context.Context, v variant) (*lane, error) {
	r.built++
	name := fmt.Sprintf("%d-%s-%d-%d", r.built, v.Way, v.Services, v.Rules)
	dir, err := sub(r.place.dir, name)
	if err != nil {
		return nil, err
	}
	w, err := newWorld(dir)
	if err != nil {
		return nil, err
	}
	l := &lane{variant: v, name: name, world: w, targets: sample(v.Services), closers: []func(){w.close}}
	begin := time.Now()
	switch v.Way {
	case plain:
		l.targets = []netip.AddrPort{w.backend()}
	case nftables, iptables:
		err = l.kubeProxy(ctx, r.opts.kubeProxy, r.opts.cpu)
	default:
		err = r.tombolo(l)
	}
	l.setUp = time.Since(begin)
	if err == nil {
		err = l.reachAll(ctx, r.opts.cpu)
	}
	if err != nil {
		l.close()
		return nil, fmt.Errorf("%s, %d services, %d rules: %w", v, v.Services, v.Rules, err)
	}
	return l, nil
}

func (l *lane) close() {
	for i := len(l.closers) - 1; i >= 0; i-- {
		l.closers[i]()
	}
}

// targetCount is how many services are dialled in turn: enough that their place
// among the others, and what the CPU remembers of them, says nothing.
const targetCount = 256

// sample of n services, drawn without repeat; always the same ones.
func sample(n int) []netip.AddrPort {
	rng := rand.New(rand.NewPCG(1, uint64(n)))
	var out []netip.AddrPort
	if n <= targetCount {
		for _, i := range rng.Perm(n) {
			out = append(out, frontend(i))
		}
		return out
	}
	for seen := map[int]bool{}; len(out) < targetCount; {
		if i := rng.IntN(n); !seen[i] {
			seen[i] = true
			out = append(out, frontend(i))
		}
	}
	return out
}

func (l *lane) reachAll(ctx context.Context, cpu int) error {
	_, err := l.measure(ctx, reach, 0, cpu)
	return err
}

// measure runs one kind of traffic.
func (l *lane) measure(ctx context.Context, kind string, d time.Duration, cpu int) (outcome, error) {
	j := job{Kind: kind, Targets: l.targets, Listen: netip.AddrPortFrom(netip.IPv4Unspecified(), serverPort), For: d,
		FirstPort: l.port, CPU: cpu}
	out, err := l.generate(ctx, j, l.cgroup)
	l.port += max(out.Count, 1)
	if kind == rr {
		l.port -= out.Count - 1 // one connection
	}
	return out, err
}
