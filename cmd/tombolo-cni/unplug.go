package main

import (
	"errors"
	"os"
	"runtime"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// unplug takes the interface out of the pod's namespace. A namespace or an
// interface that is gone is no error, and neither is one that is no veth: it is not
// ours.
func unplug(netns, ifName string) error {
	if netns == "" {
		return nil
	}
	err := within(netns, func() error {
		link, err := netlink.LinkByName(ifName)
		if err != nil || link.Type() != "veth" {
			if notFound := (netlink.LinkNotFoundError{}); err == nil || errors.As(err, &notFound) {
				return nil
			}
			return err
		}
		return netlink.LinkDel(link)
	})
	if err != nil {
		return failed(types.ErrTryAgainLater, "the deletion is noted for the Tombolo agent, which is away; the interface could not be removed", "%s: %v", ifName, err)
	}
	return nil
}

// within runs f in a network namespace, on a thread that ends with it. What is no
// namespace any more is passed over.
func within(path string, f func() error) error {
	ns, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			if errors.Is(err, unix.EINVAL) {
				err = nil // the mount is gone, and its file is left
			}
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}
