package mcs

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// MaxText bounds all exported labels and annotations of a service, keys and
// values together, in bytes: a record holds at most 64 KiB.
const MaxText = 32 << 10

// Record is what an export adds to its service's record. An error says why the
// service cannot be exported with it; the labels and annotations are the reason.
func Record(exp *v1beta1.ServiceExport, svc *corev1.Service) (*clustermesh.Export, error) {
	r := &clustermesh.Export{Created: clustermesh.OriginAt(exp.CreationTimestamp.Time)}
	r.IPv4, r.IPv6 = families(svc)
	for i, p := range svc.Spec.Ports {
		if p.AppProtocol == nil || *p.AppProtocol == "" {
			continue
		}
		if r.AppProtocols == nil {
			r.AppProtocols = make([]string, len(svc.Spec.Ports))
		}
		r.AppProtocols[i] = *p.AppProtocol
	}
	if svc.Spec.TrafficDistribution != nil {
		r.TrafficDistribution = *svc.Spec.TrafficDistribution
	}
	r.Labels, r.Annotations = labels(exp.Spec.ExportedLabels), labels(exp.Spec.ExportedAnnotations)
	if err := checkExport(r); err != nil {
		return nil, err
	}
	return r, nil
}

// Exportable: why a Service of this type cannot be exported, "" if it can.
func Exportable(svc *corev1.Service) string {
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return "a Service of type ExternalName is a name in DNS, it has no endpoints to export; create one in each cluster"
	}
	return ""
}

func labels(m map[string]string) []clustermesh.Label {
	var out []clustermesh.Label
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, clustermesh.Label{Key: k, Value: m[k]})
	}
	return out
}

// families are those a Service says, or those of its addresses; both if neither
// tells.
func families(svc *corev1.Service) (v4, v6 bool) {
	for _, f := range svc.Spec.IPFamilies {
		v4, v6 = v4 || f == corev1.IPv4Protocol, v6 || f == corev1.IPv6Protocol
	}
	for _, text := range append(svc.Spec.ClusterIPs, svc.Spec.ClusterIP) {
		if a, err := netip.ParseAddr(text); err == nil {
			v4, v6 = v4 || a.Unmap().Is4(), v6 || a.Unmap().Is6()
		}
	}
	if !v4 && !v6 {
		return true, true
	}
	return v4, v6
}

// checkExport reports what no ServiceImport could carry.
func checkExport(e *clustermesh.Export) error {
	size := 0
	for _, l := range e.Labels {
		size += len(l.Key) + len(l.Value)
		if bad := validation.IsQualifiedName(l.Key); len(bad) > 0 {
			return fmt.Errorf("spec.exportedLabels: %q is no key of a label: %s", l.Key, bad[0])
		}
		if bad := validation.IsValidLabelValue(l.Value); len(bad) > 0 {
			return fmt.Errorf("spec.exportedLabels[%q]: %q is no value of a label: %s", l.Key, l.Value, bad[0])
		}
	}
	for _, l := range e.Annotations {
		size += len(l.Key) + len(l.Value)
		if bad := validation.IsQualifiedName(strings.ToLower(l.Key)); len(bad) > 0 {
			return fmt.Errorf("spec.exportedAnnotations: %q is no key of an annotation: %s", l.Key, bad[0])
		}
	}
	if size > MaxText {
		return fmt.Errorf("exported labels and annotations have %d bytes; at most %d are allowed", size, MaxText)
	}
	return nil
}

// check reports what no API server would take as part of an import. What a peer
// says is not to be able to break an import that others export as well.
func check(e Export) error {
	if e.Service == nil || e.Service.Export == nil {
		return fmt.Errorf("no export")
	}
	if len(e.Service.Ports) == 0 && !e.Service.Headless {
		return fmt.Errorf("no port")
	}
	if !e.Service.Export.IPv4 && !e.Service.Export.IPv6 {
		return fmt.Errorf("no address family")
	}
	names, numbers := map[string]bool{}, map[portNumber]bool{}
	for i, p := range e.Service.Ports {
		if bad := validation.IsDNS1123Label(p.Name); p.Name != "" && len(bad) > 0 {
			return fmt.Errorf("port name %q: %s", p.Name, bad[0])
		}
		if names[p.Name] || numbers[portNumber{p.Protocol, p.Port}] {
			return fmt.Errorf("port %q is there twice", p.Name)
		}
		names[p.Name], numbers[portNumber{p.Protocol, p.Port}] = true, true
		if a := appProtocol(e.Service, i); a != "" && len(validation.IsQualifiedName(a)) > 0 {
			return fmt.Errorf("app protocol %q: %s", a, validation.IsQualifiedName(a)[0])
		}
	}
	switch e.Service.Export.TrafficDistribution {
	case "", corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferSameNode:
	default:
		return fmt.Errorf("traffic distribution %q", e.Service.Export.TrafficDistribution)
	}
	return checkExport(e.Service.Export)
}

func appProtocol(s *clustermesh.Service, port int) string {
	if port < len(s.Export.AppProtocols) {
		return s.Export.AppProtocols[port]
	}
	return ""
}
