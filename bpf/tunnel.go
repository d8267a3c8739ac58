package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tunnelPin is the pinned tcx link, and the name of our clsact filter.
const tunnelPin = tunnelProgTmbTunnel

// clsactPriority and clsactHandle place our filter; its name is what makes it ours.
const (
	clsactPriority = 0x746d
	clsactHandle   = 1
)

// AttachTunnel attaches tunnel.c to a tunnel device of the calling thread's
// network namespace: ingress, by tcx, or by clsact where the kernel has no tcx.
// It can be called again: the same device gets the present program in one step;
// another device (the old one was made anew) takes the place of the one before.
func (o *Objects) AttachTunnel(ifindex int) error {
	how := "tcx"
	err := error(link.ErrNotSupported)
	if !o.noTCX {
		err = o.attachTCX(ifindex)
	}
	if errors.Is(err, link.ErrNotSupported) {
		how, err = "clsact", o.attachClsact(ifindex)
	}
	if err != nil {
		return fmt.Errorf("attach to tunnel device (interface %d) by %s: %w", ifindex, how, err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.feat.Tunnel != how {
		o.feat.Tunnel = how
		o.log.Info("tunnel attached", "interface", ifindex, "by", how)
	}
	return nil
}

func (o *Objects) attachTCX(ifindex int) error {
	pin := filepath.Join(o.pinDir, tunnelPin)
	old, err := link.LoadPinnedLink(pin, nil)
	if err == nil {
		defer old.Close()
		if here, err := attachedTo(old, ifindex); err != nil {
			return err
		} else if here {
			return old.Update(o.tunnel)
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("open pinned link %s: %w", pin, err)
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: o.tunnel, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		return err
	}
	defer l.Close()
	if err := pinOver(l, pin); err != nil {
		return err
	}
	return removeClsact() // of an earlier kernel or option: the program must not run twice
}

// attachedTo: is it this device, not one of the same index in another namespace?
func attachedTo(l link.Link, ifindex int) (bool, error) {
	info, err := l.Info()
	if err != nil {
		return false, err
	}
	if tcx := info.TCX(); tcx == nil || int(tcx.Ifindex) != ifindex {
		return false, nil
	}
	result, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		return false, fmt.Errorf("query tcx programs: %w", err)
	}
	for _, p := range result.Programs {
		if id, ok := p.LinkID(); ok && id == info.ID {
			return true, nil
		}
	}
	return false, nil
}

// replaceTunnel gives the link that is pinned, if any, the present program.
func (o *Objects) replaceTunnel() error {
	l, err := link.LoadPinnedLink(filepath.Join(o.pinDir, tunnelPin), nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open pinned tunnel link: %w", err)
	}
	defer l.Close()
	err = l.Update(o.tunnel)
	if errors.Is(err, unix.ENOLINK) {
		return nil // its device is gone
	}
	return err
}

func (o *Objects) attachClsact(ifindex int) error {
	err := netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}})
	if err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("add clsact qdisc: %w", err)
	}
	err = netlink.FilterReplace(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: ifindex, Parent: netlink.HANDLE_MIN_INGRESS,
			Handle: clsactHandle, Priority: clsactPriority, Protocol: unix.ETH_P_ALL,
		},
		Fd: o.tunnel.FD(), Name: tunnelPin, DirectAction: true,
	})
	if err != nil {
		return fmt.Errorf("set filter: %w", err)
	}
	// Once there is a filter, a link of ours would run the program twice.
	return removeLink(filepath.Join(o.pinDir, tunnelPin))
}

// removeClsact deletes our filters from every device of this network namespace.
func removeClsact() error {
	devices, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	var errs []error
	for _, d := range devices {
		filters, err := netlink.FilterList(d, netlink.HANDLE_MIN_INGRESS)
		if err != nil {
			continue // no clsact qdisc here
		}
		for _, f := range filters {
			if b, ok := f.(*netlink.BpfFilter); ok && b.Name == tunnelPin && b.Priority == clsactPriority {
				errs = append(errs, netlink.FilterDel(b))
			}
		}
	}
	return errors.Join(errs...)
}
