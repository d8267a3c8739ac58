package kube

import (
	"maps"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/mcs"
)

// The trim functions build an object anew out of what the mesh API server reads,
// so that the rest (managed fields, annotations, environments, volumes, status)
// can be freed: a pod shrinks from some 10 KiB to some hundred bytes. Trimming an
// object twice changes nothing.

// names are what identifies an object; its resource version goes along until it
// is stored.
func names(m metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion}
}

func trimNode(o runtime.Object) runtime.Object {
	n, ok := o.(*corev1.Node)
	if !ok {
		return o
	}
	t := &corev1.Node{ObjectMeta: names(n.ObjectMeta), Spec: corev1.NodeSpec{PodCIDR: n.Spec.PodCIDR, PodCIDRs: n.Spec.PodCIDRs}}
	t.Labels = n.Labels
	if at, said := n.Annotations[apiserver.AnnotationEndpoint]; said {
		t.Annotations = map[string]string{apiserver.AnnotationEndpoint: at}
	}
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			t.Status.Addresses = append(t.Status.Addresses, a)
		}
	}
	return t
}

func trimNamespace(o runtime.Object) runtime.Object {
	n, ok := o.(*corev1.Namespace)
	if !ok {
		return o
	}
	t := &corev1.Namespace{ObjectMeta: names(n.ObjectMeta)}
	t.Labels = n.Labels
	return t
}

func trimService(o runtime.Object) runtime.Object {
	s, ok := o.(*corev1.Service)
	if !ok {
		return o
	}
	t := &corev1.Service{ObjectMeta: names(s.ObjectMeta), Spec: s.Spec}
	t.CreationTimestamp = s.CreationTimestamp // the older export of two decides
	t.Annotations = maps.Clone(s.Annotations)
	maps.DeleteFunc(t.Annotations, func(name, _ string) bool {
		return !strings.HasPrefix(name, apiserver.AnnotationPrefix) && !strings.HasPrefix(name, "service.cilium.io/")
	})
	if len(t.Annotations) == 0 {
		t.Annotations = nil
	}
	if imports := mcs.Imports(s); imports != "" {
		t.Labels = map[string]string{mcsv1beta1.LabelServiceName: imports}
	}
	t.Spec.Selector = nil // EndpointSlices are Kubernetes' work
	t.Status.LoadBalancer = s.Status.LoadBalancer
	return t
}

func trimSlice(o runtime.Object) runtime.Object {
	s, ok := o.(*discoveryv1.EndpointSlice)
	if !ok {
		return o
	}
	t := &discoveryv1.EndpointSlice{ObjectMeta: names(s.ObjectMeta), AddressType: s.AddressType, Ports: s.Ports, Endpoints: s.Endpoints}
	t.Labels = map[string]string{discoveryv1.LabelServiceName: s.Labels[discoveryv1.LabelServiceName]}
	return t
}

func trimPod(o runtime.Object) runtime.Object {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return o
	}
	t := &corev1.Pod{ObjectMeta: names(p.ObjectMeta), Spec: corev1.PodSpec{
		NodeName: p.Spec.NodeName, HostNetwork: p.Spec.HostNetwork, ServiceAccountName: p.Spec.ServiceAccountName,
		Containers: trimContainers(p.Spec.Containers), InitContainers: trimContainers(p.Spec.InitContainers),
	}}
	t.Labels, t.DeletionTimestamp = p.Labels, p.DeletionTimestamp
	// Addresses are registered by the node's agent; these tell which pods have
	// none there.
	t.Status.PodIPs = p.Status.PodIPs
	return t
}

// trimContainers keeps ports, and which containers are sidecars. Probes are the
// kubelet's work.
func trimContainers(list []corev1.Container) []corev1.Container {
	var kept []corev1.Container
	for _, c := range list {
		if len(c.Ports) > 0 {
			kept = append(kept, corev1.Container{Name: c.Name, Ports: c.Ports, RestartPolicy: c.RestartPolicy})
		}
	}
	return kept
}

func trimPolicy(o runtime.Object) runtime.Object {
	p, ok := o.(*networkingv1.NetworkPolicy)
	if !ok {
		return o
	}
	return &networkingv1.NetworkPolicy{ObjectMeta: names(p.ObjectMeta), Spec: p.Spec}
}

func trimExport(o runtime.Object) runtime.Object {
	e, ok := o.(*mcsv1beta1.ServiceExport)
	if !ok {
		return o
	}
	t := &mcsv1beta1.ServiceExport{ObjectMeta: names(e.ObjectMeta), Spec: e.Spec}
	t.CreationTimestamp, t.Generation = e.CreationTimestamp, e.Generation
	return t
}
