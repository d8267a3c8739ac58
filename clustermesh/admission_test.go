package clustermesh

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func addresses(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func slice(ns, service, name string, endpoints ...Endpoint) *EndpointSlice {
	return &EndpointSlice{Name: SliceName{ServiceName{ns, service}, name}, Ports: []Port{{"http", TCP, 8080, 0}}, Endpoints: endpoints}
}

func endpoint(address string, node uint16) Endpoint {
	return Endpoint{Address: netip.MustParseAddr(address), Node: node, Ready: true, Serving: true}
}

func address(node, prefix string, id Identity) *Address {
	return &Address{Name: AddressName{node, netip.MustParsePrefix(prefix)}, Identity: id}
}

func TestAdmission(t *testing.T) {
	peer := Admission{Cluster: "gcp", ID: 2, PodPrefixes: prefixes("10.2.0.0/16", "fd00:2::/48")}
	own := Admission{Cluster: "gcp", ID: 2, Local: true}
	narrow := Admission{Cluster: "gcp", ID: 2, Local: true, PodPrefixes: prefixes("10.2.0.0/16")}
	node := func(number uint16, tunnel, pods string) *Node {
		return &Node{Name: "n", Number: number, TunnelAddresses: addresses(tunnel), PodPrefixes: prefixes(pods)}
	}
	tests := []struct {
		name    string
		a       Admission
		scope   Scope
		cluster string
		record  Record
		want    RefusalClass // "" = believed
	}{
		{"a good cluster", peer, ScopeExport, "gcp", &Cluster{Name: "gcp", ID: 2, PodPrefixes: prefixes("10.2.0.0/16")}, ""},
		{"another name", peer, ScopeExport, "gcp", &Cluster{Name: "aws", ID: 2}, RefusedName},
		{"another ID", peer, ScopeExport, "gcp", &Cluster{Name: "gcp", ID: 3}, RefusedName},
		{"widened prefixes", peer, ScopeExport, "gcp", &Cluster{Name: "gcp", ID: 2, PodPrefixes: prefixes("10.0.0.0/8")}, RefusedPrefix},
		{"another cluster's key", peer, ScopeExport, "aws", &Service{Name: ServiceName{"a", "b"}}, RefusedKey},
		{"a peer's local", peer, ScopeLocal, "gcp", &Service{Name: ServiceName{"a", "b"}}, RefusedKey},
		{"a mirrored peer", peer, ScopeMirror, "gcp", &Service{Name: ServiceName{"a", "b"}}, ""},
		{"a mirrored self", own, ScopeMirror, "gcp", &Service{Name: ServiceName{"a", "b"}}, RefusedKey},
		{"own local", own, ScopeLocal, "gcp", &Service{Name: ServiceName{"a", "b"}}, ""},
		{"a peer's policy", peer, ScopeExport, "gcp", &Policy{Namespace: "a", Name: "b"}, RefusedKey},
		{"a peer's peer", peer, ScopeExport, "gcp", &Peer{Name: "x", ID: 9}, RefusedKey},
		{"own peer", own, ScopeLocal, "gcp", &Peer{Name: "x", ID: 9}, ""},
		{"a peer drains itself", peer, ScopeExport, "gcp", &Drain{Cluster: "gcp"}, ""},
		{"a peer drains a service of its own", peer, ScopeMirror, "gcp", &Drain{Cluster: "gcp", Service: ServiceName{"a", "b"}}, ""},
		{"a peer drains another", peer, ScopeExport, "gcp", &Drain{Cluster: "aws"}, RefusedName},
		{"a peer drains another's service", peer, ScopeExport, "gcp", &Drain{Cluster: "aws", Service: ServiceName{"a", "b"}}, RefusedName},
		{"an operator drains a peer", own, ScopeLocal, "gcp", &Drain{Cluster: "aws"}, ""},
		{"a node in local", own, ScopeLocal, "gcp", node(1, "10.2.0.1", "10.2.0.0/24"), RefusedKey},
		{"a good node", peer, ScopeExport, "gcp", node(1, "10.2.0.1", "10.2.0.0/24"), ""},
		{"node 0", peer, ScopeExport, "gcp", node(0, "10.2.0.1", "10.2.0.0/24"), RefusedNumber},
		{"a node outside", peer, ScopeExport, "gcp", node(1, "10.1.0.1", "10.1.0.0/24"), RefusedPrefix},
		{"a node too wide", peer, ScopeExport, "gcp", node(1, "10.2.0.1", "10.0.0.0/8"), RefusedPrefix},
		{"a tunnel address of another node", peer, ScopeExport, "gcp", node(1, "10.2.1.1", "10.2.0.0/24"), RefusedPrefix},
		{"a tunnel address outside", peer, ScopeExport, "gcp", node(1, "10.1.1.1", "10.2.0.0/24"), RefusedPrefix},
		{"good endpoints", peer, ScopeExport, "gcp", slice("a", "b", "c", endpoint("10.2.3.4", 1)), ""},
		{"good IPv6 endpoints", peer, ScopeExport, "gcp", slice("a", "b", "c", endpoint("fd00:2::4", 1)), ""},
		{"an endpoint outside", peer, ScopeExport, "gcp", slice("a", "b", "c", endpoint("10.2.3.4", 1), endpoint("10.1.3.4", 1)), RefusedPrefix},
		{"a metadata service as endpoint", peer, ScopeExport, "gcp", slice("a", "b", "c", endpoint("169.254.169.254", 1)), RefusedPrefix},
		{"own endpoints outside the given", narrow, ScopeLocal, "gcp", slice("a", "b", "c", endpoint("10.1.3.4", 1)), RefusedPrefix},
		{"own endpoints, none given", own, ScopeLocal, "gcp", slice("a", "b", "c", endpoint("10.1.3.4", 1)), ""},
		{"a good address", peer, ScopeExport, "gcp", address("n", "10.2.3.4/32", MakeIdentity(2, 5)), ""},
		{"a workload not yet known", peer, ScopeExport, "gcp", address("n", "10.2.3.4/32", MakeIdentity(2, 0)), ""},
		{"an address outside", peer, ScopeExport, "gcp", address("n", "10.1.3.4/32", MakeIdentity(2, 5)), RefusedPrefix},
		{"the whole internet", peer, ScopeExport, "gcp", address("n", "0.0.0.0/0", MakeIdentity(2, 5)), RefusedPrefix},
		{"another cluster's identity", peer, ScopeExport, "gcp", address("n", "10.2.3.4/32", MakeIdentity(1, 5)), RefusedIdentity},
		{"a peer that calls itself host", peer, ScopeExport, "gcp", address("n", "10.2.3.4/32", IdentityHost), RefusedIdentity},
		{"own host", own, ScopeExport, "gcp", address("n", "10.2.3.4/32", IdentityHost), ""},
		{"a good identity", peer, ScopeExport, "gcp", &IdentityRecord{ID: MakeIdentity(2, 5), Labels: []Label{{LabelCluster, "gcp"}}}, ""},
		{"an identity of another range", peer, ScopeExport, "gcp", &IdentityRecord{ID: MakeIdentity(1, 5)}, RefusedIdentity},
		{"number 0 with labels", peer, ScopeExport, "gcp", &IdentityRecord{ID: MakeIdentity(2, 0)}, RefusedIdentity},
		{"labels of another cluster", peer, ScopeExport, "gcp", &IdentityRecord{ID: MakeIdentity(2, 5), Labels: []Label{{LabelCluster, "aws"}}}, RefusedIdentity},
		{"no prefixes admitted", Admission{Cluster: "gcp", ID: 2}, ScopeExport, "gcp", address("n", "10.2.3.4/32", MakeIdentity(2, 5)), RefusedPrefix},
	}
	for _, test := range tests {
		err := test.a.Check(KeyOf(test.scope, test.cluster, test.record), test.record)
		var refused *RefusedError
		switch {
		case err == nil && test.want != "":
			t.Errorf("%s: believed", test.name)
		case err != nil && (!errors.As(err, &refused) || refused.Class != test.want):
			t.Errorf("%s: %v; want class %q", test.name, err, test.want)
		}
	}
}

func TestConflicts(t *testing.T) {
	own := &Cluster{Name: "aws", ID: 1, Incarnation: 10, PodPrefixes: prefixes("10.1.0.0/16"), MeshAddresses: []string{"172.31.0.9:9443", "mesh.example:9443", "[2001:db8::9]:9443"}}
	nodes := []*Node{
		{Name: "n1", UnderlayAddresses: addresses("172.20.0.1", "2001:db8:1::1"), WireGuardEndpoint: "198.51.100.1:51820"},
		{Name: "n2", UnderlayAddresses: addresses("172.20.0.2")},
	}
	others := []*Peer{{Name: "azure", ID: 3, PodPrefixes: prefixes("10.3.0.0/16", "fd00:3::/48"), MeshAddresses: []string{"203.0.113.3:9443"}}}
	candidate := func(change func(*Cluster)) *Cluster {
		c := &Cluster{Name: "gcp", ID: 2, Incarnation: 20, PodPrefixes: prefixes("10.2.0.0/16", "fd00:2::/48"), Capabilities: []string{CapabilityProtocol}}
		change(c)
		return c
	}
	tests := []struct {
		name   string
		change func(*Cluster)
		want   []string // one text per problem, in order
	}{
		{"a good one", func(*Cluster) {}, nil},
		{"itself", func(c *Cluster) { *c = *own }, []string{"cluster aws is this cluster itself"}},
		{"its name", func(c *Cluster) { c.Name = "aws" }, []string{"both clusters are named aws"}},
		{"its ID", func(c *Cluster) { c.ID = 1 }, []string{`clusters "gcp" and aws both have ID 1`}},
		{"a peer's ID", func(c *Cluster) { c.ID = 3 }, []string{`clusters "gcp" and azure both have ID 3`}},
		{"a bad name", func(c *Cluster) { c.Name = "G C\x1bP" }, []string{`"G C\x1bP" is not a DNS label`}},
		{"a bad ID", func(c *Cluster) { c.ID = 0 }, []string{"cluster ID 0 is not in 1–4095"}},
		{"no prefixes", func(c *Cluster) { c.PodPrefixes = nil }, []string{"names no pod prefixes"}},
		{"an overlap", func(c *Cluster) { c.PodPrefixes = prefixes("10.0.0.0/15") }, []string{"10.0.0.0/15 (10.0.0.0–10.1.255.255) of \"gcp\" overlaps 10.1.0.0/16 (10.1.0.0–10.1.255.255) of aws"}},
		{"an overlap with a peer", func(c *Cluster) { c.PodPrefixes = prefixes("fd00:3:0:1::/64") }, []string{"of azure"}},
		{"the own mesh address", func(c *Cluster) { c.PodPrefixes = prefixes("172.31.0.0/24") }, []string{`172.31.0.0/24 (172.31.0.0–172.31.0.255) of "gcp" contains 172.31.0.9, mesh address of aws`}},
		{"the own mesh address, IPv6", func(c *Cluster) { c.PodPrefixes = prefixes("2001:db8::/64") }, []string{"contains 2001:db8::9, mesh address of aws"}},
		{"own nodes", func(c *Cluster) { c.PodPrefixes = prefixes("172.20.0.0/16") }, []string{`172.20.0.0/16 (172.20.0.0–172.20.255.255) of "gcp" contains 172.20.0.1, underlay address of node "n1" of aws`}},
		{"an own node, IPv6", func(c *Cluster) { c.PodPrefixes = prefixes("2001:db8:1::/48") }, []string{`contains 2001:db8:1::1, underlay address of node "n1" of aws`}},
		{"an own tunnel's end", func(c *Cluster) { c.PodPrefixes = prefixes("198.51.100.0/24") }, []string{`contains 198.51.100.1, WireGuard endpoint of node "n1" of aws`}},
		{"a peer's mesh address", func(c *Cluster) { c.PodPrefixes = prefixes("203.0.113.0/24") }, []string{"contains 203.0.113.3, mesh address of azure"}},
		{"its mesh address among our pods", func(c *Cluster) { c.MeshAddresses = []string{"10.1.0.1:9443"} }, []string{`10.1.0.0/16 (10.1.0.0–10.1.255.255) of "aws" contains 10.1.0.1, mesh address of "gcp"`}},
		{"mesh address by name", func(c *Cluster) { c.MeshAddresses = []string{"gcp.example:9443", "[::ffff:192.0.2.1]:1"} }, nil},
		{"as broad as can be", func(c *Cluster) { c.PodPrefixes = prefixes("11.0.0.0/8", "fd01::/32") }, nil},
		{"too broad", func(c *Cluster) { c.PodPrefixes = prefixes("12.0.0.0/7", "fd02::/31") }, []string{`12.0.0.0/7 of "gcp" is broader than /8`, `fd02::/31 of "gcp" is broader than /32`}},
		{"everything", func(c *Cluster) { c.PodPrefixes = prefixes("64.0.0.0/2") }, []string{"is broader than /8", "loopback"}},
		{"loopback", func(c *Cluster) { c.PodPrefixes = prefixes("127.1.0.0/16", "::/120") }, []string{"overlaps 127.0.0.0/8: that is loopback", "overlaps ::/128", "overlaps ::1/128"}},
		{"around link-local", func(c *Cluster) { c.PodPrefixes = prefixes("169.0.0.0/8", "fe80:1::/32") }, []string{"overlaps 169.254.0.0/16: that is link-local", "overlaps fe80::/10"}},
		{"multicast", func(c *Cluster) { c.PodPrefixes = prefixes("239.0.0.0/8", "ff02::/32") }, []string{"overlaps 224.0.0.0/4: that is multicast", "overlaps ff00::/8"}},
		{"unspecified", func(c *Cluster) { c.PodPrefixes = prefixes("0.0.0.0/8") }, []string{"overlaps 0.0.0.0/8"}},
		{"all at once", func(c *Cluster) { c.Name, c.ID, c.PodPrefixes = "aws", 1, prefixes("10.0.0.0/8") },
			[]string{"both clusters are named aws", "both have ID 1", "of aws", "of azure"}},
		{"joined before", func(c *Cluster) { c.Name, c.ID, c.PodPrefixes = "azure", 3, prefixes("10.3.0.0/16") }, nil},
		{"joined before, another ID", func(c *Cluster) { c.Name, c.ID = "azure", 4 }, []string{"with ID 3 instead of 4"}},
		{"no protocol named", func(c *Cluster) { c.Capabilities = nil }, nil},
		{"the next protocol", func(c *Cluster) { c.Capabilities = []string{"protocol/2"} }, nil},
		{"too new", func(c *Cluster) { c.Capabilities = []string{"x", "protocol/3"} }, []string{"Upgrade Tombolo in cluster aws first"}},
	}
	for _, test := range tests {
		problems := Conflicts(own, nodes, others, candidate(test.change))
		if len(problems) != len(test.want) {
			t.Errorf("%s: %d problems instead of %d: %v", test.name, len(problems), len(test.want), problems)
			continue
		}
		for i, p := range problems {
			if !strings.Contains(p.String(), test.want[i]) {
				t.Errorf("%s: %v; want %q", test.name, p, test.want[i])
			}
			if p.What == "" || p.Why == "" || !strings.HasSuffix(p.Fix, ".") || strings.ContainsAny(p.String(), "\x1b\n") {
				t.Errorf("%s: what, why or fix is missing or unsafe: %q", test.name, p)
			}
		}
	}
}
