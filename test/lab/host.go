package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// host is a network namespace with a cgroup: a machine of the lab, or a pod.
type host struct {
	name   string // netns name, globally unique
	cgroup string // absolute path
}

const netnsDir = "/run/netns"

func (h *host) netnsPath() string { return filepath.Join(netnsDir, h.name) }

// cgroupRoot finds where cgroup v2 is mounted: alone, or beside version 1.
func cgroupRoot() (string, error) {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if w := strings.Fields(s.Text()); len(w) > 2 && w[2] == "cgroup2" {
			return w[1], nil
		}
	}
	return "", errors.New("no cgroup v2 is mounted; mount one: mount -t cgroup2 none /sys/fs/cgroup/unified")
}

// makeHost makes the namespace (lo up) and the cgroup.
func makeHost(name, cgroup string) (*host, error) {
	h := &host{name: name, cgroup: cgroup}
	if err := os.MkdirAll(cgroup, 0o755); err != nil {
		return nil, fmt.Errorf("make cgroup: %w", err)
	}
	if err := makeNetns(name); err != nil {
		return nil, err
	}
	return h, h.in(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
}

// makeNetns makes a named namespace the way iproute2 does, so that
// `ip netns exec` reaches it.
func makeNetns(name string) error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies with the goroutine
		errc <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("unshare: %w", err)
			}
			path := filepath.Join(netnsDir, name)
			f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
			if err != nil {
				return err
			}
			f.Close()
			self := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
			if err := unix.Mount(self, path, "none", unix.MS_BIND, ""); err != nil {
				os.Remove(path)
				return fmt.Errorf("bind netns: %w", err)
			}
			return nil
		}()
	}()
	if err := <-errc; err != nil {
		return fmt.Errorf("make netns %s: %w", name, err)
	}
	return nil
}

func deleteNetns(name string) error {
	path := filepath.Join(netnsDir, name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount netns %s: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// in runs fn on a thread inside the namespace; processes fn starts are born in
// it. The thread is thrown away afterwards.
func (h *host) in(fn func() error) error {
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		ns, err := netns.GetFromPath(h.netnsPath())
		if err != nil {
			errc <- fmt.Errorf("netns %s: %w", h.name, err)
			return
		}
		defer ns.Close()
		if err := netns.Set(ns); err != nil {
			errc <- fmt.Errorf("enter netns %s: %w", h.name, err)
			return
		}
		errc <- fn()
	}()
	return <-errc
}

// dial opens a connection from the namespace, but not from the cgroup, to a
// literal address: that needs no resolver, so the socket is made on this thread.
func (h *host) dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = h.in(func() error {
		conn, err = new(net.Dialer).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// delete ends every process of the host and removes namespace and cgroup.
func (h *host) delete() error {
	return errors.Join(killCgroup(h.cgroup), deleteNetns(h.name), removeCgroup(h.cgroup))
}

// killCgroup kills all processes in a cgroup and below, and waits until they are gone.
func killCgroup(path string) error {
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err := os.WriteFile(filepath.Join(path, "cgroup.kill"), []byte("1"), 0); err != nil {
		return fmt.Errorf("kill processes of %s: %w", path, err)
	}
	for range 500 {
		b, err := os.ReadFile(filepath.Join(path, "cgroup.events"))
		if err != nil || strings.Contains(string(b), "populated 0") {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("processes of %s did not end within 5 s of being killed", path)
}

// removeCgroup removes a cgroup and everything below it.
func removeCgroup(path string) error {
	entries, err := os.ReadDir(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if e.IsDir() {
			errs = append(errs, removeCgroup(filepath.Join(path, e.Name())))
		}
	}
	// A cgroup stays busy for a moment after its last process was reaped.
	for i := 0; ; i++ {
		err := unix.Rmdir(path)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return errors.Join(errs...)
		}
		if i == 200 {
			return errors.Join(append(errs, fmt.Errorf("remove cgroup %s: %w", path, err))...)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
