package install

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// port is one that Tombolo listens on, on nodes' own addresses.
type port struct {
	protocol corev1.Protocol
	number   int
	key      string   // of the values
	nodes    []string // nil: wherever an agent runs
}

func (p port) text() string { return string(p.protocol) + " " + strconv.Itoa(p.number) }

type ports []port

func (ps ports) texts() (out []string) {
	for _, p := range ps {
		out = append(out, p.text()+" ("+p.key+")")
	}
	return out
}

// ports are all of an installation; those of the mesh API server on every node
// unless it is said where it comes.
func (s settings) ports() ports {
	var servers, members []string
	if s.Apiserver.Storage.Node != "" {
		servers = []string{s.Apiserver.Storage.Node}
	}
	for _, m := range s.Etcd.Members.Nodes {
		members = append(members, m.Node)
	}
	if s.Etcd.Mode == "members" {
		servers = members
	}
	out := ports{
		{corev1.ProtocolUDP, s.Agent.WireguardPort, "agent.wireguardPort", nil},
		{corev1.ProtocolTCP, s.Metrics.AgentPort, "metrics.agentPort", nil},
		{corev1.ProtocolTCP, s.Apiserver.Port, "apiserver.port", servers},
		{corev1.ProtocolTCP, s.Metrics.ApiserverPort, "metrics.apiserverPort", servers},
	}
	if p := s.Agent.GossipPort; p != 0 {
		out = append(out, port{corev1.ProtocolUDP, p, "agent.gossipPort", nil}, port{corev1.ProtocolTCP, p, "agent.gossipPort", nil})
	}
	if p := s.MCS.DNSPort; p != 0 {
		out = append(out, port{corev1.ProtocolUDP, p, "mcs.dnsPort", servers}, port{corev1.ProtocolTCP, p, "mcs.dnsPort", servers})
	}
	if m := s.Etcd.Members; s.Etcd.Mode == "members" {
		out = append(out, port{corev1.ProtocolTCP, m.ClientPort, "etcd.members.clientPort", members},
			port{corev1.ProtocolTCP, m.PeerPort, "etcd.members.peerPort", members}, port{corev1.ProtocolTCP, m.MetricsPort, "etcd.members.metricsPort", members})
	}
	return out
}

// portFindings are about ports of nodes that pods say they hold, and about node
// ports of Services among those that connections of Tombolo's get.
func portFindings(f facts) (out []Finding) {
	for _, want := range f.Set.ports() {
		for i := range f.Pods {
			p := &f.Pods[i]
			if !holds(p, want) || want.nodes != nil && !slices.Contains(want.nodes, p.Spec.NodeName) {
				continue
			}
			out = append(out, Finding{What: "ports", Level: levelError, Why: fmt.Sprintf("%s of node %s is taken by pod %s/%s", want.text(), p.Spec.NodeName, p.Namespace, p.Name),
				Fix: "set " + want.key + " to one that is free"})
		}
	}
	first, last := portRange(f.Set.Agent.NATPorts)
	for _, s := range f.Services {
		for _, p := range s.Spec.Ports {
			if n := int(p.NodePort); n != 0 && n >= first && n <= last {
				out = append(out, Finding{What: "ports", Level: levelError, Why: fmt.Sprintf("Service %s/%s has node port %d, which is one of agent.natPorts (%s)", s.Namespace, s.Name, n, f.Set.Agent.NATPorts),
					Fix: "set agent.natPorts to a range without the cluster's node ports"})
			}
		}
	}
	if len(out) == 0 {
		out = append(out, Finding{What: "ports", Level: levelOK, Why: "no pod holds one of ours"})
	}
	return out
}

// holds: a pod that is not Tombolo's has the port of its node.
func holds(p *corev1.Pod, want port) bool {
	if p.Labels["app.kubernetes.io/part-of"] == "tombolo" || p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded {
		return false
	}
	for _, c := range slices.Concat(p.Spec.Containers, p.Spec.InitContainers) {
		for _, have := range c.Ports {
			number := have.HostPort
			if number == 0 && p.Spec.HostNetwork {
				number = have.ContainerPort
			}
			protocol := have.Protocol
			if protocol == "" {
				protocol = corev1.ProtocolTCP
			}
			if int(number) == want.number && protocol == want.protocol {
				return true
			}
		}
	}
	return false
}

// portRange reads FIRST-LAST; what is none is an empty range, which the schema refuses.
func portRange(text string) (first, last int) {
	a, b, _ := strings.Cut(text, "-")
	first, err := strconv.Atoi(a)
	last, err2 := strconv.Atoi(b)
	if err != nil || err2 != nil {
		return 1, 0
	}
	return first, last
}
