package agent

import (
	"net/netip"
	"testing"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

func hinted(zones []string, nodes ...uint16) clustermesh.Backend {
	return clustermesh.Backend{Hints: clustermesh.MakeHints(zones, nodes)}
}

func TestTopologyOfHints(t *testing.T) {
	a, b, both := []string{"a"}, []string{"b"}, []string{"a", "b"}
	for name, c := range map[string]struct {
		backends []clustermesh.Backend
		at       vantage
		want     Topology
	}{
		"no backends":                       {nil, vantage{number: 1, zone: "a"}, TopologyAll},
		"no hints":                          {[]clustermesh.Backend{{}, {}}, vantage{number: 1, zone: "a"}, TopologyAll},
		"one for our zone":                  {[]clustermesh.Backend{hinted(a), hinted(b)}, vantage{number: 1, zone: "a"}, TopologyZone},
		"one for two zones":                 {[]clustermesh.Backend{hinted(both), hinted(b)}, vantage{number: 1, zone: "a"}, TopologyZone},
		"none for our zone":                 {[]clustermesh.Backend{hinted(b), hinted(b)}, vantage{number: 1, zone: "a"}, TopologyAll},
		"one without hints":                 {[]clustermesh.Backend{hinted(a), {}}, vantage{number: 1, zone: "a"}, TopologyAll},
		"our zone is not known":             {[]clustermesh.Backend{hinted(a)}, vantage{number: 1}, TopologyAll},
		"one for this node":                 {[]clustermesh.Backend{hinted(a, 1), hinted(a, 2)}, vantage{number: 1, zone: "a"}, TopologyNode},
		"none for this node, some for zone": {[]clustermesh.Backend{hinted(a, 3), hinted(b, 2)}, vantage{number: 1, zone: "a"}, TopologyZone},
		"node hints on some alone":          {[]clustermesh.Backend{hinted(a, 1), hinted(a)}, vantage{number: 1, zone: "a"}, TopologyZone},
		"node hints alone, none for us":     {[]clustermesh.Backend{hinted(nil, 2)}, vantage{number: 1, zone: "a"}, TopologyAll},
		"this node is not registered":       {[]clustermesh.Backend{hinted(nil, 0)}, vantage{}, TopologyAll},
		"terminating ones, nothing else left": {[]clustermesh.Backend{{Terminating: true, Hints: clustermesh.MakeHints(b, nil)},
			{Terminating: true, Hints: clustermesh.MakeHints(a, nil)}}, vantage{number: 1, zone: "a"}, TopologyAll},
	} {
		t.Run(name, func(t *testing.T) {
			if got := topologyOf(c.backends, c.at); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

func TestHereTiers(t *testing.T) {
	addr := func(n byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, 1, n}) }
	local := []clustermesh.Backend{
		{Address: addr(1), Node: 1}, {Address: addr(2), Node: 1, Terminating: true}, {Address: addr(3), Node: 2, Terminating: true}, {Address: addr(4), Node: 3},
	}
	for node, want := range map[uint16][]netip.Addr{
		1: {addr(1)}, // ready ones before those that end
		2: {addr(3)}, // those that end where there is nothing else, whatever other nodes have
		3: {addr(4)},
		4: nil,
		0: nil,
	} {
		var got []netip.Addr
		for _, tier := range hereTiers("aws", local, vantage{cluster: 1, number: node}) {
			for _, b := range tier.Groups[0].Backends {
				got = append(got, b.Address)
			}
		}
		if len(got) != len(want) || len(got) > 0 && got[0] != want[0] {
			t.Errorf("node %d: %v, want %v", node, got, want)
		}
	}
	if n := readyHere([]clustermesh.MergedPort{{Local: local}, {Local: local}}, vantage{number: 1}); n != 1 {
		t.Errorf("%d endpoints are ready on node 1, want 1: each address once, none that ends", n)
	}
}

func TestRangesOf(t *testing.T) {
	list := func(texts ...string) (out []netip.Prefix) {
		for _, s := range texts {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	for name, c := range map[string]struct {
		all         []netip.Prefix
		v6, bounded bool
		want        int
	}{
		"none":                         {nil, false, false, 0},
		"of the family":                {list("10.0.0.0/8", "fd00::/8"), false, true, 1},
		"of the other family alone":    {list("10.0.0.0/8"), true, true, 0},
		"everybody":                    {list("10.0.0.0/8", "0.0.0.0/0"), false, false, 0},
		"everybody, other family":      {list("0.0.0.0/0"), true, false, 0},
		"everybody, but own ranges":    {list("0.0.0.0/0", "fd00::/8"), true, true, 1},
		"two ranges":                   {list("10.0.0.0/8", "172.16.0.0/12"), false, true, 2},
		"IPv6 everybody, IPv4 unnamed": {list("::/0"), false, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			got, bounded := rangesOf(c.all, c.v6)
			if len(got) != c.want || bounded != c.bounded {
				t.Errorf("%v bounded=%v, want %d bounded=%v", got, bounded, c.want, c.bounded)
			}
		})
	}
}
