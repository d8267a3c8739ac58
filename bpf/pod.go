package bpf

import (
	"errors"

	"github.com/cilium/ebpf"
)

// podCode are pod.c's programs, loaded once for all pods.
type podCode struct {
	from, to *ebpf.Program
}

var (
	fromPodHook = hook{podProgTmbFromPod, ebpf.AttachTCXIngress}
	toPodHook   = hook{podProgTmbToPod, ebpf.AttachTCXEgress}
)

// isDevicePin: is a file of that name a link of a hook that many devices have?
func isDevicePin(name string) bool {
	for _, h := range append([]hook{fromPodHook, toPodHook, xdpHook}, hostHooks...) {
		if _, ok := h.ifindex(name); ok {
			return true
		}
	}
	return false
}

// each is in the order of attaching: nothing leaves a pod while what is sent to
// it passes unseen.
func (p podCode) each(f func(hook, *ebpf.Program) error) error {
	if err := f(toPodHook, p.to); err != nil {
		return err
	}
	return f(fromPodHook, p.from)
}

func (p podCode) Close() error { return errors.Join(p.from.Close(), p.to.Close()) }

// AttachPod attaches pod.c to the host's end of a pod's veth, in the calling
// thread's network namespace, both ways. It can be called again: the device gets
// the present programs, each in one step. From then on only what its endpoint row
// and policy allow passes: the rows come first.
func (o *Objects) AttachPod(ifindex int) error {
	return o.pod.each(func(h hook, prog *ebpf.Program) error {
		how, err := o.attachAt(h, h.pin(ifindex), ifindex, prog)
		if err != nil {
			return err
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.feat.Pods != how {
			o.feat.Pods = how
			o.log.Info("pods attached", "by", how)
		}
		return nil
	})
}

// DetachPod takes pod.c off. It is no error if it is not there, or the device is
// not there any more.
func (o *Objects) DetachPod(ifindex int) error {
	return errors.Join(o.detachAt(fromPodHook, ifindex), o.detachAt(toPodHook, ifindex))
}

// replacePods gives every pod's link that has pod.c the present programs.
func (o *Objects) replacePods() error {
	return o.pod.each(func(h hook, prog *ebpf.Program) error {
		return o.replaceAt(h, func(int) (*ebpf.Program, error) { return prog, nil })
	})
}

// loadPodCode loads pod.c for packets with l2 bytes before the IP header.
func loadPodCode(maps *Maps, l2 uint32) (podCode, error) {
	coll, err := loadTC(loadPod, maps, l2)
	if err != nil {
		return podCode{}, err
	}
	defer coll.Close()
	return podCode{from: coll.DetachProgram(podProgTmbFromPod), to: coll.DetachProgram(podProgTmbToPod)}, nil
}
