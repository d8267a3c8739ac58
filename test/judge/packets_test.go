package judge

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	npav1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/test/lab"
)

const (
	packetWorlds = 16
	packetPods   = 6
	inFlight     = 160                    // questions at once
	answerLimit  = 4 * time.Second        // two lost SYNs on a busy machine
	silence      = 700 * time.Millisecond // for what must not be answered
)

// packet is a query, and how to ask it with a real connection.
type packet struct {
	query
	dial func(ctx context.Context, network, addr string) error
}

// answered asks once, over a connection of its own.
func (p packet) answered(ctx context.Context, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return p.dial(ctx, strings.ToLower(p.proto.String()), netip.AddrPortFrom(p.to.address, p.port).String()) == nil
}

// difference asks, and says how the answer differs from what the judge wants; ""
// if it does not. What is allowed gets a second try: a packet can be lost.
func (p packet) difference(ctx context.Context, want bool) string {
	if !want {
		if p.answered(ctx, silence) {
			return fmt.Sprintf("%s: answered, the judge forbids it", p)
		}
		return ""
	}
	for range 2 {
		if p.answered(ctx, answerLimit) {
			return ""
		}
	}
	return fmt.Sprintf("%s: not answered, the judge allows it", p)
}

// askAll asks in parallel and returns the packets whose answers differ, and how.
func askAll(ctx context.Context, list []packet, judge func(query) bool) (differ []packet, how []error) {
	texts := make([]string, len(list))
	var next atomic.Int64
	var wg sync.WaitGroup
	for range inFlight {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(list)); i = next.Add(1) - 1 {
				texts[i] = list[i].difference(ctx, judge(list[i].query))
			}
		})
	}
	wg.Wait()
	for i, text := range texts {
		if text != "" {
			differ, how = append(differ, list[i]), append(how, errors.New(text))
		}
	}
	return differ, how
}

// The same generated policies as packets: in a cluster of real agents, each
// connection between pods, and with a machine outside, comes about if and only if
// the judges say so. The evaluator judges NetworkPolicies; worlds with tiers, the
// twin alone.
func TestPacketsAgainstJudges(t *testing.T) {
	r, k := random(t), newKube(t)
	s := newStage(t, r)
	var count tally
	late := 0
	g := generator{Rand: r, o: options{clusters: 1, networks: s.networks()}}
	for i := range packetWorlds {
		w := *s.w
		if i > 0 { // the first has no policy: every way there is, is open
			for n := range 1 + r.IntN(5) {
				w.policies = append(w.policies, g.networkPolicy(&w, n))
			}
		}
		if i > 2*packetWorlds/3 {
			for n := range 1 + r.IntN(3) {
				w.clusterPolicies = append(w.clusterPolicies, g.acceptable(&w, n))
			}
		}
		for _, p := range w.policies {
			p.Name = fmt.Sprintf("w%d-%s", i, p.Name)
		}
		for _, p := range w.clusterPolicies {
			p.Name = fmt.Sprintf("w%d-%s", i, p.Name)
		}
		judge := (twin{&w}).allows
		if len(w.clusterPolicies) == 0 {
			k.take(t, &w)
			judge = k.judgeAhead(t, s.packets, judge)
		}
		s.apply(&w)
		differ, how := askAll(s.ctx, s.packets, judge)
		for begin := time.Now(); len(differ) > 0 && time.Since(begin) < 10*time.Second; {
			late += len(differ)
			t.Logf("world %d, at first: %v", i, errors.Join(how...))
			differ, how = askAll(s.ctx, differ, judge)
		}
		if len(differ) == 0 {
			// All of it held, each at its time; now all at once.
			_, how = askAll(s.ctx, s.packets, judge)
		}
		if len(how) > 0 {
			t.Fatalf("world %d: %v\n%s\n%s", i, errors.Join(how...), w.text(), s.tables())
		}
		for _, p := range s.packets {
			count.add(judge(p.query))
		}
	}
	t.Logf("%d worlds of %d packets, %d answers only when asked again", packetWorlds, len(s.packets), late)
	count.check(t, 1000)
}

// judgeAhead asks the evaluator, which is for one goroutine, about all packets; it
// must agree with the twin.
func (k *kube) judgeAhead(t *testing.T, list []packet, twin func(query) bool) func(query) bool {
	t.Helper()
	verdicts := map[query]bool{}
	for _, p := range list {
		verdicts[p.query] = k.allows(p.query)
		if verdicts[p.query] != twin(p.query) {
			t.Fatalf("%s: the evaluator says %v, the twin %v", p, verdicts[p.query], twin(p.query))
		}
	}
	return func(q query) bool { return verdicts[q] }
}

// acceptable is a ClusterNetworkPolicy that its CRD takes: the generator's others
// are for who reads what no API server has seen.
func (g generator) acceptable(w *world, i int) *npav1alpha2.ClusterNetworkPolicy {
	for {
		p, ok := g.clusterPolicy(w, i), true
		for _, r := range p.Spec.Egress {
			named := slices.ContainsFunc(r.Protocols, func(x npav1alpha2.ClusterNetworkPolicyProtocol) bool { return x.DestinationNamedPort != "" })
			for _, to := range r.To {
				twice := len(to.Networks) == 2 && to.Networks[0] == to.Networks[1]
				nameless := to.Nodes != nil || to.Networks != nil || to.DomainNames != nil
				ok = ok && !twice && !(named && nameless) && (to.DomainNames == nil || r.Action == npav1alpha2.ClusterNetworkPolicyRuleActionAccept)
			}
		}
		if ok {
			return p
		}
	}
}

// servedPorts of a pod: one without a name, and one with, if there is one for
// which a socket can be opened here.
func (g generator) servedPorts(p *pod) []uint16 {
	out := []uint16{pick(g, uint16(79), 1023, 8081, 30000)}
	for _, n := range p.ports {
		if n.Protocol != clustermesh.SCTP && len(out) < 2 && n.Port != out[0] {
			out = append(out, n.Port)
		}
	}
	return out
}

// manifest is the policies of a world as a file.
func (w *world) manifest() string {
	var out strings.Builder
	add := func(apiVersion, kind string, policy any) {
		o := lab.Object{}
		mustParse(mustJSON(policy), &o)
		o["apiVersion"], o["kind"] = apiVersion, kind
		out.WriteString(lab.Manifest(o))
	}
	for _, p := range w.policies {
		add("networking.k8s.io/v1", "NetworkPolicy", p)
	}
	for _, p := range w.clusterPolicies {
		add("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy", p)
	}
	return out.String()
}

func namespaceObject(ns *corev1.Namespace) lab.Object {
	return lab.Object{"apiVersion": "v1", "kind": "Namespace", "metadata": lab.Object{"name": ns.Name, "labels": ns.Labels}}
}
