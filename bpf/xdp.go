package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// xdpHook names the pins; XDP has no clsact to fall back to.
var xdpHook = hook{xdpProgTmbXdp, ebpf.AttachXDP}

// xdpKind is what xdp.c is told when it is loaded.
type xdpKind struct {
	mac     [6]byte
	generic bool
}

// AttachXDP attaches xdp.c to an uplink of the calling thread's network namespace:
// by its driver, or, generic, by what the kernel does for any device. It makes
// node ports faster and is needed by nothing; AttachHost is, in any case. It can be
// called again, also for the other mode: the program is replaced in one step, the
// mode in two.
func (o *Objects) AttachXDP(ifindex int, generic bool) error {
	d, err := deviceAt(ifindex)
	if err != nil {
		return err
	}
	a := d.Attrs()
	if a.EncapType != "ether" || len(a.HardwareAddr) != 6 {
		return fmt.Errorf("attach XDP to %s: it is no Ethernet device; do without", a.Name)
	}
	prog, err := o.xdpProgram(xdpKind{[6]byte(a.HardwareAddr), generic})
	if err != nil {
		return err
	}
	pin := filepath.Join(o.pinDir, xdpHook.pin(ifindex))
	old, err := link.LoadPinnedLink(pin, nil)
	if err == nil {
		defer old.Close()
		here, err := xdpAt(old, a)
		if err != nil {
			return err
		}
		if here && (a.Xdp.AttachMode == nl.XDP_ATTACHED_SKB) == generic {
			return old.Update(prog)
		}
		if err := removeLink(pin); err != nil {
			return err
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("open pinned link %s: %w", pin, err)
	}
	l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: ifindex, Flags: xdpFlags(generic)})
	if err != nil {
		return xdpRefused(a.Name, generic, err)
	}
	defer l.Close()
	return pinOver(l, pin)
}

func xdpFlags(generic bool) link.XDPAttachFlags {
	if generic {
		return link.XDPGenericMode
	}
	return link.XDPDriverMode
}

func xdpRefused(device string, generic bool, err error) error {
	switch {
	case errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST):
		return fmt.Errorf("attach XDP to %s: another XDP program is there; take it off, or do without ours: %w", device, err)
	case !generic:
		return fmt.Errorf("attach XDP to %s: its driver refuses (no XDP, an MTU too large for it, or too few queues); "+
			"do without, or use the slower generic mode: %w", device, err)
	}
	return fmt.Errorf("attach XDP to %s in generic mode: %w", device, err)
}

// DetachXDP takes xdp.c off a device. Doing it twice is no error.
func (o *Objects) DetachXDP(ifindex int) error {
	return removeLink(filepath.Join(o.pinDir, xdpHook.pin(ifindex)))
}

// AttachedXDPs are the devices of the calling thread's network namespace that have
// xdp.c, attached by this or an earlier process; in order. Links whose device is
// gone are removed.
func (o *Objects) AttachedXDPs() ([]int, error) {
	entries, err := os.ReadDir(o.pinDir)
	if err != nil {
		return nil, err
	}
	var found []int
	for _, e := range entries {
		ifindex, ours := xdpHook.ifindex(e.Name())
		if !ours {
			continue
		}
		here, err := o.xdpHere(e.Name(), ifindex)
		switch {
		case err != nil:
			return nil, err
		case here:
			found = append(found, ifindex)
		default:
			if err := o.DetachXDP(ifindex); err != nil {
				return nil, err
			}
		}
	}
	slices.Sort(found)
	return found, nil
}

func (o *Objects) xdpHere(pin string, ifindex int) (bool, error) {
	l, err := link.LoadPinnedLink(filepath.Join(o.pinDir, pin), nil)
	if err != nil {
		return false, fmt.Errorf("open pinned link %s: %w", pin, err)
	}
	defer l.Close()
	d, err := deviceAt(ifindex)
	if errors.Is(err, unix.ENODEV) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return xdpAt(l, d.Attrs())
}

// xdpAt: is the link at this device, not at one of the same index in another
// namespace?
func xdpAt(l link.Link, a *netlink.LinkAttrs) (bool, error) {
	info, err := l.Info()
	if err != nil {
		return false, err
	}
	x := info.XDP()
	return x != nil && int(x.Ifindex) == a.Index && a.Xdp != nil && a.Xdp.Attached && a.Xdp.ProgId == uint32(info.Program), nil
}

// replaceXDP gives the devices that have xdp.c the present program. Where that
// fails it is taken off: nothing needs it, and an earlier one may know other maps.
func (o *Objects) replaceXDP() error {
	devices, err := o.AttachedXDPs()
	if err != nil {
		return err
	}
	for _, ifindex := range devices {
		d, err := deviceAt(ifindex)
		if err == nil {
			err = o.AttachXDP(ifindex, d.Attrs().Xdp != nil && d.Attrs().Xdp.AttachMode == nl.XDP_ATTACHED_SKB)
		}
		if err != nil {
			o.log.Warn("XDP is taken off a device: node ports go on without it", "interface", ifindex, "error", err)
			if err := o.DetachXDP(ifindex); err != nil {
				return err
			}
		}
	}
	return nil
}

// xdpProgram is xdp.c for a device, loaded when first asked for.
func (o *Objects) xdpProgram(kind xdpKind) (*ebpf.Program, error) {
	if coll := o.xdp[kind]; coll != nil {
		return coll.Programs[xdpProgTmbXdp], nil
	}
	coll, err := loadXDPCode(o.Maps, kind)
	if err != nil {
		return nil, err
	}
	if o.xdp == nil {
		o.xdp = make(map[xdpKind]*ebpf.Collection)
	}
	o.xdp[kind] = coll
	return coll.Programs[xdpProgTmbXdp], nil
}

func loadXDPCode(maps *Maps, kind xdpKind) (*ebpf.Collection, error) {
	spec, err := loadXdp()
	if err != nil {
		return nil, err
	}
	generic := uint32(0)
	if kind.generic {
		generic = 1
	}
	err = errors.Join(spec.Variables["tmb_xdp_mac"].Set(kind.mac), spec.Variables["tmb_xdp_generic"].Set(generic))
	if err != nil {
		return nil, fmt.Errorf("set the device's address: %w", err)
	}
	coll, err := loadCollection(spec, maps)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", xdpHook.program, err)
	}
	return coll, nil
}
