package apiserver

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// maxSlice is how many endpoints one slice holds.
const maxSlice = 100

// slices are those of a service: the given ones, or else derived ones. Given ones
// that were refused and never published do not count: what is wrong takes
// nothing away.
func (d *deriver) slices(name objectName, st *serviceState, scope clustermesh.Scope, y *yield) []*clustermesh.EndpointSlice {
	if given, any := d.givenSlices(name, scope, y); any || d.cfg.SlicesGiven {
		return given
	}
	return d.derivedSlices(name, st)
}

// derivedSlices puts the pods a service selects into slices: one family and one
// set of port numbers each.
func (d *deriver) derivedSlices(name objectName, st *serviceState) []*clustermesh.EndpointSlice {
	type group struct {
		ports     []clustermesh.Port
		endpoints []clustermesh.Endpoint
	}
	groups := make(map[string]*group)
	v4, v6 := families(st.svc)
	prefer, always := distribution(st.svc), st.svc.Spec.PublishNotReadyAddresses
	for _, podName := range d.podsOf(st) {
		pod := d.pods[podName].pod
		addrs, ready := d.podAddresses(podName, pod)
		if len(addrs) == 0 {
			continue
		}
		ports, base := targetPorts(st.svc, pod)
		if len(ports) == 0 && len(st.svc.Spec.Ports) > 0 {
			continue // none of the named ports exists in this pod
		}
		terminating := pod.DeletionTimestamp != nil
		for _, a := range addrs {
			family := "v4-"
			if a.Is6() {
				family = "v6-"
			}
			if (a.Is4() && !v4) || (a.Is6() && !v6) {
				continue
			}
			g := groups[family+base]
			if g == nil {
				g = &group{ports: ports}
				groups[family+base] = g
			}
			ep := clustermesh.Endpoint{
				Address:     a,
				Node:        d.cfg.NodeNumber(pod.Spec.NodeName),
				Zone:        d.zone(pod.Spec.NodeName),
				Ready:       (ready && !terminating) || always,
				Serving:     ready,
				Terminating: terminating,
			}
			ep.Hints = hintsFor(prefer, ep)
			if pod.Spec.Subdomain == name.Name {
				ep.Hostname = clustermesh.MakeHostname(pod.Spec.Hostname)
			}
			g.endpoints = append(g.endpoints, ep)
		}
	}
	var out []*clustermesh.EndpointSlice
	for _, base := range slices.Sorted(maps.Keys(groups)) {
		g := groups[base]
		out = appendSlices(out, name, base, g.ports, g.endpoints)
	}
	return out
}

// hintsFor are the hints that the EndpointSlice controller of Kubernetes gives:
// what is ready is meant for its own zone, and for its own node if that is asked for.
func hintsFor(prefer clustermesh.Distribution, e clustermesh.Endpoint) clustermesh.Hints {
	if prefer == clustermesh.DistributionUnset || !e.Ready {
		return clustermesh.Hints{}
	}
	var zones []string
	var nodes []uint16
	if e.Zone != "" {
		zones = []string{e.Zone}
	}
	if prefer == clustermesh.DistributionSameNode && e.Node != 0 {
		nodes = []uint16{e.Node}
	}
	return clustermesh.MakeHints(zones, nodes)
}

func (d *deriver) zone(node string) string {
	if n := d.nodes[node]; n != nil {
		return n.node.Labels[corev1.LabelTopologyZone]
	}
	return ""
}

// families are those a Service has, by what it says or by its addresses; both if
// it says nothing.
func families(svc *corev1.Service) (v4, v6 bool) {
	for _, f := range svc.Spec.IPFamilies {
		v4, v6 = v4 || f == corev1.IPv4Protocol, v6 || f == corev1.IPv6Protocol
	}
	if v4 || v6 {
		return v4, v6
	}
	for _, text := range clusterIPs(svc) {
		if a, err := netip.ParseAddr(text); err == nil {
			v4, v6 = v4 || a.Unmap().Is4(), v6 || a.Unmap().Is6()
		}
	}
	if v4 || v6 {
		return v4, v6
	}
	return true, true
}

// targetPorts resolves the ports of a service in a pod, and a name for the
// outcome: the numbers, since pods that agree on them share slices.
func targetPorts(svc *corev1.Service, pod *corev1.Pod) ([]clustermesh.Port, string) {
	var ports []clustermesh.Port
	var name strings.Builder
	for i, p := range svc.Spec.Ports {
		if i > 0 {
			name.WriteByte('.')
		}
		proto, _ := protocolOf(p.Protocol)
		number, ok := uint16(p.Port), true
		if p.TargetPort != (intstr.IntOrString{}) {
			number, ok = resolvePort(p.TargetPort, cmp.Or(p.Protocol, corev1.ProtocolTCP), running(pod))
		}
		if !ok {
			name.WriteByte('0')
			continue
		}
		name.WriteString(strconv.Itoa(int(number)))
		ports = append(ports, clustermesh.Port{Name: p.Name, Protocol: proto, Port: number})
	}
	if name.Len() > 40 {
		h := fnv.New64a()
		h.Write([]byte(name.String()))
		return ports, fmt.Sprintf("x%016x", h.Sum64())
	}
	return ports, cmp.Or(name.String(), "0")
}

// appendSlices splits endpoints into slices of at most maxSlice. Which slice an
// endpoint is in depends on the hash of its address and on how many others share
// its first bits, not on the order in which they came: a change of one endpoint
// rewrites one slice, save where a slice grows beyond the limit and splits in two.
func appendSlices(out []*clustermesh.EndpointSlice, name objectName, base string, ports []clustermesh.Port, endpoints []clustermesh.Endpoint) []*clustermesh.EndpointSlice {
	// Pods on one node's network share its address: the one that serves stands for it.
	slices.SortFunc(endpoints, func(a, b clustermesh.Endpoint) int {
		return cmp.Or(a.Address.Compare(b.Address), trueFirst(a.Ready, b.Ready), trueFirst(a.Serving, b.Serving), trueFirst(b.Terminating, a.Terminating))
	})
	endpoints = slices.CompactFunc(endpoints, func(a, b clustermesh.Endpoint) bool { return a.Address == b.Address })
	var split func(eps []clustermesh.Endpoint, bits string)
	split = func(eps []clustermesh.Endpoint, bits string) {
		if len(eps) <= maxSlice || len(bits) == 64 {
			for i := 0; len(eps) > 0; i++ {
				n := min(len(eps), maxSlice)
				slice := base
				if bits != "" {
					slice += "." + bits
				}
				if i > 0 { // 64 bits of hash were not enough: it cannot be, but nothing may be lost
					slice += "." + strconv.Itoa(i)
				}
				out = append(out, &clustermesh.EndpointSlice{
					Name:  clustermesh.SliceName{Service: clustermesh.ServiceName(name), Slice: slice},
					Ports: ports, Endpoints: eps[:n:n],
				})
				eps = eps[n:]
			}
			return
		}
		var halves [2][]clustermesh.Endpoint
		for _, e := range eps {
			bit := addressHash(e.Address) >> (63 - len(bits)) & 1
			halves[bit] = append(halves[bit], e)
		}
		split(halves[0], bits+"0")
		split(halves[1], bits+"1")
	}
	split(endpoints, "")
	return out
}

func trueFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

// addressHash spreads neighbouring addresses evenly. It is part of how keys are
// named: another one would rename every slice of a large service.
func addressHash(a netip.Addr) uint64 {
	b := a.As16()
	h := fnv.New64a()
	h.Write(b[:])
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	x ^= x >> 33
	return x
}

// podPrefixes bound the cluster's addresses: as configured, or the nodes' own,
// neighbours put together.
func (d *deriver) podPrefixes() []netip.Prefix {
	if len(d.cfg.Bound) > 0 {
		return slices.Concat(d.cfg.Bound, d.cfg.Tunnels)
	}
	if d.union == nil {
		for _, n := range d.nodes {
			d.union = append(d.union, n.prefixes...)
		}
		d.union = aggregate(d.union)
	}
	return d.union
}

// aggregate covers exactly the same addresses with as few prefixes as possible.
func aggregate(all []netip.Prefix) []netip.Prefix {
	slices.SortFunc(all, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	var out []netip.Prefix
	for _, p := range all {
		if n := len(out); n > 0 && out[n-1].Overlaps(p) {
			continue // inside of the one before
		}
		out = append(out, p)
		for n := len(out); n > 1; n = len(out) {
			a, b := out[n-2], out[n-1]
			up := netip.PrefixFrom(a.Addr(), a.Bits()-1).Masked()
			if a.Bits() != b.Bits() || a.Bits() == 0 || up.Addr() != a.Addr() || !up.Contains(b.Addr()) {
				break
			}
			out = append(out[:n-2], up)
		}
	}
	return out
}
