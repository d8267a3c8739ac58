package bpf

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// space is a network namespace without a name: it lives as long as the test.
type space struct {
	t  testing.TB
	ns netns.NsHandle
	nl *netlink.Handle
}

func newSpace(t testing.TB) *space {
	t.Helper()
	needRoot(t)
	s := &space{t: t}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			s.ns, err = netns.Get()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("new network namespace: %v", err)
	}
	t.Cleanup(func() { s.ns.Close() })
	nl, err := netlink.NewHandleAt(s.ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nl.Close)
	s.nl = nl
	s.up("lo")
	return s
}

// in runs f on a thread in the namespace.
func (s *space) in(f func() error) {
	s.t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // as above
		if err := netns.Set(s.ns); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	if err := <-done; err != nil {
		s.t.Fatal(err)
	}
}

func (s *space) sysctl(values map[string]string) {
	s.t.Helper()
	s.in(func() error {
		for name, v := range values {
			if err := os.WriteFile("/proc/sys/net/"+name, []byte(v), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *space) link(name string) netlink.Link {
	s.t.Helper()
	l, err := s.nl.LinkByName(name)
	if err != nil {
		s.t.Fatalf("%s: %v", name, err)
	}
	return l
}

func (s *space) up(name string) netlink.Link {
	s.t.Helper()
	l := s.link(name)
	if err := s.nl.LinkSetUp(l); err != nil {
		s.t.Fatalf("%s up: %v", name, err)
	}
	return l
}

func (s *space) addr(name string, prefixes ...string) {
	s.t.Helper()
	for _, p := range prefixes {
		a, err := netlink.ParseAddr(p)
		if err != nil {
			s.t.Fatal(err)
		}
		a.Flags = unix.IFA_F_NODAD
		if err := s.nl.AddrAdd(s.link(name), a); err != nil {
			s.t.Fatalf("address %s on %s: %v", p, name, err)
		}
	}
}

// route to prefixes by a device; the far end's MAC, if it is not nil, is known.
func (s *space) route(name string, mac net.HardwareAddr, via map[string]string) {
	s.t.Helper()
	l := s.link(name)
	for prefix, hop := range via {
		_, dst, err := net.ParseCIDR(prefix)
		if err != nil {
			s.t.Fatal(err)
		}
		r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst, Scope: unix.RT_SCOPE_LINK}
		ip := dst.IP
		if hop != "" {
			ip = net.ParseIP(hop)
			r.Gw, r.Scope, r.Flags = ip, unix.RT_SCOPE_UNIVERSE, int(netlink.FLAG_ONLINK)
		}
		if mac != nil {
			n := &netlink.Neigh{LinkIndex: l.Attrs().Index, IP: ip, HardwareAddr: mac, State: netlink.NUD_PERMANENT}
			if err := s.nl.NeighSet(n); err != nil {
				s.t.Fatalf("neighbour %s: %v", ip, err)
			}
		}
		if err := s.nl.RouteAdd(r); err != nil {
			s.t.Fatalf("route %s by %s: %v", prefix, name, err)
		}
	}
}

// tun makes a TUN device whose packets carry a virtio header: whole GSO packets
// go through, as they come out of WireGuard.
func (s *space) tun(name string) *os.File {
	s.t.Helper()
	var f *os.File
	s.in(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("open /dev/net/tun: %w", err)
		}
		ifr, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
			return fmt.Errorf("make %s: %w", name, err)
		}
		if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6); err != nil {
			return fmt.Errorf("offloads of %s: %w", name, err)
		}
		f = os.NewFile(uintptr(fd), name)
		return nil
	})
	s.t.Cleanup(func() { f.Close() })
	return f
}

// vnetHeader is what comes before each packet on such a TUN: no offload.
const vnetHeader = 10

// splice carries packets between two TUN devices until one is closed, and counts
// those that are larger than an MTU.
func splice(from, to *os.File, large *int) {
	buf := make([]byte, 1<<17)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if n > 2000 && large != nil {
			*large++
		}
		to.Write(buf[:n])
	}
}

func macOf(l netlink.Link) (m [6]byte) {
	copy(m[:], l.Attrs().HardwareAddr)
	return m
}
