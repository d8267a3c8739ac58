package apiserver

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

// The records that clusters exchange while they join, before any of it is
// believed.

func clusterToPB(c *clustermesh.Cluster) *pb.Cluster {
	return &pb.Cluster{
		Name: c.Name, Id: uint32(c.ID), Incarnation: c.Incarnation, CaBundle: c.CABundle, MeshAddresses: c.MeshAddresses,
		PodPrefixes: prefixesToPB(c.PodPrefixes), Capabilities: c.Capabilities, Version: c.Version, Topology: string(c.Topology), Origin: int64(c.Origin),
	}
}

func peerToPB(p *clustermesh.Peer) *pb.Peer {
	return &pb.Peer{
		Name: p.Name, Id: uint32(p.ID), CaBundle: p.CABundle, MeshAddresses: p.MeshAddresses, PodPrefixes: prefixesToPB(p.PodPrefixes),
		MaxKeys: p.MaxKeys, MaxBytes: p.MaxBytes, Joined: unixNano(p.Joined), Origin: int64(p.Origin),
	}
}

func nodeToPB(n *clustermesh.Node) *pb.Node {
	out := &pb.Node{
		Number: uint32(n.Number), PodPrefixes: prefixesToPB(n.PodPrefixes), WireguardKey: n.WireGuardKey[:],
		WireguardEndpoint: n.WireGuardEndpoint, WireguardPort: uint32(n.WireGuardPort), Gateway: n.Gateway, Zone: n.Zone, Origin: int64(n.Origin),
	}
	for _, a := range n.UnderlayAddresses {
		out.UnderlayAddresses = append(out.UnderlayAddresses, a.Unmap().AsSlice())
	}
	for _, a := range n.TunnelAddresses {
		out.TunnelAddresses = append(out.TunnelAddresses, a.Unmap().AsSlice())
	}
	return out
}

func prefixesToPB(ps []netip.Prefix) []*pb.Prefix {
	out := make([]*pb.Prefix, len(ps))
	for i, p := range ps {
		out[i] = &pb.Prefix{Address: p.Addr().Unmap().AsSlice(), Bits: uint32(p.Bits())}
	}
	return out
}

func unixNano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

const (
	maxMeshAddresses = 8
	maxPodPrefixes   = 64
	maxCapabilities  = 64
)

// clusterFromPB reads what a foreign cluster says of itself. Every bound is
// checked here; whether it fits into the mesh is for Conflicts to say.
func clusterFromPB(m *pb.Cluster) (*clustermesh.Cluster, error) {
	if m == nil {
		return nil, malformed("it has no cluster record")
	}
	if err := clustermesh.ValidateClusterName(m.Name); err != nil {
		return nil, malformed("%v", err)
	}
	if m.Id < 1 || m.Id > uint32(clustermesh.MaxID) {
		return nil, malformed("cluster ID %d is not between 1 and %d", m.Id, clustermesh.MaxID)
	}
	if err := certs.NewBundles().Set(m.Name, m.CaBundle); err != nil {
		return nil, malformed("%v", err)
	}
	if err := checkMeshAddresses(m.MeshAddresses); err != nil {
		return nil, malformed("%v", err)
	}
	if len(m.Version) > 100 || len(m.Topology) > 100 || len(m.Capabilities) > maxCapabilities {
		return nil, malformed("version of %d bytes, %d capabilities: too much", len(m.Version), len(m.Capabilities))
	}
	for _, c := range m.Capabilities {
		if len(c) > 100 {
			return nil, malformed("a capability of %d bytes", len(c))
		}
	}
	prefixes, err := prefixesFromPB(m.PodPrefixes)
	if err != nil {
		return nil, err
	}
	return &clustermesh.Cluster{
		Name: m.Name, ID: clustermesh.ID(m.Id), Incarnation: m.Incarnation, CABundle: m.CaBundle, MeshAddresses: m.MeshAddresses,
		PodPrefixes: prefixes, Capabilities: m.Capabilities, Version: m.Version, Topology: clustermesh.Topology(m.Topology), Origin: clustermesh.Origin(m.Origin),
	}, nil
}

func malformed(why string, args ...any) *Refusal {
	return Refuse(codes.InvalidArgument, "cluster record refused", "correct the settings of that cluster's mesh API server", why, args...)
}

func checkMeshAddresses(addrs []string) error {
	if len(addrs) == 0 || len(addrs) > maxMeshAddresses {
		return fmt.Errorf("%d mesh addresses, expected 1 to %d: set --advertise", len(addrs), maxMeshAddresses)
	}
	for _, a := range addrs {
		host, port, err := net.SplitHostPort(a)
		if err != nil || host == "" || len(a) > 300 {
			return fmt.Errorf("mesh address %s is not host:port: set --advertise", strconv.QuoteToASCII(a))
		}
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			return fmt.Errorf("mesh address %s has no port between 1 and 65535: set --advertise", strconv.QuoteToASCII(a))
		}
		if ip, err := netip.ParseAddr(host); err == nil && ip.IsUnspecified() {
			return fmt.Errorf("mesh address %s is not one that others can dial: set --advertise to this cluster's address", strconv.QuoteToASCII(a))
		}
	}
	return nil
}

func prefixesFromPB(ms []*pb.Prefix) ([]netip.Prefix, error) {
	if len(ms) > maxPodPrefixes {
		return nil, malformed("%d pod prefixes, at most %d are allowed", len(ms), maxPodPrefixes)
	}
	out := make([]netip.Prefix, 0, len(ms))
	for _, m := range ms {
		addr, ok := netip.AddrFromSlice(m.GetAddress())
		if !ok || addr.Is4In6() || m.GetBits() > uint32(addr.BitLen()) {
			return nil, malformed("a pod prefix is malformed")
		}
		p := netip.PrefixFrom(addr, int(m.GetBits()))
		if p != p.Masked() {
			return nil, malformed("pod prefix %s has bits set beyond its length", p)
		}
		out = append(out, p)
	}
	return out, nil
}
