package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// tunnelPin is the pinned tcx link, whatever the device: there is one tunnel.
const tunnelPin = tunnelProgTmbTunnel

var tunnelHook = hook{tunnelProgTmbTunnel, ebpf.AttachTCXIngress}

// AttachTunnel attaches tunnel.c to a tunnel device of the calling thread's
// network namespace: ingress, by tcx, or by clsact where the kernel has no tcx.
// It can be called again: the same device gets the present program in one step;
// another device (the old one was made anew) takes the place of the one before.
func (o *Objects) AttachTunnel(ifindex int) error {
	how, err := o.attachAt(tunnelHook, tunnelPin, ifindex, o.tunnel)
	if err != nil {
		return err
	}
	if err := o.setDevice(rowsTmbDeviceTMB_DEVICE_TUNNEL, ifindex); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.feat.Tunnel != how {
		o.feat.Tunnel = how
		o.log.Info("tunnel attached", "interface", ifindex, "by", how)
	}
	return nil
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
