package clustermesh

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

// message is what the generated code offers of every record.
type message interface {
	SizeVT() int
	MarshalToSizedBufferVT([]byte) (int, error)
}

// marshal returns one free byte followed by the protobuf of r.
func marshal(r Record) ([]byte, error) {
	m, err := toMessage(r)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, 1+m.SizeVT())
	if _, err := m.MarshalToSizedBufferVT(buf[1:]); err != nil {
		return nil, err
	}
	return buf, nil
}

func toMessage(r Record) (message, error) {
	switch r := r.(type) {
	case *Cluster:
		return &pb.Cluster{
			Name: r.Name, Id: uint32(r.ID), Incarnation: r.Incarnation, CaBundle: r.CABundle,
			MeshAddresses: r.MeshAddresses, PodPrefixes: toPrefixes(r.PodPrefixes),
			Capabilities: r.Capabilities, Version: r.Version, Topology: string(r.Topology), Origin: int64(r.Origin),
		}, nil
	case *Node:
		return nodeMessage(r), nil
	case *Service:
		return serviceMessage(r)
	case *EndpointSlice:
		return sliceMessage(r), nil
	case *IdentityRecord:
		return &pb.Identity{Labels: toLabels(r.Labels), Origin: int64(r.Origin)}, nil
	case *Address:
		return addressMessage(r), nil
	case *Policy:
		return &pb.Policy{Json: r.JSON, Origin: int64(r.Origin)}, nil
	case *ClusterPolicy:
		return &pb.ClusterPolicy{Json: r.JSON, Origin: int64(r.Origin)}, nil
	case *Workload:
		return workloadMessage(r)
	case *Drain:
		return drainMessage(r)
	case *Peer:
		return &pb.Peer{
			Name: r.Name, Id: uint32(r.ID), CaBundle: r.CABundle, MeshAddresses: r.MeshAddresses,
			PodPrefixes: toPrefixes(r.PodPrefixes), MaxKeys: r.MaxKeys, MaxBytes: r.MaxBytes,
			Joined: int64(OriginAt(r.Joined)), Origin: int64(r.Origin),
		}, nil
	}
	return nil, fmt.Errorf("unknown record type %T", r)
}

func nodeMessage(r *Node) *pb.Node {
	m := &pb.Node{
		Number: uint32(r.Number), UnderlayAddresses: toAddresses(r.UnderlayAddresses),
		TunnelAddresses: toAddresses(r.TunnelAddresses), PodPrefixes: toPrefixes(r.PodPrefixes),
		WireguardEndpoint: r.WireGuardEndpoint, WireguardPort: uint32(r.WireGuardPort), Gateway: r.Gateway, Zone: r.Zone, Origin: int64(r.Origin),
	}
	if r.WireGuardKey != [32]byte{} {
		m.WireguardKey = r.WireGuardKey[:]
	}
	return m
}

func serviceMessage(r *Service) (*pb.Service, error) {
	seconds, err := wholeSeconds("session affinity", r.SessionAffinity)
	if err != nil {
		return nil, err
	}
	m := &pb.Service{
		Ports: toPorts(r.Ports), Frontends: toAddresses(r.Frontends), Global: r.Global, Shared: r.Shared,
		Weight: uint32(r.Weight), HasWeight: r.HasWeight, Affinity: string(r.Affinity), Failover: r.Failover,
		MinHealthy: r.MinHealthy, SessionAffinitySeconds: seconds, Headless: r.Headless,
		PublishNotReady: r.PublishNotReady, ExternalLocal: r.ExternalLocal, InternalLocal: r.InternalLocal,
		Distribution: pb.Distribution(r.Distribution), HealthCheckPort: uint32(r.HealthCheckPort), Origin: int64(r.Origin),
	}
	if r.Outside != nil {
		for _, e := range r.Outside.Addresses {
			m.External = append(m.External, &pb.External{Address: e.Address.AsSlice(), Kind: pb.External_Kind(e.Kind)})
		}
		m.SourceRanges = toPrefixes(r.Outside.SourceRanges)
	}
	m.Export, m.Import = exportMessage(r.Export), r.Import
	return m, nil
}

func exportMessage(e *Export) *pb.Export {
	if e == nil {
		return nil
	}
	return &pb.Export{
		Created: int64(e.Created), Ipv4: e.IPv4, Ipv6: e.IPv6, AppProtocols: e.AppProtocols,
		TrafficDistribution: e.TrafficDistribution, Labels: toLabels(e.Labels), Annotations: toLabels(e.Annotations),
	}
}

func toLabels(labels []Label) []*pb.Label {
	out := make([]*pb.Label, len(labels))
	for i, l := range labels {
		out[i] = &pb.Label{Key: l.Key, Value: l.Value}
	}
	return out
}

func sliceMessage(r *EndpointSlice) *pb.EndpointSlice {
	// One allocation for all endpoints: slices are the records that change most.
	backing := make([]pb.Endpoint, len(r.Endpoints))
	endpoints := make([]*pb.Endpoint, len(r.Endpoints))
	for i, e := range r.Endpoints {
		m := &backing[i]
		m.Address, m.Node, m.Zone = e.Address.AsSlice(), uint32(e.Node), e.Zone
		m.Ready, m.Serving, m.Terminating, m.Hostname = e.Ready, e.Serving, e.Terminating, e.Hostname.String()
		if !e.Hints.IsZero() {
			m.ForZones = e.Hints.Zones()
			for _, n := range e.Hints.Nodes() {
				m.ForNodes = append(m.ForNodes, uint32(n))
			}
		}
		endpoints[i] = m
	}
	return &pb.EndpointSlice{Ports: toPorts(r.Ports), Endpoints: endpoints, Origin: int64(r.Origin)}
}

func addressMessage(r *Address) *pb.Address {
	m := &pb.Address{
		Identity: uint32(r.Identity), Owner: r.Owner, Namespace: r.Namespace, Name: r.Pod, Origin: int64(r.Origin),
	}
	for _, p := range r.NamedPorts {
		m.NamedPorts = append(m.NamedPorts, &pb.NamedPort{Name: p.Name, Protocol: pb.Protocol(p.Protocol), Port: uint32(p.Port)})
	}
	return m
}

func workloadMessage(r *Workload) (*pb.Workload, error) {
	m := &pb.Workload{Node: r.Node, Owner: r.Owner, HostNetwork: r.HostNetwork, Origin: int64(r.Origin)}
	for _, p := range r.HostPorts {
		m.HostPorts = append(m.HostPorts, &pb.HostPort{
			Protocol: pb.Protocol(p.Protocol), Port: uint32(p.Port), Address: p.Address.AsSlice(), ContainerPort: uint32(p.ContainerPort),
		})
	}
	p := r.Readiness
	if p == nil {
		return m, nil
	}
	if p.SuccessThreshold < 0 || p.FailureThreshold < 0 {
		return nil, errors.New("readiness probe: a threshold is negative")
	}
	period, err1 := wholeSeconds("probe period", p.Period)
	timeout, err2 := wholeSeconds("probe timeout", p.Timeout)
	delay, err3 := wholeSeconds("probe initial delay", p.InitialDelay)
	m.Readiness = &pb.Probe{
		Kind: p.Kind, Port: uint32(p.Port), Path: p.Path, PeriodSeconds: period, TimeoutSeconds: timeout,
		SuccessThreshold: uint32(p.SuccessThreshold), FailureThreshold: uint32(p.FailureThreshold),
		InitialDelaySeconds: delay,
	}
	return m, errors.Join(err1, err2, err3)
}

// wholeSeconds refuses what the record could not give back.
func wholeSeconds(what string, d time.Duration) (uint32, error) {
	if d < 0 || d%time.Second != 0 || d/time.Second > maxSeconds {
		return 0, fmt.Errorf("%s %v is not a whole number of seconds from 0 to %d", what, d, maxSeconds)
	}
	return uint32(d / time.Second), nil
}

func toAddresses(addrs []netip.Addr) [][]byte {
	out := make([][]byte, len(addrs))
	for i, a := range addrs {
		out[i] = a.AsSlice()
	}
	return out
}

func toPrefixes(prefixes []netip.Prefix) []*pb.Prefix {
	out := make([]*pb.Prefix, len(prefixes))
	for i, p := range prefixes {
		out[i] = &pb.Prefix{Address: p.Addr().AsSlice(), Bits: uint32(p.Bits())}
	}
	return out
}

func toPorts(ports []Port) []*pb.Port {
	out := make([]*pb.Port, len(ports))
	for i, p := range ports {
		out[i] = &pb.Port{Name: p.Name, Protocol: pb.Protocol(p.Protocol), Port: uint32(p.Port), NodePort: uint32(p.NodePort)}
	}
	return out
}
