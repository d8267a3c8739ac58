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

// sockHooks are sock.c's programs, by the name of their pin.
var sockHooks = []struct {
	name   string
	attach ebpf.AttachType
}{
	// What undoes a translation is there before what translates.
	{sockProgTmbSockRelease, ebpf.AttachCgroupInetSockRelease},
	{sockProgTmbGetpeername4, ebpf.AttachCgroupInet4GetPeername},
	{sockProgTmbGetpeername6, ebpf.AttachCgroupInet6GetPeername},
	{sockProgTmbRecvmsg4, ebpf.AttachCGroupUDP4Recvmsg},
	{sockProgTmbRecvmsg6, ebpf.AttachCGroupUDP6Recvmsg},
	{sockProgTmbSendmsg4, ebpf.AttachCGroupUDP4Sendmsg},
	{sockProgTmbSendmsg6, ebpf.AttachCGroupUDP6Sendmsg},
	{sockProgTmbConnect4, ebpf.AttachCGroupInet4Connect},
	{sockProgTmbConnect6, ebpf.AttachCGroupInet6Connect},
}

func attachSock(dir, cgroup string, sock *ebpf.Collection) error {
	var st unix.Stat_t
	if err := unix.Stat(cgroup, &st); err != nil {
		return fmt.Errorf("cgroup %s: %w", cgroup, err)
	}
	for _, h := range sockHooks {
		err := attachCgroup(filepath.Join(dir, h.name), st.Ino, link.CgroupOptions{
			Path: cgroup, Attach: h.attach, Program: sock.Programs[h.name],
		})
		if err != nil {
			return fmt.Errorf("attach %s to cgroup %s: %w", h.name, cgroup, err)
		}
	}
	return nil
}

// attachCgroup replaces the program of the pinned link, if that is at the cgroup
// (by inode); else attaches and pins, and only then lets go of an old link.
func attachCgroup(pin string, inode uint64, opts link.CgroupOptions) error {
	old, err := link.LoadPinnedLink(pin, nil)
	if err == nil {
		defer old.Close()
		info, err := old.Info()
		if err != nil {
			return err
		}
		if cg := info.Cgroup(); cg != nil && cg.CgroupId == inode {
			return old.Update(opts.Program)
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("open pinned link %s: %w", pin, err)
	}
	l, err := link.AttachCgroup(opts)
	if err != nil {
		return err
	}
	defer l.Close()
	return pinOver(l, pin)
}
