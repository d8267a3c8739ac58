package linux

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"

	"github.com/tombolo-mesh/tombolo/agent"
)

// Cleanup takes everything of ours out of the calling thread's network
// namespace: the devices of pods, the tunnel's configuration (and the device, if
// it is the kernel's), the tunnel addresses given, and last of all our routes,
// blackholes after everything else. What is gone already is no error.
func Cleanup(device string, tunnelAddresses []netip.Addr) error {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer nl.Close()
	var errs []error
	links, err := nl.LinkList()
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	for _, l := range links {
		if _, chained := chainedFromLink(l); chained {
			errs = append(errs, unmark(nl, l.Attrs().Name))
			continue
		}
		uid, _, ok := podFromAlias(l.Attrs().Alias)
		if !ok || l.Attrs().Name != hostIfName(uid) {
			continue
		}
		if err := nl.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("delete device %s: %w", l.Attrs().Name, err))
		}
	}
	wg, err := wgctrl.New()
	if err == nil {
		d := &Device{name: device, nl: nl, wg: wg}
		if err := d.Clear(); err != nil {
			errs = append(errs, fmt.Errorf("clear %s: %w", device, err))
		}
		wg.Close()
	} else if !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	if lo, err := nl.LinkByName("lo"); err == nil {
		for _, a := range tunnelAddresses {
			if err := nl.AddrDel(lo, &netlink.Addr{IPNet: hostNet(a)}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
				errs = append(errs, fmt.Errorf("take %s off lo: %w", a, err))
			}
		}
	}
	table := &routes{nl: nl, device: device}
	var keys []agent.RouteKey
	for k := range table.Dump() {
		keys = append(keys, k)
	}
	return errors.Join(append(errs, table.DumpErr(), table.Delete(keys))...)
}
