package agent

import (
	"net/netip"
	"slices"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// configRow is what the configuration says of the node's own row.
func configRow(cfg Config) ConfigRow {
	row := ConfigRow{Cluster: uint16(cfg.ClusterID), PortMin: cfg.NATPorts[0], PortMax: cfg.NATPorts[1]}
	if row.PortMin == 0 || row.PortMax < row.PortMin {
		row.PortMin, row.PortMax = defaultNATPorts[0], defaultNATPorts[1]
	}
	if cfg.EncryptAll {
		row.Flags |= EncryptAll
	}
	if cfg.Masquerade {
		row.Flags |= Masquerade
	}
	if cfg.Chained {
		row.Flags |= Chained
		row.TunnelMTU = tunnelMTU(cfg.UnderlayMTU)
	}
	return row
}

// wantConfig wants the node's own row, once the own cluster (or a snapshot) has
// said what it knows of the node.
func (s *State) wantConfig() {
	own := s.clusters[s.own]
	if own.export() == nil {
		return
	}
	row := nodeConfig(s.config, own.nodes[s.node])
	if s.stand.gateway {
		row.Flags |= Gateway
	}
	s.t.config.Set(ConfigKey{}, row)
}

// nodeConfig adds what is known of the node: its lowest addresses of each family.
func nodeConfig(row ConfigRow, n *clustermesh.Node) ConfigRow {
	if n == nil {
		return row
	}
	row.Node = n.Number
	for _, a := range []struct {
		to   *Addr
		from []netip.Addr
		v4   bool
	}{
		{&row.Node4, n.UnderlayAddresses, true}, {&row.Node6, n.UnderlayAddresses, false},
		{&row.Tunnel4, n.TunnelAddresses, true}, {&row.Tunnel6, n.TunnelAddresses, false},
	} {
		if ip, ok := lowest(a.from, a.v4); ok {
			*a.to = MakeAddr(ip)
		}
	}
	return row
}

// lowest is the lowest address of a family that is not of one link alone.
func lowest(addrs []netip.Addr, v4 bool) (netip.Addr, bool) {
	var found []netip.Addr
	for _, a := range addrs {
		if a.Is4() == v4 && !a.IsLinkLocalUnicast() {
			found = append(found, a)
		}
	}
	if len(found) == 0 {
		return netip.Addr{}, false
	}
	return slices.MinFunc(found, netip.Addr.Compare), true
}
