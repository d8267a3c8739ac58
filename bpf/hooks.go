package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// clsactPriority and clsactHandle place our filters; the name is what makes them ours.
const (
	clsactPriority = 0x746d
	clsactHandle   = 1
)

// hook is a direction of a device's traffic in which one of our programs runs. On
// many devices: each has a link of its own, whose pin is the program's name with
// the interface's index (tmb_from_pod_12).
type hook struct {
	program string          // its name, and that of the clsact filter
	attach  ebpf.AttachType // AttachTCXIngress or AttachTCXEgress
}

func (h hook) pin(ifindex int) string { return h.program + "_" + strconv.Itoa(ifindex) }

// ifindex of a pin of this hook.
func (h hook) ifindex(pin string) (int, bool) {
	digits, ok := strings.CutPrefix(pin, h.program+"_")
	n, err := strconv.Atoi(digits)
	return n, ok && err == nil && n > 0 && h.pin(n) == pin
}

func (h hook) parent() uint32 {
	if h.attach == ebpf.AttachTCXEgress {
		return netlink.HANDLE_MIN_EGRESS
	}
	return netlink.HANDLE_MIN_INGRESS
}

// attachAt runs prog at a hook of a device of the calling thread's network
// namespace, by tcx, or by clsact where the kernel has no tcx, and says which. If
// it runs there already, in this or an earlier process, it is replaced in one step.
func (o *Objects) attachAt(h hook, pin string, ifindex int, prog *ebpf.Program) (how string, err error) {
	how, err = "tcx", link.ErrNotSupported
	if !o.noTCX {
		err = attachTCX(h, filepath.Join(o.pinDir, pin), ifindex, prog)
	}
	if errors.Is(err, link.ErrNotSupported) {
		how, err = "clsact", o.attachClsact(h, pin, ifindex, prog)
	}
	if err != nil {
		return how, fmt.Errorf("attach %s to interface %d by %s: %w", h.program, ifindex, how, err)
	}
	return how, nil
}

func attachTCX(h hook, pin string, ifindex int, prog *ebpf.Program) error {
	old, err := link.LoadPinnedLink(pin, nil)
	if err == nil {
		defer old.Close()
		if here, err := attachedTo(old, ifindex, h.attach); err != nil {
			return err
		} else if here {
			return old.Update(prog)
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("open pinned link %s: %w", pin, err)
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: prog, Attach: h.attach})
	if err != nil {
		return err
	}
	defer l.Close()
	if err := pinOver(l, pin); err != nil {
		return err
	}
	// Of an earlier kernel or option: the program must not run twice.
	return removeClsactAt(h, ifindex)
}

// attachedTo: is it this device, not one of the same index in another namespace?
func attachedTo(l link.Link, ifindex int, attach ebpf.AttachType) (bool, error) {
	info, err := l.Info()
	if err != nil {
		return false, err
	}
	if tcx := info.TCX(); tcx == nil || int(tcx.Ifindex) != ifindex {
		return false, nil
	}
	result, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: attach})
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

func (o *Objects) attachClsact(h hook, pin string, ifindex int, prog *ebpf.Program) error {
	err := netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}})
	if err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("add clsact qdisc: %w", err)
	}
	if err := setFilter(h, ifindex, prog); err != nil {
		return err
	}
	// Once there is a filter, a link of ours would run the program twice.
	return removeLink(filepath.Join(o.pinDir, pin))
}

func setFilter(h hook, ifindex int, prog *ebpf.Program) error {
	err := netlink.FilterReplace(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: ifindex, Parent: h.parent(),
			Handle: clsactHandle, Priority: clsactPriority, Protocol: unix.ETH_P_ALL,
		},
		Fd: prog.FD(), Name: h.program, DirectAction: true,
	})
	if err != nil {
		return fmt.Errorf("set filter: %w", err)
	}
	return nil
}

// detachAt takes a hook of one device back. Doing it twice is no error, nor is it
// when the device is gone.
func (o *Objects) detachAt(h hook, ifindex int) error {
	return errors.Join(removeLink(filepath.Join(o.pinDir, h.pin(ifindex))), removeClsactAt(h, ifindex))
}

// attachedDevices are those, of the calling thread's network namespace, that
// have a hook, in this or an earlier process. Links whose device is gone are
// removed.
func (o *Objects) attachedDevices(h hook) ([]int, error) {
	entries, err := os.ReadDir(o.pinDir)
	if err != nil {
		return nil, err
	}
	var found []int
	for _, e := range entries {
		ifindex, ours := h.ifindex(e.Name())
		if !ours {
			continue
		}
		gone, err := o.deviceGone(h, e.Name(), ifindex)
		switch {
		case err != nil:
			return nil, err
		case gone:
			if err := removeLink(filepath.Join(o.pinDir, e.Name())); err != nil {
				return nil, err
			}
		default:
			found = append(found, ifindex)
		}
	}
	filters, err := ourFilters(h.program)
	for _, f := range filters {
		if f.Parent == h.parent() {
			found = append(found, f.LinkIndex)
		}
	}
	return found, err
}

func (o *Objects) deviceGone(h hook, pin string, ifindex int) (bool, error) {
	l, err := link.LoadPinnedLink(filepath.Join(o.pinDir, pin), nil)
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("open pinned link %s: %w", pin, err)
	}
	defer l.Close()
	here, err := attachedTo(l, ifindex, h.attach)
	if errors.Is(err, unix.ENODEV) {
		return true, nil
	}
	return !here, err
}

// replaceAt gives every device that has a hook the present program.
func (o *Objects) replaceAt(h hook, prog func(ifindex int) (*ebpf.Program, error)) error {
	devices, err := o.attachedDevices(h)
	if err != nil {
		return err
	}
	for _, ifindex := range devices {
		p, err := prog(ifindex)
		if err == nil {
			_, err = o.attachAt(h, h.pin(ifindex), ifindex, p)
		}
		if err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ENOLINK) { // gone meanwhile
			return err
		}
	}
	return nil
}

// ourFilters are the clsact filters of ours by that name, or all for "", in the
// calling thread's network namespace.
func ourFilters(program string) ([]*netlink.BpfFilter, error) {
	devices, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	var found []*netlink.BpfFilter
	for _, d := range devices {
		found = append(found, filtersOf(d, program)...)
	}
	return found, nil
}

func filtersOf(d netlink.Link, program string) (found []*netlink.BpfFilter) {
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		filters, err := netlink.FilterList(d, parent)
		if err != nil {
			return nil // no clsact qdisc here
		}
		for _, f := range filters {
			b, ok := f.(*netlink.BpfFilter)
			if ok && b.Priority == clsactPriority && (b.Name == program || program == "" && strings.HasPrefix(b.Name, "tmb_")) {
				found = append(found, b)
			}
		}
	}
	return found
}

// removeClsact deletes our filters by that name, or all for "".
func removeClsact(program string) error {
	filters, err := ourFilters(program)
	errs := []error{err}
	for _, f := range filters {
		errs = append(errs, netlink.FilterDel(f))
	}
	return errors.Join(errs...)
}

// removeClsactAt deletes a hook's filter from one device.
func removeClsactAt(h hook, ifindex int) error {
	d, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return nil // gone, and its filters with it
	}
	for _, f := range filtersOf(d, h.program) {
		if f.Parent == h.parent() {
			return netlink.FilterDel(f)
		}
	}
	return nil
}
