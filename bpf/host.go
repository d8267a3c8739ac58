package bpf

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// hostHooks are host.c's, in the order in which they are attached: what keeps
// packets from leaving comes before what sends more of them out.
var hostHooks = []hook{
	{hostProgTmbToWorld, ebpf.AttachTCXEgress},
	{hostProgTmbFromWorld, ebpf.AttachTCXIngress},
}

// AttachHost attaches host.c to an uplink of the calling thread's network
// namespace, with or without Ethernet headers. It can be called again: the
// programs are replaced in one step.
func (o *Objects) AttachHost(ifindex int) error {
	for _, h := range hostHooks {
		prog, err := o.hostProgram(h, ifindex)
		if err != nil {
			return err
		}
		how, err := o.attachAt(h, h.pin(ifindex), ifindex, prog)
		if err != nil {
			return err
		}
		o.log.Debug("uplink attached", "program", h.program, "interface", ifindex, "by", how)
	}
	return nil
}

// DetachHost takes host.c off a device. Doing it twice is no error.
func (o *Objects) DetachHost(ifindex int) error {
	var errs []error
	for _, h := range slices.Backward(hostHooks) {
		errs = append(errs, o.detachAt(h, ifindex))
	}
	return errors.Join(errs...)
}

// AttachedHosts are the devices of the calling thread's network namespace that
// have host.c, attached by this or an earlier process; in order.
func (o *Objects) AttachedHosts() ([]int, error) {
	var all []int
	for _, h := range hostHooks {
		devices, err := o.attachedDevices(h)
		if err != nil {
			return nil, err
		}
		all = append(all, devices...)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// SetUnderlay says by which device the other nodes are reached; 0: by which a
// packet came. Clients' packets for backends on other nodes leave there.
func (o *Objects) SetUnderlay(ifindex int) error {
	return o.setDevice(rowsTmbDeviceTMB_DEVICE_UNDERLAY, ifindex)
}

func (o *Objects) setDevice(which rowsTmbDevice, ifindex int) error {
	if err := o.Devices.Put(uint32(which), uint32(ifindex)); err != nil {
		return fmt.Errorf("tell programs of interface %d: %w", ifindex, err)
	}
	return nil
}

// replaceHost gives the uplinks that have host.c the present programs.
func (o *Objects) replaceHost() error {
	for _, h := range hostHooks {
		if err := o.replaceAt(h, func(ifindex int) (*ebpf.Program, error) { return o.hostProgram(h, ifindex) }); err != nil {
			return err
		}
	}
	return nil
}

// hostProgram is host.c's for the kind of device, loaded when first asked for.
func (o *Objects) hostProgram(h hook, ifindex int) (*ebpf.Program, error) {
	l2, err := l2Length(ifindex)
	if err != nil {
		return nil, err
	}
	coll := o.host[l2]
	if coll == nil {
		if coll, err = loadTC(loadHost, o.Maps, l2); err != nil {
			return nil, err
		}
		if o.host == nil {
			o.host = make(map[uint32]*ebpf.Collection)
		}
		o.host[l2] = coll
	}
	return coll.Programs[h.program], nil
}

// l2Length is how many bytes come before the IP header on a device.
func l2Length(ifindex int) (uint32, error) {
	d, err := deviceAt(ifindex)
	if err != nil {
		return 0, err
	}
	switch d.Attrs().EncapType {
	case "ether", "loopback":
		return ethLen, nil
	}
	return 0, nil // TUN, WireGuard, PPP: the packet starts with its IP header
}

// deviceAt fails with ENODEV where there is none.
func deviceAt(ifindex int) (netlink.Link, error) {
	d, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone {
			err = unix.ENODEV
		}
		return nil, fmt.Errorf("interface %d: %w", ifindex, err)
	}
	return d, nil
}
