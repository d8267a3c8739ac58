package script

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// forge writes a record that its mesh API server would never write straight into
// a cluster's store: what a peer can do that lies.
func (c *cluster) forge(kind, name, value string) error {
	r, err := c.forged(kind, name, value)
	if err != nil {
		return err
	}
	text, err := clustermesh.Encode(r)
	if err != nil {
		return err
	}
	_, err = c.memory.Commit(context.Background(), kvstore.Put(clustermesh.KeyOf(clustermesh.ScopeExport, c.name, r).String(), text, 0))
	return err
}

func (c *cluster) forged(kind, name, value string) (clustermesh.Record, error) {
	if kind == "node" {
		p, err := netip.ParsePrefix(value)
		if err != nil {
			return nil, err
		}
		n := &clustermesh.Node{Name: name, Number: 9, PodPrefixes: []netip.Prefix{p}, TunnelAddresses: []netip.Addr{p.Addr().Next()}, WireGuardEndpoint: "198.51.100.9:51820"}
		copy(n.WireGuardKey[:], strings.Repeat("forged/", 5))
		return n, nil
	}
	a, err := netip.ParseAddr(value)
	if err != nil {
		return nil, err
	}
	switch kind {
	case "address":
		return &clustermesh.Address{Name: clustermesh.AddressName{Node: name, Prefix: netip.PrefixFrom(a, a.BitLen())}, Identity: clustermesh.MakeIdentity(c.id, 1), Owner: "forged"}, nil
	case "endpoint":
		ns, svc, _ := strings.Cut(name, "/")
		return &clustermesh.EndpointSlice{
			Name:      clustermesh.SliceName{Service: clustermesh.ServiceName{Namespace: ns, Name: svc}, Slice: "forged"},
			Ports:     []clustermesh.Port{{Name: "web", Protocol: clustermesh.TCP, Port: 8080}},
			Endpoints: []clustermesh.Endpoint{{Address: a, Node: 1, Ready: true, Serving: true}},
		}, nil
	}
	return nil, fmt.Errorf("forge %s: want node, address or endpoint", kind)
}
