package mcs

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// reasonPattern is what the API server takes as a reason.
var reasonPattern = regexp.MustCompile(`^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$`)

// TestConditions: Valid, Ready and Conflict with the standard's reasons.
func TestConditions(t *testing.T) {
	published := export("a", 0, nil).Service
	agreed, _ := Resolve(hello, []Export{export("a", 0, nil)})
	disputed, _ := Resolve(hello, []Export{export("a", 0, nil), export("b", 1, func(s *clustermesh.Service) { headless(s); s.Ports[0].Port = 7 })})
	tests := []struct {
		name                   string
		state                  ExportState
		valid, ready, conflict string
	}{
		{"no Service", ExportState{}, "False NoService", "False Failed", ""},
		{"ExternalName", ExportState{Service: service(func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeExternalName })}, "False InvalidServiceType", "False Failed", ""},
		{"NodePort", ExportState{Service: service(func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort })}, "True Valid", "False Pending", ""},
		{"LoadBalancer", ExportState{Service: service(func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeLoadBalancer })}, "True Valid", "False Pending", ""},
		{"headless", ExportState{Service: service(func(s *corev1.Service) { s.Spec.ClusterIP = "None" })}, "True Valid", "False Pending", ""},
		{"not published yet", ExportState{Service: service(nil)}, "True Valid", "False Pending", ""},
		{"published for itself alone", ExportState{Service: service(nil), Published: &clustermesh.Service{}}, "True Valid", "False Pending", ""},
		{"published", ExportState{Service: service(nil), Published: published, Import: &agreed}, "True Valid", "True Exported", "False NoConflicts"},
		{"published, others not known", ExportState{Service: service(nil), Published: published}, "True Valid", "True Exported", ""},
		{"disputed", ExportState{Service: service(nil), Published: published, Import: &disputed}, "True Valid", "True Exported", "True PortConflict,TypeConflict"},
		{"labels changed", ExportState{Service: service(nil), Published: published, Import: &agreed,
			Export: serviceExport(func(e *v1beta1.ServiceExport) { e.Spec.ExportedLabels = map[string]string{"a": "b"} })}, "True Valid", "False Pending", "False NoConflicts"},
		{"labels refused", ExportState{Service: service(nil), Published: published, Import: &agreed,
			Export: serviceExport(func(e *v1beta1.ServiceExport) { e.Spec.ExportedLabels = map[string]string{"a": "not valid!"} })}, "True Valid", "False Failed", "False NoConflicts"},
	}
	for _, test := range tests {
		s := test.state
		if s.Export == nil {
			s.Export = serviceExport(nil)
		}
		got := Conditions(s)
		for kind, want := range map[v1beta1.ServiceExportConditionType]string{
			v1beta1.ServiceExportConditionValid: test.valid, v1beta1.ServiceExportConditionReady: test.ready, v1beta1.ServiceExportConditionConflict: test.conflict,
		} {
			if find(got, kind) != want {
				t.Errorf("%s: %s is %q, want %q", test.name, kind, find(got, kind), want)
			}
		}
		for _, c := range got {
			if c.ObservedGeneration != 3 || !strings.HasSuffix(c.Message, ".") || !reasonPattern.MatchString(c.Reason) {
				t.Errorf("%s: %+v", test.name, c)
			}
		}
	}
}

// TestRecord: what a Service and its ServiceExport say to other clusters.
func TestRecord(t *testing.T) {
	h2c, prefer := "kubernetes.io/h2c", "PreferClose"
	e, err := Record(
		serviceExport(func(e *v1beta1.ServiceExport) {
			e.Labels, e.Annotations = map[string]string{"own": "x"}, map[string]string{"own": "x"}
			e.Spec.ExportedLabels = map[string]string{"b": "2", "a": "1"}
		}),
		service(func(s *corev1.Service) {
			s.Spec.Ports[1].AppProtocol, s.Spec.TrafficDistribution = &h2c, &prefer
			s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
		}))
	if err != nil || e.Created.Time().Unix() != 1000 || !e.IPv4 || !e.IPv6 || len(e.AppProtocols) != 2 || e.AppProtocols[1] != h2c || e.TrafficDistribution != prefer ||
		labelsText(e.Labels) != "a=1,b=2" || e.Annotations != nil {
		t.Errorf("%+v, %v", e, err)
	}
	if e, _ := Record(serviceExport(nil), service(nil)); !e.IPv4 || e.IPv6 || e.AppProtocols != nil {
		t.Errorf("families by the address: %+v", e)
	}
	if refusedFamily(errors.New("x")) {
		t.Error("any error is one of families")
	}
}
