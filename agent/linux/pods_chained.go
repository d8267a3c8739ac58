package linux

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tombolo-mesh/tombolo/agent"
)

// A chained pod is one that another CNI plugin has connected: devices, addresses and
// routes are that one's, and stay as they are. Ours are the programs on the host's
// end of its veth and the alias of that, which tells a process with no memory whose
// it is.

// chainedMark begins that alias: mark, pod UID, the pod's device and its MAC address,
// addresses. It is another one than aliasMark, as nobody deletes a device for it.
const chainedMark = "tombolo-chained "

// mostChained is how many addresses of a pod are taken; the cluster takes no more.
const mostChained = 8

func chainedAlias(l podLink) string {
	words := []string{l.UID, l.PodIf, l.PodMAC.String()}
	for _, a := range l.Addresses {
		words = append(words, a.String())
	}
	return chainedMark + strings.Join(words, " ")
}

// chainedFromLink undoes it; ok is false for a device that has no such mark.
func chainedFromLink(link netlink.Link) (r pod, ok bool) {
	rest, ok := strings.CutPrefix(link.Attrs().Alias, chainedMark)
	words := strings.Fields(rest)
	if !ok || len(words) < 4 {
		return r, false
	}
	r = pod{UID: words[0], IfName: words[1], HostIf: link.Attrs().Name, MTU: link.Attrs().MTU}
	if r.PodMAC.UnmarshalText([]byte(words[2])) != nil || len(link.Attrs().HardwareAddr) != len(r.HostMAC) {
		return r, false
	}
	copy(r.HostMAC[:], link.Attrs().HardwareAddr)
	for _, w := range words[3:] {
		a, err := netip.ParseAddr(w)
		if err != nil {
			return r, false
		}
		r.Addresses = append(r.Addresses, a)
	}
	return r, true
}

func (r *pod) chained() bool { return r.HostIf != "" }

// chainedLink is a chained pod's connection as it was found.
func chainedLink(r *pod) podLink {
	l := podLink{UID: r.UID, Chained: true, HostIf: r.HostIf, PodIf: r.IfName, HostMAC: r.HostMAC[:], PodMAC: r.PodMAC[:], Addresses: r.Addresses, MTU: r.MTU}
	l.Alias = chainedAlias(l)
	return l
}

// checkMode refuses what a plugin asks for that was configured otherwise than we.
func (p *Pods) checkMode(r agent.PodRequest) error {
	switch {
	case r.Chained && !p.cfg.Chained:
		return errors.New("the plugin is chained to another one, and this agent connects pods itself: start it with --cni-mode=chained, or take the plugin out of the other's configuration")
	case !r.Chained && p.cfg.Chained:
		return errors.New("this agent runs with --cni-mode=chained, and the plugin is not chained to another one: see that the runtime uses the configuration that the agent writes")
	}
	return nil
}

// addChained takes a pod over that another plugin has connected. Repeated, it finds
// everything done. The lock is held.
func (p *Pods) addChained(r agent.PodRequest, ns *os.File) (agent.PodResult, error) {
	if len(r.Addresses) == 0 || len(r.Addresses) > mostChained {
		return agent.PodResult{}, fmt.Errorf("the other plugin gave the pod %d addresses on %s: Tombolo wants 1 to %d", len(r.Addresses), r.IfName, mostChained)
	}
	rec, index, err := p.findChained(r, ns)
	if err != nil {
		return agent.PodResult{}, err
	}
	if p.cfg.Guard != nil {
		if err := p.cfg.Guard(index); err != nil {
			return agent.PodResult{}, fmt.Errorf("guard %s: %w", rec.HostIf, err)
		}
	}
	p.supersede(rec)
	had := p.pods[r.UID]
	if had != nil {
		rec.Added, rec.Identity, rec.Listed = had.Added, had.Identity, had.Listed
	}
	if (had == nil || had.ContainerID != r.ContainerID) && p.probed[r.UID] {
		p.unready[r.UID] = true // until its probe passes
	}
	link := chainedLink(rec)
	if dev, err := p.nl.LinkByIndex(index); err == nil && dev.Attrs().Alias != link.Alias {
		if err := p.nl.LinkSetAlias(dev, link.Alias); err != nil {
			return agent.PodResult{}, fmt.Errorf("mark %s as a pod's: %w", rec.HostIf, err)
		}
	}
	p.pods[r.UID], p.index[r.UID] = rec, uint32(index)
	p.departed = slices.DeleteFunc(p.departed, func(d departed) bool { return d.UID == r.UID })
	if err := p.save(); err != nil {
		return agent.PodResult{}, err
	}
	p.log.Info("pod of another CNI taken over", "namespace", rec.Namespace, "name", rec.Name, "uid", rec.UID, "addresses", rec.Addresses, "device", rec.HostIf)
	p.announce()
	return result(link), nil
}

// supersede ends pods that have an address of a new one: who gives the addresses
// has it from them, and only their DEL was lost.
func (p *Pods) supersede(rec *pod) {
	for uid, other := range p.pods {
		if uid != rec.UID && slices.ContainsFunc(other.Addresses, func(a netip.Addr) bool { return slices.Contains(rec.Addresses, a) }) {
			p.log.Warn("the other CNI gave a pod's address to another one: its DEL was lost", "uid", uid, "addresses", other.Addresses, "now", rec.UID)
			p.forget(other, p.cfg.Now())
		}
	}
}

// findChained finds the host's end of a pod's veth by the pod's end, which the other
// plugin need not name in its result. If it names devices of the host, it is one of
// them.
func (p *Pods) findChained(r agent.PodRequest, ns *os.File) (*pod, int, error) {
	rec := &pod{
		UID: r.UID, Namespace: r.Namespace, Name: r.Name, Network: r.Network, ContainerID: r.ContainerID, Netns: r.Netns, IfName: r.IfName,
		Addresses: slices.Clone(r.Addresses), Added: p.cfg.Now(),
	}
	var inside *netlink.LinkAttrs
	err := inNetns(ns, func() (err error) {
		inside, err = vethEnd(r.IfName)
		return err
	})
	if err != nil {
		return nil, 0, fmt.Errorf("inside the pod: %w", err)
	}
	host, err := p.nl.LinkByIndex(inside.ParentIndex)
	if err != nil {
		return nil, 0, fmt.Errorf("the other end of the pod's %s, device %d: %w", r.IfName, inside.ParentIndex, err)
	}
	// Numbers of devices are a namespace's own: the other end of the one with the right
	// number must be in the pod's namespace, too.
	at := host.Attrs()
	id, err := p.nl.GetNetNsIdByFd(int(ns.Fd()))
	if err != nil {
		return nil, 0, fmt.Errorf("number of the pod's namespace: %w", err)
	}
	if host.Type() != "veth" || at.ParentIndex != inside.Index || at.NetNsID != id {
		return nil, 0, fmt.Errorf("device %s of the host is not the other end of the pod's %s: the other plugin put that elsewhere, where Tombolo's programs cannot be", at.Name, r.IfName)
	}
	if len(r.HostIfs) > 0 && !slices.Contains(r.HostIfs, at.Name) {
		return nil, 0, fmt.Errorf("the pod's %s leads to device %s of the host; the other plugin's result names %s", r.IfName, at.Name, strings.Join(r.HostIfs, ", "))
	}
	rec.HostIf, rec.MTU = at.Name, inside.MTU
	copy(rec.PodMAC[:], inside.HardwareAddr)
	copy(rec.HostMAC[:], at.HardwareAddr)
	return rec, at.Index, nil
}

// vethEnd is a device of the calling thread's namespace, which has to be a veth.
func vethEnd(name string) (*netlink.LinkAttrs, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer nl.Close()
	link, err := nl.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", name, err)
	}
	if link.Type() != "veth" {
		return nil, fmt.Errorf("device %s is a %s: Tombolo needs a veth, whose other end on the host carries its programs", name, link.Type())
	}
	return link.Attrs(), nil
}

// checkChained compares the kernel with what was taken over.
func (l podLink) checkChained(nl *netlink.Handle, pod *os.File) error {
	link, err := nl.LinkByName(l.HostIf)
	if err != nil {
		return fmt.Errorf("host device %s: %w", l.HostIf, err)
	}
	at := link.Attrs()
	switch {
	case at.Alias != l.Alias:
		return fmt.Errorf("host device %s: alias is %q, want %q", l.HostIf, at.Alias, l.Alias)
	case at.Flags&net.FlagUp == 0:
		return fmt.Errorf("device %s is down", l.HostIf)
	}
	return inNetns(pod, func() error {
		end, err := vethEnd(l.PodIf)
		switch {
		case err != nil:
			return fmt.Errorf("inside the pod: %w", err)
		case end.Index != at.ParentIndex:
			return fmt.Errorf("device %s is not the other end of %s", l.PodIf, l.HostIf)
		case end.Flags&net.FlagUp == 0:
			return fmt.Errorf("inside the pod: device %s is down", l.PodIf)
		case !bytes.Equal(end.HardwareAddr, l.PodMAC):
			return fmt.Errorf("inside the pod: device %s has address %s, want %s", l.PodIf, end.HardwareAddr, l.PodMAC)
		}
		return hasAddresses(l)
	})
}

// hasAddresses runs in the pod's namespace.
func hasAddresses(l podLink) error {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer nl.Close()
	link, err := nl.LinkByName(l.PodIf)
	if err != nil {
		return err
	}
	have, err := nl.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", l.PodIf, err)
	}
	for _, a := range l.Addresses {
		if !slices.ContainsFunc(have, func(h netlink.Addr) bool { ip, _ := netip.AddrFromSlice(h.IP); return ip.Unmap() == a }) {
			return fmt.Errorf("inside the pod: address %s is not on %s", a, l.PodIf)
		}
	}
	return nil
}

// unmark takes our mark off a device of another CNI's. The programs stay until it is
// gone: a pod of which nothing is known any more passes nothing.
func unmark(nl *netlink.Handle, name string) error {
	link, err := nl.LinkByName(name)
	if isLinkNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for device %s: %w", name, err)
	}
	if !strings.HasPrefix(link.Attrs().Alias, chainedMark) {
		return nil
	}
	if err := nl.LinkSetAlias(link, ""); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("take the mark off %s: %w", name, err)
	}
	return nil
}

// settledChained says why no pod can be taken over; nil = one can.
func (p *Pods) settledChained() error {
	if len(p.network.TunnelAddresses) == 0 {
		return errors.New("this node has no tunnel address yet: it is not registered, or its mesh API server was started without --tunnel-prefix")
	}
	for _, prefix := range p.network.PodPrefixes {
		if !prefix.IsSingleIP() {
			return fmt.Errorf("this agent runs with --cni-mode=chained, and its cluster gives the node pod prefix %s: start the mesh API server with --tunnel-prefix, or the agent without chaining", prefix)
		}
	}
	return nil
}
