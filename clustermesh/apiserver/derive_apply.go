package apiserver

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// apply takes a delivery of the source.
func (d *deriver) apply(o Objects) {
	at := clustermesh.OriginAt(o.At)
	if o.Complete {
		for _, ref := range d.refs() {
			if _, still := o.Upserts[ref]; !still {
				d.set(ref, nil, at)
			}
		}
	}
	for _, ref := range o.Deletes {
		d.set(ref, nil, at)
	}
	// In order, so that a log of two runs reads alike.
	for _, ref := range slices.SortedFunc(maps.Keys(o.Upserts), compareRefs) {
		d.set(ref, o.Upserts[ref], at)
	}
}

// refs are all objects held.
func (d *deriver) refs() []Ref {
	var all []Ref
	for n := range d.services {
		all = append(all, Ref{KindService, n.Namespace, n.Name})
	}
	for n := range d.pods {
		all = append(all, Ref{KindPod, n.Namespace, n.Name})
	}
	for n := range d.nodes {
		all = append(all, Ref{KindNode, "", n})
	}
	for n := range d.namespaces {
		all = append(all, Ref{KindNamespace, "", n})
	}
	for u := range d.policies {
		kind := KindNetworkPolicy
		if u.kind == clustermesh.KindClusterPolicy {
			kind = KindClusterNetworkPolicy
		}
		all = append(all, Ref{kind, u.name.Namespace, u.name.Name})
	}
	for n := range d.exports {
		all = append(all, Ref{KindServiceExport, n.Namespace, n.Name})
	}
	for n := range d.givenOf {
		all = append(all, Ref{KindEndpointSlice, n.Namespace, n.Name})
	}
	return all
}

// set takes one object; nil = it is gone.
func (d *deriver) set(ref Ref, obj runtime.Object, at clustermesh.Origin) {
	name := objectName{ref.Namespace, ref.Name}
	if u := unitOf(ref, obj); u != (unit{}) {
		what := changePut
		if obj == nil {
			what = changeDeleted
		}
		d.noteChange(u, ref, what)
	}
	switch ref.Kind {
	case KindService:
		svc, _ := obj.(*corev1.Service)
		d.setService(name, svc, at)
	case KindPod:
		pod, _ := obj.(*corev1.Pod)
		d.setPod(name, pod, at)
	case KindNode:
		node, _ := obj.(*corev1.Node)
		d.setNode(ref.Name, node, at)
	case KindNamespace:
		ns, _ := obj.(*corev1.Namespace)
		d.setNamespace(ref.Name, ns, at)
	case KindNetworkPolicy:
		policy, _ := obj.(*networkingv1.NetworkPolicy)
		d.setNetworkPolicy(ref, policy, at)
	case KindClusterNetworkPolicy:
		policy, _ := obj.(*clusterPolicy)
		d.setClusterNetworkPolicy(ref, policy, at)
	case KindServiceExport:
		exp, _ := obj.(*v1beta1.ServiceExport)
		d.setExport(name, exp, at)
	case KindEndpointSlice:
		slice, _ := obj.(*discoveryv1.EndpointSlice)
		d.setSlice(name, slice, at)
	}
}

// change says what has happened to an object since records were last derived.
type change uint8

const (
	changePut change = 1 << iota
	changeDeleted
)

// noteChange remembers a change of an object that may be refused: what is refused
// keeps the last good state in force, but not that of an object that was deleted.
func (d *deriver) noteChange(u unit, ref Ref, what change) {
	if what == changePut {
		what |= d.since[u][ref]
	}
	put(d.since, u, ref, what)
}

// anew says that an object was deleted: what the store still holds of it is of
// another one.
func (d *deriver) anew(u unit, ref Ref) bool { return d.since[u][ref]&changeDeleted != 0 }

// anewService is anew of the Service of a unit, or of the object beside it.
func (d *deriver) anewService(service objectName, kind, name string) bool {
	u := serviceUnit(service)
	return d.anew(u, Ref{KindService, service.Namespace, service.Name}) || d.anew(u, Ref{kind, service.Namespace, name})
}

// underWay says whether a delivery puts an object into a unit that has changed and
// was not derived since: that has to be done first, as it may be the last good
// state if the object is refused. The delete of the object itself can wait, so
// that one that is made anew does not go away.
func (d *deriver) underWay(o Objects) bool {
	if len(d.since) == 0 {
		return false
	}
	for ref, obj := range o.Upserts {
		for other, what := range d.since[unitOf(ref, obj)] {
			if other != ref || what&changePut != 0 {
				return true
			}
		}
	}
	return false
}

// unitOf is the unit that an object is derived in; the zero unit for kinds of
// which nothing is ever refused.
func unitOf(ref Ref, obj runtime.Object) unit {
	name := objectName{ref.Namespace, ref.Name}
	switch ref.Kind {
	case KindService, KindServiceExport:
		return serviceUnit(name)
	case KindEndpointSlice:
		if s, _ := obj.(*discoveryv1.EndpointSlice); s != nil {
			return serviceUnit(objectName{ref.Namespace, s.Labels[discoveryv1.LabelServiceName]})
		}
	case KindNode:
		return nodeUnit(ref.Name)
	case KindNetworkPolicy:
		return policyUnit(name)
	case KindClusterNetworkPolicy:
		return clusterPolicyUnit(ref.Name)
	}
	return unit{}
}
