package clustermesh

import (
	"fmt"
	"net"
	"net/netip"
)

// What the pods of a cluster may have: nothing that hosts keep for themselves,
// and no range so wide that it could only be a mistake or a theft.
const (
	minPodBits4 = 8
	minPodBits6 = 32
)

// noPods are ranges that no pod can have, and what they are for.
var noPods = []struct {
	prefix netip.Prefix
	what   string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "unspecified addresses"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local addresses"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
	{netip.MustParsePrefix("::/128"), "the unspecified address"},
	{netip.MustParsePrefix("::1/128"), "loopback"},
	{netip.MustParsePrefix("fe80::/10"), "link-local addresses"},
	{netip.MustParsePrefix("ff00::/8"), "multicast"},
}

// unfitPrefixes names the pod prefixes that no cluster can have.
func unfitPrefixes(c *Cluster) []Problem {
	var problems []Problem
	for _, p := range c.PodPrefixes {
		least := minPodBits6
		if p.Addr().Is4() {
			least = minPodBits4
		}
		if p.Bits() < least {
			problems = append(problems, Problem{
				What: fmt.Sprintf("pod prefix %v of %s is broader than /%d", p, quote(c.Name), least),
				Why:  "it would take in addresses of others than its pods",
				Fix:  "Start its tombolo-apiserver with the ranges that its pods have: --pod-prefix, once for each.",
			})
		}
		for _, no := range noPods {
			if !p.Overlaps(no.prefix) {
				continue
			}
			problems = append(problems, Problem{
				What: fmt.Sprintf("pod prefix %v of %s overlaps %v", p, quote(c.Name), no.prefix),
				Why:  "that is " + no.what + ", which no pod can have",
				Fix:  "Start its tombolo-apiserver with the ranges that its pods have: --pod-prefix, once for each.",
			})
		}
	}
	return problems
}

// captures names what is addressed at owner and lies in a pod prefix of c: with
// the prefix routed into the tunnel, it could not be reached any more.
func captures(c *Cluster, owner string, at []place) []Problem {
	var problems []Problem
	for _, p := range c.PodPrefixes {
		for _, a := range at {
			if !p.Contains(a.addr) {
				continue
			}
			problems = append(problems, Problem{
				What: fmt.Sprintf("pod prefix %v (%s) of %s contains %s, %s of %s", p, addressRange(p), quote(c.Name), a.addr, a.what, owner),
				Why:  "what is sent to that address would go into the tunnel to pods and never arrive",
				Fix:  "Move the pods to another range, or name only the ranges that pods have: --pod-prefix.",
			})
			break // one example says it; a cluster may have thousands of nodes
		}
	}
	return problems
}

// place is an address that hosts and not pods are reached at.
type place struct {
	addr netip.Addr
	what string
}

// meshPlaces are the mesh addresses that are no names.
func meshPlaces(meshAddresses []string) []place {
	var out []place
	for _, text := range meshAddresses {
		host, _, err := net.SplitHostPort(text)
		if err != nil {
			continue
		}
		if a, err := netip.ParseAddr(host); err == nil {
			out = append(out, place{a.Unmap().WithZone(""), "mesh address"})
		}
	}
	return out
}

// nodePlaces are the underlay addresses of nodes, and where their tunnels end.
func nodePlaces(nodes []*Node) []place {
	var out []place
	for _, n := range nodes {
		for _, a := range n.UnderlayAddresses {
			out = append(out, place{a.Unmap().WithZone(""), "underlay address of node " + quote(n.Name)})
		}
		if end, err := netip.ParseAddrPort(n.WireGuardEndpoint); err == nil {
			out = append(out, place{end.Addr().Unmap().WithZone(""), "WireGuard endpoint of node " + quote(n.Name)})
		}
	}
	return out
}
