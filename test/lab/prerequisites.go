package lab

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Prerequisites reports why this machine cannot run a lab, or nil: every reason
// at once, each with what to do.
func Prerequisites() error {
	if os.Geteuid() != 0 {
		return errors.New("needs root: network namespaces, cgroups and BPF programs are made; run it with sudo")
	}
	var errs []error
	if err := haveCapabilities(); err != nil {
		return err // all the rest would only follow from it
	}
	if _, err := cgroupRoot(); err != nil {
		errs = append(errs, err)
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		errs = append(errs, fmt.Errorf("needs /dev/net/tun for tunnels (%w); load the module: modprobe tun", err))
	}
	for _, p := range []ebpf.ProgramType{ebpf.CGroupSockAddr, ebpf.SchedCLS} {
		if err := features.HaveProgramType(p); err != nil {
			errs = append(errs, fmt.Errorf("needs BPF programs of type %s (%w); use a kernel built with CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF", p, err))
		}
	}
	if len(errs) == 0 && !haveTCX() {
		errs = append(errs, errors.New("needs tcx for its link faults; use Linux 6.6 or later (agents themselves do without)"))
	}
	return errors.Join(errs...)
}

// haveCapabilities: root in a container may lack them.
func haveCapabilities() error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	for _, c := range []struct {
		bit  uint
		name string
	}{{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN"}, {unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"}, {unix.CAP_NET_RAW, "CAP_NET_RAW"}} {
		if data[c.bit/32].Effective&(1<<(c.bit%32)) == 0 {
			return fmt.Errorf("needs %s, which this root does not have; run it on the machine itself, or in a privileged container", c.name)
		}
	}
	return nil
}

// haveTCX attaches nothing: the interface does not exist, and only a kernel
// that knows tcx gets as far as noticing.
func haveTCX() bool {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "Apache-2.0", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}})
	if err != nil {
		return false
	}
	defer p.Close()
	l, err := link.AttachTCX(link.TCXOptions{Interface: 1 << 30, Program: p, Attach: ebpf.AttachTCXIngress})
	if err == nil {
		l.Close()
		return true
	}
	return errors.Is(err, unix.ENODEV)
}
