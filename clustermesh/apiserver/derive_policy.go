package apiserver

import (
	"encoding/json"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// policyState is a policy of either kind.
type policyState struct {
	json    []byte   // in force; nil = none was ever good in this process
	problem *Problem // why a newer one is not
}

// setNetworkPolicy takes a NetworkPolicy.
func (d *deriver) setNetworkPolicy(ref Ref, p *networkingv1.NetworkPolicy, at clustermesh.Origin) {
	u := policyUnit(objectName{ref.Namespace, ref.Name})
	if p == nil {
		d.removePolicy(u, at)
		return
	}
	d.setPolicy(u, ref, networkingv1.NetworkPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: KindNetworkPolicy},
		ObjectMeta: metav1.ObjectMeta{Namespace: ref.Namespace, Name: ref.Name},
		Spec:       p.Spec,
	}, validateNetworkPolicy(p), at)
}

// setClusterNetworkPolicy takes a ClusterNetworkPolicy. Both versions of its API
// are the same but for their name: it is published as the older one.
func (d *deriver) setClusterNetworkPolicy(ref Ref, p *clusterPolicy, at clustermesh.Origin) {
	u := clusterPolicyUnit(ref.Name)
	if p == nil {
		d.removePolicy(u, at)
		return
	}
	d.setPolicy(u, ref, struct {
		APIVersion string                            `json:"apiVersion"`
		Kind       string                            `json:"kind"`
		Metadata   map[string]string                 `json:"metadata"`
		Spec       v1alpha2.ClusterNetworkPolicySpec `json:"spec"`
	}{
		v1alpha2.GroupVersion.String(), KindClusterNetworkPolicy, map[string]string{"name": ref.Name}, p.Spec,
	}, validateClusterPolicy(p), at)
}

func (d *deriver) removePolicy(u unit, at clustermesh.Origin) {
	delete(d.policies, u)
	d.touch(u, at)
}

// setPolicy keeps a policy as JSON, without what changes by itself. One that
// cannot be right is refused: the one before stays in force, or what the store
// holds. An open door is no answer to a typing error, and neither is a closed one.
func (d *deriver) setPolicy(u unit, ref Ref, canonical any, bad error, at clustermesh.Origin) {
	d.touch(u, at)
	text, err := json.Marshal(canonical)
	if bad == nil {
		bad = err
	}
	if bad == nil {
		d.policies[u] = &policyState{json: text}
		return
	}
	st := &policyState{problem: &Problem{
		Object: ref.String(), What: "refused", Why: printable(bad.Error()),
		Fix: "correct the policy; until then the last good one stays in force, and if there never was one, none",
	}}
	if old := d.policies[u]; old != nil {
		st.json = old.json
	}
	d.policies[u] = st
}

// derivePolicy yields a policy of either kind.
func (d *deriver) derivePolicy(u unit, y *yield) {
	st := d.policies[u]
	if st == nil {
		return
	}
	if st.problem != nil {
		y.problem(*st.problem)
	}
	var r clustermesh.Record
	object := Ref{KindNetworkPolicy, u.name.Namespace, u.name.Name}
	if u.kind == clustermesh.KindClusterPolicy {
		r = &clustermesh.ClusterPolicy{Name: u.name.Name, JSON: st.json, Origin: y.at}
		object = Ref{Kind: KindClusterNetworkPolicy, Name: u.name.Name}
	} else {
		r = &clustermesh.Policy{Namespace: u.name.Namespace, Name: u.name.Name, JSON: st.json, Origin: y.at}
	}
	if st.json != nil {
		y.put(clustermesh.ScopeLocal, r, object.String())
	} else if key := d.key(clustermesh.ScopeLocal, r); d.cfg.Stored(key) != nil && !d.anew(u, object) {
		y.keep(key)
	}
}
