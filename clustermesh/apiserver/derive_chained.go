package apiserver

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// A chained cluster is one whose pods another CNI plugin connects and gives
// addresses to, anywhere in the cluster's pod prefixes. Its nodes have no prefix of
// their own: a node's are the addresses that its agent registered of its pods, and
// one tunnel address of each of the cluster's tunnel prefixes, by its number.

// mostNodePrefixes is how many prefixes the record of a node holds.
const mostNodePrefixes = clustermesh.MaxPrefixes

func (d *deriver) chained() bool { return len(d.cfg.Tunnels) > 0 }

// shareTunnels gives each node its tunnel addresses. A node without a number has
// none yet.
func (d *deriver) shareTunnels(at clustermesh.Origin) {
	for name, n := range d.nodes {
		var prefixes []netip.Prefix
		var tunnel []netip.Addr
		var problem *Problem
		if number := d.cfg.NodeNumber(name); number != 0 {
			for _, p := range d.cfg.Tunnels {
				a, ok := nthAddress(p, number)
				if !ok {
					problem = &Problem{Object: "Node " + name, What: "has no tunnel address", Why: fmt.Sprintf("tunnel prefix %s has no room for node number %d", p, number),
						Fix: "give the mesh API server a wider --tunnel-prefix, and join the peers again"}
					prefixes, tunnel = nil, nil
					break
				}
				prefixes, tunnel = append(prefixes, netip.PrefixFrom(a, a.BitLen())), append(tunnel, a)
			}
		}
		if !slices.Equal(n.prefixes, prefixes) || (n.problem == nil) != (problem == nil) {
			n.prefixes, n.tunnel, n.problem = prefixes, tunnel, problem
			d.touchNode(name, at)
		}
	}
	d.nodesMoved = false
}

// nthAddress is the n-th address of a prefix; its first and, of IPv4, its last one
// are no node's.
func nthAddress(p netip.Prefix, n uint16) (netip.Addr, bool) {
	b := p.Masked().Addr().As16()
	low := uint32(b[14])<<8 | uint32(b[15]) + uint32(n)
	if host := p.Addr().BitLen() - p.Bits(); host < 17 && uint32(n) >= uint32(1)<<host-1 {
		return netip.Addr{}, false
	}
	high := uint32(b[12])<<8 | uint32(b[13]) + low>>16
	b[12], b[13], b[14], b[15] = byte(high>>8), byte(high), byte(low>>8), byte(low)
	a := netip.AddrFrom16(b)
	if p.Addr().Is4() {
		a = a.Unmap()
	}
	return a, p.Contains(a)
}

// touchPlaced notes that the pods of a node have other addresses, and that of those
// of the pod's namespace the slices name some. The node's record follows at the pace
// of flushPlaced: many pods at once are few writes of it.
func (d *deriver) touchPlaced(pod objectName, node string, addrs []netip.Addr, at clustermesh.Origin) {
	if !d.chained() {
		return
	}
	if old, noted := d.placed[node]; !noted || at < old {
		d.placed[node] = at
	}
	if len(addrs) == 0 || !d.cfg.SlicesGiven {
		return
	}
	for svc, list := range d.given {
		if svc.Namespace != pod.Namespace {
			continue
		}
		for _, s := range list {
			if sliceHas(s, addrs) {
				d.touch(serviceUnit(svc), at)
			}
		}
	}
}

func sliceHas(s *discoveryv1.EndpointSlice, addrs []netip.Addr) bool {
	return slices.ContainsFunc(s.Endpoints, func(e discoveryv1.Endpoint) bool {
		return len(e.Addresses) > 0 && slices.ContainsFunc(addrs, func(a netip.Addr) bool { return a.String() == e.Addresses[0] })
	})
}

// flushPlaced has the records of nodes derived anew whose pods have other addresses.
func (d *deriver) flushPlaced() {
	for node, at := range d.placed {
		d.touch(nodeUnit(node), at)
	}
	clear(d.placed)
}

// placedOn are the addresses of a node's pods, as prefixes, sorted. Beyond what a
// record holds there are none, and that is a problem.
func (d *deriver) placedOn(node string, room int) ([]netip.Prefix, *Problem) {
	var all []netip.Prefix
	for name, st := range d.podsByNode[node] {
		if st.pod.Spec.HostNetwork {
			continue
		}
		addrs, _ := d.podAddresses(name, st.pod)
		for _, a := range addrs {
			all = append(all, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	if len(all) <= room {
		return all, nil
	}
	return all[:room], &Problem{Object: "Node " + node, What: "some of its pods are not reached from other clusters", Why: fmt.Sprintf("its pods have %d addresses; the record of a node holds %d", len(all), room),
		Fix: "run fewer pods on the node"}
}

// podAddress says why a pod cannot have an address in a chained cluster; nil = it can.
func (d *deriver) podAddress(a netip.Addr) error {
	if slices.ContainsFunc(d.cfg.Bound, func(p netip.Prefix) bool { return p.Contains(a) }) {
		return nil
	}
	return fmt.Errorf("%s is outside the cluster's pod prefixes %v", a, d.cfg.Bound)
}

// takenBy is another node's pod that has an address and is there: a node does not
// take it away by saying so. The pod that was deleted has it no more.
func (d *deriver) takenBy(a netip.Addr, node string) (objectName, bool) {
	for _, name := range slices.SortedFunc(maps.Keys(d.claimsByAddress[a]), func(x, y objectName) int { return strings.Compare(x.String(), y.String()) }) {
		st := d.pods[name]
		if st == nil || st.pod.DeletionTimestamp != nil || finished(st.pod) || st.pod.Spec.NodeName == node {
			continue
		}
		if c := d.claimOf(name, st.pod); c != nil {
			return name, true
		}
	}
	return objectName{}, false
}

// nodeOfPod is the node of the pod that has an address; nil = no pod has.
func (d *deriver) nodeOfPod(a netip.Addr) *nodeState {
	if len(d.claimsByAddress[a]) == 0 {
		return nil
	}
	name := d.holder(a)
	st := d.pods[name]
	if st == nil || d.claimOf(name, st.pod) == nil {
		return nil
	}
	return d.nodes[st.pod.Spec.NodeName]
}
