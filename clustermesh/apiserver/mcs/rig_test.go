package mcs

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// hello is the service of the standard's own tests.
var hello = clustermesh.ServiceName{Namespace: "ns", Name: "hello"}

// export is cluster's export of hello, made so many seconds after all began.
func export(cluster string, second int, change func(*clustermesh.Service)) Export {
	s := &clustermesh.Service{
		Name:            hello,
		Ports:           []clustermesh.Port{{Name: "tcp", Protocol: clustermesh.TCP, Port: 42}, {Name: "udp", Protocol: clustermesh.UDP, Port: 42}},
		SessionAffinity: 10 * time.Second,
		Export:          &clustermesh.Export{Created: clustermesh.OriginAt(time.Unix(int64(1000+second), 0)), IPv4: true},
	}
	if change != nil {
		change(s)
	}
	return Export{Cluster: cluster, Service: s}
}

// with gives the export endpoints in one slice.
func (e Export) with(addrs ...string) Export {
	s := &clustermesh.EndpointSlice{Name: clustermesh.SliceName{Service: hello, Slice: fmt.Sprintf("hello-x%d", len(e.Slices))}, Ports: e.Service.Ports}
	for _, text := range addrs {
		text, name, _ := strings.Cut(text, "=")
		text, ending := strings.CutSuffix(text, "!")
		text, unready := strings.CutSuffix(text, "~")
		s.Endpoints = append(s.Endpoints, clustermesh.Endpoint{
			Address: netip.MustParseAddr(text), Ready: !ending && !unready, Serving: !unready, Terminating: ending, Hostname: clustermesh.MakeHostname(name),
		})
	}
	e.Slices = append(slices.Clone(e.Slices), s)
	return e
}

func ports(list ...clustermesh.Port) func(*clustermesh.Service) {
	return func(s *clustermesh.Service) { s.Ports = list }
}

func headless(s *clustermesh.Service) { s.Headless, s.SessionAffinity = true, 0 }

func exported(change func(*clustermesh.Export)) func(*clustermesh.Service) {
	return func(s *clustermesh.Service) { change(s.Export) }
}

// reasons are the conflicts of an import, by their reasons.
func (im Import) reasons() string {
	var out []string
	for _, c := range im.Conflicts {
		out = append(out, string(c.Reason))
	}
	return strings.Join(out, ",")
}

func find(conditions []metav1.Condition, kind v1beta1.ServiceExportConditionType) string {
	for _, c := range conditions {
		if c.Type == string(kind) {
			return string(c.Status) + " " + c.Reason
		}
	}
	return ""
}

// service is hello in Kubernetes.
func service(change func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "hello", Labels: map[string]string{"app": "hello"}},
		Spec: corev1.ServiceSpec{
			ClusterIP: "10.129.0.7", ClusterIPs: []string{"10.129.0.7"}, Selector: map[string]string{"app": "hello"},
			Ports: []corev1.ServicePort{{Name: "tcp", Protocol: corev1.ProtocolTCP, Port: 42}, {Name: "udp", Protocol: corev1.ProtocolUDP, Port: 42}},
		},
	}
	if change != nil {
		change(s)
	}
	return s
}

func serviceExport(change func(*v1beta1.ServiceExport)) *v1beta1.ServiceExport {
	e := &v1beta1.ServiceExport{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "hello", Generation: 3, CreationTimestamp: metav1.Unix(1000, 0)}}
	if change != nil {
		change(e)
	}
	return e
}
