package apiserver

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// maxHints is how many zones, and how many nodes, an endpoint is meant for: the
// limit of Kubernetes.
const maxHints = 8

// concerns says whether what a slice yields may depend on a node. An endpoint that
// names none is on the one that its address says.
func concerns(s *discoveryv1.EndpointSlice, node string) bool {
	return slices.ContainsFunc(s.Endpoints, func(e discoveryv1.Endpoint) bool {
		return e.NodeName == nil || *e.NodeName == node ||
			e.Hints != nil && slices.ContainsFunc(e.Hints.ForNodes, func(f discoveryv1.ForNode) bool { return f.Name == node })
	})
}

// setSlice takes a given EndpointSlice; it belongs to the service of its label.
func (d *deriver) setSlice(name objectName, s *discoveryv1.EndpointSlice, at clustermesh.Origin) {
	if svc, had := d.givenOf[name]; had {
		remove(d.given, svc, name.Name)
		delete(d.givenOf, name)
		if s == nil || s.Labels[discoveryv1.LabelServiceName] != svc.Name {
			d.noteChange(serviceUnit(svc), Ref{KindEndpointSlice, name.Namespace, name.Name}, changeDeleted)
		}
		d.touch(serviceUnit(svc), at)
	}
	if s == nil {
		return
	}
	svc := objectName{name.Namespace, s.Labels[discoveryv1.LabelServiceName]}
	if svc.Name == "" {
		return // no Service's of this cluster: an import's, perhaps
	}
	d.givenOf[name] = svc
	put(d.given, svc, name.Name, s)
	d.touch(serviceUnit(svc), at)
}

// givenSlices are the EndpointSlices somebody wrote for a service. One with an
// address that cannot be right is refused: what was published of it stays. any
// is false if nothing is in force by them.
func (d *deriver) givenSlices(name objectName, scope clustermesh.Scope, y *yield) (out []*clustermesh.EndpointSlice, any bool) {
	for _, sliceName := range slices.Sorted(maps.Keys(d.given[name])) {
		s := d.given[name][sliceName]
		ports, endpoints, err := d.readSlice(s, scope, y)
		if err != nil {
			y.problem(Problem{
				Object: Ref{KindEndpointSlice, name.Namespace, sliceName}.String(), What: "refused", Why: printable(err.Error()),
				Fix: "correct the EndpointSlice; until then what was published of it stays in force",
			})
			any = d.keepSlice(name, sliceName, scope, y) || any
			continue
		}
		out, any = appendSlices(out, name, sliceName, ports, endpoints), true
	}
	return out, any
}

// keepSlice leaves what the store holds of a given slice and its parts, if any.
func (d *deriver) keepSlice(name objectName, slice string, scope clustermesh.Scope, y *yield) (any bool) {
	if d.anewService(name, KindEndpointSlice, slice) {
		return false
	}
	first := clustermesh.KindPrefix(scope, d.cfg.Cluster, clustermesh.KindEndpointSlice) + name.String() + "/" + slice
	for _, key := range d.storedOf(name, first) {
		rest := strings.TrimPrefix(key, first)
		if bits, part := strings.CutPrefix(rest, "."); rest == "" || (part && strings.Trim(bits, "01") == "") {
			y.keep(key)
			any = true
		}
	}
	return any
}

// storedOf are the keys in force under prefix of those that a service yields.
func (d *deriver) storedOf(name objectName, prefix string) []string {
	keys := make(map[string]bool)
	for _, key := range d.cfg.StoredUnder(prefix) {
		keys[key] = true
	}
	if out := d.units[serviceUnit(name)]; out != nil { // the store may not have it yet
		for _, key := range out.keys {
			if strings.HasPrefix(key, prefix) {
				keys[key] = true
			}
		}
	}
	maps.DeleteFunc(keys, func(key string, _ bool) bool { return d.cfg.Stored(key) == nil })
	return slices.Sorted(maps.Keys(keys))
}

func (d *deriver) readSlice(s *discoveryv1.EndpointSlice, scope clustermesh.Scope, y *yield) ([]clustermesh.Port, []clustermesh.Endpoint, error) {
	var ports []clustermesh.Port
	for i, p := range s.Ports {
		var proto corev1.Protocol
		if p.Protocol != nil {
			proto = *p.Protocol
		}
		number, err := protocolOf(proto)
		if err != nil {
			return nil, nil, fmt.Errorf("ports[%d]: %w", i, err)
		}
		if p.Port == nil || *p.Port < 1 || *p.Port > 65535 {
			return nil, nil, fmt.Errorf("ports[%d]: the port is missing or not between 1 and 65535", i)
		}
		port := clustermesh.Port{Protocol: number, Port: uint16(*p.Port)}
		if p.Name != nil {
			port.Name = *p.Name
		}
		ports = append(ports, port)
	}
	var endpoints []clustermesh.Endpoint
	for i, e := range s.Endpoints {
		if len(e.Addresses) == 0 {
			return nil, nil, fmt.Errorf("endpoints[%d] has no address", i)
		}
		// Further addresses of one endpoint are, by Kubernetes' own word, the same
		// pod again: the first one counts.
		ep, err := d.readEndpoint(s.AddressType, e, scope)
		if errors.Is(err, errNotOurs) && d.cfg.SlicesGiven {
			y.problem(Problem{
				Object: Ref{KindEndpointSlice, s.Namespace, s.Name}.String(), What: "an endpoint is not shown to other clusters", Why: printable(err.Error()),
				Fix: "have it run on the cluster's pod network, or keep the service's endpoints to this cluster: tombolo.io/shared: \"false\"",
			})
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("endpoints[%d]: %w", i, err)
		}
		endpoints = append(endpoints, ep)
	}
	return ports, endpoints, nil
}

// errNotOurs is about an endpoint whose address is outside of the cluster.
var errNotOurs = errors.New("not an address of this cluster")

func (d *deriver) readEndpoint(family discoveryv1.AddressType, e discoveryv1.Endpoint, scope clustermesh.Scope) (clustermesh.Endpoint, error) {
	a, err := netip.ParseAddr(e.Addresses[0])
	if err != nil || a.Zone() != "" {
		return clustermesh.Endpoint{}, fmt.Errorf("%q is no address", e.Addresses[0])
	}
	a = a.Unmap()
	if (family == discoveryv1.AddressTypeIPv4 && !a.Is4()) || (family == discoveryv1.AddressTypeIPv6 && !a.Is6()) || family == discoveryv1.AddressTypeFQDN {
		return clustermesh.Endpoint{}, fmt.Errorf("%s is not of the slice's address type %s", a, family)
	}
	ready := e.Conditions.Ready == nil || *e.Conditions.Ready
	ep := clustermesh.Endpoint{Ready: ready, Serving: ready, Terminating: e.Conditions.Terminating != nil && *e.Conditions.Terminating}
	n, at, err := d.placeEndpoint(a, scope)
	if err != nil {
		return ep, err
	}
	if ep.Address = at; n != nil {
		ep.Node, ep.Zone = d.cfg.NodeNumber(n.node.Name), n.node.Labels[corev1.LabelTopologyZone]
	}
	if e.Conditions.Serving != nil {
		ep.Serving = *e.Conditions.Serving
	}
	if e.Zone != nil {
		ep.Zone = *e.Zone
	}
	if e.Hostname != nil {
		if bad := validation.IsDNS1123Label(*e.Hostname); *e.Hostname != "" && len(bad) > 0 {
			return clustermesh.Endpoint{}, fmt.Errorf("hostname %q: %s", *e.Hostname, bad[0])
		}
		ep.Hostname = clustermesh.MakeHostname(*e.Hostname)
	}
	ep.Hints, err = d.readHints(e.Hints)
	return ep, err
}

// placeEndpoint finds the node of an endpoint's address, and the address to reach
// it at. Other clusters reach what is on a node's network by the tunnel address.
// Within a cluster of Kubernetes it has the address Kubernetes says (it may listen
// on that one alone), and endpoints outside of the cluster (its API server, a
// database) are on no node.
func (d *deriver) placeEndpoint(a netip.Addr, scope clustermesh.Scope) (*nodeState, netip.Addr, error) {
	if n := d.nodeOf(a); n != nil {
		return n, a, nil
	}
	n, tunnel := d.hostEndpoint(a)
	here := d.cfg.SlicesGiven && scope == clustermesh.ScopeLocal
	switch {
	case here && (a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified()):
		return nil, a, fmt.Errorf("%s is no address that a connection can be sent to", a)
	case here:
		return n, a, nil
	case n == nil:
		return nil, a, fmt.Errorf("%s is outside the cluster's pod prefixes %v and is no node's own address: %w", a, d.podPrefixes(), errNotOurs)
	}
	return n, tunnel, nil
}

// readHints reads given hints. A node without a number has no agent that could
// be meant.
func (d *deriver) readHints(h *discoveryv1.EndpointHints) (clustermesh.Hints, error) {
	if h == nil {
		return clustermesh.Hints{}, nil
	}
	if len(h.ForZones) > maxHints || len(h.ForNodes) > maxHints {
		return clustermesh.Hints{}, fmt.Errorf("hints: %d zones and %d nodes; at most %d of each are allowed", len(h.ForZones), len(h.ForNodes), maxHints)
	}
	var zones []string
	var nodes []uint16
	for i, z := range h.ForZones {
		if z.Name == "" || len(validation.IsValidLabelValue(z.Name)) > 0 {
			return clustermesh.Hints{}, fmt.Errorf("hints.forZones[%d]: %q is no name of a zone", i, z.Name)
		}
		zones = append(zones, z.Name)
	}
	for i, f := range h.ForNodes {
		if len(validation.IsDNS1123Subdomain(f.Name)) > 0 {
			return clustermesh.Hints{}, fmt.Errorf("hints.forNodes[%d]: %q is no name of a node", i, f.Name)
		}
		if n := d.cfg.NodeNumber(f.Name); n != 0 {
			nodes = append(nodes, n)
		}
	}
	return clustermesh.MakeHints(zones, nodes), nil
}

// hostEndpoint finds the node that has address a itself, and the tunnel address
// of the same family that stands for it.
func (d *deriver) hostEndpoint(a netip.Addr) (*nodeState, netip.Addr) {
	for _, name := range slices.Sorted(maps.Keys(d.nodes)) {
		n := d.nodes[name]
		own := nodeAddresses(n.node)
		if c := d.nodeClaims[name]; c != nil {
			own = append(own, c.underlay...)
		}
		if !slices.Contains(own, a) {
			continue
		}
		for _, t := range n.tunnel {
			if t.Is4() == a.Is4() {
				return n, t
			}
		}
	}
	return nil, a
}
