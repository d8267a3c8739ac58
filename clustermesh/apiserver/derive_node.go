package apiserver

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// LabelGateway on a Node makes it a gateway of the cluster.
const LabelGateway = "tombolo.io/gateway"

// AnnotationEndpoint on a Node is where other clusters' nodes reach its tunnel,
// whatever its agent says: address and port, or none where NAT lets nobody in.
const AnnotationEndpoint = "tombolo.io/wireguard-endpoint"

// endpointNowhere is its value for a node that sends first.
const endpointNowhere = "none"

// endpointOf is the endpoint of a node's record.
func endpointOf(node *corev1.Node, registered string) (string, *Problem) {
	switch said := node.Annotations[AnnotationEndpoint]; said {
	case "":
		return registered, nil
	case endpointNowhere:
		return "", nil
	default:
		if at, err := netip.ParseAddrPort(said); err == nil && at.Port() != 0 && !at.Addr().IsUnspecified() {
			return at.String(), nil
		}
		return registered, &Problem{Object: "Node " + node.Name, What: "annotation " + AnnotationEndpoint + " is refused",
			Why: fmt.Sprintf("%q is not an IP address and a port", printable(said)), Fix: "write it as 203.0.113.7:51820, or none; until then what its agent says counts"}
	}
}

func (d *deriver) setNode(name string, node *corev1.Node, at clustermesh.Origin) {
	d.nodesMoved = true
	old := d.nodes[name]
	if node == nil {
		delete(d.nodes, name)
		d.touchNode(name, at)
		return
	}
	st := &nodeState{node: node}
	if old != nil {
		st.prefixes, st.tunnel, st.problem = old.prefixes, old.tunnel, old.problem
	}
	d.nodes[name] = st
	d.unnumberedNodes[name] = true
	if old != nil && old.node.Labels[corev1.LabelTopologyZone] == node.Labels[corev1.LabelTopologyZone] &&
		slices.Equal(nodeAddresses(old.node), nodeAddresses(node)) {
		d.touch(nodeUnit(name), at) // its pods are not concerned
		return
	}
	d.touchNode(name, at)
}

// touchNode: a node's number, zone and tunnel addresses are in what its pods yield.
func (d *deriver) touchNode(name string, at clustermesh.Origin) {
	d.touch(nodeUnit(name), at)
	d.nodesMoved = d.nodesMoved || d.chained() // its number may be another
	for pod, st := range d.podsByNode[name] {
		d.touch(podUnit(pod), at)
		d.touchServicesOf(st, at)
	}
	for svc, slices := range d.given {
		for _, s := range slices {
			if concerns(s, name) {
				d.touch(serviceUnit(svc), at)
			}
		}
	}
}

// shareOut gives each node its prefixes. Of two nodes that claim one address the
// first by name has it; the other has none and is a problem.
func (d *deriver) shareOut() {
	if !d.nodesMoved {
		return
	}
	d.nodesMoved, d.union = false, nil
	// What a change of one node makes of others came to be with that change.
	var at clustermesh.Origin
	for u, o := range d.dirty {
		if u.kind == clustermesh.KindNode && (at == 0 || o < at) {
			at = o
		}
	}
	if d.chained() {
		d.shareTunnels(at)
		return
	}
	taken := newPrefixOwners()
	names := slices.Sorted(maps.Keys(d.nodes))
	fresh := make(map[string][]netip.Prefix, len(names))
	problems := make(map[string]*Problem)
	for _, name := range names {
		fresh[name], problems[name] = d.nodePrefixes(name, d.nodes[name].node, taken)
	}
	// A node whose prefixes are refused keeps the last good ones, if nobody else
	// has them now.
	for _, name := range names {
		if problems[name] == nil {
			continue
		}
		if last := d.lastPrefixes(name); len(last) > 0 && !slices.ContainsFunc(last, func(p netip.Prefix) bool {
			return taken.overlap(p) != "" || !within(d.cfg.Bound, p)
		}) {
			fresh[name] = last
			for _, p := range last {
				taken.add(p, name)
			}
			problems[name].What = "its pod prefixes are refused"
			problems[name].Fix += "; until then the last good ones stay in force"
		}
	}
	for _, name := range names {
		n := d.nodes[name]
		if prefixes := fresh[name]; !slices.Equal(prefixes, n.prefixes) {
			n.prefixes, n.tunnel = prefixes, nil
			for _, p := range prefixes {
				n.tunnel = append(n.tunnel, tunnelAddress(p))
			}
			d.touchNode(name, at)
		}
		problem := problems[name]
		if (n.problem == nil) != (problem == nil) || (problem != nil && *problem != *n.problem) {
			n.problem = problem
			d.touch(nodeUnit(name), at)
		}
	}
}

// lastPrefixes are the last good ones of a node: those in force, or after a
// restart those of the record in the store.
func (d *deriver) lastPrefixes(name string) []netip.Prefix {
	if last := d.nodes[name].prefixes; len(last) > 0 {
		return last
	}
	if d.anew(nodeUnit(name), Ref{Kind: KindNode, Name: name}) {
		return nil
	}
	key := clustermesh.KeyOf(clustermesh.ScopeExport, d.cfg.Cluster, &clustermesh.Node{Name: name})
	if value := d.cfg.Stored(key.String()); value != nil {
		if r, err := clustermesh.Decode(key, value); err == nil {
			return r.(*clustermesh.Node).PodPrefixes
		}
	}
	return nil
}

// nodePrefixes reads spec.podCIDRs. One bad prefix refuses all of the node.
func (d *deriver) nodePrefixes(name string, node *corev1.Node, taken *prefixOwners) ([]netip.Prefix, *Problem) {
	refuse := func(why, fix string, args ...any) *Problem {
		return &Problem{Object: "Node " + name, What: "has no pod prefixes", Why: fmt.Sprintf(why, args...), Fix: fix}
	}
	cidrs := node.Spec.PodCIDRs
	if len(cidrs) == 0 && node.Spec.PodCIDR != "" {
		cidrs = []string{node.Spec.PodCIDR}
	}
	if len(cidrs) == 0 {
		return nil, refuse("spec.podCIDRs is empty", "give the node one prefix of each family it has pods of")
	}
	var prefixes []netip.Prefix
	for _, text := range cidrs {
		p, err := netip.ParsePrefix(text)
		switch {
		case err != nil:
			return nil, refuse("spec.podCIDRs holds %q, which is no prefix", "write it as 10.1.2.0/24", printable(text))
		case p != p.Masked():
			return nil, refuse("spec.podCIDRs holds %s, which has bits set beyond its length", "write it as "+p.Masked().String(), p)
		case p.Addr().BitLen()-p.Bits() < 2:
			return nil, refuse("%s has no room for a tunnel address and a pod", "give it a wider prefix", p)
		case !within(d.cfg.Bound, p):
			return nil, refuse("%s is outside the cluster's pod prefixes %v", "correct spec.podCIDRs or --pod-prefix", p, d.cfg.Bound)
		}
		if other := taken.overlap(p); other != "" {
			return nil, refuse("%s overlaps the prefix of Node %s", "give each node a prefix of its own", p, other)
		}
		prefixes = append(prefixes, p)
	}
	for i, p := range prefixes {
		for _, q := range prefixes[:i] {
			if p.Overlaps(q) {
				return nil, refuse("its prefixes %s and %s overlap", "give each prefix once", q, p)
			}
		}
	}
	for _, p := range prefixes {
		taken.add(p, name)
	}
	return prefixes, nil
}

// within: does one of bound hold all of p? No bound holds everything.
func within(bound []netip.Prefix, p netip.Prefix) bool {
	return len(bound) == 0 || slices.ContainsFunc(bound, func(b netip.Prefix) bool {
		return b.Bits() <= p.Bits() && b.Contains(p.Addr())
	})
}

// tunnelAddress is the first host address of a pod prefix: the node's own.
func tunnelAddress(p netip.Prefix) netip.Addr { return p.Masked().Addr().Next() }

// prefixOwners finds overlaps without comparing each with each.
type prefixOwners struct {
	byPrefix map[netip.Prefix]string
	bits     map[int]bool // lengths seen
}

func newPrefixOwners() *prefixOwners {
	return &prefixOwners{byPrefix: make(map[netip.Prefix]string), bits: make(map[int]bool)}
}

func (o *prefixOwners) add(p netip.Prefix, owner string) {
	o.byPrefix[p], o.bits[p.Bits()] = owner, true
}

// overlap is the owner of a prefix that shares an address with p, "" = none.
func (o *prefixOwners) overlap(p netip.Prefix) string {
	inside := false
	for bits := range o.bits {
		if bits > p.Bits() {
			inside = true
			continue
		}
		if up, err := p.Addr().Prefix(bits); err == nil {
			if owner, ok := o.byPrefix[up]; ok {
				return owner
			}
		}
	}
	if !inside {
		return ""
	}
	found := ""
	for q, owner := range o.byPrefix {
		if p.Overlaps(q) && (found == "" || owner < found) {
			found = owner
		}
	}
	return found
}

// nodeOf is the node whose prefix holds an address; nil = none.
func (d *deriver) nodeOf(a netip.Addr) *nodeState {
	if d.chained() {
		if n := d.nodeOfPod(a); n != nil {
			return n
		}
	}
	for _, n := range d.nodes {
		for _, p := range n.prefixes {
			if p.Contains(a) {
				return n
			}
		}
	}
	return nil
}

// nodeRecord is a node as it is published, and as it is answered at registration.
func (d *deriver) nodeRecord(name string, at clustermesh.Origin) *clustermesh.Node {
	n := d.nodes[name]
	if n == nil {
		return nil
	}
	r := &clustermesh.Node{
		Name:            name,
		Number:          d.cfg.NodeNumber(name),
		TunnelAddresses: n.tunnel,
		PodPrefixes:     n.prefixes,
		Gateway:         n.node.Labels[LabelGateway] == "true",
		Zone:            n.node.Labels[corev1.LabelTopologyZone],
		Origin:          at,
	}
	if c := d.nodeClaims[name]; c != nil {
		r.UnderlayAddresses = c.underlay
		r.WireGuardKey, r.WireGuardPort = c.key, c.port
		r.WireGuardEndpoint, _ = endpointOf(n.node, c.endpoint)
		return r
	}
	r.UnderlayAddresses = nodeAddresses(n.node)
	return r
}

// nodeAddresses are the addresses the source knows a node by.
func nodeAddresses(node *corev1.Node) []netip.Addr {
	var all []netip.Addr
	for _, a := range node.Status.Addresses {
		if addr, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP {
			all = append(all, addr.Unmap())
		}
	}
	return all
}

func (d *deriver) deriveNode(name string, y *yield) {
	n := d.nodes[name]
	if n == nil {
		return
	}
	if n.problem != nil {
		y.problem(*n.problem)
	}
	if _, problem := endpointOf(n.node, ""); problem != nil {
		y.problem(*problem)
	}
	r := d.nodeRecord(name, y.at)
	if r.Number == 0 || len(r.PodPrefixes) == 0 {
		return
	}
	if d.chained() {
		delete(d.placed, name)
		pods, problem := d.placedOn(name, mostNodePrefixes-len(r.PodPrefixes))
		if problem != nil {
			y.problem(*problem)
		}
		r.PodPrefixes = slices.Concat(r.PodPrefixes, pods)
	}
	y.put(clustermesh.ScopeExport, r, "Node "+name)
}
