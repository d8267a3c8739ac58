package linux

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tombolo-mesh/tombolo/agent"
)

// hostPrefix begins the host-side name of every pod veth of ours; with the alias
// it is the ownership mark.
const hostPrefix = "tmb"

// aliasMark begins the alias of a pod veth: mark, pod UID, addresses. A process
// that has lost its state file reads there whose veth this is.
const aliasMark = "tombolo-pod "

// Gateways of every pod: link-local addresses that nobody owns. The pod has
// permanent neighbour entries for them, so no ARP and no neighbour discovery
// happens on a pod's link, and nobody can answer falsely.
var (
	gateway4 = netip.MustParseAddr("169.254.1.1")
	gateway6 = netip.MustParseAddr("fe80::1")
)

// podLink is a pod's connection as it should be.
type podLink struct {
	UID             string
	Chained         bool // made by another CNI plugin: see pods_chained.go
	HostIf, PodIf   string
	HostMAC, PodMAC net.HardwareAddr
	Addresses       []netip.Addr
	MTU             int
	Alias           string
}

// newPodLink derives all names from the pod's UID, so that a process with no
// memory derives the same.
func newPodLink(uid, podIf string, addrs []netip.Addr, mtu int) podLink {
	l := podLink{UID: uid, HostIf: hostIfName(uid), PodIf: podIf, HostMAC: macOf(uid, "host"), PodMAC: macOf(uid, "pod"), Addresses: addrs, MTU: mtu, Alias: aliasMark + uid}
	for _, a := range addrs {
		l.Alias += " " + a.String()
	}
	return l
}

func hostIfName(uid string) string {
	h := sha256.Sum256([]byte(uid))
	return hostPrefix + hex.EncodeToString(h[:6])[:12]
}

// macOf is a locally administered unicast address.
func macOf(uid, side string) net.HardwareAddr {
	h := sha256.Sum256([]byte(side + " " + uid))
	mac := net.HardwareAddr(h[:6])
	mac[0] = mac[0]&^1 | 2
	return mac
}

// podFromAlias undoes Alias: ok is false for a link that is not ours.
func podFromAlias(alias string) (uid string, addrs []netip.Addr, ok bool) {
	rest, ok := strings.CutPrefix(alias, aliasMark)
	if !ok {
		return "", nil, false
	}
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return "", nil, false
	}
	for _, f := range fields[1:] {
		a, err := netip.ParseAddr(f)
		if err != nil {
			return "", nil, false
		}
		addrs = append(addrs, a)
	}
	return fields[0], addrs, true
}

// ours tells whether a device of l's name is one that connect made: by its alias
// or, if a crash came before the alias, by the address that it was made with.
func (l podLink) ours(link netlink.Link) bool {
	return strings.HasPrefix(link.Attrs().Alias, aliasMark) ||
		link.Type() == "veth" && bytes.Equal(link.Attrs().HardwareAddr, l.HostMAC)
}

// connect makes l real between the node's namespace (nl's, and the file node)
// and the pod's. It may find a half-made one. ifindex is that of the host side;
// guard (nil = none) is called with it before the link is set up.
func (l podLink) connect(nl *netlink.Handle, node, pod *os.File, guard func(ifindex int) error) (ifindex int, err error) {
	if link, err := nl.LinkByName(l.HostIf); err == nil {
		// A veth's end in a namespace that is gone is gone too, so this one leads
		// somewhere; where to is settled most simply by making it anew.
		if !l.ours(link) {
			return 0, fmt.Errorf("device %s exists and is not ours: delete it", l.HostIf)
		}
		if err := nl.LinkDel(link); err != nil {
			return 0, fmt.Errorf("delete the old device %s: %w", l.HostIf, err)
		}
	} else if !isLinkNotFound(err) {
		return 0, fmt.Errorf("look for device %s: %w", l.HostIf, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = l.HostIf, l.MTU, l.HostMAC
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerHardwareAddr, veth.PeerMTU = l.PodIf, l.PodMAC, uint32(l.MTU)
	veth.PeerNamespace = netlink.NsFd(int(pod.Fd()))
	if err := nl.LinkAdd(veth); err != nil {
		if errors.Is(err, unix.EEXIST) {
			return 0, fmt.Errorf("create veth %s: the pod has a device %s already that is not ours: %w", l.HostIf, l.PodIf, err)
		}
		return 0, fmt.Errorf("create veth %s: %w", l.HostIf, err)
	}
	link, err := nl.LinkByName(l.HostIf)
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			nl.LinkDel(link)
		}
	}()
	if err := nl.LinkSetAlias(link, l.Alias); err != nil {
		return 0, fmt.Errorf("mark %s as ours: %w", l.HostIf, err)
	}
	if err := inNetns(node, l.hostSysctls); err != nil {
		return 0, err
	}
	if err := inNetns(pod, l.setupPod); err != nil {
		return 0, fmt.Errorf("inside the pod: %w", err)
	}
	if guard != nil {
		if err := guard(link.Attrs().Index); err != nil {
			return 0, fmt.Errorf("guard %s: %w", l.HostIf, err)
		}
	}
	if err := nl.LinkSetUp(link); err != nil {
		return 0, fmt.Errorf("set %s up: %w", l.HostIf, err)
	}
	return link.Attrs().Index, l.hostRoutes(nl, link.Attrs().Index)
}

// hostSysctls runs in the node's namespace. The strict reverse path filter drops
// packets with a source that is not the pod's (IPv4; IPv6 is the pod hook's).
func (l podLink) hostSysctls() error {
	if err := sysctl("1", "ipv4", "conf", l.HostIf, "rp_filter"); err != nil {
		return err
	}
	if !haveIPv6() {
		return nil
	}
	for _, s := range [][2]string{{"disable_ipv6", "0"}, {"accept_dad", "0"}, {"accept_ra", "0"}, {"addr_gen_mode", "1"}} {
		if err := sysctl(s[1], "ipv6", "conf", l.HostIf, s[0]); err != nil {
			return err
		}
	}
	return nil
}

func (l podLink) hostRoutes(nl *netlink.Handle, ifindex int) error {
	for _, a := range l.Addresses {
		neigh := &netlink.Neigh{LinkIndex: ifindex, IP: a.AsSlice(), HardwareAddr: l.PodMAC, State: netlink.NUD_PERMANENT, Family: family(a)}
		if err := nl.NeighSet(neigh); err != nil {
			return fmt.Errorf("put neighbour %s on %s: %w", a, l.HostIf, err)
		}
		key := agent.RouteKey{Prefix: agent.MakePrefix(netip.PrefixFrom(a, a.BitLen())), Kind: agent.RoutePod}
		if err := nl.RouteReplace(routeToKernel(key, agent.RouteRow{IfIndex: uint32(ifindex)}, 0)); err != nil {
			return fmt.Errorf("put route to %s on %s: %w", a, l.HostIf, err)
		}
	}
	return nil
}

// setupPod runs in the pod's namespace.
func (l podLink) setupPod() error {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer nl.Close()
	link, err := nl.LinkByName(l.PodIf)
	if err != nil {
		return fmt.Errorf("find %s: %w", l.PodIf, err)
	}
	if lo, err := nl.LinkByName("lo"); err == nil && lo.Attrs().Flags&net.FlagUp == 0 {
		if err := nl.LinkSetUp(lo); err != nil {
			return fmt.Errorf("set lo up: %w", err)
		}
	}
	if haveIPv6() {
		// Runtimes turn IPv6 off in new namespaces; an address needs it on.
		for _, s := range [][2]string{{"disable_ipv6", "0"}, {"accept_dad", "0"}, {"accept_ra", "0"}} {
			if err := sysctl(s[1], "ipv6", "conf", l.PodIf, s[0]); err != nil {
				return err
			}
		}
	}
	if err := nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", l.PodIf, err)
	}
	for _, a := range l.Addresses {
		if err := l.setupAddress(nl, link, a); err != nil {
			return err
		}
	}
	return nil
}

func (l podLink) setupAddress(nl *netlink.Handle, link netlink.Link, a netip.Addr) error {
	index, gw := link.Attrs().Index, gatewayOf(a)
	addr := &netlink.Addr{IPNet: hostNet(a)}
	if a.Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := nl.AddrReplace(link, addr); err != nil {
		return fmt.Errorf("put address %s on %s: %w", a, l.PodIf, err)
	}
	neigh := &netlink.Neigh{LinkIndex: index, IP: gw.AsSlice(), HardwareAddr: l.HostMAC, State: netlink.NUD_PERMANENT, Family: family(a)}
	if err := nl.NeighSet(neigh); err != nil {
		return fmt.Errorf("put neighbour %s on %s: %w", gw, l.PodIf, err)
	}
	if a.Is4() {
		if err := nl.RouteReplace(&netlink.Route{LinkIndex: index, Dst: hostNet(gw), Scope: netlink.SCOPE_LINK}); err != nil {
			return fmt.Errorf("put route to gateway %s: %w", gw, err)
		}
	}
	def := &netlink.Route{LinkIndex: index, Dst: ipNet(netip.PrefixFrom(zeroOf(a), 0)), Gw: gw.AsSlice()}
	if err := nl.RouteReplace(def); err != nil {
		return fmt.Errorf("put default route by %s: %w", gw, err)
	}
	return nil
}

// disconnect removes the host side, and with it the pod's side, its routes and
// neighbours. What is gone already is no error.
func (l podLink) disconnect(nl *netlink.Handle) error {
	if l.Chained {
		return unmark(nl, l.HostIf)
	}
	link, err := nl.LinkByName(l.HostIf)
	if isLinkNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for device %s: %w", l.HostIf, err)
	}
	if !l.ours(link) {
		return nil
	}
	if err := nl.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete device %s: %w", l.HostIf, err)
	}
	return nil
}

func gatewayOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return gateway4
	}
	return gateway6
}

func zeroOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func family(a netip.Addr) int {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}
