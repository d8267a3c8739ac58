package linux

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// check compares the kernel with l, both sides, and names the first thing that
// differs.
func (l podLink) check(nl *netlink.Handle, pod *os.File) error {
	if l.Chained {
		return l.checkChained(nl, pod)
	}
	link, err := nl.LinkByName(l.HostIf)
	if err != nil {
		return fmt.Errorf("host device %s: %w", l.HostIf, err)
	}
	if err := l.checkLink(link, l.HostMAC); err != nil {
		return err
	}
	if link.Attrs().Alias != l.Alias {
		return fmt.Errorf("host device %s: alias is %q, want %q", l.HostIf, link.Attrs().Alias, l.Alias)
	}
	for _, a := range l.Addresses {
		if err := hasRoute(nl, a, netip.PrefixFrom(a, a.BitLen()), link.Attrs().Index, netip.Addr{}); err != nil {
			return fmt.Errorf("on the host: %w", err)
		}
		if err := hasNeighbour(nl, link.Attrs().Index, a, l.PodMAC); err != nil {
			return fmt.Errorf("on the host: %w", err)
		}
	}
	peer := link.Attrs().ParentIndex
	if err := inNetns(pod, func() error { return l.checkPod(peer) }); err != nil {
		return fmt.Errorf("inside the pod: %w", err)
	}
	return nil
}

// checkPod runs in the pod's namespace; peer is the index the host side names.
func (l podLink) checkPod(peer int) error {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer nl.Close()
	link, err := nl.LinkByName(l.PodIf)
	if err != nil {
		return fmt.Errorf("device %s: %w", l.PodIf, err)
	}
	if link.Attrs().Index != peer {
		return fmt.Errorf("device %s is not the other end of %s", l.PodIf, l.HostIf)
	}
	if err := l.checkLink(link, l.PodMAC); err != nil {
		return err
	}
	have, err := nl.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", l.PodIf, err)
	}
	for _, a := range l.Addresses {
		found := false
		for _, h := range have {
			ip, _ := netip.AddrFromSlice(h.IP)
			found = found || ip.Unmap() == a
		}
		if !found {
			return fmt.Errorf("address %s is not on %s", a, l.PodIf)
		}
		if err := hasRoute(nl, a, netip.PrefixFrom(zeroOf(a), 0), link.Attrs().Index, gatewayOf(a)); err != nil {
			return err
		}
		if err := hasNeighbour(nl, link.Attrs().Index, gatewayOf(a), l.HostMAC); err != nil {
			return err
		}
	}
	return nil
}

func (l podLink) checkLink(link netlink.Link, mac net.HardwareAddr) error {
	at := link.Attrs()
	switch {
	case link.Type() != "veth":
		return fmt.Errorf("device %s is a %s, not a veth", at.Name, link.Type())
	case at.Flags&net.FlagUp == 0:
		return fmt.Errorf("device %s is down", at.Name)
	case at.MTU != l.MTU:
		return fmt.Errorf("device %s has MTU %d, want %d", at.Name, at.MTU, l.MTU)
	case !bytes.Equal(at.HardwareAddr, mac):
		return fmt.Errorf("device %s has address %s, want %s", at.Name, at.HardwareAddr, mac)
	}
	return nil
}

func hasRoute(nl *netlink.Handle, a netip.Addr, to netip.Prefix, ifindex int, gw netip.Addr) error {
	list, err := nl.RouteListFiltered(family(a), &netlink.Route{LinkIndex: ifindex}, netlink.RT_FILTER_OIF)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range list {
		dst, _ := destination(&r)
		via, _ := netip.AddrFromSlice(r.Gw)
		if dst == to && via.Unmap() == gw {
			return nil
		}
	}
	return fmt.Errorf("no route to %s on device %d", to, ifindex)
}

func hasNeighbour(nl *netlink.Handle, ifindex int, a netip.Addr, mac net.HardwareAddr) error {
	list, err := nl.NeighList(ifindex, family(a))
	if err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	for _, n := range list {
		ip, _ := netip.AddrFromSlice(n.IP)
		if ip.Unmap() == a && n.State&netlink.NUD_PERMANENT != 0 && bytes.Equal(n.HardwareAddr, mac) {
			return nil
		}
	}
	return fmt.Errorf("no permanent neighbour entry for %s with %s", a, mac)
}
