package mcs

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// settle decides again and again, as a writer does that carries everything out,
// until nothing changes.
func settle(t *testing.T, s State) (State, Wanted) {
	t.Helper()
	for range 5 {
		w := Decide(s)
		next := s
		if !w.Keep {
			next.Import, next.Derived = w.Import, w.Derived
			if next.Import != nil {
				next.Import.UID, next.Import.Status = "uid-1", *w.Status
				if s.Import != nil {
					for k, v := range ownSettings(s.Import) { // an apply leaves them
						next.Import.Annotations = map[string]string{k: v}
					}
				}
			}
			if next.Derived != nil {
				next.Derived.Spec.ClusterIP, next.Derived.Spec.ClusterIPs = "10.129.0.9", []string{"10.129.0.9"}
				next.Derived.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
			}
		}
		if reflect.DeepEqual(next, s) {
			return s, w
		}
		s = next
	}
	t.Fatal("does not settle")
	return s, Wanted{}
}

func state(exports ...Export) State { return State{Name: hello, Exports: exports, Namespace: true} }

// Importing services: a ServiceImport of type ClusterSetIP where there is an
// exporter, with the ports, session affinity, policies of the service, and an IP.
func TestImportOfTypeClusterSetIP(t *testing.T) {
	s, w := settle(t, state(export("a", 0, func(s *clustermesh.Service) {
		s.Export.AppProtocols, s.Export.TrafficDistribution = []string{"", "example.com/x"}, "PreferSameZone"
	})))
	spec := s.Import.Spec
	if spec.Type != v1beta1.ClusterSetIP || !slices.Equal(spec.IPs, []string{"10.129.0.9"}) || !slices.Equal(spec.IPFamilies, []corev1.IPFamily{corev1.IPv4Protocol}) {
		t.Errorf("%+v", spec)
	}
	x := "example.com/x"
	if want := []v1beta1.ServicePort{{Name: "tcp", Protocol: "TCP", Port: 42}, {Name: "udp", Protocol: "UDP", Port: 42, AppProtocol: &x}}; !reflect.DeepEqual(spec.Ports, want) {
		t.Errorf("ports %+v", spec.Ports)
	}
	if spec.SessionAffinity != corev1.ServiceAffinityClientIP || *spec.SessionAffinityConfig.ClientIP.TimeoutSeconds != 10 ||
		*spec.InternalTrafficPolicy != corev1.ServiceInternalTrafficPolicyCluster || *spec.TrafficDistribution != "PreferSameZone" {
		t.Errorf("%+v", spec)
	}
	if !reflect.DeepEqual(s.Import.Status.Clusters, []v1beta1.ClusterStatus{{Cluster: "a"}}) || s.Import.Status.EndpointSliceObjects != v1beta1.EndpointSliceObjectsPresent {
		t.Errorf("%+v", s.Import.Status)
	}
	if c := w.Status.Conditions[0]; c.Type != "Ready" || c.Status != metav1.ConditionTrue || c.Reason != "Ready" {
		t.Errorf("%+v", c)
	}
}

// ClusterSetIP: the derived Service gives the address: no selector, the same
// namespace, owned by the ServiceImport.
func TestDerivedService(t *testing.T) {
	s, _ := settle(t, state(export("a", 0, func(s *clustermesh.Service) { s.InternalLocal = true })))
	d := s.Derived
	if d.Namespace != "ns" || d.Name != DerivedName(hello) || len(d.Spec.Selector) != 0 || d.Spec.Type != corev1.ServiceTypeClusterIP || *d.Spec.InternalTrafficPolicy != corev1.ServiceInternalTrafficPolicyLocal {
		t.Errorf("%+v", d)
	}
	if len(d.OwnerReferences) != 1 || d.OwnerReferences[0].UID != "uid-1" || d.OwnerReferences[0].Kind != "ServiceImport" {
		t.Errorf("owner %+v", d.OwnerReferences)
	}
	if Imports(d) != "hello" {
		t.Error("it is not known as an import")
	}
	if Imports(service(func(s *corev1.Service) { s.Labels[v1beta1.LabelServiceName] = "x" })) != "" {
		t.Error("a Service with a selector is taken for an import")
	}
	if DerivedName(hello) == DerivedName(clustermesh.ServiceName{Namespace: "n", Name: "s-hello"}) || len(DerivedName(hello)) > 63 {
		t.Error(DerivedName(hello))
	}
}

// A Service must name each of several ports: the one without a name gets one that
// nobody else has, and is known by it again.
func TestDerivedServiceNamesAllPorts(t *testing.T) {
	one := clustermesh.Port{Protocol: clustermesh.TCP, Port: 80}
	s, _ := settle(t, state(export("a", 0, ports(one))))
	if p := s.Derived.Spec.Ports; len(p) != 1 || p[0].Name != "" {
		t.Errorf("one port: %+v", p)
	}
	s, _ = settle(t, state(export("a", 0, ports(one)), export("b", 1, ports(clustermesh.Port{Name: "unnamed", Protocol: clustermesh.TCP, Port: 81}))))
	p := s.Derived.Spec.Ports
	if len(p) != 2 || p[0].Name != "unnamed-1" || p[1].Name != "unnamed" {
		t.Fatalf("two ports: %+v", p)
	}
	if PortName(s.Derived, "unnamed-1") != "" || PortName(s.Derived, "unnamed") != "unnamed" {
		t.Error("the names are not told apart")
	}
	if s.Import.Spec.Ports[0].Name != "" {
		t.Errorf("the ServiceImport says %+v", s.Import.Spec.Ports)
	}
}

// Service types: headless services are imported as type Headless, without a
// clusterset IP and what goes with one.
func TestImportOfTypeHeadless(t *testing.T) {
	s, w := settle(t, state(export("a", 0, headless).with("10.1.1.5=web-0", "10.1.1.6", "10.1.1.7~", "10.1.1.8!")))
	spec := s.Import.Spec
	if spec.Type != v1beta1.Headless || len(spec.IPs) != 0 || w.Derived != nil || spec.SessionAffinity != "" || spec.InternalTrafficPolicy != nil {
		t.Errorf("%+v, derived %v", spec, w.Derived)
	}
	if w.Status.Conditions[0].Status != metav1.ConditionTrue {
		t.Errorf("%+v", w.Status.Conditions)
	}
	if len(w.Slices) != 1 || w.Slices[0].Labels[corev1.IsHeadlessService] != "" || len(w.Slices[0].Endpoints) != 4 {
		t.Fatalf("%+v", w.Slices)
	}
	ep := w.Slices[0].Endpoints
	if *ep[0].Hostname != "web-0" || ep[1].Hostname != nil || !*ep[0].Conditions.Ready || *ep[2].Conditions.Ready || *ep[3].Conditions.Ready || !*ep[3].Conditions.Terminating {
		t.Errorf("%+v", ep)
	}
}

// A type that changes with the exports takes the address away or gives one.
func TestTypeChangesWithTheOldestExport(t *testing.T) {
	s, _ := settle(t, state(export("a", 0, nil), export("b", 1, headless)))
	if s.Derived == nil {
		t.Fatal("no address")
	}
	s.Exports = s.Exports[1:]
	s, _ = settle(t, s)
	if s.Derived != nil || s.Import.Spec.Type != v1beta1.Headless || len(s.Import.Spec.IPs) != 0 {
		t.Errorf("%+v, derived %v", s.Import.Spec, s.Derived)
	}
}

// Importing services: imported only by clusters in which the namespace exists.
func TestNoNamespaceNoImport(t *testing.T) {
	s := state(export("a", 0, nil).with("10.1.1.5"))
	s.Namespace = false
	if w := Decide(s); w.Import != nil || w.Derived != nil || w.Slices != nil {
		t.Errorf("%+v", w)
	}
}

// Importing services: the ServiceImport lives as long as one cluster exports.
func TestImportLivesAsLongAsOneClusterExports(t *testing.T) {
	s, _ := settle(t, state(export("a", 0, nil), export("b", 1, nil)))
	address := s.Import.Spec.IPs
	s.Exports = s.Exports[1:]
	s, _ = settle(t, s)
	if s.Import == nil || !slices.Equal(s.Import.Spec.IPs, address) || !reflect.DeepEqual(s.Import.Status.Clusters, []v1beta1.ClusterStatus{{Cluster: "b"}}) {
		t.Fatalf("one is left: %+v", s.Import)
	}
	s.Exports = nil
	if w := Decide(s); w.Import != nil || w.Derived != nil || w.Slices != nil || w.Keep {
		t.Errorf("none is left: %+v", w)
	}
}

// Silence is not deletion: after a start, what stands here of clusters that are
// not heard of yet stays.
func TestClustersNotHeardOfKeepTheirPart(t *testing.T) {
	s, _ := settle(t, state(export("a", 0, nil), export("b", 1, nil).with("10.2.1.5")))
	for _, exports := range [][]Export{nil, {export("b", 1, nil).with("10.2.1.5")}} {
		s.Exports, s.Unknown = exports, []string{"a"}
		w := Decide(s)
		if !w.Keep || !slices.Equal(w.KeepSlices, []string{"a"}) {
			t.Errorf("%d exports: %+v", len(exports), w)
		}
		if len(w.Slices) != len(exports) {
			t.Errorf("slices of the cluster that is heard of: %+v", w.Slices)
		}
	}
	s.Unknown = []string{"c"} // which never was part of it
	if w := Decide(s); w.Keep {
		t.Error("kept for a cluster that has no part in it")
	}
}

// Using EndpointSlice objects: the labels, the owner, one source cluster each.
func TestEndpointSlices(t *testing.T) {
	_, w := settle(t, state(export("a", 0, nil).with("10.1.1.5").with("fd00:1::5"), export("b", 1, nil).with("10.2.1.5"), export("c", 2, nil).with()))
	seen := map[string]bool{}
	var got []string
	for _, s := range w.Slices {
		if s.Labels[v1beta1.LabelServiceName] != "hello" || s.Labels[discoveryv1.LabelManagedBy] != ManagedBy || s.Labels[discoveryv1.LabelServiceName] != "" {
			t.Errorf("labels %v", s.Labels)
		}
		if len(s.OwnerReferences) != 1 || s.OwnerReferences[0].UID != "uid-1" || s.OwnerReferences[0].Controller != nil || seen[s.Name] {
			t.Errorf("%s: owner %+v", s.Name, s.OwnerReferences)
		}
		seen[s.Name] = true
		got = append(got, fmt.Sprintf("%s %s %s %d %v", s.Labels[v1beta1.LabelSourceCluster], s.AddressType, *s.Ports[0].Name, *s.Ports[0].Port, s.Endpoints[0].Addresses))
	}
	if want := []string{"a IPv4 tcp 42 [10.1.1.5]", "a IPv6 tcp 42 [fd00:1::5]", "b IPv4 tcp 42 [10.2.1.5]"}; strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("%v", got)
	}
}

// Service port: what comes to a port goes to the clusters alone that expose it, so
// their slices have no other.
func TestEndpointSlicesOfConflictingPorts(t *testing.T) {
	tcp, other, more := clustermesh.Port{Name: "tcp", Protocol: clustermesh.TCP, Port: 42}, clustermesh.Port{Name: "tcp", Protocol: clustermesh.TCP, Port: 43}, clustermesh.Port{Name: "more", Protocol: clustermesh.TCP, Port: 44}
	for _, one := range []func(*clustermesh.Service){nil, headless} {
		_, w := settle(t, state(
			export("a", 0, func(s *clustermesh.Service) {
				if s.Ports = []clustermesh.Port{tcp}; one != nil {
					one(s)
				}
			}).with("10.1.1.5"),
			export("b", 1, ports(other, more)).with("10.2.1.5"),
			export("c", 2, ports(other)).with("10.3.1.5")))
		var got []string
		for _, s := range w.Slices {
			names := s.Labels[v1beta1.LabelSourceCluster]
			for _, p := range s.Ports {
				names += " " + *p.Name
			}
			got = append(got, names)
		}
		if text := strings.Join(got, "|"); text != "a tcp|b more|c" {
			t.Error(text)
		}
	}
}

// Labels and annotations: only those that the ServiceExport exports, and none of
// Tombolo's own, which are the client's cluster's to set.
func TestExportedLabelsAndAnnotations(t *testing.T) {
	s, _ := settle(t, state(export("a", 0, exported(func(e *clustermesh.Export) {
		e.Labels = []clustermesh.Label{{Key: "dummy-label", Value: "true"}}
		e.Annotations = []clustermesh.Label{{Key: "dummy-annotation", Value: "true"}, {Key: "tombolo.io/affinity", Value: "remote"}}
	}))))
	if !reflect.DeepEqual(s.Import.Labels, map[string]string{"dummy-label": "true"}) || !reflect.DeepEqual(s.Import.Annotations, map[string]string{"dummy-annotation": "true"}) {
		t.Errorf("%v, %v", s.Import.Labels, s.Import.Annotations)
	}
	if s.Derived.Annotations != nil {
		t.Errorf("settings of another cluster: %v", s.Derived.Annotations)
	}
}

// The client's cluster says how its clients use the service.
func TestSettingsOfTheImport(t *testing.T) {
	s, _ := settle(t, state(export("a", 0, nil)))
	s.Import.Annotations = map[string]string{"tombolo.io/affinity": "local", "other": "x"}
	w := Decide(s)
	if !reflect.DeepEqual(w.Derived.Annotations, map[string]string{"tombolo.io/affinity": "local"}) {
		t.Errorf("%v", w.Derived.Annotations)
	}
}

// The import is ready once it has its address.
func TestImportReady(t *testing.T) {
	families := apierrors.NewInvalid(schema.GroupKind{Kind: "Service"}, "x", field.ErrorList{field.Invalid(field.NewPath("spec", "ipFamilies").Index(0), "IPv6", "not configured on this cluster")})
	for _, test := range []struct {
		derived *corev1.Service
		err     error
		want    string
	}{
		{nil, nil, "False Pending"},
		{&corev1.Service{}, nil, "False Pending"},
		{nil, errors.New("quota"), "False Pending"},
		{nil, families, "False IPFamilyNotSupported"},
		{service(nil), nil, "True Ready"},
	} {
		s := state(export("a", 0, nil))
		s.Import, s.Derived, s.DerivedError = &v1beta1.ServiceImport{}, test.derived, test.err
		if c := Decide(s).Status.Conditions[0]; string(c.Status)+" "+c.Reason != test.want {
			t.Errorf("%v: %+v", test.err, c)
		}
	}
}

// Families of the derived Service: what of all clusters' common ones this has.
func TestDerivedFamilies(t *testing.T) {
	both := exported(func(e *clustermesh.Export) { e.IPv6 = true })
	six := exported(func(e *clustermesh.Export) { e.IPv4, e.IPv6 = false, true })
	for _, test := range []struct {
		exports []Export
		want    string
	}{
		{[]Export{export("a", 0, nil)}, "SingleStack [IPv4]"},
		{[]Export{export("a", 0, six)}, "SingleStack [IPv6]"},
		{[]Export{export("a", 0, both)}, "PreferDualStack []"},
		{[]Export{export("a", 0, both), export("b", 1, six)}, "SingleStack [IPv6]"},
	} {
		im, _ := Resolve(hello, test.exports)
		d := im.derivedService(&v1beta1.ServiceImport{})
		if got := fmt.Sprint(*d.Spec.IPFamilyPolicy, " ", d.Spec.IPFamilies); got != test.want {
			t.Errorf("%s, want %s", got, test.want)
		}
	}
}

// A Service's first family never changes: where the import's does its derived
// Service is made anew, and nowhere else.
func TestDerivedAnew(t *testing.T) {
	four, six := []corev1.IPFamily{corev1.IPv4Protocol}, []corev1.IPFamily{corev1.IPv6Protocol}
	both := exported(func(e *clustermesh.Export) { e.IPv6 = true })
	only6 := exported(func(e *clustermesh.Export) { e.IPv4, e.IPv6 = false, true })
	for _, test := range []struct {
		present []corev1.IPFamily
		export  Export
		want    bool
	}{
		{nil, export("a", 0, only6), false}, // not given yet
		{four, export("a", 0, nil), false},
		{four, export("a", 0, both), false},
		{append(four, six...), export("a", 0, nil), false}, // the second one goes
		{four, export("a", 0, only6), true},
		{append(four, six...), export("a", 0, only6), true},
		{six, export("a", 0, both), false},
		{append(six, four...), export("a", 0, nil), true},
	} {
		s := state(test.export)
		s.Import, s.Derived = &v1beta1.ServiceImport{}, &corev1.Service{Spec: corev1.ServiceSpec{IPFamilies: test.present}}
		if w := Decide(s); w.Anew != test.want {
			t.Errorf("%v, export %+v: %v", test.present, test.export.Service.Export, w.Anew)
		}
	}
}
