package linux

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// inNetns runs fn on an OS thread that is in the network namespace of the open
// file ns. The thread is used up by it: it is never unlocked, so the runtime
// ends it with its goroutine, and no thread in a foreign namespace can go back
// to the pool.
func inNetns(ns *os.File, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace %s: %w", ns.Name(), err)
			return
		}
		done <- fn()
	}()
	return <-done
}

// InNetns runs fn in the network namespace at path, as inNetns does.
func InNetns(path string, fn func() error) error {
	ns, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer ns.Close()
	return inNetns(ns, fn)
}

// currentNetns opens the calling thread's network namespace.
func currentNetns() (*os.File, error) {
	return os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
}

// sysctls is where /proc/sys/net is: what is there is that of the calling thread's
// network namespace.
var sysctls = "/proc/sys/net"

// SysctlsAt says where else /proc/sys/net is, before anything else is called: a
// container's own is read-only, and it is given the node's as a volume.
func SysctlsAt(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, "ipv4", "ip_forward")); err != nil {
		return fmt.Errorf("%s is not the node's /proc/sys/net: %w", dir, err)
	}
	sysctls = dir
	return nil
}

// haveIPv6 is false on a kernel without it.
func haveIPv6() bool {
	_, err := os.Stat(filepath.Join(sysctls, "ipv6"))
	return err == nil
}

// sysctl sets one value below /proc/sys/net in the calling thread's network
// namespace, if it differs.
func sysctl(value string, path ...string) error {
	name := filepath.Join(append([]string{sysctls}, path...)...)
	if have, err := os.ReadFile(name); err == nil && strings.TrimSpace(string(have)) == value {
		return nil
	}
	if err := os.WriteFile(name, []byte(value), 0); err != nil {
		return fmt.Errorf("set sysctl %s: %w", name, err)
	}
	return nil
}

// nodeSysctls turns forwarding on in the calling thread's network namespace.
// The kernel stops accepting router advertisements on a forwarding node; links
// that accepted them until now (an uplink with SLAAC) are told to go on.
func nodeSysctls() error {
	accepting, _ := filepath.Glob(filepath.Join(sysctls, "ipv6/conf/*/accept_ra"))
	before, _ := os.ReadFile(filepath.Join(sysctls, "ipv6/conf/all/forwarding"))
	if err := sysctl("1", "ipv4", "ip_forward"); err != nil {
		return err
	}
	if !haveIPv6() {
		return nil
	}
	if strings.TrimSpace(string(before)) == "0" {
		for _, f := range accepting {
			have, _ := os.ReadFile(f)
			if dev := filepath.Base(filepath.Dir(f)); strings.TrimSpace(string(have)) == "1" && dev != "all" && dev != "default" && dev != "lo" {
				os.WriteFile(f, []byte("2"), 0) // best effort: the device may be going away
			}
		}
	}
	return sysctl("1", "ipv6", "conf", "all", "forwarding")
}
