package agent

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// herePrefixes are the addresses of this node's pods, and what the host has besides.
func (s *State) herePrefixes() map[netip.Prefix]bool {
	out := map[netip.Prefix]bool{}
	for a := range s.hostAddrs {
		out[netip.PrefixFrom(a, a.BitLen())] = true
	}
	for a := range s.podAddrs {
		out[netip.PrefixFrom(a, a.BitLen())] = true
	}
	return out
}

// SetHostAddresses says which addresses this node's host has that its record does not
// name, all of them: those of the links to pods that another CNI made. The host's own
// packets to pods come from there.
func (s *State) SetHostAddresses(addrs []netip.Addr) {
	again := map[netip.Prefix]bool{}
	before := s.hostAddrs
	s.hostAddrs = map[netip.Addr]bool{}
	for _, a := range addrs {
		if s.hostAddrs[a] = true; !before[a] {
			again[netip.PrefixFrom(a, a.BitLen())] = true
		}
	}
	for a := range before {
		if !s.hostAddrs[a] {
			again[netip.PrefixFrom(a, a.BitLen())] = true
		}
	}
	if len(again) > 0 {
		s.retakeIPs(s.clusters[s.own], func(clustermesh.AddressName) bool { return false }, again)
	}
}

// SetPods says which pods this node has, all of them.
func (s *State) SetPods(pods []LocalPod) {
	before := s.podAddrs
	s.pods, s.podAddrs, s.podsSet = map[string]LocalPod{}, map[netip.Addr]string{}, true
	delete(s.problems, "pods")
	pods = slices.Clone(pods)
	slices.SortFunc(pods, func(a, b LocalPod) int { return compareStrings(a.UID, b.UID) })
	for _, p := range pods {
		s.pods[p.UID] = p
		for _, a := range p.Addresses {
			if other, twice := s.podAddrs[a]; twice {
				s.problems["pods"] = clustermesh.Problem{
					What: fmt.Sprintf("address %s belongs to pod %s and to pod %s on this node", a, other, p.UID),
					Why:  "the first one by UID gets its packets", Fix: "delete one of the pods; the record of addresses in use is damaged",
				}
				continue
			}
			s.podAddrs[a] = p.UID
		}
	}
	own := s.clusters[s.own]
	again := s.herePrefixes()
	for a := range before {
		again[netip.PrefixFrom(a, a.BitLen())] = true
		if _, still := s.podAddrs[a]; !still {
			s.forgetPod(a)
			s.t.deleteEndpoint(MakeAddr(a))
		}
	}
	if len(again) > 0 {
		s.retakeIPs(own, func(clustermesh.AddressName) bool { return false }, again)
	}
	s.planDirty = true
	s.touchHostPorts()
	s.release()
}
