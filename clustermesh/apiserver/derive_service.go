package apiserver

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/mcs"
)

// labelServiceProxyName is on Services that another program than kube-proxy, or
// what stands in its place, is to serve.
const labelServiceProxyName = "service.kubernetes.io/service-proxy-name"

// setService takes a Service. One that cannot be right is refused as a whole:
// the one before stays in force, or what the store holds.
func (d *deriver) setService(name objectName, svc *corev1.Service, at clustermesh.Origin) {
	d.touch(serviceUnit(name), at)
	if svc != nil {
		if _, others := svc.Labels[labelServiceProxyName]; others {
			svc = nil // its owner has said that somebody else serves it
			d.noteChange(serviceUnit(name), Ref{KindService, name.Namespace, name.Name}, changeDeleted)
		}
	}
	old := d.services[name]
	if svc == nil {
		if old != nil {
			d.unindexService(name, old)
			delete(d.services, name)
		}
		return
	}
	if err := validateService(svc); err != nil {
		st := old
		if st == nil {
			st = &serviceState{}
			d.services[name] = st
		}
		st.problem = &Problem{
			Object: Ref{KindService, name.Namespace, name.Name}.String(), What: "refused", Why: printable(err.Error()),
			Fix: "correct the Service; until then the last good one stays in force",
		}
		return
	}
	if old != nil {
		d.unindexService(name, old)
	}
	st := &serviceState{svc: svc}
	if len(svc.Spec.Selector) > 0 {
		st.selector = labels.SelectorFromValidatedSet(svc.Spec.Selector)
		for k, v := range svc.Spec.Selector {
			st.pairs = append(st.pairs, labelRef{name.Namespace, k, v})
		}
		slices.SortFunc(st.pairs, func(a, b labelRef) int {
			return strings.Compare(a.key+"="+a.value, b.key+"="+b.value)
		})
		put(d.selects, st.pairs[0], name, st)
	}
	d.services[name] = st
}

func (d *deriver) unindexService(name objectName, st *serviceState) {
	if len(st.pairs) > 0 {
		remove(d.selects, st.pairs[0], name)
	}
}

// touchServicesOf makes the services dirty that select a pod.
func (d *deriver) touchServicesOf(pod *podState, at clustermesh.Origin) {
	if d.cfg.SlicesGiven {
		return // a change of a pod is a change of a slice
	}
	set := labels.Set(pod.pod.Labels)
	for k, v := range pod.pod.Labels {
		for name, svc := range d.selects[labelRef{pod.pod.Namespace, k, v}] {
			if svc.selector.Matches(set) {
				d.touch(serviceUnit(name), at)
			}
		}
	}
}

// podsOf are the pods a service selects, through the rarest pair of its selector.
func (d *deriver) podsOf(st *serviceState) []objectName {
	if st.selector == nil {
		return nil
	}
	rarest := d.podsByLabel[st.pairs[0]]
	for _, pair := range st.pairs[1:] {
		if m := d.podsByLabel[pair]; len(m) < len(rarest) {
			rarest = m
		}
	}
	var pods []objectName
	for name, pod := range rarest {
		if st.selector.Matches(labels.Set(pod.pod.Labels)) {
			pods = append(pods, name)
		}
	}
	return pods
}

// clusterIPs are the addresses of a Service; none if it is headless.
func clusterIPs(svc *corev1.Service) []string {
	ips := svc.Spec.ClusterIPs
	if len(ips) == 0 && svc.Spec.ClusterIP != "" {
		ips = []string{svc.Spec.ClusterIP}
	}
	return slices.DeleteFunc(slices.Clone(ips), func(s string) bool { return s == "" || s == corev1.ClusterIPNone })
}

// deriveService yields a service record and its slices, both in one scope.
func (d *deriver) deriveService(name objectName, y *yield) {
	st := d.services[name]
	if st == nil {
		d.exportWithout(name, "there is no Service of this name", y)
		return
	}
	if st.problem != nil {
		y.problem(*st.problem)
	}
	if st.svc == nil {
		d.keepService(name, y)
		return
	}
	if st.svc.Spec.Type == corev1.ServiceTypeExternalName {
		d.exportWithout(name, mcs.Exportable(st.svc), y)
		return // a name in DNS, nothing to balance
	}
	object := Ref{KindService, name.Namespace, name.Name}.String()
	r := serviceRecord(name, st.svc)
	settings, warnings, err := ParseAnnotations(d.cfg.Cluster, st.svc.Annotations)
	if err != nil {
		y.problem(Problem{Object: object, What: "its annotations are refused", Why: printable(err.Error()),
			Fix: "correct the annotation; until then the last good setting stays in force"})
		settings = d.storedSettings(name)
	}
	settings.into(r)
	d.multicluster(name, st.svc, r, y)
	r.Origin = y.at
	if r.Import != "" {
		warnings = nil // its settings hold without being global
	}
	for _, w := range warnings {
		y.problem(Problem{Object: object, What: "an annotation has no effect", Why: w, Fix: "correct or remove it"})
	}
	if svc := st.svc; svc.Spec.Type == corev1.ServiceTypeNodePort && slices.ContainsFunc(r.Ports, func(p clustermesh.Port) bool { return p.NodePort == 0 }) {
		y.problem(Problem{Object: object, What: "a port has no node port", Why: "its type is NodePort, and no nodePort is given",
			Fix: "write a nodePort into the manifest: nobody allocates one"})
	}
	scope := clustermesh.ScopeLocal
	if settings.exported() || r.Export != nil {
		scope = clustermesh.ScopeExport
	}
	y.put(scope, r, object)
	for _, slice := range d.slices(name, st, scope, y) {
		slice.Origin = y.at
		nameless(r, slice)
		y.put(scope, slice, object)
	}
}

// keepService leaves all that the store holds of a service.
func (d *deriver) keepService(name objectName, y *yield) {
	if d.anewService(name, KindService, name.Name) {
		return
	}
	for _, scope := range []clustermesh.Scope{clustermesh.ScopeExport, clustermesh.ScopeLocal} {
		key := d.key(scope, &clustermesh.Service{Name: clustermesh.ServiceName(name)})
		if d.cfg.Stored(key) != nil {
			y.keep(key)
		}
		for _, slice := range d.storedOf(name, clustermesh.KindPrefix(scope, d.cfg.Cluster, clustermesh.KindEndpointSlice)+name.String()+"/") {
			y.keep(slice)
		}
	}
}

// storedSettings are the last good ones: those of the record in the store.
func (d *deriver) storedSettings(name objectName) Settings {
	scopes := []clustermesh.Scope{clustermesh.ScopeExport, clustermesh.ScopeLocal}
	if d.anewService(name, KindService, name.Name) {
		scopes = nil
	}
	for _, scope := range scopes {
		key := clustermesh.KeyOf(scope, d.cfg.Cluster, &clustermesh.Service{Name: clustermesh.ServiceName(name)})
		value := d.cfg.Stored(key.String())
		if value == nil {
			continue
		}
		if r, err := clustermesh.Decode(key, value); err == nil {
			if s, ok := r.(*clustermesh.Service); ok {
				return settingsOf(s)
			}
		}
	}
	return Settings{Shared: true}
}

func settingsOf(r *clustermesh.Service) Settings {
	return Settings{
		Global: r.Global, Shared: r.Shared, Affinity: r.Affinity, Failover: r.Failover,
		Weight: r.Weight, HasWeight: r.HasWeight, MinHealthy: r.MinHealthy,
	}
}

func (s Settings) into(r *clustermesh.Service) {
	r.Global, r.Shared = s.Global, s.Shared
	r.Affinity, r.Failover, r.MinHealthy = s.Affinity, s.Failover, s.MinHealthy
	r.Weight, r.HasWeight = s.Weight, s.HasWeight
}
