package apiserver

import (
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
)

// validateService reports the first thing in a Service that cannot be right and
// that a kube-apiserver would refuse. What a kube-apiserver fills in may be
// missing: a manifest is what people write.
func validateService(svc *corev1.Service) error {
	for _, check := range []func(*corev1.Service) error{
		checkType, checkPorts, checkAddresses, checkSessionAffinity, checkExternal, checkSourceRanges, checkTrafficPolicies,
	} {
		if err := check(svc); err != nil {
			return err
		}
	}
	return nil
}

func checkType(svc *corev1.Service) error {
	headless := svc.Spec.ClusterIP == corev1.ClusterIPNone
	switch t := svc.Spec.Type; t {
	case corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer:
		if headless {
			return fmt.Errorf("spec.clusterIP: None goes with type ClusterIP alone; the type is %s", t)
		}
	case "", corev1.ServiceTypeClusterIP:
		for i, p := range svc.Spec.Ports {
			if p.NodePort != 0 {
				return fmt.Errorf("spec.ports[%d].nodePort: %d, but the type is ClusterIP; only NodePort and LoadBalancer have node ports", i, p.NodePort)
			}
		}
	case corev1.ServiceTypeExternalName:
		return nil
	default:
		return fmt.Errorf("spec.type: %q is not one of ClusterIP, NodePort, LoadBalancer, ExternalName", t)
	}
	if len(svc.Spec.Ports) == 0 && !headless {
		return fmt.Errorf("spec.ports: there is none; only a headless Service may do without")
	}
	return nil
}

func checkPorts(svc *corev1.Service) error {
	names := make(map[string]bool)
	numbers := make(map[string]bool)
	for i, p := range svc.Spec.Ports {
		at := fmt.Sprintf("spec.ports[%d]", i)
		proto, err := protocolOf(p.Protocol)
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", at, err)
		case p.Port < 1 || p.Port > 65535:
			return fmt.Errorf("%s: port %d is not between 1 and 65535", at, p.Port)
		case p.NodePort < 0 || p.NodePort > 65535:
			return fmt.Errorf("%s: nodePort %d is not between 1 and 65535", at, p.NodePort)
		case p.TargetPort.Type == intstr.Int && (p.TargetPort.IntVal < 0 || p.TargetPort.IntVal > 65535):
			return fmt.Errorf("%s: targetPort %d is not between 1 and 65535", at, p.TargetPort.IntVal)
		case p.TargetPort.Type == intstr.String && len(validation.IsValidPortName(p.TargetPort.StrVal)) > 0:
			return fmt.Errorf("%s: targetPort %q is neither a number nor the name of a port: %s", at, p.TargetPort.StrVal, validation.IsValidPortName(p.TargetPort.StrVal)[0])
		case p.Name == "" && len(svc.Spec.Ports) > 1:
			return fmt.Errorf("%s: has no name; each of several ports needs one", at)
		case p.Name != "" && len(validation.IsDNS1123Label(p.Name)) > 0:
			return fmt.Errorf("%s: the name %q is not valid: %s", at, p.Name, validation.IsDNS1123Label(p.Name)[0])
		case names[p.Name]:
			return fmt.Errorf("%s: the name %q is used twice", at, p.Name)
		}
		names[p.Name] = true
		number, node := fmt.Sprintf("%d/%d", p.Port, proto), fmt.Sprintf("node %d/%d", p.NodePort, proto)
		switch {
		case numbers[number]:
			return fmt.Errorf("%s: port %d is given twice for one protocol", at, p.Port)
		case p.NodePort != 0 && numbers[node]:
			return fmt.Errorf("%s: nodePort %d is given twice for one protocol", at, p.NodePort)
		}
		numbers[number], numbers[node] = true, true
	}
	return nil
}

// checkAddresses: at most one cluster IP of each family.
func checkAddresses(svc *corev1.Service) error {
	var v4, v6 int
	for _, text := range clusterIPs(svc) {
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" {
			return fmt.Errorf("spec.clusterIPs: %q is no address", text)
		}
		if a.Unmap().Is4() {
			v4++
		} else {
			v6++
		}
	}
	if v4 > 1 || v6 > 1 {
		return fmt.Errorf("spec.clusterIPs: two addresses of one family; there is at most one IPv4 and one IPv6 address")
	}
	for i, f := range svc.Spec.IPFamilies {
		if f != corev1.IPv4Protocol && f != corev1.IPv6Protocol {
			return fmt.Errorf("spec.ipFamilies[%d]: %q is not one of IPv4, IPv6", i, f)
		}
	}
	return nil
}

func checkSessionAffinity(svc *corev1.Service) error {
	c := svc.Spec.SessionAffinityConfig
	if c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		if n := *c.ClientIP.TimeoutSeconds; n < 1 || n > 86400 {
			return fmt.Errorf("spec.sessionAffinityConfig: %d seconds is not between 1 and 86400", n)
		}
	}
	switch svc.Spec.SessionAffinity {
	case corev1.ServiceAffinityClientIP:
	case "", corev1.ServiceAffinityNone:
		if c != nil {
			return fmt.Errorf("spec.sessionAffinityConfig: goes with sessionAffinity ClientIP alone")
		}
	default:
		return fmt.Errorf("spec.sessionAffinity: %q is not one of None, ClientIP", svc.Spec.SessionAffinity)
	}
	return nil
}

// checkExternal looks at the addresses for clients outside, those of the status
// included: a manifest may carry one, and what it says is answered for.
func checkExternal(svc *corev1.Service) error {
	for i, text := range svc.Spec.ExternalIPs {
		if err := checkExternalAddress(text); err != nil {
			return fmt.Errorf("spec.externalIPs[%d]: %w", i, err)
		}
	}
	ingress := svc.Status.LoadBalancer.Ingress
	if len(ingress) > 0 && svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return fmt.Errorf("status.loadBalancer.ingress: goes with type LoadBalancer alone")
	}
	for i, in := range ingress {
		at := fmt.Sprintf("status.loadBalancer.ingress[%d]", i)
		if in.IP != "" {
			if err := checkExternalAddress(in.IP); err != nil {
				return fmt.Errorf("%s.ip: %w", at, err)
			}
		}
		if m := in.IPMode; m != nil && *m != corev1.LoadBalancerIPModeVIP && *m != corev1.LoadBalancerIPModeProxy {
			return fmt.Errorf("%s.ipMode: %q is not one of VIP, Proxy", at, *m)
		}
	}
	return nil
}

// checkExternalAddress refuses what would take over traffic that is nobody's
// service: a node's own loopback and link.
func checkExternalAddress(text string) error {
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return fmt.Errorf("%q is no address", text)
	}
	switch a = a.Unmap(); {
	case a.IsUnspecified():
		return fmt.Errorf("%s is the unspecified address", a)
	case a.IsLoopback():
		return fmt.Errorf("%s is a loopback address", a)
	case a.IsLinkLocalUnicast(), a.IsLinkLocalMulticast():
		return fmt.Errorf("%s is a link-local address", a)
	}
	return nil
}

func checkSourceRanges(svc *corev1.Service) error {
	if len(svc.Spec.LoadBalancerSourceRanges) > 0 && svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return fmt.Errorf("spec.loadBalancerSourceRanges: goes with type LoadBalancer alone")
	}
	for i, text := range svc.Spec.LoadBalancerSourceRanges {
		p, err := netip.ParsePrefix(strings.TrimSpace(text)) // spaces around it are part of the API, by accident
		if err != nil || p.Addr().Is4In6() {
			return fmt.Errorf("spec.loadBalancerSourceRanges[%d]: %q is no prefix such as 192.0.2.0/24", i, text)
		}
	}
	return nil
}

func checkTrafficPolicies(svc *corev1.Service) error {
	outside := svc.Spec.Type == corev1.ServiceTypeNodePort || svc.Spec.Type == corev1.ServiceTypeLoadBalancer || len(svc.Spec.ExternalIPs) > 0
	external := svc.Spec.ExternalTrafficPolicy
	local := external == corev1.ServiceExternalTrafficPolicyLocal
	switch {
	case external != "" && !local && external != corev1.ServiceExternalTrafficPolicyCluster:
		return fmt.Errorf("spec.externalTrafficPolicy: %q is not one of Cluster, Local", external)
	case external != "" && !outside:
		return fmt.Errorf("spec.externalTrafficPolicy: goes with type NodePort or LoadBalancer, or with externalIPs")
	}
	if p := svc.Spec.InternalTrafficPolicy; p != nil && *p != corev1.ServiceInternalTrafficPolicyCluster && *p != corev1.ServiceInternalTrafficPolicyLocal {
		return fmt.Errorf("spec.internalTrafficPolicy: %q is not one of Cluster, Local", *p)
	}
	if d := svc.Spec.TrafficDistribution; d != nil {
		switch *d {
		case corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferSameNode:
		default:
			return fmt.Errorf("spec.trafficDistribution: %q is not one of PreferSameZone, PreferSameNode, PreferClose", *d)
		}
	}
	switch n := svc.Spec.HealthCheckNodePort; {
	case n < 0 || n > 65535:
		return fmt.Errorf("spec.healthCheckNodePort: %d is not between 1 and 65535", n)
	case n != 0 && (svc.Spec.Type != corev1.ServiceTypeLoadBalancer || !local):
		return fmt.Errorf("spec.healthCheckNodePort: goes with type LoadBalancer and externalTrafficPolicy Local alone")
	}
	return nil
}
