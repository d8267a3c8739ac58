package bpf

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
)

// uplink is two nodes and a client on one L2; node has two pods, other has one.
//
//	client 192.0.2.9, 198.51.100.9 ┐
//	node   192.0.2.1 ──────────────┤ bridge     node: pod 10.1.1.5, pod2 10.1.1.6
//	other  192.0.2.2 ──────────────┘            other: far 10.1.2.5
//
// IPv6 the same: 2001:db8::9, 2001:db8:9::9, 2001:db8::1, 2001:db8::2,
// fd00:1:1::5, fd00:1:1::6, fd00:1:2::5. The client has routes to none of the
// pods: what reaches it comes from addresses that it knows.
type uplink struct {
	t                                      testing.TB
	wire                                   *space
	client, node, other, pod, pod2, far    *space
	uplink, otherUplink, podVeth, pod2Veth netlink.Link
	farVeth                                netlink.Link
}

func newUplink(t testing.TB) *uplink {
	t.Helper()
	u := &uplink{t: t, wire: newSpace(t), client: newSpace(t), node: newSpace(t), other: newSpace(t),
		pod: newSpace(t), pod2: newSpace(t), far: newSpace(t)}
	if err := u.wire.nl.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br"}}); err != nil {
		t.Fatal(err)
	}
	u.wire.up("br")
	u.plug(u.client, "client", "192.0.2.9/24", "2001:db8::9/64", "198.51.100.9/32", "2001:db8:9::9/128")
	u.uplink = u.plug(u.node, "node", "192.0.2.1/24", "2001:db8::1/64")
	u.otherUplink = u.plug(u.other, "other", "192.0.2.2/24", "2001:db8::2/64")
	for _, s := range []*space{u.node, u.other} {
		s.sysctl(map[string]string{"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1",
			"ipv4/conf/all/rp_filter": "0", "ipv4/conf/eth0/rp_filter": "0"})
		s.route("eth0", nil, map[string]string{"198.51.100.0/24": "192.0.2.9", "2001:db8:9::/64": "2001:db8::9"})
	}
	u.podVeth = podLink(u.node, u.pod, "pod0", "10.1.1.5/32", "fd00:1:1::5/128")
	u.pod2Veth = podLink(u.node, u.pod2, "pod1", "10.1.1.6/32", "fd00:1:1::6/128")
	u.farVeth = podLink(u.other, u.far, "pod0", "10.1.2.5/32", "fd00:1:2::5/128")
	u.node.route("eth0", nil, map[string]string{"10.1.2.0/24": "192.0.2.2", "fd00:1:2::/64": "2001:db8::2"})
	u.other.route("eth0", nil, map[string]string{"10.1.1.0/24": "192.0.2.1", "fd00:1:1::/64": "2001:db8::1"})
	return u
}

// plug connects a namespace's eth0 to the wire.
func (u *uplink) plug(s *space, port string, addresses ...string) netlink.Link {
	u.t.Helper()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: port}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(s.ns))}
	if err := u.wire.nl.LinkAdd(veth); err != nil {
		u.t.Fatalf("make veth: %v", err)
	}
	if err := u.wire.nl.LinkSetMaster(u.wire.up(port), u.wire.link("br")); err != nil {
		u.t.Fatal(err)
	}
	l := s.up("eth0")
	s.addr("eth0", addresses...)
	return l
}

// podLink gives a pod its veth as the agent does: one address of each family, one
// gateway that is always there.
func podLink(node, pod *space, name string, addresses ...string) netlink.Link {
	node.t.Helper()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(pod.ns))}
	if err := node.nl.LinkAdd(veth); err != nil {
		node.t.Fatalf("make veth: %v", err)
	}
	host, inside := node.up(name), pod.up("eth0")
	pod.addr("eth0", addresses...)
	pod.route("eth0", host.Attrs().HardwareAddr, map[string]string{"0.0.0.0/0": "169.254.1.1", "::/0": "fe80::1"})
	for _, a := range addresses {
		node.route(name, inside.Attrs().HardwareAddr, map[string]string{a: ""})
	}
	return host
}

// node1 is what the node's tables say of all of them; change makes it another.
func (u *uplink) node1(o *Objects, change func(*Config)) {
	u.t.Helper()
	c := Config{Node4: addr("192.0.2.1"), Node6: addr("2001:db8::1"), Flags: Masquerade, Cluster: 1, Node: 1, PortMin: 40000, PortMax: 40999}
	if change != nil {
		change(&c)
	}
	put(u.t, o.Config, uint32(0), c)
	for a, row := range map[string]IPCache{
		"192.0.2.1": {Identity: 1, Node: 1}, "2001:db8::1": {Identity: 1, Node: 1},
		"192.0.2.2": {Identity: 3, Node: 2}, "2001:db8::2": {Identity: 3, Node: 2},
		"10.1.1.5": {Identity: identityOwn, Node: 1}, "fd00:1:1::5": {Identity: identityOwn, Node: 1},
		"10.1.1.6": {Identity: identityOwn, Node: 1}, "fd00:1:1::6": {Identity: identityOwn, Node: 1},
		"10.1.2.5": {Identity: identityOwn, Node: 2}, "fd00:1:2::5": {Identity: identityOwn, Node: 2},
	} {
		put(u.t, o.IPCache, addr(a), row)
	}
	put(u.t, o.IPPrefixes, Prefix{Bits: 96 + 24, Addr: addr("10.1.1.0")}, IPCache{Identity: 1 << 20, Node: 1, Flags: IPHere})
	put(u.t, o.IPPrefixes, Prefix{Bits: 48, Addr: addr("fd00:1:1::")}, IPCache{Identity: 1 << 20, Node: 1, Flags: IPHere})
	put(u.t, o.IPPrefixes, Prefix{Bits: 96 + 16, Addr: addr("10.2.0.0")}, IPCache{Identity: 2 << 20, Flags: IPEncrypted})
	for i, p := range []struct {
		pod  *space
		host netlink.Link
		at   []string
	}{{u.pod, u.podVeth, []string{"10.1.1.5", "fd00:1:1::5"}}, {u.pod2, u.pod2Veth, []string{"10.1.1.6", "fd00:1:1::6"}}} {
		for _, a := range p.at {
			put(u.t, o.Endpoints, addr(a), Endpoint{
				Ifindex: uint32(p.host.Attrs().Index), Identity: identityOwn + uint32(i),
				PodMac: macOf(p.pod.link("eth0")), HostMac: macOf(p.host),
			})
		}
	}
}

// attach runs all programs on node.
func (u *uplink) attach(o *Objects) {
	u.t.Helper()
	u.node.in(func() error {
		for _, pod := range []netlink.Link{u.podVeth, u.pod2Veth} {
			if err := o.AttachPod(pod.Attrs().Index); err != nil {
				return err
			}
		}
		return o.AttachHost(u.uplink.Attrs().Index)
	})
}

// outside makes a frontend for clients outside, with one group of backends.
func (m *Maps) outside(t testing.TB, at string, proto uint8, id uint64, flags uint8, backends ...string) {
	t.Helper()
	var group testGroup
	group.cluster, group.weight = 1, 1
	for _, b := range backends {
		group.backends = append(group.backends, testBackend{at: netip.MustParseAddrPort(b), node: 1})
	}
	svc, slots := rowsOf(id, testTier{share: all, groups: []testGroup{group}})
	svc.Flags = flags
	for k, v := range slots {
		put(t, m.Slots, k, v)
	}
	key := frontendKey(netip.MustParseAddrPort(at), proto)
	key.Scope = ScopeOutside
	put(t, m.Services, key, svc)
}

// counters that grew during f, for messages.
func grown(t testing.TB, m *Maps, f func()) map[string]uint64 {
	t.Helper()
	before, err := m.Counters()
	if err != nil {
		t.Fatal(err)
	}
	f()
	after, err := m.Counters()
	if err != nil {
		t.Fatal(err)
	}
	for name, n := range before {
		if after[name] -= n; after[name] == 0 {
			delete(after, name)
		}
	}
	return after
}
