package agent

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/tombolo-mesh/tombolo/agent/policy"
	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// policyFacts is what policy needs to know, and what it says of this node's pods.
type policyFacts struct {
	engine   *policy.Engine
	dirty    bool // facts changed since the rows were computed
	applied  bool // the rows were computed at least once
	unswept  bool // there may be rows that nobody has any more
	released bool // since then, rows that are not among them were let go

	pods    map[netip.Addr]policyPod // by address: each has rows of its own
	said    map[string]policy.Subject
	addrs   map[string]netip.Addr // of the engine's names for pods
	toWrite map[netip.Addr]struct{}
	named   map[netip.Addr]struct{} // addresses with named ports, of all clusters
}

// policyPod is an address of a pod of this node, as policy sees it.
type policyPod struct {
	name     string // of the pod, for the engine and for people
	identity clustermesh.Identity
}

func newPolicyFacts(o policy.Options) policyFacts {
	return policyFacts{
		engine: policy.New(o), pods: map[netip.Addr]policyPod{}, said: map[string]policy.Subject{},
		addrs: map[string]netip.Addr{}, toWrite: map[netip.Addr]struct{}{}, named: map[netip.Addr]struct{}{},
	}
}

// takePolicy takes in what a change of a view means for policy.
func (s *State) takePolicy(c *clusterState, v *clustermesh.View, k clustermesh.Key) {
	switch k.Kind {
	case clustermesh.KindPolicy:
		if p, ok := v.Get(k).(*clustermesh.Policy); ok {
			s.setPolicy(p)
		} else {
			namespace, name, _ := strings.Cut(k.Name, "/")
			s.policy.engine.DeletePolicy(policy.Name{Namespace: namespace, Name: name})
		}
	case clustermesh.KindClusterPolicy:
		if p, ok := v.Get(k).(*clustermesh.ClusterPolicy); ok {
			s.policy.engine.SetPolicy(policy.Name{Name: p.Name}, p.JSON)
		} else {
			s.policy.engine.DeletePolicy(policy.Name{Name: k.Name})
		}
	case clustermesh.KindIdentity:
		if r, ok := v.Get(k).(*clustermesh.IdentityRecord); ok {
			s.setIdentity(c, *r)
		} else if id, err := strconv.ParseUint(k.Name, 10, 32); err == nil && clustermesh.Identity(id).Cluster() == c.id {
			s.policy.engine.DeleteIdentity(clustermesh.Identity(id))
		}
	default:
		return
	}
	s.policy.dirty = true
}

func (s *State) setPolicy(p *clustermesh.Policy) {
	s.policy.engine.SetPolicy(policy.Name{Namespace: p.Namespace, Name: p.Name}, p.JSON)
}

// setIdentity believes a cluster about its own identities alone.
func (s *State) setIdentity(c *clusterState, r clustermesh.IdentityRecord) {
	if r.ID.Cluster() == c.id {
		s.policy.engine.SetIdentity(r.ID, r.Labels)
	}
}

// takePolicies takes in all that a view says about policy.
func (s *State) takePolicies(c *clusterState, v *clustermesh.View) {
	if v.Scope() == clustermesh.ScopeExport {
		for r := range v.Identities() {
			s.setIdentity(c, r)
		}
	} else {
		for p := range v.Policies() {
			s.setPolicy(p)
		}
		for p := range v.ClusterPolicies() {
			s.policy.engine.SetPolicy(policy.Name{Name: p.Name}, p.JSON)
		}
	}
	s.policy.dirty = true
}

// forgetIdentities takes back what a view that is gone said.
func (s *State) forgetIdentities(v *clustermesh.View) {
	for r := range v.Identities() {
		s.policy.engine.DeleteIdentity(r.ID)
	}
	s.policy.dirty = true
}

// policyReady reports whether policies and the identities of this node's pods
// are known, from the cluster or from a snapshot. Before that, nothing is said
// about what may pass: what the kernel holds stays in force.
func (s *State) policyReady() bool {
	own := s.clusters[s.own]
	return own.export() != nil && own.views[clustermesh.ScopeLocal] != nil
}

// policyKnown reports whether the wanted rows of policy are all there are.
func (s *State) policyKnown() bool {
	return s.podsSet && s.policy.applied && !s.policy.dirty && s.clusters[s.own].synced()
}

// takeRecord tells policy about an address: the named ports behind it, and the
// pod of this node that has it.
func (s *State) takeRecord(p netip.Prefix, f ipFacts, row IPCacheRow, known bool) {
	a := p.Addr()
	var ports []clustermesh.NamedPort
	if known && f.address != nil && f.tunnel == nil {
		ports = f.address.NamedPorts
	}
	if _, had := s.policy.named[a]; had || len(ports) > 0 {
		s.policy.engine.SetAddress(a, policy.Address{Identity: clustermesh.Identity(row.Identity), Ports: ports})
		s.policy.named[a], s.policy.dirty = struct{}{}, true
		if len(ports) == 0 {
			delete(s.policy.named, a)
		}
	}
	if f.pod == nil {
		return
	}
	name := f.pod.Namespace + "/" + f.pod.Name + " " + a.String()
	pod := policyPod{name: name, identity: clustermesh.Identity(row.Identity)}
	if old, had := s.policy.pods[a]; had && old.name != name {
		s.forgetPod(a)
	}
	s.policy.pods[a], s.policy.addrs[name] = pod, a
	s.policy.engine.SetPod(name, policy.Pod{Namespace: f.pod.Namespace, Identity: pod.identity, Ports: ports})
	s.policy.dirty = true
	s.policy.toWrite[a] = struct{}{}
}

// forgetPod: this node has no pod with that address any more.
func (s *State) forgetPod(a netip.Addr) {
	old, had := s.policy.pods[a]
	if !had {
		return
	}
	s.policy.engine.DeletePod(old.name)
	delete(s.policy.pods, a)
	delete(s.policy.addrs, old.name)
	delete(s.policy.said, old.name)
	delete(s.policy.toWrite, a)
	s.policy.dirty, s.policy.unswept = true, true
}

// takePolicyNode tells policy about the nodes of the own cluster.
func (s *State) takePolicyNode(c *clusterState, name string) {
	if c.peer != nil {
		return
	}
	n := c.nodes[name]
	if n == nil {
		s.policy.engine.DeleteNode(name)
	} else {
		addrs := slices.Concat(n.UnderlayAddresses, n.TunnelAddresses)
		slices.SortFunc(addrs, netip.Addr.Compare)
		s.policy.engine.SetNode(name, policy.Node{Addresses: slices.Compact(addrs)})
	}
	s.policy.dirty = true
}

// applyPolicy computes the rows of policy and of this node's pods.
func (s *State) applyPolicy() {
	if s.policy.dirty && s.policyReady() {
		first := !s.policy.applied
		s.setHurry(!first)
		s.policy.engine.Apply(policySink{s})
		s.policy.dirty, s.policy.applied, s.policy.unswept, s.policy.released = false, true, true, false
		if first {
			for a := range s.policy.pods {
				s.policy.toWrite[a] = struct{}{}
			}
		}
	}
	s.setHurry(true)
	for a := range s.policy.toWrite {
		s.endpointRow(a)
	}
	s.setHurry(false)
	clear(s.policy.toWrite)
	if !s.policy.released && s.policyKnown() {
		s.policy.released = true
		for _, d := range []anyDelta{s.t.policy, s.t.classPrefixes, s.t.classes, s.t.subjects} {
			d.Release()
		}
	}
}

// endpointRow wants a pod of this node delivered, as its policy allows. As long
// as nothing is known of policy, a pod that the kernel knows stays as it is, and
// one that it does not know is closed.
func (s *State) endpointRow(a netip.Addr) {
	p, is := s.pods[s.podAddrs[a]]
	if !is {
		return
	}
	pod, k := s.policy.pods[a], MakeAddr(a)
	row := EndpointRow{IfIndex: p.IfIndex, PodMAC: p.PodMAC, HostMAC: p.HostMAC, Identity: uint32(pod.identity)}
	switch subject, said := s.policy.said[pod.name]; {
	case !s.policy.applied || !said:
		row.Closed = true
		if old, there := s.t.endpoints.Actual(k); there && old.IfIndex == p.IfIndex && old.PodMAC == p.PodMAC && old.HostMAC == p.HostMAC {
			row = old
		}
	case subject == policy.SubjectUnknown:
		row.Closed = true
	default:
		row.Subject = uint64(subject)
	}
	s.t.setEndpoint(k, row)
}

// sweepPolicy takes rows away that nobody has any more, once all pods have those
// that took their place; it reports whether there is something to flush.
func (s *State) sweepPolicy() bool {
	if !s.policy.unswept || s.policy.dirty || !s.t.policySettled() {
		return false
	}
	s.policy.unswept = s.policy.engine.Sweep(policySink{s})
	return s.t.policy.Pending() > s.t.policy.Stuck() || s.t.subjects.Pending() > s.t.subjects.Stuck() ||
		s.t.classes.Pending() > s.t.classes.Stuck() || s.t.classPrefixes.Pending() > s.t.classPrefixes.Stuck()
}

// policyDue reports whether rows of policy are still to be computed or swept.
func (s *State) policyDue() bool {
	return s.policyReady() && (s.policy.dirty || s.policy.unswept && s.policy.engine.Stale())
}

// policySettled reports whether all that policy wants written is in the kernel,
// or is refused by it.
func (t *tableSet) policySettled() bool {
	return len(t.policy.dirty)+len(t.classPrefixes.dirty)+len(t.classes.dirty)+len(t.subjects.dirty)+t.endpoints.Pending() == 0
}

// policySink puts what the engine says into the tables.
type policySink struct{ s *State }

func (p policySink) SetRow(k policy.Key, r policy.Row) {
	p.s.t.policy.Set(policyKey(k), PolicyRow{Admin: policyStage(r.Admin), Base: policyStage(r.Base), Allow: r.Allow})
}

func (p policySink) DeleteRow(k policy.Key) { p.s.t.policy.Delete(policyKey(k)) }

func (p policySink) SetSubject(k policy.Subject, r policy.SubjectRow) {
	p.s.t.setSubject(SubjectKey(k), SubjectRow{SubjectFlags(r.Flags)})
}

func (p policySink) DeleteSubject(k policy.Subject) { p.s.t.deleteSubject(SubjectKey(k)) }

func (p policySink) SetClass(prefix netip.Prefix, c policy.Class) {
	row := ClassRow{PolicyPeer(c)}
	if prefix.IsSingleIP() {
		p.s.t.classes.Set(MakeAddr(prefix.Addr()), row)
	} else {
		p.s.t.classPrefixes.Set(MakePrefix(prefix), row)
	}
}

func (p policySink) DeleteClass(prefix netip.Prefix) {
	if prefix.IsSingleIP() {
		p.s.t.classes.Delete(MakeAddr(prefix.Addr()))
	} else {
		p.s.t.classPrefixes.Delete(MakePrefix(prefix))
	}
}

func (p policySink) SetPod(name string, subject policy.Subject) {
	p.s.policy.said[name] = subject
	if a, is := p.s.policy.addrs[name]; is {
		p.s.policy.toWrite[a] = struct{}{}
	}
}

func policyKey(k policy.Key) PolicyKey {
	return PolicyKey{
		Subject: SubjectKey(k.Subject), Peer: PolicyPeer(k.Peer), Dir: Direction(k.Dir),
		Proto: uint8(k.Proto), Bits: k.Bits, Port: k.Port,
	}
}

func policyStage(s policy.Stage) PolicyStage {
	return PolicyStage{Rule: s.Rule, Rank: s.Rank, Verdict: Verdict(s.Verdict)}
}

// policyOptions are those of the engine.
func policyOptions(cfg Config) policy.Options {
	return policy.Options{Cluster: cfg.ClusterID, AllClusters: cfg.PolicyAllClusters}
}
