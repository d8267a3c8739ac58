package clustermesh

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// ProtocolVersion counts incompatible steps of keys and encoding. A cluster
// announces it as the capability "protocol/<n>"; neighbours in number work
// together, so that a mesh can be upgraded cluster by cluster.
const ProtocolVersion = 1

// CapabilityProtocol is the capability that names this version's protocol.
var CapabilityProtocol = capabilityPrefix + strconv.Itoa(ProtocolVersion)

// CapabilityGateway is the capability of a cluster whose agents know topologies. One
// without it takes every cluster for a mesh, and sends to nodes that are behind
// gateways what these do not get.
const CapabilityGateway = "gateway"

const capabilityPrefix = "protocol/"

// Problem is something that keeps two clusters from joining: what is wrong,
// why that cannot work, and what to change.
type Problem struct{ What, Why, Fix string }

func (p Problem) String() string { return p.What + ": " + p.Why + ". " + p.Fix }

// Conflicts are the reasons why own, with these nodes, may not join candidate,
// given the peers that own has already; none = it may. The order is fixed. A
// peer of the candidate's own name is taken for the same cluster joining again:
// its prefixes may overlap, but its ID must be the one admitted before.
func Conflicts(own *Cluster, nodes []*Node, others []*Peer, candidate *Cluster) []Problem {
	if own.Name == candidate.Name && own.ID == candidate.ID && own.Incarnation == candidate.Incarnation {
		return []Problem{{
			What: fmt.Sprintf("cluster %s is this cluster itself", own.Name),
			Why:  "a cluster needs no mesh with itself",
			Fix:  "Take a token that another cluster has issued.",
		}}
	}
	problems := invalid(candidate)
	if own.Name == candidate.Name {
		problems = append(problems, Problem{
			What: fmt.Sprintf("both clusters are named %s", own.Name),
			Why:  "names tell the clusters' certificates and records apart",
			Fix:  "Give one of them another --cluster name.",
		})
	}
	if own.ID == candidate.ID {
		problems = append(problems, sameID(candidate, own.Name))
	}
	problems = append(problems, overlaps(candidate, own.Name, own.PodPrefixes)...)
	problems = append(problems, captures(candidate, own.Name, append(meshPlaces(own.MeshAddresses), nodePlaces(nodes)...))...)
	problems = append(problems, captures(own, quote(candidate.Name), meshPlaces(candidate.MeshAddresses))...)
	for _, p := range others {
		switch {
		case p.Name == candidate.Name && p.ID != candidate.ID:
			problems = append(problems, Problem{
				What: fmt.Sprintf("a peer named %s is in the mesh already, with ID %d instead of %d", p.Name, p.ID, candidate.ID),
				Why:  "it is another cluster of that name, or it was set up anew",
				Fix:  fmt.Sprintf("Rename one of them, or run: tombolo mesh remove %s, and join again.", p.Name),
			})
		case p.Name == candidate.Name:
		default:
			if p.ID == candidate.ID {
				problems = append(problems, sameID(candidate, p.Name))
			}
			problems = append(problems, overlaps(candidate, p.Name, p.PodPrefixes)...)
			problems = append(problems, captures(candidate, p.Name, meshPlaces(p.MeshAddresses))...)
		}
	}
	return append(problems, versions(own, candidate)...)
}

// invalid: a candidate that could not be a cluster of any mesh.
func invalid(c *Cluster) []Problem {
	var problems []Problem
	if err := ValidateClusterName(c.Name); err != nil {
		problems = append(problems, Problem{
			What: "the other cluster has an invalid name",
			Why:  err.Error(),
			Fix:  "Give it a --cluster name that is a DNS label of at most 32 characters.",
		})
	}
	if err := validateClusterID(uint32(c.ID)); err != nil {
		problems = append(problems, Problem{
			What: fmt.Sprintf("cluster %s has an invalid ID", quote(c.Name)),
			Why:  err.Error(),
			Fix:  fmt.Sprintf("Give it a --cluster-id from 1 to %d that no other cluster has.", MaxID),
		})
	}
	if len(c.PodPrefixes) == 0 {
		problems = append(problems, Problem{
			What: fmt.Sprintf("cluster %s names no pod prefixes", quote(c.Name)),
			Why:  "nothing outside them is believed, so no pod of it could be reached",
			Fix:  "Start its tombolo-apiserver with --pod-prefix, once for each range of pod addresses.",
		})
	}
	return append(problems, unfitPrefixes(c)...)
}

func sameID(candidate *Cluster, other string) Problem {
	return Problem{
		What: fmt.Sprintf("clusters %s and %s both have ID %d", quote(candidate.Name), other, candidate.ID),
		Why:  "the ID is part of every identity and must be unique in the mesh",
		Fix:  fmt.Sprintf("Give one of them another --cluster-id (1 to %d).", MaxID),
	}
}

// overlaps names every pair of ranges that share addresses.
func overlaps(candidate *Cluster, other string, prefixes []netip.Prefix) []Problem {
	var problems []Problem
	for _, theirs := range candidate.PodPrefixes {
		for _, ours := range prefixes {
			if !theirs.Overlaps(ours) {
				continue
			}
			problems = append(problems, Problem{
				What: fmt.Sprintf("pod prefix %v (%s) of %s overlaps %v (%s) of %s",
					theirs, addressRange(theirs), quote(candidate.Name), ours, addressRange(ours), other),
				Why: "an address in both could not be routed to one cluster",
				Fix: "Move one cluster's pods to another range: pod addresses must be unique in the mesh.",
			})
		}
	}
	return problems
}

// addressRange is a prefix as first–last address.
func addressRange(p netip.Prefix) string {
	last := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(last)*8; bit++ {
		last[bit/8] |= 0x80 >> (bit % 8)
	}
	end, _ := netip.AddrFromSlice(last)
	return p.Masked().Addr().String() + "–" + end.String()
}

// versions: protocols more than one apart do not work together. A cluster that
// announces none is of the first version.
func versions(own, candidate *Cluster) []Problem {
	a, b := protocolOf(own), protocolOf(candidate)
	if max(a, b)-min(a, b) <= 1 {
		return nil
	}
	older := own.Name
	if b < a {
		older = quote(candidate.Name)
	}
	return []Problem{{
		What: fmt.Sprintf("cluster %s speaks protocol %d (version %s), cluster %s protocol %d (version %s)",
			own.Name, a, quote(own.Version), quote(candidate.Name), b, quote(candidate.Version)),
		Why: "versions work together if they are at most one protocol apart",
		Fix: fmt.Sprintf("Upgrade Tombolo in cluster %s first.", older),
	}}
}

func protocolOf(c *Cluster) int {
	i := slices.IndexFunc(c.Capabilities, func(s string) bool { return strings.HasPrefix(s, capabilityPrefix) })
	if i < 0 {
		return 1
	}
	n, err := strconv.Atoi(strings.TrimPrefix(c.Capabilities[i], capabilityPrefix))
	if err != nil || n < 1 || n > 1<<20 {
		return 1
	}
	return n
}
