package agent

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"sort"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// place is an address of the underlay that packets between nodes need.
type place struct {
	addr netip.Addr
	what string
}

// places are sorted by address.
type places []place

// placesOf are the underlay addresses of nodes, and where their tunnels end.
func placesOf(cluster string, nodes []*clustermesh.Node) places {
	var out places
	for _, n := range nodes {
		for _, a := range n.UnderlayAddresses {
			out = append(out, place{a.Unmap().WithZone(""), "underlay address of node " + nodeLabel(cluster, n)})
		}
		out = append(out, endsOf(cluster, n)...)
	}
	return out.sorted()
}

// endpointsOf are where the tunnels of nodes end.
func endpointsOf(cluster string, nodes []*clustermesh.Node) places {
	var out places
	for _, n := range nodes {
		out = append(out, endsOf(cluster, n)...)
	}
	return out.sorted()
}

func endsOf(cluster string, n *clustermesh.Node) places {
	end, err := netip.ParseAddrPort(n.WireGuardEndpoint)
	if err != nil {
		return nil
	}
	return places{{end.Addr().Unmap().WithZone(""), "WireGuard endpoint of node " + nodeLabel(cluster, n)}}
}

func (ps places) sorted() places {
	slices.SortFunc(ps, func(a, b place) int { return cmp.Or(a.addr.Compare(b.addr), cmp.Compare(a.what, b.what)) })
	return ps
}

// in is the lowest of the places that lies in a prefix.
func (ps places) in(prefix netip.Prefix) (place, bool) {
	first := prefix.Masked().Addr()
	i := sort.Search(len(ps), func(i int) bool { return !ps[i].addr.Less(first) })
	if i < len(ps) && prefix.Contains(ps[i].addr) {
		return ps[i], true
	}
	return place{}, false
}

// overUnderlay reports whether a remote cluster's prefix takes in an address
// that tunnels of this cluster or that one's own need: routed into the tunnel or
// to nowhere, nothing would reach it. ours = it is one of this cluster's, for
// which there may be no route of that prefix at all. What a third cluster says
// of its addresses does not count, or it could take another's prefixes away.
func (p *planner) overUnderlay(of string, prefix netip.Prefix) (refused, ours bool) {
	at, ours := p.ownPlaces.in(prefix)
	if !ours {
		var theirs bool
		if at, theirs = p.places.in(prefix); !theirs {
			return false, false
		}
	}
	p.problem(fmt.Sprintf("pod prefix %s of %s contains %s, %s", prefix, of, at.addr, at.what),
		"what nodes send there would go into the tunnel and never arrive; the prefix is ignored",
		"give that cluster pod prefixes that hold pods alone (--pod-prefix), and join it again")
	return true, ours
}
