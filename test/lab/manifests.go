package lab

import (
	"encoding/json"
	"net/netip"
	"strings"
)

// Object is a Kubernetes object as the lab writes it: JSON, which is YAML.
type Object map[string]any

// Manifest is one file of objects.
func Manifest(objects ...Object) string {
	var b strings.Builder
	for _, o := range objects {
		text, err := json.MarshalIndent(o, "", "  ")
		if err != nil {
			panic(err) // maps of strings, numbers and lists always marshal
		}
		b.WriteString("---\n")
		b.Write(text)
		b.WriteString("\n")
	}
	return b.String()
}

// Namespace object.
func Namespace(name string) Object {
	return Object{"apiVersion": "v1", "kind": "Namespace", "metadata": Object{"name": name}}
}

// NodeObject is a Node with its pod prefixes; none = another CNI has no use for them.
func NodeObject(name string, prefixes []netip.Prefix) Object {
	if len(prefixes) == 0 {
		return Object{"apiVersion": "v1", "kind": "Node", "metadata": Object{"name": name}}
	}
	return Object{"apiVersion": "v1", "kind": "Node", "metadata": Object{"name": name},
		"spec": Object{"podCIDR": prefixes[0].String(), "podCIDRs": prefixes}}
}

// PodObject is a Pod bound to a node. One with a port is ready when something
// listens there.
func PodObject(p *Pod, node string) Object {
	container, ports := Object{"name": "main", "image": "none"}, []Object{}
	if p.Port != 0 {
		ports = append(ports, Object{"name": "http", "containerPort": p.Port, "protocol": "TCP"})
		container["readinessProbe"] = Object{"tcpSocket": Object{"port": p.Port}, "periodSeconds": 1}
	}
	for _, n := range p.Named {
		ports = append(ports, Object{"name": n.Name, "containerPort": n.Port, "protocol": n.Protocol.String()})
	}
	if len(ports) > 0 {
		container["ports"] = ports
	}
	return Object{"apiVersion": "v1", "kind": "Pod",
		"metadata": Object{"name": p.Name, "namespace": p.Namespace, "uid": p.UID, "labels": p.Labels},
		"spec":     Object{"nodeName": node, "containers": []Object{container}}}
}

// ServiceSpec of a Service in namespace default.
type ServiceSpec struct {
	Name        string
	ClusterIPs  []string
	Port        int
	TargetPort  int
	App         string // selector app=
	Annotations map[string]string
}

// ServiceObject is a Service.
func ServiceObject(s ServiceSpec) Object {
	return Object{"apiVersion": "v1", "kind": "Service",
		"metadata": Object{"name": s.Name, "namespace": "default", "annotations": s.Annotations},
		"spec": Object{
			"clusterIP": s.ClusterIPs[0], "clusterIPs": s.ClusterIPs, "selector": Object{"app": s.App},
			"ports": []Object{{"name": "http", "port": s.Port, "targetPort": s.TargetPort, "protocol": "TCP"}},
		}}
}
