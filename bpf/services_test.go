package bpf

import (
	"net"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// What a test says about a service; program turns it into rows.

type testBackend struct {
	at   netip.AddrPort
	node uint16
}

type testGroup struct {
	cluster, weight uint16
	backends        []testBackend
}

type testTier struct {
	share  uint16
	groups []testGroup
}

const all = 65535

// rowsOf are the service row and the slot rows.
func rowsOf(id uint64, tiers ...testTier) (Service, map[SlotKey]Slot) {
	svc := Service{Id: id, NumTiers: uint8(len(tiers))}
	slots := make(map[SlotKey]Slot)
	next := uint8(0)
	for i, tier := range tiers {
		svc.Tiers[i] = Tier{First: next, Groups: uint8(len(tier.groups)), Share: tier.share}
		for _, g := range tier.groups {
			svc.Groups[next] = Group{Cluster: g.cluster, Weight: g.weight, Count: uint32(len(g.backends))}
			next++
			for n, b := range g.backends {
				slots[SlotKey{Service: id, Cluster: g.cluster, Slot: uint32(n)}] = Slot{
					Addr: Addr{B: b.at.Addr().As16()}, Port: port(int(b.at.Port())), Cluster: g.cluster, Node: b.node,
				}
			}
		}
	}
	return svc, slots
}

func frontendKey(at netip.AddrPort, proto uint8) ServiceKey {
	return ServiceKey{Addr: Addr{B: at.Addr().As16()}, Port: port(int(at.Port())), Proto: proto}
}

func (m *Maps) program(t testing.TB, at netip.AddrPort, proto uint8, id uint64, tiers ...testTier) {
	t.Helper()
	svc, slots := rowsOf(id, tiers...)
	for k, v := range slots {
		put(t, m.Slots, k, v)
	}
	put(t, m.Services, frontendKey(at, proto), svc)
}

func (m *Maps) nodeDown(t testing.TB, cluster, node uint16, down bool) {
	t.Helper()
	key := NodeKey{Cluster: cluster, Node: node}
	if down {
		put(t, m.NodeHealth, key, Health{Since: 1})
	} else if err := m.NodeHealth.Delete(key); err != nil {
		t.Fatal(err)
	}
}

func (m *Maps) clusterDown(t testing.TB, cluster uint16, down bool) {
	t.Helper()
	if down {
		put(t, m.ClusterHealth, cluster, Health{Since: 1})
	} else if err := m.ClusterHealth.Delete(cluster); err != nil {
		t.Fatal(err)
	}
}

// counted is how far a counter went during f.
func (m *Maps) counted(t testing.TB, r Reason, f func()) uint64 {
	t.Helper()
	read := func() uint64 {
		c, err := m.Counters()
		if err != nil {
			t.Fatal(err)
		}
		return c[r.String()]
	}
	before := read()
	f()
	return read() - before
}

// server answers each connection or datagram with its name, one byte.
func server(t testing.TB, network, host string, name byte) netip.AddrPort {
	t.Helper()
	address := net.JoinHostPort(host, "0")
	if network == "udp" {
		c, err := net.ListenPacket("udp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		go func() {
			buf := make([]byte, 16)
			for {
				_, from, err := c.ReadFrom(buf)
				if err != nil {
					return
				}
				c.WriteTo([]byte{name}, from)
			}
		}()
		return c.LocalAddr().(*net.UDPAddr).AddrPort()
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Write([]byte{name})
			c.(*net.TCPConn).SetLinger(0) // no TIME_WAIT for thousands of these
			go func() {
				c.Read(make([]byte, 1)) // until the client leaves
				c.Close()
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// client is a bare socket: no library between the test and the hooks.
type client struct {
	t  testing.TB
	fd int
	v6 bool
}

// newClient makes an IPv4 or IPv6 socket, TCP or UDP. Waits end after 3 s.
func newClient(t testing.TB, v6 bool, proto int) *client {
	t.Helper()
	family, typ := unix.AF_INET, unix.SOCK_STREAM
	if v6 {
		family = unix.AF_INET6
	}
	if proto == unix.IPPROTO_UDP {
		typ = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		t.Fatal(err)
	}
	c := &client{t, fd, v6}
	t.Cleanup(c.close)
	tv := unix.Timeval{Sec: 3}
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv)
	return c
}

func (c *client) close() {
	if c.fd >= 0 {
		unix.Close(c.fd)
		c.fd = -1
	}
}

func (c *client) sockaddr(at netip.AddrPort) unix.Sockaddr {
	if c.v6 {
		return &unix.SockaddrInet6{Addr: at.Addr().As16(), Port: int(at.Port())}
	}
	return &unix.SockaddrInet4{Addr: at.Addr().Unmap().As4(), Port: int(at.Port())}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

func (c *client) connect(to netip.AddrPort) error {
	err := unix.Connect(c.fd, c.sockaddr(to))
	if err != unix.EINTR { // the Go runtime signals its threads
		return err
	}
	poll := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLOUT}}
	for {
		if _, err := unix.Poll(poll, 3000); err != unix.EINTR {
			break
		}
	}
	code, err := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && code != 0 {
		err = syscall.Errno(code)
	}
	return err
}

func (c *client) mustConnect(to netip.AddrPort) {
	c.t.Helper()
	if err := c.connect(to); err != nil {
		c.t.Fatalf("connect to %s: %v", to, err)
	}
}

func (c *client) sendTo(to netip.AddrPort) error {
	return unix.Sendto(c.fd, []byte("?"), 0, c.sockaddr(to))
}

func (c *client) peer() netip.AddrPort {
	c.t.Helper()
	sa, err := unix.Getpeername(c.fd)
	if err != nil {
		c.t.Fatalf("getpeername: %v", err)
	}
	return addrPort(sa)
}

// recv is the name of the server that answered, and who the kernel says it is.
func (c *client) recv() (byte, netip.AddrPort) {
	c.t.Helper()
	buf := make([]byte, 16)
	n, from, err := unix.Recvfrom(c.fd, buf, 0)
	for err == unix.EINTR {
		n, from, err = unix.Recvfrom(c.fd, buf, 0)
	}
	if err != nil || n != 1 {
		c.t.Fatalf("receive: %d bytes, %v", n, err)
	}
	return buf[0], addrPort(from)
}

func (c *client) cookie() uint64 {
	c.t.Helper()
	v, err := unix.GetsockoptUint64(c.fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		c.t.Fatal(err)
	}
	return v
}

// dial connects a TCP socket of its own, and tells which server took it.
func dial(t testing.TB, to netip.AddrPort) byte {
	t.Helper()
	c := newClient(t, to.Addr().Is6(), unix.IPPROTO_TCP)
	defer c.close()
	c.mustConnect(to)
	name, _ := c.recv()
	return name
}

// tally dials n times and counts who answered.
func tally(t testing.TB, n int, to netip.AddrPort) map[byte]int {
	t.Helper()
	got := make(map[byte]int)
	for range n {
		got[dial(t, to)]++
	}
	return got
}
