package linux

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
)

// HostAddresses are the addresses of the calling thread's network namespace but those
// of lo and those that others know it by anyway. Beside another CNI plugin these are
// what its bridge, or its end of each pod's link, has: the host's own packets to pods
// come from there.
func HostAddresses(known []netip.Addr) ([]netip.Addr, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	lo := map[int]bool{}
	for _, l := range links {
		lo[l.Attrs().Index] = l.Attrs().Flags&net.FlagLoopback != 0
	}
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var out []netip.Addr
	for _, a := range list {
		ip, ok := netip.AddrFromSlice(a.IP)
		ip = ip.Unmap()
		if ok && !lo[a.LinkIndex] && !ip.IsLoopback() && !(ip.Is6() && ip.IsLinkLocalUnicast()) && !slices.Contains(known, ip) {
			out = append(out, ip)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out), nil
}

// DefaultAddresses are the global addresses of the links by which the node's default
// routes lead, IPv4 first. Beside another CNI plugin these are the underlay's: it has
// links of its own with addresses, which are not.
func DefaultAddresses() ([]netip.Addr, error) {
	var out []netip.Addr
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteList(nil, family)
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			if dst, named := destination(&r); named && dst.Bits() != 0 || r.LinkIndex == 0 {
				continue
			}
			link, err := netlink.LinkByIndex(r.LinkIndex)
			if err != nil || link.Attrs().Flags&net.FlagLoopback != 0 {
				continue
			}
			list, err := netlink.AddrList(link, family)
			if err != nil {
				return nil, fmt.Errorf("list addresses of %s: %w", link.Attrs().Name, err)
			}
			for _, a := range list {
				if ip, ok := netip.AddrFromSlice(a.IP); ok && ip.Unmap().IsGlobalUnicast() && !slices.Contains(out, ip.Unmap()) {
					out = append(out, ip.Unmap())
				}
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no link of this node has a default route and an address: name the underlay addresses by --underlay")
	}
	return out, nil
}
