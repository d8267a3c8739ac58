package mcs

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

const (
	// ManagedBy marks the EndpointSlices that are Tombolo's to write and delete.
	ManagedBy = "mcs.tombolo.io"
	// LabelManagedBy marks derived Services the same way.
	LabelManagedBy = "app.kubernetes.io/managed-by"
	// AnnotationUnnamedPort of a derived Service is the name that stands for the
	// port without one: a Service with several ports must name them all.
	AnnotationUnnamedPort = "tombolo.io/unnamed-port"
	// settings of an import are this cluster's own: annotations with this prefix on
	// its ServiceImport, whoever put them there. What other clusters export under
	// it is not shown.
	settings = "tombolo.io/"
)

// DerivedName is the name of the Service whose addresses are the import's.
func DerivedName(name clustermesh.ServiceName) string {
	return "derived-" + hash(name.Namespace, name.Name)[:16]
}

// Imports is the name of the service whose import svc stands for; "" if none.
// Whoever writes such a Service himself gets the exporters of his own namespace:
// where no controller runs, that is how an import is given its address.
func Imports(svc *corev1.Service) string {
	if len(svc.Spec.Selector) > 0 || svc.Spec.ClusterIP == corev1.ClusterIPNone {
		return ""
	}
	return svc.Labels[v1beta1.LabelServiceName]
}

// PortName is the name of an import's port by that of the derived Service.
func PortName(derived *corev1.Service, name string) string {
	if unnamed := derived.Annotations[AnnotationUnnamedPort]; unnamed != "" && unnamed == name {
		return ""
	}
	return name
}

func hash(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "/")))
	return hex.EncodeToString(sum[:])
}

// serviceImport is the wanted ServiceImport; derived is its Service as it is, nil
// if there is none yet.
func (im *Import) serviceImport(derived *corev1.Service) *v1beta1.ServiceImport {
	out := &v1beta1.ServiceImport{
		TypeMeta: metav1.TypeMeta{APIVersion: v1beta1.GroupVersion.String(), Kind: v1beta1.ServiceImportKindName},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: im.Name.Namespace, Name: im.Name.Name, Labels: shown(im.Labels), Annotations: shown(im.Annotations),
		},
		Spec: v1beta1.ServiceImportSpec{Type: importType(im.Headless), Ports: im.importPorts()},
	}
	if im.IPv4 {
		out.Spec.IPFamilies = append(out.Spec.IPFamilies, corev1.IPv4Protocol)
	}
	if im.IPv6 {
		out.Spec.IPFamilies = append(out.Spec.IPFamilies, corev1.IPv6Protocol)
	}
	if im.Headless {
		return out
	}
	policy := trafficPolicy(im.InternalLocal)
	out.Spec.InternalTrafficPolicy = &policy
	out.Spec.SessionAffinity, out.Spec.SessionAffinityConfig = sessionAffinity(im.SessionAffinity), affinityConfig(im.SessionAffinity)
	if im.TrafficDistribution != "" {
		out.Spec.TrafficDistribution = &im.TrafficDistribution
	}
	if derived != nil && derived.Spec.ClusterIP != "" && derived.Spec.ClusterIP != corev1.ClusterIPNone {
		out.Spec.IPs, out.Spec.IPFamilies = derived.Spec.ClusterIPs, derived.Spec.IPFamilies
	}
	return out
}

// shown are exported labels or annotations as the ServiceImport has them.
func shown(list []clustermesh.Label) map[string]string {
	var out map[string]string
	for _, l := range list {
		if strings.HasPrefix(l.Key, settings) {
			continue
		}
		if out == nil {
			out = map[string]string{}
		}
		out[l.Key] = l.Value
	}
	return out
}

func (im *Import) importPorts() []v1beta1.ServicePort {
	out := make([]v1beta1.ServicePort, 0, len(im.Ports)) // the list may be empty, not missing
	for _, p := range im.Ports {
		port := v1beta1.ServicePort{Name: p.Name, Protocol: corev1.Protocol(p.Protocol.String()), Port: int32(p.Port)}
		if p.AppProtocol != "" {
			port.AppProtocol = &p.AppProtocol
		}
		out = append(out, port)
	}
	return out
}

func affinityConfig(d time.Duration) *corev1.SessionAffinityConfig {
	if d <= 0 {
		return nil
	}
	seconds := int32(d / time.Second)
	return &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
}

// derivedService is the wanted Service whose addresses are the import's: it has
// no selector, and no endpoints as far as Kubernetes knows. owner is the
// ServiceImport as it is, whose settings it takes over.
func (im *Import) derivedService(owner *v1beta1.ServiceImport) *corev1.Service {
	policy := trafficPolicy(im.InternalLocal)
	out := &corev1.Service{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: im.Name.Namespace, Name: DerivedName(im.Name),
			Labels:          map[string]string{v1beta1.LabelServiceName: im.Name.Name, LabelManagedBy: ManagedBy},
			Annotations:     ownSettings(owner),
			OwnerReferences: owners(owner),
		},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, InternalTrafficPolicy: &policy,
			SessionAffinity: sessionAffinity(im.SessionAffinity), SessionAffinityConfig: affinityConfig(im.SessionAffinity),
		},
	}
	if im.TrafficDistribution != "" {
		out.Spec.TrafficDistribution = &im.TrafficDistribution
	}
	family := corev1.IPFamilyPolicySingleStack
	switch {
	case im.IPv4 && im.IPv6: // what of both the cluster has
		family = corev1.IPFamilyPolicyPreferDualStack
	case im.IPv6:
		out.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol}
	default:
		out.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
	}
	out.Spec.IPFamilyPolicy = &family
	unnamed := im.unnamed()
	for _, p := range im.Ports {
		port := corev1.ServicePort{Name: cmp.Or(p.Name, unnamed), Protocol: corev1.Protocol(p.Protocol.String()), Port: int32(p.Port)}
		if p.AppProtocol != "" {
			port.AppProtocol = &p.AppProtocol
		}
		out.Spec.Ports = append(out.Spec.Ports, port)
	}
	if unnamed != "" {
		if out.Annotations == nil {
			out.Annotations = map[string]string{}
		}
		out.Annotations[AnnotationUnnamedPort] = unnamed
	}
	return out
}

// unnamed is a name for the port without one, "" if it needs none.
func (im *Import) unnamed() string {
	has := func(name string) bool {
		return slices.ContainsFunc(im.Ports, func(p Port) bool { return p.Name == name })
	}
	if len(im.Ports) < 2 || !has("") {
		return ""
	}
	name := "unnamed"
	for i := 1; has(name); i++ {
		name = fmt.Sprintf("unnamed-%d", i)
	}
	return name
}

// ownSettings are the annotations of this cluster's ServiceImport that say how
// its clients use the service: affinity, failover, min-healthy.
func ownSettings(owner *v1beta1.ServiceImport) map[string]string {
	var out map[string]string
	for _, k := range slices.Sorted(maps.Keys(owner.Annotations)) {
		if !strings.HasPrefix(k, settings) || k == AnnotationUnnamedPort {
			continue
		}
		if out == nil {
			out = map[string]string{}
		}
		out[k] = owner.Annotations[k]
	}
	return out
}

func owners(owner *v1beta1.ServiceImport) []metav1.OwnerReference {
	return []metav1.OwnerReference{{
		APIVersion: v1beta1.GroupVersion.String(), Kind: v1beta1.ServiceImportKindName, Name: owner.Name, UID: types.UID(owner.UID),
	}}
}

// endpointSlices are the wanted slices of one exporting cluster.
func (im *Import) endpointSlices(owner *v1beta1.ServiceImport, e Export) []*discoveryv1.EndpointSlice {
	var out []*discoveryv1.EndpointSlice
	for _, s := range e.Slices {
		if len(s.Endpoints) == 0 {
			continue // an address type cannot be told, and nothing is lost
		}
		slice := &discoveryv1.EndpointSlice{
			TypeMeta: metav1.TypeMeta{APIVersion: discoveryv1.SchemeGroupVersion.String(), Kind: "EndpointSlice"},
			ObjectMeta: metav1.ObjectMeta{
				Namespace: im.Name.Namespace, Name: sliceName(im.Name.Name, e.Cluster, s.Name.Slice), OwnerReferences: owners(owner),
				Labels: map[string]string{
					v1beta1.LabelServiceName: im.Name.Name, v1beta1.LabelSourceCluster: e.Cluster, discoveryv1.LabelManagedBy: ManagedBy,
				},
			},
			AddressType: discoveryv1.AddressTypeIPv4,
		}
		if s.Endpoints[0].Address.Is6() {
			slice.AddressType = discoveryv1.AddressTypeIPv6
		}
		if im.Headless {
			slice.Labels[corev1.IsHeadlessService] = ""
		}
		for _, p := range s.Ports {
			if im.leads(e, p) {
				slice.Ports = append(slice.Ports, slicePort(e.Service, p))
			}
		}
		for _, ep := range s.Endpoints {
			slice.Endpoints = append(slice.Endpoints, sliceEndpoint(e.Service, ep))
		}
		out = append(out, slice)
	}
	return out
}

// leads: does a port of the import lead to that port of the export's endpoints? It
// does not where the cluster exposes another number under the same name.
func (im *Import) leads(e Export, p clustermesh.Port) bool {
	return slices.ContainsFunc(im.Ports, func(q Port) bool {
		return q.Name == p.Name && q.Protocol == p.Protocol && e.Service.Exposes(q.Name, q.Protocol, q.Port)
	})
}

func sliceName(service, cluster, slice string) string {
	return service + "-" + cluster + "-" + hash(cluster, slice)[:10]
}

func slicePort(svc *clustermesh.Service, p clustermesh.Port) discoveryv1.EndpointPort {
	name, protocol, number := p.Name, corev1.Protocol(p.Protocol.String()), int32(p.Port)
	out := discoveryv1.EndpointPort{Name: &name, Protocol: &protocol, Port: &number}
	for i, q := range svc.Ports {
		if a := appProtocol(svc, i); a != "" && q.Name == p.Name && q.Protocol == p.Protocol {
			out.AppProtocol = &a
		}
	}
	return out
}

func sliceEndpoint(svc *clustermesh.Service, e clustermesh.Endpoint) discoveryv1.Endpoint {
	ready, serving, terminating := Ready(svc, e), e.Serving, e.Terminating
	out := discoveryv1.Endpoint{
		Addresses:  []string{e.Address.String()},
		Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating},
	}
	if name := e.Hostname.String(); name != "" {
		out.Hostname = &name
	}
	if e.Zone != "" {
		zone := e.Zone
		out.Zone = &zone
	}
	return out
}

// Ready: does clients' DNS name the endpoint?
func Ready(svc *clustermesh.Service, e clustermesh.Endpoint) bool {
	return e.Ready || svc.PublishNotReady && !e.Terminating
}
