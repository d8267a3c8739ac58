package manifest

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

type taker func(at Place, n objectName, labels map[string]string, text []byte) error

// takerOf is who reads a kind; nil: policy does not look at it.
func (r *reader) takerOf(h head) taker {
	group, _, _ := strings.Cut(h.APIVersion, "/")
	switch {
	case h.APIVersion == "v1" && h.Kind == "Namespace":
		return r.namespace
	case h.APIVersion == "v1" && h.Kind == "Pod":
		return r.pod
	case h.APIVersion == "v1" && h.Kind == "Node":
		return r.node
	case (group == "apps" || group == "batch") && workloads[h.Kind]:
		return r.workload
	case group == "networking.k8s.io" && h.Kind == "NetworkPolicy", group == "policy.networking.k8s.io" && h.Kind == "ClusterNetworkPolicy":
		return r.policy
	}
	return nil
}

func (r *reader) namespace(_ Place, n objectName, labels map[string]string, _ []byte) error {
	if labels == nil {
		labels = map[string]string{}
	}
	r.out.Namespaces[n.name] = labels
	return nil
}

func (r *reader) policy(at Place, n objectName, _ map[string]string, text []byte) error {
	r.out.Policies = append(r.out.Policies, Policy{Namespace: n.namespace, Name: n.name, JSON: slices.Clone(text), Place: at})
	return nil
}

type podSpec struct {
	NodeName           string      `json:"nodeName"`
	HostNetwork        bool        `json:"hostNetwork"`
	ServiceAccountName string      `json:"serviceAccountName"`
	Containers         []container `json:"containers"`
}

type podObject struct {
	Spec   podSpec `json:"spec"`
	Status struct {
		Phase  string `json:"phase"`
		PodIP  string `json:"podIP"`
		PodIPs []struct {
			IP string `json:"ip"`
		} `json:"podIPs"`
	} `json:"status"`
}

type container struct {
	Ports []struct {
		Name          string `json:"name"`
		ContainerPort int64  `json:"containerPort"`
		Protocol      string `json:"protocol"`
	} `json:"ports"`
}

func (r *reader) pod(at Place, n objectName, labels map[string]string, text []byte) error {
	var o podObject
	if err := decode("", text, &o); err != nil {
		return err
	}
	if o.Status.Phase == "Succeeded" || o.Status.Phase == "Failed" {
		return nil // it has no address any more
	}
	p, err := makePod(at, n, labels, o.Spec)
	if err != nil {
		return err
	}
	texts := []string{o.Status.PodIP}
	for _, ip := range o.Status.PodIPs {
		texts = append(texts, ip.IP)
	}
	if p.Addresses, err = addresses("status.podIPs", texts); err != nil {
		return err
	}
	r.out.Pods = append(r.out.Pods, p)
	return nil
}

func makePod(at Place, n objectName, labels map[string]string, spec podSpec) (Pod, error) {
	ports, err := namedPorts(spec.Containers)
	return Pod{
		Namespace: n.namespace, Name: n.name, Node: spec.NodeName, ServiceAccount: spec.ServiceAccountName,
		HostNetwork: spec.HostNetwork, Labels: labels, Ports: ports, Place: at,
	}, err
}

// workloads make pods of a template. A folder often holds those alone.
var workloads = map[string]bool{
	"Deployment": true, "StatefulSet": true, "DaemonSet": true, "ReplicaSet": true, "Job": true, "CronJob": true,
}

type podTemplate struct {
	Metadata struct {
		Labels map[string]string `json:"labels"`
	} `json:"metadata"`
	Spec podSpec `json:"spec"`
}

// workload takes the pods that a controller would make as one, under its name.
func (r *reader) workload(at Place, n objectName, _ map[string]string, text []byte) error {
	var o struct {
		Spec struct {
			Template    podTemplate `json:"template"`
			JobTemplate struct {
				Spec struct {
					Template podTemplate `json:"template"`
				} `json:"spec"`
			} `json:"jobTemplate"`
		} `json:"spec"`
	}
	if err := decode("", text, &o); err != nil {
		return err
	}
	t := o.Spec.Template
	if n.kind == "CronJob" {
		t = o.Spec.JobTemplate.Spec.Template
	}
	p, err := makePod(at, n, t.Metadata.Labels, t.Spec)
	if err != nil {
		return fmt.Errorf("template: %w", err)
	}
	p.Of = n.kind
	r.out.Pods = append(r.out.Pods, p)
	return nil
}

func addresses(field string, texts []string) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, text := range texts {
		if text == "" {
			continue
		}
		a, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %q is no IP address\nfix: correct it, or leave status out", field, text)
		}
		if a = a.Unmap().WithZone(""); !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out, nil
}

func namedPorts(containers []container) ([]clustermesh.NamedPort, error) {
	var out []clustermesh.NamedPort
	for i, c := range containers {
		for j, p := range c.Ports {
			if p.Name == "" {
				continue
			}
			proto, err := Protocol(p.Protocol)
			if err != nil {
				return nil, fmt.Errorf("spec.containers[%d].ports[%d].protocol: %w", i, j, err)
			}
			if p.ContainerPort < 1 || p.ContainerPort > 65535 {
				return nil, fmt.Errorf("spec.containers[%d].ports[%d].containerPort: %d is not 1 to 65535", i, j, p.ContainerPort)
			}
			out = append(out, clustermesh.NamedPort{Name: p.Name, Protocol: proto, Port: uint16(p.ContainerPort)})
		}
	}
	return out, nil
}

// Protocol reads a protocol as Kubernetes writes it; unset is TCP.
func Protocol(text string) (clustermesh.Protocol, error) {
	switch strings.ToUpper(text) {
	case "", "TCP":
		return clustermesh.TCP, nil
	case "UDP":
		return clustermesh.UDP, nil
	case "SCTP":
		return clustermesh.SCTP, nil
	}
	return 0, fmt.Errorf("%q is not TCP, UDP or SCTP", text)
}

type nodeObject struct {
	Spec struct {
		PodCIDR  string   `json:"podCIDR"`
		PodCIDRs []string `json:"podCIDRs"`
	} `json:"spec"`
	Status struct {
		Addresses []struct {
			Type    string `json:"type"`
			Address string `json:"address"`
		} `json:"addresses"`
	} `json:"status"`
}

func (r *reader) node(at Place, n objectName, labels map[string]string, text []byte) error {
	var o nodeObject
	if err := decode("", text, &o); err != nil {
		return err
	}
	if labels == nil {
		labels = map[string]string{}
	}
	node := Node{Name: n.name, Labels: labels, Place: at}
	var texts []string
	for _, a := range o.Status.Addresses {
		if a.Type == "InternalIP" || a.Type == "ExternalIP" {
			texts = append(texts, a.Address)
		}
	}
	var err error
	if node.Addresses, err = addresses("status.addresses", texts); err != nil {
		return err
	}
	for _, text := range append([]string{o.Spec.PodCIDR}, o.Spec.PodCIDRs...) {
		if text == "" {
			continue
		}
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return fmt.Errorf("spec.podCIDRs: %q is no prefix like 10.1.1.0/24", text)
		}
		if p = p.Masked(); !slices.Contains(node.Prefixes, p) {
			node.Prefixes = append(node.Prefixes, p)
		}
	}
	r.out.Nodes = append(r.out.Nodes, node)
	return nil
}
