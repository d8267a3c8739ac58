package apiserver

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// TestValidateService: each case spoils a Service that is right in one way.
func TestValidateService(t *testing.T) {
	port := func(change func(*corev1.ServicePort)) func(*corev1.Service) {
		return func(s *corev1.Service) { change(&s.Spec.Ports[0]) }
	}
	status := func(in corev1.LoadBalancerIngress) func(*corev1.Service) {
		return func(s *corev1.Service) { s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{in} }
	}
	external := func(addrs ...string) func(*corev1.Service) {
		return func(s *corev1.Service) { s.Spec.ExternalIPs = addrs }
	}
	typed := func(kind corev1.ServiceType, more func(*corev1.Service)) func(*corev1.Service) {
		return func(s *corev1.Service) {
			*s = corev1.Service{Spec: corev1.ServiceSpec{Type: kind, ClusterIP: "172.20.0.1", Ports: []corev1.ServicePort{{Port: 80}}}}
			more(s)
		}
	}
	nothing := func(*corev1.Service) {}
	tests := []struct {
		change func(*corev1.Service)
		want   string // "" = right
	}{
		{nothing, ""},
		{port(func(p *corev1.ServicePort) { p.Port = 0 }), "spec.ports[0]: port 0"},
		{port(func(p *corev1.ServicePort) { p.NodePort = 70000 }), "spec.ports[0]: nodePort 70000"},
		{port(func(p *corev1.ServicePort) { p.Protocol = "ICMP" }), `spec.ports[0]: protocol "ICMP" is not one of`},
		{port(func(p *corev1.ServicePort) { p.Name = "A b" }), `spec.ports[0]: the name "A b" is not valid`},
		{port(func(p *corev1.ServicePort) { p.TargetPort = intstr.FromInt32(-1) }), "spec.ports[0]: targetPort -1"},
		{port(func(p *corev1.ServicePort) { p.TargetPort = intstr.FromString("-") }), `spec.ports[0]: targetPort "-" is neither`},
		{port(func(p *corev1.ServicePort) { p.TargetPort = intstr.FromString("http") }), ""},
		{func(s *corev1.Service) { s.Spec.Ports[1].Name = "a" }, `spec.ports[1]: the name "a" is used twice`},
		{func(s *corev1.Service) { s.Spec.Ports[1].Name = "" }, "spec.ports[1]: has no name"},
		{func(s *corev1.Service) { s.Spec.Ports[1].Port = 80 }, "spec.ports[1]: port 80 is given twice"},
		{func(s *corev1.Service) { s.Spec.Ports[1].NodePort = 30080 }, "spec.ports[1]: nodePort 30080 is given twice"},
		{func(s *corev1.Service) {
			s.Spec.Ports[1].Port, s.Spec.Ports[1].NodePort, s.Spec.Ports[1].Protocol = 80, 30080, corev1.ProtocolUDP
		}, ""},
		{func(s *corev1.Service) { s.Spec.Ports = nil }, "spec.ports: there is none"},
		{func(s *corev1.Service) { s.Spec.Type = "Cluster" }, `spec.type: "Cluster" is not one of`},
		{func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "None", []string{"None"} }, "spec.clusterIP: None goes with type ClusterIP alone"},
		{typed("", func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.Ports = "None", nil }), ""},
		{typed(corev1.ServiceTypeNodePort, func(s *corev1.Service) { s.Spec.ClusterIP = "None" }), "spec.clusterIP: None"},
		{typed(corev1.ServiceTypeClusterIP, func(s *corev1.Service) { s.Spec.Ports[0].NodePort = 30080 }), "spec.ports[0].nodePort: 30080, but the type is ClusterIP"},
		{func(s *corev1.Service) { s.Spec.ClusterIPs = []string{"172.20.0.1", "x"} }, `spec.clusterIPs: "x" is no address`},
		{func(s *corev1.Service) { s.Spec.ClusterIPs = []string{"172.20.0.1", "172.20.0.2"} }, "spec.clusterIPs: two addresses of one family"},
		{func(s *corev1.Service) { s.Spec.IPFamilies = []corev1.IPFamily{"IPv5"} }, `spec.ipFamilies[0]: "IPv5" is not one of`},
		{func(s *corev1.Service) { s.Spec.SessionAffinity = "Cookie" }, `spec.sessionAffinity: "Cookie"`},
		{func(s *corev1.Service) { s.Spec.SessionAffinity = corev1.ServiceAffinityNone }, "spec.sessionAffinityConfig: goes with"},
		{func(s *corev1.Service) { s.Spec.SessionAffinityConfig.ClientIP.TimeoutSeconds = new(int32(86401)) }, "spec.sessionAffinityConfig: 86401 seconds"},
		{external("198.51.100.7", "2001:db8::7"), ""},
		{external("198.51.100.7", "nowhere"), `spec.externalIPs[1]: "nowhere" is no address`},
		{external("fe80::1%eth0"), `spec.externalIPs[0]: "fe80::1%eth0" is no address`},
		{external("0.0.0.0"), "spec.externalIPs[0]: 0.0.0.0 is the unspecified address"},
		{external("::1"), "spec.externalIPs[0]: ::1 is a loopback address"},
		{external("::ffff:127.0.0.1"), "spec.externalIPs[0]: 127.0.0.1 is a loopback address"},
		{external("169.254.169.254"), "spec.externalIPs[0]: 169.254.169.254 is a link-local address"},
		{external("224.0.0.1"), "spec.externalIPs[0]: 224.0.0.1 is a link-local address"},
		{status(corev1.LoadBalancerIngress{IP: "127.0.0.1"}), "status.loadBalancer.ingress[0].ip: 127.0.0.1 is a loopback"},
		{status(corev1.LoadBalancerIngress{IP: "203.0.113.9", IPMode: new(corev1.LoadBalancerIPMode("Tunnel"))}), `status.loadBalancer.ingress[0].ipMode: "Tunnel"`},
		{status(corev1.LoadBalancerIngress{Hostname: "lb.example"}), ""},
		{typed(corev1.ServiceTypeNodePort, status(corev1.LoadBalancerIngress{IP: "203.0.113.9"})), "status.loadBalancer.ingress: goes with type LoadBalancer alone"},
		{func(s *corev1.Service) { s.Spec.LoadBalancerSourceRanges = []string{"192.0.2.0/33"} }, "spec.loadBalancerSourceRanges[0]: \"192.0.2.0/33\" is no prefix"},
		{typed(corev1.ServiceTypeNodePort, func(s *corev1.Service) { s.Spec.LoadBalancerSourceRanges = []string{"192.0.2.0/24"} }), "spec.loadBalancerSourceRanges: goes with type LoadBalancer alone"},
		{func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = "local" }, `spec.externalTrafficPolicy: "local" is not one of`},
		{typed("", func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal }), "spec.externalTrafficPolicy: goes with type NodePort"},
		{typed("", func(s *corev1.Service) {
			s.Spec.ExternalTrafficPolicy, s.Spec.ExternalIPs = corev1.ServiceExternalTrafficPolicyLocal, []string{"198.51.100.7"}
		}), ""},
		{func(s *corev1.Service) {
			s.Spec.InternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicy("Zone"))
		}, `spec.internalTrafficPolicy: "Zone"`},
		{func(s *corev1.Service) { s.Spec.TrafficDistribution = new("Anywhere") }, `spec.trafficDistribution: "Anywhere"`},
		{func(s *corev1.Service) { s.Spec.TrafficDistribution = new("PreferSameZone") }, ""},
		{func(s *corev1.Service) { s.Spec.HealthCheckNodePort = 65536 }, "spec.healthCheckNodePort: 65536 is not"},
		{func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster }, "spec.healthCheckNodePort: goes with"},
	}
	for _, test := range tests {
		svc := &corev1.Service{Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, ClusterIP: "172.20.0.1", ClusterIPs: []string{"172.20.0.1", "fd01::1"},
			Ports:                    []corev1.ServicePort{{Name: "a", Port: 80, NodePort: 30080}, {Name: "b", Port: 81, NodePort: 30081}},
			SessionAffinity:          corev1.ServiceAffinityClientIP,
			SessionAffinityConfig:    &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: new(int32(60))}},
			ExternalTrafficPolicy:    corev1.ServiceExternalTrafficPolicyLocal,
			LoadBalancerSourceRanges: []string{"192.0.2.0/24"},
			HealthCheckNodePort:      32000,
		}}
		svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.9", IPMode: new(corev1.LoadBalancerIPModeVIP)}}
		test.change(svc)
		err := validateService(svc)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.HasPrefix(err.Error(), test.want)) {
			t.Errorf("%v; want %q", err, test.want)
		}
	}
}
