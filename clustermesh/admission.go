package clustermesh

import (
	"net/netip"
	"slices"
	"strings"
)

// Admission is what is believed of one cluster: what it was admitted for when
// it joined, and nothing beyond.
type Admission struct {
	Cluster     string
	ID          ID
	PodPrefixes []netip.Prefix // its addresses lie inside these
	MaxKeys     uint64         // 0 = DefaultMaxKeys
	MaxBytes    uint64         // of decoded records; 0 = DefaultMaxBytes
	// Local is the reader's own cluster: it may be read in scope local, and
	// with no PodPrefixes given its addresses are not checked against any.
	Local bool
}

// AdmissionOf is what the operator admitted a peer for.
func AdmissionOf(p *Peer) Admission {
	return Admission{
		Cluster: p.Name, ID: p.ID, PodPrefixes: p.PodPrefixes, MaxKeys: p.MaxKeys, MaxBytes: p.MaxBytes,
	}
}

func (a Admission) budgets() (keys, bytes uint64) {
	keys, bytes = a.MaxKeys, a.MaxBytes
	if keys == 0 {
		keys = DefaultMaxKeys
	}
	if bytes == 0 {
		bytes = DefaultMaxBytes
	}
	return keys, bytes
}

// Check says why r under k is not believed of the cluster; nil = believed. It
// looks at the record alone: what concerns several records (node numbers,
// WireGuard keys, budgets) View.Apply checks. The error is a *RefusedError.
func (a Admission) Check(k Key, r Record) error {
	if err := a.checkKey(k); err != nil {
		return err
	}
	return a.checkRecord(r)
}

func (a Admission) checkKey(k Key) error {
	if k.Cluster != a.Cluster {
		return refuse(RefusedKey, "the key is of cluster %s, not of %s", quote(k.Cluster), a.Cluster)
	}
	switch {
	case k.Scope == ScopeLocal && !a.Local:
		return refuse(RefusedKey, "scope local of another cluster is not read")
	case k.Scope == ScopeMirror && a.Local:
		return refuse(RefusedKey, "a cluster does not mirror itself")
	}
	switch k.Kind {
	case KindWorkload, KindPolicy, KindClusterPolicy, KindPeer:
		if k.Scope != ScopeLocal {
			return refuse(RefusedKey, "a %s exists in scope local only", k.Kind)
		}
	case KindDrain:
		if of, _, _ := strings.Cut(k.Name, "/"); k.Scope != ScopeLocal && of != a.Cluster {
			return refuse(RefusedName, "it drains %s: a cluster can say that of itself only", quote(of))
		}
	case KindCluster, KindNode, KindIdentity, KindAddress:
		if k.Scope == ScopeLocal {
			return refuse(RefusedKey, "a %s exists in scope export only", k.Kind)
		}
	}
	return nil
}

func (a Admission) checkRecord(r Record) error {
	switch r := r.(type) {
	case *Address:
		return a.checkAddress(r)
	case *EndpointSlice:
		for _, e := range r.Endpoints {
			if !a.inside(netip.PrefixFrom(e.Address, e.Address.BitLen())) {
				return a.outside("endpoint", e.Address)
			}
		}
	case *IdentityRecord:
		return a.checkIdentity(r)
	case *Node:
		return a.checkNode(r)
	case *Cluster:
		return a.checkCluster(r)
	}
	return nil
}

// checkCluster: prefixes outside the admitted ones are refused with the record
// they come in, so that a cluster cannot widen by itself what it was admitted for.
func (a Admission) checkCluster(r *Cluster) error {
	if r.Name != a.Cluster {
		return refuse(RefusedName, "it calls itself %s; %s was admitted. Is this the address of another cluster?", quote(r.Name), a.Cluster)
	}
	if r.ID != a.ID {
		return refuse(RefusedName, "its ID is %d; %s was admitted with %d. Was it set up anew? Then remove it and join again", r.ID, a.Cluster, a.ID)
	}
	return a.checkPrefixes(r.PodPrefixes)
}

func (a Admission) checkNode(r *Node) error {
	if r.Number == 0 {
		return refuse(RefusedNumber, "node number 0 is no number")
	}
	for _, t := range r.TunnelAddresses {
		if !a.inside(netip.PrefixFrom(t, t.BitLen())) {
			return a.outside("tunnel address", t)
		}
		if !slices.ContainsFunc(r.PodPrefixes, func(p netip.Prefix) bool { return p.Contains(t) }) {
			return refuse(RefusedPrefix, "tunnel address %v is in none of the node's pod prefixes %v", t, r.PodPrefixes)
		}
	}
	return a.checkPrefixes(r.PodPrefixes)
}

func (a Admission) checkPrefixes(prefixes []netip.Prefix) error {
	for _, p := range prefixes {
		if !a.inside(p) {
			return a.outside("pod prefix", p)
		}
	}
	return nil
}

func (a Admission) checkAddress(r *Address) error {
	// Reserved identities (cluster 0) are privileges: a peer cannot claim them.
	if c := r.Identity.Cluster(); c != a.ID && (c != 0 || !a.Local) {
		return refuse(RefusedIdentity, "identity %d belongs to cluster %d; %s has ID %d", r.Identity, c, a.Cluster, a.ID)
	}
	if !a.inside(r.Name.Prefix) {
		return a.outside("address", r.Name.Prefix)
	}
	return nil
}

func (a Admission) checkIdentity(r *IdentityRecord) error {
	if r.ID.Cluster() != a.ID {
		return refuse(RefusedIdentity, "identity %d belongs to cluster %d; %s has ID %d", r.ID, r.ID.Cluster(), a.Cluster, a.ID)
	}
	if r.ID.Number() == 0 {
		return refuse(RefusedIdentity, "number 0 means a workload not yet known: it has no labels")
	}
	for _, l := range r.Labels {
		if l.Key == LabelCluster && l.Value != a.Cluster {
			return refuse(RefusedIdentity, "its label %s is %s, not %s", LabelCluster, quote(l.Value), a.Cluster)
		}
	}
	return nil
}

// inside reports whether all of p is admitted.
func (a Admission) inside(p netip.Prefix) bool {
	if len(a.PodPrefixes) == 0 {
		return a.Local
	}
	for _, allowed := range a.PodPrefixes {
		if allowed.Bits() <= p.Bits() && allowed.Contains(p.Addr()) {
			return true
		}
	}
	return false
}

func (a Admission) outside(what string, p any) error {
	return refuse(RefusedPrefix, "%s %v is outside the pod prefixes %v that %s was admitted for", what, p, a.PodPrefixes, a.Cluster)
}

// Refusal is a record that was not believed. The last good one of its key stays.
type Refusal struct {
	Key    string // as received, escaped
	Class  RefusalClass
	Reason string
}

func (r Refusal) String() string { return r.Key + ": " + r.Reason }
