package apiserver

import (
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// serviceRecord is a valid Service as a record, without what annotations say.
func serviceRecord(name objectName, svc *corev1.Service) *clustermesh.Service {
	r := &clustermesh.Service{
		Name:            clustermesh.ServiceName(name),
		Headless:        svc.Spec.ClusterIP == corev1.ClusterIPNone,
		PublishNotReady: svc.Spec.PublishNotReadyAddresses,
		ExternalLocal:   svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal,
		InternalLocal:   svc.Spec.InternalTrafficPolicy != nil && *svc.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal,
		Distribution:    distribution(svc),
		HealthCheckPort: uint16(svc.Spec.HealthCheckNodePort),
	}
	for _, p := range svc.Spec.Ports {
		proto, _ := protocolOf(p.Protocol)
		r.Ports = append(r.Ports, clustermesh.Port{Name: p.Name, Protocol: proto, Port: uint16(p.Port), NodePort: uint16(p.NodePort)})
	}
	for _, text := range clusterIPs(svc) {
		if a, err := netip.ParseAddr(text); err == nil {
			r.Frontends = append(r.Frontends, a.Unmap())
		}
	}
	if !r.Headless { // a headless Service has no frontend of any kind
		r.Outside = outside(svc)
	}
	if svc.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		r.SessionAffinity = 3 * time.Hour // what Kubernetes sets if nothing is said
		if c := svc.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
			r.SessionAffinity = time.Duration(*c.ClientIP.TimeoutSeconds) * time.Second
		}
	}
	return r
}

// outside are the addresses for clients outside, nil if there are none. A load
// balancer in mode Proxy sends to the nodes by itself: its address is not theirs
// to answer for.
func outside(svc *corev1.Service) *clustermesh.Outside {
	var o clustermesh.Outside
	add := func(text string, kind clustermesh.ExternalKind) {
		if a, err := netip.ParseAddr(text); err == nil {
			o.Addresses = append(o.Addresses, clustermesh.External{Address: a.Unmap(), Kind: kind})
		}
	}
	for _, text := range svc.Spec.ExternalIPs {
		add(text, clustermesh.ExternalIP)
	}
	if svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
		for _, in := range svc.Status.LoadBalancer.Ingress {
			if in.IPMode == nil || *in.IPMode == corev1.LoadBalancerIPModeVIP {
				add(in.IP, clustermesh.ExternalLoadBalancer)
			}
		}
		for _, text := range svc.Spec.LoadBalancerSourceRanges {
			if p, err := netip.ParsePrefix(strings.TrimSpace(text)); err == nil {
				o.SourceRanges = append(o.SourceRanges, p.Masked())
			}
		}
	}
	if len(o.Addresses)+len(o.SourceRanges) == 0 {
		return nil
	}
	return &o
}

func distribution(svc *corev1.Service) clustermesh.Distribution {
	if d := svc.Spec.TrafficDistribution; d != nil {
		switch *d {
		case corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone:
			return clustermesh.DistributionSameZone
		case corev1.ServiceTrafficDistributionPreferSameNode:
			return clustermesh.DistributionSameNode
		}
	}
	return clustermesh.DistributionUnset
}
