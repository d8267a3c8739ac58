package lab

import (
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
)

// The underlay: a netns with a bridge per cluster, routing between them.

// underlayMTU of all links between hosts.
const underlayMTU = 1500

func (l *Lab) netnsName(rest string) string { return "tmb-" + l.ID + "-" + rest }

func (l *Lab) makeUnderlay() error {
	h, err := makeHost(l.netnsName("underlay"), l.cgroup+"/underlay")
	if err != nil {
		return err
	}
	l.under = h
	l.faults, err = newFaults(l)
	if err != nil {
		return err
	}
	return h.in(func() error {
		return sysctls(map[string]string{
			"net/ipv4/ip_forward":              "1",
			"net/ipv6/conf/all/forwarding":     "1",
			"net/ipv6/conf/all/accept_dad":     "0",
			"net/ipv6/conf/default/accept_dad": "0",
		})
	})
}

// sysctls writes settings of the calling thread's namespace.
func sysctls(values map[string]string) error {
	for k, v := range values {
		if err := os.WriteFile("/proc/sys/"+k, []byte(v), 0); err != nil {
			return fmt.Errorf("sysctl %s=%s: %w", k, v, err)
		}
	}
	return nil
}

// underlayPrefixes of cluster number i: where its hosts live.
func underlayPrefixes(id int) (v4, v6 netip.Prefix) {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(100 + id), 0, 0}), 24),
		netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0, 0, 0x64, 0, byte(id)}), 64)
}

// hostAddr is address number n of a prefix.
func hostAddr(p netip.Prefix, n byte) netip.Addr {
	if p.Addr().Is4() {
		a := p.Addr().As4()
		a[3] = n
		return netip.AddrFrom4(a)
	}
	a := p.Addr().As16()
	a[15] = n
	return netip.AddrFrom16(a)
}

func (c *Cluster) bridge() string { return "br-" + c.Name }

// makeBridge gives the cluster its L2 in the underlay.
func (c *Cluster) makeBridge() error {
	v4, v6 := underlayPrefixes(c.ID)
	return c.lab.under.in(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = c.bridge(), underlayMTU
		br := &netlink.Bridge{LinkAttrs: attrs}
		if err := netlink.LinkAdd(br); err != nil {
			return fmt.Errorf("make bridge %s: %w", c.bridge(), err)
		}
		for _, p := range []netip.Prefix{v4, v6} {
			if err := addAddr(br, netip.PrefixFrom(hostAddr(p, 1), p.Bits())); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(br)
	})
}

// plug wires a host to its cluster's bridge: eth0 inside, port outside.
func (c *Cluster) plug(h *host, port string, n byte) error {
	v4, v6 := underlayPrefixes(c.ID)
	err := c.lab.under.in(func() error {
		br, err := netlink.LinkByName(c.bridge())
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.MasterIndex = port, underlayMTU, br.Attrs().Index
		ns, err := netnsFd(h)
		if err != nil {
			return err
		}
		defer ns.Close()
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(ns))}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("plug %s into %s: %w", port, c.bridge(), err)
		}
		return netlink.LinkSetUp(veth)
	})
	if err != nil {
		return err
	}
	err = h.in(func() error {
		if err := sysctls(map[string]string{"net/ipv6/conf/all/accept_dad": "0", "net/ipv6/conf/eth0/accept_dad": "0"}); err != nil {
			return err
		}
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		eth.Attrs().MTU = underlayMTU
		if err := netlink.LinkSetMTU(eth, underlayMTU); err != nil {
			return err
		}
		for _, p := range []netip.Prefix{v4, v6} {
			if err := addAddr(eth, netip.PrefixFrom(hostAddr(p, n), p.Bits())); err != nil {
				return err
			}
		}
		if err := netlink.LinkSetUp(eth); err != nil {
			return err
		}
		for _, p := range []netip.Prefix{v4, v6} {
			route := &netlink.Route{LinkIndex: eth.Attrs().Index, Gw: hostAddr(p, 1).AsSlice()}
			if err := netlink.RouteAdd(route); err != nil {
				return fmt.Errorf("default route of %s: %w", h.name, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return c.lab.faults.attach(port)
}

// setPort takes a host's link up or down, as a cable would be pulled.
func (c *Cluster) setPort(port string, up bool) error {
	return c.lab.under.in(func() error {
		link, err := netlink.LinkByName(port)
		if err != nil {
			return err
		}
		if up {
			return netlink.LinkSetUp(link)
		}
		return netlink.LinkSetDown(link)
	})
}

func addAddr(link netlink.Link, p netip.Prefix) error {
	addr, err := netlink.ParseAddr(p.String())
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("add %s to %s: %w", p, link.Attrs().Name, err)
	}
	return nil
}

// unplug removes a host's link. Deleting the namespace would do it too, but
// some time later.
func (c *Cluster) unplug(port string) error {
	return c.lab.under.in(func() error {
		link, err := netlink.LinkByName(port)
		if err != nil {
			return fmt.Errorf("unplug %s: %w", port, err)
		}
		return netlink.LinkDel(link)
	})
}
