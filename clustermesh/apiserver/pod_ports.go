package apiserver

import (
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// running are the containers that run beside one another while the pod serves:
// its own, then the init containers that are restarted always (sidecars).
func running(pod *corev1.Pod) []corev1.Container {
	list := pod.Spec.Containers[:len(pod.Spec.Containers):len(pod.Spec.Containers)]
	for _, c := range pod.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			list = append(list, c)
		}
	}
	return list
}

// hostPorts are the ports of the node that lead to a pod. One on its node's
// network has none: there its ports are the node's own. The error is about the
// first that is left out.
func hostPorts(pod *corev1.Pod) (ports []clustermesh.HostPort, err error) {
	if pod.Spec.HostNetwork {
		return nil, nil
	}
	type taken struct {
		proto clustermesh.Protocol
		port  uint16
		addr  netip.Addr
	}
	seen := make(map[taken]bool)
	for _, c := range running(pod) {
		for i, p := range c.Ports {
			if p.HostPort == 0 {
				continue
			}
			h, bad := hostPort(p)
			at := taken{h.Protocol, h.Port, h.Address}
			if bad == nil && seen[at] {
				bad = fmt.Errorf("hostPort %d is given twice for one protocol and address", p.HostPort)
			}
			if bad != nil {
				if err == nil {
					err = fmt.Errorf("container %s: ports[%d]: %w", c.Name, i, bad)
				}
				continue
			}
			seen[at] = true
			ports = append(ports, h)
		}
	}
	return ports, err
}

func hostPort(p corev1.ContainerPort) (h clustermesh.HostPort, err error) {
	if h.Protocol, err = protocolOf(p.Protocol); err != nil {
		return h, err
	}
	if p.HostPort < 1 || p.HostPort > 65535 {
		return h, fmt.Errorf("hostPort %d is not between 1 and 65535", p.HostPort)
	}
	if p.ContainerPort < 1 || p.ContainerPort > 65535 {
		return h, fmt.Errorf("containerPort %d is not between 1 and 65535", p.ContainerPort)
	}
	h.Port, h.ContainerPort = uint16(p.HostPort), uint16(p.ContainerPort)
	if p.HostIP == "" {
		return h, nil
	}
	a, err := netip.ParseAddr(p.HostIP)
	if err != nil || a.Zone() != "" {
		return h, fmt.Errorf("hostIP %q is no address", p.HostIP)
	}
	h.Address = a.Unmap()
	return h, nil
}

func namedPorts(pod *corev1.Pod) []clustermesh.NamedPort {
	var ports []clustermesh.NamedPort
	for _, c := range running(pod) {
		for _, p := range c.Ports {
			proto, err := protocolOf(p.Protocol)
			if p.Name == "" || err != nil || p.ContainerPort < 1 || p.ContainerPort > 65535 {
				continue
			}
			ports = append(ports, clustermesh.NamedPort{Name: p.Name, Protocol: proto, Port: uint16(p.ContainerPort)})
		}
	}
	return ports
}

// readinessProbe is that of the first container that has one; problem says why
// it cannot be run by an agent.
func readinessProbe(pod *corev1.Pod) (probe *clustermesh.Probe, problem string) {
	for _, c := range running(pod) {
		if c.ReadinessProbe != nil {
			return probeRecord(c, c.ReadinessProbe, pod)
		}
	}
	return nil, ""
}

func probeRecord(c corev1.Container, p *corev1.Probe, pod *corev1.Pod) (*clustermesh.Probe, string) {
	r := &clustermesh.Probe{
		Period:           seconds(p.PeriodSeconds, 10),
		Timeout:          seconds(p.TimeoutSeconds, 1),
		InitialDelay:     seconds(p.InitialDelaySeconds, 0),
		SuccessThreshold: max(1, int(p.SuccessThreshold)),
		FailureThreshold: 3,
	}
	if p.FailureThreshold > 0 {
		r.FailureThreshold = int(p.FailureThreshold)
	}
	var port intstr.IntOrString
	switch {
	case p.TCPSocket != nil:
		r.Kind, port = "tcp", p.TCPSocket.Port
	case p.HTTPGet != nil:
		if p.HTTPGet.Scheme == corev1.URISchemeHTTPS {
			return nil, "it is an httpGet probe over HTTPS"
		}
		r.Kind, port, r.Path = "http", p.HTTPGet.Port, p.HTTPGet.Path
		if r.Path == "" {
			r.Path = "/"
		}
	default:
		return nil, "it is neither a tcpSocket nor an httpGet probe"
	}
	n, ok := resolvePort(port, corev1.ProtocolTCP, []corev1.Container{c})
	if !ok {
		n, ok = resolvePort(port, corev1.ProtocolTCP, running(pod))
	}
	if !ok {
		return nil, fmt.Sprintf("its port %s is no port of the container", printable(port.String()))
	}
	r.Port = n
	return r, ""
}

func seconds(n, unset int32) time.Duration {
	if n <= 0 {
		n = unset
	}
	return time.Duration(n) * time.Second
}

// resolvePort finds the number of a target port, by name among the containers.
func resolvePort(target intstr.IntOrString, proto corev1.Protocol, containers []corev1.Container) (uint16, bool) {
	if target.Type == intstr.Int {
		return uint16(target.IntVal), target.IntVal >= 1 && target.IntVal <= 65535
	}
	for _, c := range containers {
		for _, p := range c.Ports {
			same := p.Protocol == proto || (p.Protocol == "" && proto == corev1.ProtocolTCP)
			if p.Name == target.StrVal && same && p.ContainerPort >= 1 && p.ContainerPort <= 65535 {
				return uint16(p.ContainerPort), true
			}
		}
	}
	return 0, false
}

// protocolOf reads a protocol; unset is TCP.
func protocolOf(p corev1.Protocol) (clustermesh.Protocol, error) {
	switch p {
	case "", corev1.ProtocolTCP:
		return clustermesh.TCP, nil
	case corev1.ProtocolUDP:
		return clustermesh.UDP, nil
	case corev1.ProtocolSCTP:
		return clustermesh.SCTP, nil
	}
	return 0, fmt.Errorf("protocol %q is not one of TCP, UDP, SCTP", printable(string(p)))
}
