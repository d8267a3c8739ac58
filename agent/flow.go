package agent

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// FlowVerdict is what became of a packet.
type FlowVerdict string

const (
	FlowForwarded FlowVerdict = "forwarded" // the first packet of a flow
	FlowDropped   FlowVerdict = "dropped"
	FlowCut       FlowVerdict = "cut" // a flow that was open and is now forbidden
)

// FlowEvent is what the kernel says of a packet, in host order.
type FlowEvent struct {
	Time        time.Time
	Verdict     FlowVerdict
	Src, Dst    Addr // as the packet had them
	Backend     Addr // what it was translated to; zero = it was not
	SrcPort     uint16
	DstPort     uint16
	BackendPort uint16
	Proto       uint8
	Reason      string // of bpf/src/maps.h: drop_policy_ingress, flow_new, …
	SrcIdentity uint32
	DstIdentity uint32 // of the backend, if there is one
	Rule        uint32
	IfIndex     uint32
}

// Flow is a FlowEvent with names: a line of GET /v1/flows. Fields are only added.
type Flow struct {
	APIVersion  string      `json:"apiVersion"`
	Kind        string      `json:"kind"` // Flow
	Time        time.Time   `json:"time"`
	Verdict     FlowVerdict `json:"verdict"`
	Reason      string      `json:"reason"`
	Direction   string      `json:"direction,omitempty"` // whose policy decided: egress of the source, ingress of the destination
	Protocol    string      `json:"protocol"`
	Source      FlowEnd     `json:"source"`
	Destination FlowEnd     `json:"destination"`       // where the packet went at last
	Service     string      `json:"service,omitempty"` // namespace/name, if the destination was reached by its frontend
	Frontend    string      `json:"frontend,omitempty"`
	Rule        string      `json:"rule,omitempty"`     // that decided
	Policies    []string    `json:"policies,omitempty"` // that isolate the pod, where no rule allowed
	IfIndex     uint32      `json:"ifIndex,omitempty"`
}

// FlowEnd is one end of a flow.
type FlowEnd struct {
	Name      string            `json:"name"` // for people: a pod, node, world, or an identity's labels
	Address   string            `json:"address"`
	Port      uint16            `json:"port,omitempty"`
	Identity  string            `json:"identity"`          // cluster:number
	Cluster   string            `json:"cluster,omitempty"` // remote ones, and pods of the own
	Namespace string            `json:"namespace,omitempty"`
	Pod       string            `json:"pod,omitempty"`
	Node      string            `json:"node,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"` // where the pod is not known
}

// flowOf gives an event its names; owner goroutine.
func (s *State) flowOf(e FlowEvent) Flow {
	f := Flow{
		APIVersion: APIVersion, Kind: "Flow", Time: e.Time.UTC(), Verdict: e.Verdict, Reason: e.Reason, Protocol: flowProtocol(e.Proto),
		Source: s.flowEnd(e.Src, e.SrcPort, e.SrcIdentity), Destination: s.flowEnd(e.Dst, e.DstPort, e.DstIdentity), IfIndex: e.IfIndex,
	}
	if who, is := s.frontends[ServiceKey{Addr: e.Dst, Port: e.DstPort, Proto: e.Proto}]; is {
		f.Service = who.name.String()
	}
	if e.Backend != (Addr{}) {
		f.Frontend = hostPort(e.Dst, e.DstPort)
		f.Destination = s.flowEnd(e.Backend, e.BackendPort, e.DstIdentity)
	}
	judged, id := f.Source, e.SrcIdentity
	switch {
	case strings.HasSuffix(e.Reason, "_policy_egress"):
		f.Direction = "egress"
	case strings.HasSuffix(e.Reason, "_policy_ingress"):
		f.Direction, judged, id = "ingress", f.Destination, e.DstIdentity
	}
	switch {
	case e.Rule != 0:
		f.Rule = s.ruleName(e.Rule)
	case f.Direction != "":
		f.Policies = s.isolating(judged.Namespace, clustermesh.Identity(id), f.Direction)
	}
	return f
}

func flowProtocol(p uint8) string {
	switch p {
	case 1:
		return "icmp"
	case 58:
		return "icmpv6"
	}
	return protocolName(p)
}

// flowEnd says whose an address is: as the records say now, or where they say
// nothing, what the packet's identity stands for.
func (s *State) flowEnd(a Addr, port uint16, identity uint32) FlowEnd {
	id := clustermesh.Identity(identity)
	w := s.whoIs(a.IP())
	e := FlowEnd{
		Address: a.String(), Port: port, Identity: fmt.Sprintf("%d:%d", id.Cluster(), id.Number()),
		Cluster: w.cluster, Namespace: w.namespace, Pod: w.pod, Node: w.node,
	}
	if e.Cluster == "" && id.Cluster() != 0 {
		if c := s.byID(id.Cluster()); c != nil {
			e.Cluster = c.name
		}
	}
	if e.Pod == "" {
		e.Labels = s.identityLabels(id)
	}
	e.Name = e.name(s.own, id)
	return e
}

func (e FlowEnd) name(own string, id clustermesh.Identity) string {
	prefix := ""
	if e.Cluster != "" && e.Cluster != own {
		prefix = e.Cluster + "/"
	}
	switch {
	case e.Pod != "":
		return prefix + e.Namespace + "/" + e.Pod
	case e.Labels != nil:
		return prefix + labelsName(e.Labels)
	case id == clustermesh.IdentityHost:
		return "host"
	case e.Node != "":
		return "node/" + prefix + e.Node
	case id == clustermesh.IdentityRemoteNode:
		return "remote node"
	case id.Cluster() != 0:
		return prefix + "some pod"
	}
	return "world"
}

// labelsName is a pod's namespace and own labels: "shop(app=web)".
func labelsName(labels map[string]string) string {
	var own []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if !strings.HasPrefix(k, "tombolo.io/") && !strings.HasPrefix(k, clustermesh.LabelNamespacePrefix) {
			own = append(own, k+"="+labels[k])
		}
	}
	return labels[clustermesh.LabelNamespace] + "(" + strings.Join(own, ",") + ")"
}

// owner of an address.
type owner struct {
	cluster, namespace, pod, node string
	identity                      clustermesh.Identity
	known                         bool
}

// whoIs says whose an address is; owner goroutine.
func (s *State) whoIs(a netip.Addr) owner {
	row, ok := s.wantedIP(netip.PrefixFrom(a, a.BitLen()))
	if !ok {
		return owner{}
	}
	id := clustermesh.Identity(row.Identity)
	w := owner{identity: id, known: true}
	c := s.byID(id.Cluster())
	if id.Cluster() == 0 {
		// Identities of nodes do not say of which cluster.
		for _, at := range s.clusters {
			if names := at.tunnels[a]; len(names) > 0 {
				return owner{cluster: at.name, node: names[0], identity: id, known: true}
			}
		}
		c = s.clusters[s.own]
	}
	if c == nil || c.export() == nil {
		return w
	}
	w.cluster = c.name
	n := c.export().NodeByNumber(row.Node)
	if n == nil {
		return w
	}
	w.node = n.Name
	if rec, ok := c.export().Address(clustermesh.AddressName{Node: n.Name, Prefix: netip.PrefixFrom(a, a.BitLen())}); ok {
		w.namespace, w.pod = rec.Namespace, rec.Pod
	} else if uid, here := s.podAddrs[a]; here && c.peer == nil {
		w.namespace, w.pod = s.pods[uid].Namespace, s.pods[uid].Name
	}
	return w
}
