package policy

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// Options of New.
type Options struct {
	// Cluster is the own cluster.
	Cluster clustermesh.ID
	// AllClusters: selectors that do not mention tombolo.io/cluster select pods of
	// every cluster, not of this one alone.
	AllClusters bool
}

// Pod is a pod of this node that policy applies to: one with a network of its own.
type Pod struct {
	Namespace string
	Identity  clustermesh.Identity
	Ports     []clustermesh.NamedPort
}

// Address is what is known of the address of a pod, of any cluster.
type Address struct {
	Identity clustermesh.Identity
	Ports    []clustermesh.NamedPort
}

// Node is what rules that name nodes need. Labels nil: not known.
type Node struct {
	Labels    []clustermesh.Label
	Addresses []netip.Addr
}

// Engine holds policies, identities, addresses and pods, and the rows they make.
// Set and Delete only note what changed; Apply computes. One goroutine owns it.
// Slices given to it must not change afterwards.
type Engine struct {
	own   clustermesh.ID
	scope scope

	policies   map[Name]*policyState
	applied    map[string]map[Name]*policy // by namespace; "": ClusterNetworkPolicies
	identities map[clustermesh.Identity][]clustermesh.Label
	pods       map[string]*podState
	addresses  map[netip.Addr]*addressState // those with named ports
	byPort     map[string]map[netip.Addr]struct{}
	nodes      map[string]Node

	subjects  map[Subject]*liveSubject
	selectors map[string]*liveSelector
	blocks    map[string]*liveBlock
	names     map[string]int // named ports that egress rules use
	classes   map[Class]*liveClass
	classesOf map[clustermesh.Identity]map[*liveClass]struct{} // those of pods
	base      map[netip.Prefix]*liveClass                      // by blocks alone; nil: none, below one that has
	baseBits  [2][]int                                         // lengths in base, the longest first: IPv4, IPv6
	said      map[netip.Prefix]Class
	rules     map[uint32]*ruleUse

	dirtyPods       map[string]struct{}
	dirtyIdentities map[clustermesh.Identity]struct{}
	dirtyAddresses  map[netip.Addr]struct{}
	dirtyBlocks     bool

	explained map[explainKey]*subject // of pods that are asked about
	sink      Sink                    // while Apply or Sweep run
}

type policyState struct {
	good    bool // applied is a version without errors
	applied *policy
	parsed  parsed
}

type podState struct {
	Pod
	subject *liveSubject // nil: none or unknown
	said    Subject
	known   bool // said was said
	err     error
}

type addressState struct {
	Address
	class *liveClass
}

type ruleUse struct {
	name string
	uses int
}

// New makes an empty engine.
func New(o Options) *Engine {
	return &Engine{
		own: o.Cluster, scope: scope{all: o.AllClusters},
		policies: map[Name]*policyState{}, applied: map[string]map[Name]*policy{},
		identities: map[clustermesh.Identity][]clustermesh.Label{}, pods: map[string]*podState{},
		addresses: map[netip.Addr]*addressState{}, byPort: map[string]map[netip.Addr]struct{}{}, nodes: map[string]Node{},
		subjects: map[Subject]*liveSubject{}, selectors: map[string]*liveSelector{}, blocks: map[string]*liveBlock{},
		names: map[string]int{}, classes: map[Class]*liveClass{}, classesOf: map[clustermesh.Identity]map[*liveClass]struct{}{},
		base: map[netip.Prefix]*liveClass{}, said: map[netip.Prefix]Class{}, rules: map[uint32]*ruleUse{},
		dirtyPods: map[string]struct{}{}, dirtyIdentities: map[clustermesh.Identity]struct{}{}, dirtyAddresses: map[netip.Addr]struct{}{},
		explained: map[explainKey]*subject{},
	}
}

// SetPolicy takes a policy as JSON. A bad one is refused: the last good version
// stays in force; if there was none, what it selects is closed. Problems tells.
func (e *Engine) SetPolicy(n Name, json []byte) {
	p := parse(n, json, e.scope)
	st := e.policies[n]
	if st == nil {
		st = &policyState{}
		e.policies[n] = st
	}
	st.parsed = p
	if p.err != nil && st.good {
		return
	}
	st.good = p.err == nil
	e.replace(n, st, p.policy)
}

// DeletePolicy forgets a policy.
func (e *Engine) DeletePolicy(n Name) {
	if st := e.policies[n]; st != nil {
		delete(e.policies, n)
		e.replace(n, st, nil)
	}
}

func (e *Engine) replace(n Name, st *policyState, now *policy) {
	was := st.applied
	st.applied = now
	in := e.applied[n.Namespace]
	if now != nil {
		if in == nil {
			in = map[Name]*policy{}
			e.applied[n.Namespace] = in
		}
		in[n] = now
		e.useRules(now, 1)
	} else if delete(in, n); len(in) == 0 {
		delete(e.applied, n.Namespace)
	}
	if was != nil {
		e.useRules(was, -1)
	}
	clear(e.explained)
	for name, pod := range e.pods {
		labels := e.identities[pod.Identity]
		if labels == nil || e.selects(was, pod.Identity, labels) || e.selects(now, pod.Identity, labels) {
			e.dirtyPods[name] = struct{}{}
		}
	}
}

func (e *Engine) useRules(p *policy, by int) {
	for _, rules := range p.rules {
		for _, r := range rules {
			e.useRule(r, by)
		}
	}
}

func (e *Engine) useRule(r *rule, by int) {
	u := e.rules[r.id]
	if u == nil {
		u = &ruleUse{name: r.name}
		e.rules[r.id] = u
	}
	if u.uses += by; u.uses == 0 {
		delete(e.rules, r.id)
	}
}

func (e *Engine) selects(p *policy, id clustermesh.Identity, labels []clustermesh.Label) bool {
	return p != nil && p.subject.matches(e.own, id, labels)
}

// SetIdentity says which labels (sorted by key) an identity stands for.
func (e *Engine) SetIdentity(id clustermesh.Identity, labels []clustermesh.Label) {
	if labels == nil {
		labels = []clustermesh.Label{}
	}
	if slices.Equal(e.identities[id], labels) && e.identities[id] != nil {
		return
	}
	e.identities[id] = labels
	e.identityChanged(id)
}

// DeleteIdentity: the labels of an identity are not known any more.
func (e *Engine) DeleteIdentity(id clustermesh.Identity) {
	if _, ok := e.identities[id]; ok {
		delete(e.identities, id)
		e.identityChanged(id)
	}
}

func (e *Engine) identityChanged(id clustermesh.Identity) {
	e.dirtyIdentities[id] = struct{}{}
	if id.Cluster() != e.own {
		return
	}
	clear(e.explained)
	for name, pod := range e.pods {
		if pod.Identity == id {
			e.dirtyPods[name] = struct{}{}
		}
	}
}

// SetPod takes a pod of this node, under any name that stays the same.
func (e *Engine) SetPod(name string, p Pod) {
	st := e.pods[name]
	if st == nil {
		st = &podState{}
		e.pods[name] = st
	} else if st.Namespace == p.Namespace && st.Identity == p.Identity && slices.Equal(st.Ports, p.Ports) {
		return
	}
	st.Pod = p
	e.dirtyPods[name] = struct{}{}
}

// DeletePod forgets a pod. Nothing is said about it any more.
func (e *Engine) DeletePod(name string) {
	if st := e.pods[name]; st != nil {
		delete(e.pods, name)
		delete(e.dirtyPods, name)
		e.release(st.subject)
	}
}

// SetAddress says whose an address is. Those of pods without named ports need
// not be told, and cost nothing.
func (e *Engine) SetAddress(a netip.Addr, to Address) {
	if len(to.Ports) == 0 {
		e.DeleteAddress(a)
		return
	}
	a = a.Unmap()
	st := e.addresses[a]
	if st == nil {
		st = &addressState{}
		e.addresses[a] = st
	} else if st.Identity == to.Identity && slices.Equal(st.Ports, to.Ports) {
		return
	}
	e.unindex(a, st.Ports)
	st.Address = to
	for _, p := range to.Ports {
		if e.byPort[p.Name] == nil {
			e.byPort[p.Name] = map[netip.Addr]struct{}{}
		}
		e.byPort[p.Name][a] = struct{}{}
	}
	e.dirtyAddresses[a] = struct{}{}
}

// DeleteAddress undoes SetAddress.
func (e *Engine) DeleteAddress(a netip.Addr) {
	a = a.Unmap()
	if st := e.addresses[a]; st != nil {
		e.unindex(a, st.Ports)
		delete(e.addresses, a)
		e.letGo(st.class)
		e.dirtyAddresses[a] = struct{}{}
	}
}

func (e *Engine) unindex(a netip.Addr, list []clustermesh.NamedPort) {
	for _, p := range list {
		if delete(e.byPort[p.Name], a); len(e.byPort[p.Name]) == 0 {
			delete(e.byPort, p.Name)
		}
	}
}

// SetNode takes a node of the own cluster.
func (e *Engine) SetNode(name string, n Node) {
	old, ok := e.nodes[name]
	if ok && slices.Equal(old.Labels, n.Labels) && (old.Labels == nil) == (n.Labels == nil) && slices.Equal(old.Addresses, n.Addresses) {
		return
	}
	e.nodes[name] = n
	e.nodesChanged()
}

// DeleteNode forgets a node.
func (e *Engine) DeleteNode(name string) {
	if _, ok := e.nodes[name]; ok {
		delete(e.nodes, name)
		e.nodesChanged()
	}
}

func (e *Engine) nodesChanged() {
	for _, b := range e.blocks {
		e.dirtyBlocks = e.dirtyBlocks || b.isNode
	}
}

// RuleName is the name of a rule in rows, and whether it is known.
func (e *Engine) RuleName(id uint32) (string, bool) {
	if u := e.rules[id]; u != nil {
		return u.name, true
	}
	return "", false
}

// Problems says which policies are not followed to the letter, and why.
func (e *Engine) Problems() []clustermesh.Problem {
	var out []clustermesh.Problem
	for n, st := range e.policies {
		if err := st.parsed.err; err != nil {
			out = append(out, clustermesh.Problem{
				What: n.String() + " is refused: " + st.consequence(),
				Why:  strings.ReplaceAll(err.Error(), "\n", "; "),
				Fix:  "correct the policy",
			})
		}
		for _, w := range st.parsed.warn {
			out = append(out, clustermesh.Problem{What: n.String() + " is followed in part", Why: w, Fix: "use peers that are supported"})
		}
	}
	for name, pod := range e.pods {
		if pod.err != nil {
			out = append(out, clustermesh.Problem{What: "pod " + name + " is cut off", Why: pod.err.Error(), Fix: "use fewer rules"})
		}
	}
	for name, n := range e.nodes {
		if n.Labels == nil && e.labelsOfNodesMatter() {
			out = append(out, clustermesh.Problem{
				What: "node " + name + " is matched only by rules that deny",
				Why:  "a ClusterNetworkPolicy selects nodes by labels, and those of this node are not known",
				Fix:  "use networks in place of nodes",
			})
		}
	}
	slices.SortFunc(out, func(a, b clustermesh.Problem) int { return strings.Compare(a.What+a.Why, b.What+b.Why) })
	return out
}

func (e *Engine) labelsOfNodesMatter() bool {
	for _, b := range e.blocks {
		if b.isNode && len(b.nodes) > 0 {
			return true
		}
	}
	return false
}

func (s *policyState) consequence() string {
	switch {
	case s.good:
		return "its last good version stays in force"
	case s.applied == nil:
		return "it cannot be told whom it is for, so it has no effect"
	case s.applied.tier == TierNetworkPolicy:
		return "the pods it selects are isolated"
	}
	return "its rules that cannot be read accept nothing, or deny everything"
}

// decide is what holds for a pod: nil and SubjectNone, nil and SubjectUnknown, or
// a subject.
func (e *Engine) decide(pod Pod) (*subject, Subject, error) {
	labels := e.identities[pod.Identity]
	if labels == nil || pod.Identity.Cluster() != e.own || pod.Identity.Number() == 0 {
		if len(e.applied[pod.Namespace])+len(e.applied[""]) > 0 || pod.Namespace == "" && len(e.applied) > 0 {
			return nil, SubjectUnknown, nil
		}
		return nil, SubjectNone, nil
	}
	ns, _ := labelOf(labels, clustermesh.LabelNamespace)
	var selected []*policy
	from := func(namespace string) {
		for _, p := range e.applied[namespace] {
			if e.selects(p, pod.Identity, labels) {
				selected = append(selected, p)
			}
		}
	}
	from("")
	if ns != "" {
		from(ns)
	}
	s, err := makeSubject(selected, pod.Ports)
	if err != nil {
		return nil, SubjectUnknown, err
	}
	if s == nil {
		return nil, SubjectNone, nil
	}
	return s, s.id, nil
}
