package judge

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/tombolo-mesh/tombolo/agent/policy"
	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// ours is agent/policy with a world in it, and the rows it made.
type ours struct {
	w      *world
	e      *policy.Engine
	tables *policy.Tables
}

// facts are all that an engine is told of a world, one call each.
func facts(w *world) []func(*policy.Engine) {
	var out []func(*policy.Engine)
	do := func(f func(*policy.Engine)) { out = append(out, f) }
	seen := map[clustermesh.Identity]bool{}
	for _, p := range w.pods {
		if p.Spec.HostNetwork {
			continue
		}
		if !seen[p.identity] {
			seen[p.identity] = true
			do(func(e *policy.Engine) { e.SetIdentity(p.identity, p.securityLabels(w)) })
		}
		for _, a := range p.addresses {
			do(func(e *policy.Engine) { e.SetAddress(a, policy.Address{Identity: p.identity, Ports: p.ports}) })
		}
		if p.cluster == ownCluster {
			do(func(e *policy.Engine) {
				e.SetPod(podName(p), policy.Pod{Namespace: p.Namespace, Identity: p.identity, Ports: p.ports})
			})
		}
	}
	for _, n := range w.nodes {
		var node policy.Node
		for _, a := range n.Status.Addresses {
			node.Addresses = append(node.Addresses, mustAddr(a.Address))
		}
		node.Labels = sortedLabels(n.Labels)
		do(func(e *policy.Engine) { e.SetNode(n.Name, node) })
	}
	for _, p := range w.policies {
		do(func(e *policy.Engine) { e.SetPolicy(policy.Name{Namespace: p.Namespace, Name: p.Name}, mustJSON(p)) })
	}
	for _, p := range w.clusterPolicies {
		do(func(e *policy.Engine) { e.SetPolicy(policy.Name{Name: p.Name}, mustJSON(p)) })
	}
	return out
}

func podName(p *pod) string { return p.Namespace + "/" + p.Name }

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// newOurs tells the facts in a random order, applying now and then.
func newOurs(t testing.TB, w *world, r *rand.Rand) *ours {
	t.Helper()
	o := &ours{w, policy.New(policy.Options{Cluster: ownCluster, AllClusters: w.allClusters}), policy.NewTables()}
	all := facts(w)
	r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for _, f := range all {
		f(o.e)
		if r.IntN(10) == 0 {
			o.e.Apply(o.tables)
		}
		if r.IntN(20) == 0 {
			o.e.Sweep(o.tables)
		}
	}
	o.settle()
	return o
}

func (o *ours) settle() {
	o.e.Apply(o.tables)
	for o.e.Sweep(o.tables) {
	}
}

func (o *ours) identity(p party) clustermesh.Identity {
	switch {
	case p.pod == nil:
		return clustermesh.IdentityWorld
	case p.pod.Spec.HostNetwork:
		return clustermesh.IdentityRemoteNode
	}
	return p.pod.identity
}

// asks are the lookups that a connection costs: one for each end that is a pod of
// this cluster.
func (o *ours) asks(q query) []ask {
	var out []ask
	add := func(d policy.Direction, pod, peer party) {
		if pod.own() {
			out = append(out, ask{o.tables.Pods[podName(pod.pod)], d, o.identity(peer), peer.address, q.proto, q.port})
		}
	}
	add(policy.Egress, q.from, q.to)
	add(policy.Ingress, q.to, q.from)
	return out
}

func (o *ours) allows(q query) bool {
	for _, a := range o.asks(q) {
		if !o.tables.Lookup(a.subject, a.dir, a.identity, a.peer, a.proto, a.port).Allow {
			return false
		}
	}
	return true
}

// explained asks Explain, which looks at rules, not rows.
func (o *ours) explained(q query) policy.Explanation {
	return o.e.Explain(policy.Query{From: o.party(q.from), To: o.party(q.to), Proto: q.proto, Port: q.port})
}

func (o *ours) party(p party) policy.Party {
	out := policy.Party{Address: p.address, Identity: o.identity(p), Pod: p.own()}
	if p.pod != nil {
		out.Name, out.Namespace = podName(p.pod), p.pod.Namespace
		if !p.pod.Spec.HostNetwork {
			out.Ports = p.pod.ports
		}
	}
	return out
}

// compare checks n queries of a world against a judge, and that Explain agrees.
func (o *ours) compare(t *testing.T, g generator, n int, judge func(query) bool, count *tally) {
	t.Helper()
	for range n {
		q := g.query(o.w)
		want, got, x := judge(q), o.allows(q), o.explained(q)
		count.add(got)
		if got == want && x.Allowed == want {
			continue
		}
		text, _ := json.MarshalIndent(x, "", " ")
		t.Fatalf("%s: judge says %v, rows say %v, Explain says %v\n%s\n%s", q, want, got, x.Allowed, text, o.w.text())
	}
}

type tally struct{ allowed, denied int }

func (c *tally) add(allowed bool) {
	if allowed {
		c.allowed++
	} else {
		c.denied++
	}
}

func (c tally) String() string {
	return fmt.Sprintf("%d decisions, %d allowed, %d denied", c.allowed+c.denied, c.allowed, c.denied)
}

// check that a run was no walkover.
func (c tally) check(t *testing.T, least int) {
	t.Helper()
	t.Log(c)
	if c.allowed+c.denied < least || c.allowed < least/10 || c.denied < least/10 {
		t.Errorf("%s: too few of a kind to prove much", c)
	}
}
