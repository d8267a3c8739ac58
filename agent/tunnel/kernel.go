package tunnel

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// KernelHas says whether this kernel has WireGuard, by making a device and
// taking it away again: a module is loaded by asking for what it offers.
func KernelHas() (bool, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = fmt.Sprintf("tmbtry%d", os.Getpid()%1e6) // of this process alone, and a length that Linux takes
	link := &netlink.Wireguard{LinkAttrs: attrs}
	switch err := netlink.LinkAdd(link); {
	case errors.Is(err, unix.EOPNOTSUPP):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("try whether the kernel has WireGuard: %w", err)
	}
	if err := netlink.LinkDel(link); err != nil {
		return true, fmt.Errorf("take away %s, a device made to try whether the kernel has WireGuard: %w", attrs.Name, err)
	}
	return true, nil
}
