package judge

import (
	"bytes"
	"cmp"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/tombolo-mesh/tombolo/agent/policy"
)

// Rows after any history are those of an engine that was told the outcome alone,
// in any order.
func TestHistoryLeavesNoTrace(t *testing.T) {
	r := random(t)
	for range 60 {
		w := newWorld(r, options{clusters: 2, np: 5, cnp: 4})
		o := newOurs(t, w, r)
		for range 5 {
			w = o.mutate(r, w)
			if r.IntN(2) == 0 {
				o.e.Apply(o.tables)
			}
			if r.IntN(3) == 0 {
				o.e.Sweep(o.tables)
			}
		}
		o.settle()
		again := newOurs(t, w, r)
		for name := range o.tables.Pods { // nothing is said of pods that went
			if _, ok := again.tables.Pods[name]; !ok {
				delete(o.tables.Pods, name)
			}
		}
		if got, want := o.text(), again.text(); got != want {
			t.Fatalf("after a history:\n%s\nfrom scratch:\n%s\n%s", got, want, w.text())
		}
	}
}

func (o *ours) text() string {
	var b bytes.Buffer
	o.e.WriteText(&b)
	o.tables.WriteText(&b)
	return b.String()
}

// mutate changes the world and tells the engine what changed.
func (o *ours) mutate(r *rand.Rand, w *world) *world {
	g := generator{r, options{clusters: 2}}
	now := *w
	o.w = &now
	now.policies, now.clusterPolicies = slices.Clone(w.policies), slices.Clone(w.clusterPolicies)
	now.pods, now.nodes = slices.Clone(w.pods), slices.Clone(w.nodes)
	switch r.IntN(4) {
	case 0, 1:
		o.mutatePolicies(g, &now)
	case 2:
		i := r.IntN(len(now.pods))
		o.forget(now.pods[i], &now)
		now.pods = slices.Delete(now.pods, i, i+1)
	case 3:
		i := r.IntN(len(now.nodes))
		n := now.nodes[i].DeepCopy()
		n.Labels = g.labels(nodePool, 60)
		now.nodes[i] = n
		o.tellNode(&now, i)
	}
	return &now
}

func (o *ours) mutatePolicies(g generator, now *world) {
	for range 1 + g.IntN(3) {
		if i := g.IntN(len(now.policies) + 1); i < len(now.policies) {
			p := now.policies[i]
			if g.chance(40) {
				o.e.DeletePolicy(policy.Name{Namespace: p.Namespace, Name: p.Name})
				now.policies = slices.Delete(now.policies, i, i+1)
			} else {
				changed := g.networkPolicy(now, 0)
				changed.Namespace, changed.Name = p.Namespace, p.Name
				now.policies[i] = changed
				o.e.SetPolicy(policy.Name{Namespace: p.Namespace, Name: p.Name}, mustJSON(changed))
			}
		}
		if i := g.IntN(len(now.clusterPolicies) + 1); i < len(now.clusterPolicies) {
			p := now.clusterPolicies[i]
			changed := g.clusterPolicy(now, i)
			changed.Name = p.Name
			now.clusterPolicies[i] = changed
			o.e.SetPolicy(policy.Name{Name: p.Name}, mustJSON(changed))
		}
	}
}

func (o *ours) tellNode(w *world, i int) {
	var node policy.Node
	for _, a := range w.nodes[i].Status.Addresses {
		node.Addresses = append(node.Addresses, mustAddr(a.Address))
	}
	node.Labels = sortedLabels(w.nodes[i].Labels)
	o.e.SetNode(w.nodes[i].Name, node)
}

// forget a pod; its identity goes if it was the last of it.
func (o *ours) forget(p *pod, w *world) {
	if p.Spec.HostNetwork {
		return
	}
	for _, a := range p.addresses {
		o.e.DeleteAddress(a)
	}
	o.e.DeletePod(podName(p))
	others := slices.ContainsFunc(w.pods, func(x *pod) bool { return x != p && x.identity == p.identity && !x.Spec.HostNetwork })
	if !others {
		o.e.DeleteIdentity(p.identity)
	}
}

// change is one write to one table.
type change struct {
	stage int // the order in which the kernel gets them
	width int
	do    func(*policy.Tables)
}

// recorder keeps what a sink is told, in the order in which tables are written:
// policy rows (narrow ones first), subjects and classes, pods; then what goes, in
// reverse. Within a stage the order is anyone's.
type recorder struct{ changes []change }

func (r *recorder) add(stage, width int, do func(*policy.Tables)) {
	r.changes = append(r.changes, change{stage, width, do})
}

func (r *recorder) SetRow(k policy.Key, row policy.Row) {
	r.add(0, k.Width(), func(t *policy.Tables) { t.SetRow(k, row) })
}
func (r *recorder) DeleteRow(k policy.Key) {
	r.add(4, -k.Width(), func(t *policy.Tables) { t.DeleteRow(k) })
}
func (r *recorder) SetSubject(s policy.Subject, row policy.SubjectRow) {
	r.add(1, 0, func(t *policy.Tables) { t.SetSubject(s, row) })
}
func (r *recorder) DeleteSubject(s policy.Subject) {
	r.add(3, 0, func(t *policy.Tables) { t.DeleteSubject(s) })
}
func (r *recorder) SetClass(p netip.Prefix, c policy.Class) {
	r.add(1, 0, func(t *policy.Tables) { t.SetClass(p, c) })
}
func (r *recorder) DeleteClass(p netip.Prefix) {
	r.add(3, 0, func(t *policy.Tables) { t.DeleteClass(p) })
}
func (r *recorder) SetPod(name string, s policy.Subject) {
	r.add(2, 0, func(t *policy.Tables) { t.SetPod(name, s) })
}

func (r *recorder) inOrder(random *rand.Rand) []change {
	list := slices.Clone(r.changes)
	random.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	slices.SortStableFunc(list, func(a, b change) int { return cmp.Or(cmp.Compare(a.stage, b.stage), cmp.Compare(a.width, b.width)) })
	return list
}

// While tables are being written, each lookup gives what policy said before, or
// what it says after: nothing is let through, or cut, that both agree on.
func TestNoGapWhileTablesChange(t *testing.T) {
	r := random(t)
	steps, moved := 0, 0
	for range 20 {
		w := newWorld(r, options{clusters: 1, np: 5, cnp: 4})
		o := newOurs(t, w, r)
		g := generator{Rand: r}
		var queries []query
		for range 30 {
			queries = append(queries, g.query(w))
		}
		before := o.answers(queries)
		now := *w
		now.policies, now.clusterPolicies = slices.Clone(w.policies), slices.Clone(w.clusterPolicies)
		o.mutatePolicies(generator{Rand: r, o: options{clusters: 1}}, &now)
		var after [][]policy.Decision
		{
			fresh := newOurs(t, &now, r)
			after = fresh.answers(queries)
		}
		for round, more := 0, true; more; round++ {
			rec := &recorder{}
			if round == 0 {
				o.e.Apply(rec)
				more = true
			} else {
				more = o.e.Sweep(rec)
			}
			for _, c := range rec.inOrder(r) {
				c.do(o.tables)
				steps++
				for i, got := range o.answers(queries) {
					for side := range got {
						if got[side].Allow != before[i][side].Allow && got[side].Allow != after[i][side].Allow {
							t.Fatalf("%s, side %d: allowed %v while changing; before and after it was %v\n%s", queries[i], side, got[side].Allow, after[i][side].Allow, o.w.text())
						}
					}
				}
			}
		}
		for i, got := range o.answers(queries) {
			for side := range got {
				if got[side] != after[i][side] {
					t.Fatalf("%s: %+v, want %+v", queries[i], got, after[i])
				}
				if got[side].Allow != before[i][side].Allow {
					moved++
				}
			}
		}
	}
	t.Logf("%d writes, %d verdicts changed", steps, moved)
	if steps < 1000 || moved < 20 {
		t.Error("too little changed to prove much")
	}
}

func (o *ours) answers(queries []query) [][]policy.Decision {
	var out [][]policy.Decision
	for _, q := range queries {
		var sides []policy.Decision
		for _, a := range o.asks(q) {
			sides = append(sides, o.tables.Lookup(a.subject, a.dir, a.identity, a.peer, a.proto, a.port))
		}
		out = append(out, sides)
	}
	return out
}
