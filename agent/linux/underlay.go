package linux

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
)

// Underlay is what carries the tunnel: the node's addresses outside the mesh.
type Underlay struct {
	Addresses []netip.Addr
	OnLink    []netip.Prefix // subnets of the links that carry them
	MTU       int            // the least of these links
	Links     []int          // their interface indexes, ascending
	First     int            // that of the first address
}

// FindUnderlay describes the links that carry want. Without want these are the
// global addresses of all links that are up, IPv4 first, ours and lo left out.
func FindUnderlay(want []netip.Addr, device string) (Underlay, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return Underlay{}, fmt.Errorf("list devices: %w", err)
	}
	var u Underlay
	carries := map[netip.Addr]int{}
	for _, l := range links {
		at := l.Attrs()
		if at.Flags&net.FlagUp == 0 || at.Flags&net.FlagLoopback != 0 || at.Name == device {
			continue
		}
		if _, _, ours := podFromAlias(at.Alias); ours {
			continue
		}
		list, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return Underlay{}, fmt.Errorf("list addresses of %s: %w", at.Name, err)
		}
		before := len(u.Addresses)
		for _, a := range list {
			u.add(a, at.MTU, want)
		}
		if len(u.Addresses) > before {
			u.Links = append(u.Links, at.Index)
		}
		for _, a := range u.Addresses[before:] {
			carries[a] = at.Index
		}
	}
	if want != nil {
		for _, a := range want {
			if !slices.Contains(u.Addresses, a) {
				return u, fmt.Errorf("underlay address %s is on no device of this node that is up: check --underlay", a)
			}
		}
		u.Addresses = want // in the order given: the first is the WireGuard endpoint
	} else {
		slices.SortStableFunc(u.Addresses, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	}
	if len(u.Addresses) == 0 {
		return u, fmt.Errorf("this node has no address that others could reach: give one with --underlay")
	}
	slices.Sort(u.Links)
	u.First = carries[u.Addresses[0]]
	return u, nil
}

func (u *Underlay) add(a netlink.Addr, mtu int, want []netip.Addr) {
	ip, ok := netip.AddrFromSlice(a.IP)
	ip = ip.Unmap()
	if !ok || !ip.IsGlobalUnicast() || want != nil && !slices.Contains(want, ip) {
		return
	}
	bits, _ := a.Mask.Size()
	u.Addresses = append(u.Addresses, ip)
	if bits < ip.BitLen() {
		u.OnLink = append(u.OnLink, netip.PrefixFrom(ip, bits).Masked())
	}
	if u.MTU == 0 || mtu < u.MTU {
		u.MTU = mtu
	}
}
