package clustermesh

import (
	"bytes"
	"slices"
)

// Equal reports whether two records of one key say the same; the origin does
// not count.
func Equal(a, b Record) bool {
	switch a := a.(type) {
	case *Cluster:
		b, ok := b.(*Cluster)
		return ok && a.equal(b)
	case *Node:
		b, ok := b.(*Node)
		return ok && a.equal(b)
	case *Service:
		b, ok := b.(*Service)
		return ok && a.equal(b)
	case *EndpointSlice:
		b, ok := b.(*EndpointSlice)
		return ok && a.equal(b)
	case *IdentityRecord:
		b, ok := b.(*IdentityRecord)
		return ok && a.ID == b.ID && slices.Equal(a.Labels, b.Labels)
	case *Address:
		b, ok := b.(*Address)
		return ok && a.equal(b)
	case *Policy:
		b, ok := b.(*Policy)
		return ok && a.Namespace == b.Namespace && a.Name == b.Name && bytes.Equal(a.JSON, b.JSON)
	case *ClusterPolicy:
		b, ok := b.(*ClusterPolicy)
		return ok && a.Name == b.Name && bytes.Equal(a.JSON, b.JSON)
	case *Workload:
		b, ok := b.(*Workload)
		return ok && a.equal(b)
	case *Drain:
		b, ok := b.(*Drain)
		return ok && a.equal(b)
	case *Peer:
		b, ok := b.(*Peer)
		return ok && a.equal(b)
	}
	return false
}

func (a *Cluster) equal(b *Cluster) bool {
	return a.Name == b.Name && a.ID == b.ID && a.Incarnation == b.Incarnation &&
		bytes.Equal(a.CABundle, b.CABundle) && slices.Equal(a.MeshAddresses, b.MeshAddresses) &&
		slices.Equal(a.PodPrefixes, b.PodPrefixes) && slices.Equal(a.Capabilities, b.Capabilities) &&
		a.Version == b.Version && a.Topology == b.Topology
}

func (a *Node) equal(b *Node) bool {
	return a.Name == b.Name && a.Number == b.Number && slices.Equal(a.UnderlayAddresses, b.UnderlayAddresses) &&
		slices.Equal(a.TunnelAddresses, b.TunnelAddresses) && slices.Equal(a.PodPrefixes, b.PodPrefixes) &&
		a.WireGuardKey == b.WireGuardKey && a.WireGuardEndpoint == b.WireGuardEndpoint && a.WireGuardPort == b.WireGuardPort &&
		a.Gateway == b.Gateway && a.Zone == b.Zone
}

func (a *Service) equal(b *Service) bool {
	return a.Name == b.Name && slices.Equal(a.Ports, b.Ports) && slices.Equal(a.Frontends, b.Frontends) &&
		a.Global == b.Global && a.Shared == b.Shared && a.Weight == b.Weight && a.HasWeight == b.HasWeight &&
		a.Affinity == b.Affinity && slices.Equal(a.Failover, b.Failover) && a.MinHealthy == b.MinHealthy &&
		a.SessionAffinity == b.SessionAffinity && a.Headless == b.Headless && a.PublishNotReady == b.PublishNotReady &&
		a.Outside.equal(b.Outside) && a.ExternalLocal == b.ExternalLocal && a.InternalLocal == b.InternalLocal &&
		a.Distribution == b.Distribution && a.HealthCheckPort == b.HealthCheckPort && a.Export.equal(b.Export) && a.Import == b.Import
}

func (a *Export) equal(b *Export) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Created == b.Created && a.IPv4 == b.IPv4 && a.IPv6 == b.IPv6 && slices.Equal(a.AppProtocols, b.AppProtocols) &&
		a.TrafficDistribution == b.TrafficDistribution && slices.Equal(a.Labels, b.Labels) && slices.Equal(a.Annotations, b.Annotations)
}

func (a *Outside) equal(b *Outside) bool {
	if a == nil || b == nil {
		return a == b
	}
	return slices.Equal(a.Addresses, b.Addresses) && slices.Equal(a.SourceRanges, b.SourceRanges)
}

func (a *EndpointSlice) equal(b *EndpointSlice) bool {
	return a.Name == b.Name && slices.Equal(a.Ports, b.Ports) && slices.Equal(a.Endpoints, b.Endpoints)
}

func (a *Address) equal(b *Address) bool {
	return a.Name == b.Name && a.Identity == b.Identity && a.Owner == b.Owner &&
		slices.Equal(a.NamedPorts, b.NamedPorts) && a.Namespace == b.Namespace && a.Pod == b.Pod
}

func (a *Workload) equal(b *Workload) bool {
	if (a.Readiness == nil) != (b.Readiness == nil) || a.Readiness != nil && *a.Readiness != *b.Readiness {
		return false
	}
	return a.Namespace == b.Namespace && a.Name == b.Name && a.Node == b.Node && a.Owner == b.Owner &&
		a.HostNetwork == b.HostNetwork && slices.Equal(a.HostPorts, b.HostPorts)
}

func (a *Peer) equal(b *Peer) bool {
	return a.Name == b.Name && a.ID == b.ID && bytes.Equal(a.CABundle, b.CABundle) &&
		slices.Equal(a.MeshAddresses, b.MeshAddresses) && slices.Equal(a.PodPrefixes, b.PodPrefixes) &&
		a.MaxKeys == b.MaxKeys && a.MaxBytes == b.MaxBytes && a.Joined.Equal(b.Joined)
}
