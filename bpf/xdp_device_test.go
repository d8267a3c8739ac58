package bpf

import (
	"encoding/binary"
	"net"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// wholeSums makes a device's namespace finish checksums itself, as packets have
// them that came by a cable.
func (s *space) wholeSums(name string) {
	s.t.Helper()
	s.in(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		value := struct{ cmd, data uint32 }{unix.ETHTOOL_STXCSUM, 0}
		var req struct {
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			pad  [16]byte
		}
		copy(req.name[:], name)
		req.data = unsafe.Pointer(&value)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
			return errno
		}
		return nil
	})
}

// hops exchanges a datagram and says what hop count the answer came with.
func hops(t *testing.T, c *net.UDPConn) int {
	t.Helper()
	if _, err := c.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(3 * time.Second))
	buf, oob := make([]byte, 64), make([]byte, 64)
	n, oobn, _, _, err := c.ReadMsgUDP(buf, oob)
	if err != nil || string(buf[:n]) != "ping" {
		t.Fatalf("%q, %v", buf[:n], err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(msgs) != 1 || len(msgs[0].Data) < 4 {
		t.Fatalf("%v, %v", msgs, err)
	}
	return int(binary.NativeEndian.Uint32(msgs[0].Data))
}

// Real traffic through a node whose uplink has XDP: datagrams are sent on by it
// once their flow is established, which their hop count shows; streams arrive
// whole, with whole checksums and with those that a device is to finish.
func TestXDPTraffic(t *testing.T) {
	u := newUplink(t)
	o, _ := load(t)
	u.node1(o, nil)
	u.attach(o)
	u.client.route("eth0", nil, map[string]string{"203.0.113.0/24": "192.0.2.1", "2001:db8:cafe::/64": "2001:db8::1"})
	u.node.in(func() error { return o.AttachXDP(u.uplink.Attrs().Index, true) })
	var who seen
	id := uint64(0)
	front := func(at string, proto uint8, backend, port string) string {
		id++
		at = net.JoinHostPort(at, "80")
		o.outside(t, at, proto, id, 0, net.JoinHostPort(backend, port))
		return at
	}
	streams := []string{
		front("203.0.113.80", tcp, "10.1.2.5", u.far.listen("10.1.2.5", who.serve)),
		front("2001:db8:cafe::80", tcp, "fd00:1:2::5", u.far.listen("fd00:1:2::5", who.serve)),
	}
	carry := func(when string) {
		t.Helper()
		for _, at := range streams {
			c, err := u.client.connect("tcp", "", at)
			if err != nil {
				t.Fatalf("%s, %s: %v", when, at, err)
			}
			if _, err := transfer(c, 4<<20); err != nil {
				t.Errorf("%s, %s: %v", when, at, err)
			}
		}
	}
	carry("sums to be made")
	u.client.wholeSums("eth0")
	u.far.wholeSums("eth0")
	carry("whole sums")

	c, err := u.client.connect("udp", "", front("203.0.113.80", udp, "10.1.2.5", who.echo(t, u.far, "10.1.2.5")))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	conn := c.(*net.UDPConn)
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVTTL, 1) })
	if err != nil {
		t.Fatal(err)
	}
	first := hops(t, conn)
	for end := time.Now().Add(5 * time.Second); ; {
		if hops(t, conn) == first-1 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("no answer was sent on by XDP")
		}
	}
	u.node.in(func() error { return o.DetachXDP(u.uplink.Attrs().Index) })
	for range 3 {
		if got := hops(t, conn); got != first {
			t.Errorf("hop count %d without XDP, at first %d", got, first)
		}
	}
}

// Where the backend's node is behind another device: sent there in the generic
// mode, which asks no driver, left to host.c in the other.
func TestXDPRedirects(t *testing.T) {
	w := newXDPWorld(t)
	hop := net.HardwareAddr{2, 0, 0, 0, 0, 3}
	w.s.addr("wire", "192.0.3.1/24")
	w.s.route("wire", hop, map[string]string{"10.1.3.0/24": "192.0.3.2"})
	put(t, w.o.IPCache, addr("10.1.3.5"), IPCache{Identity: identityOwn, Node: 3})
	w.s.in(func() error { return w.o.SetUnderlay(w.s.link("wire").Attrs().Index) })
	c := xdpCases["tcp4"]
	c.backend = "10.1.3.5:8080"
	request, _ := w.establish(c, 1)
	coll, err := loadXDPCode(w.o.Maps, xdpKind{mac: macOf(w.up), generic: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(coll.Close)
	w.run(w.host, request)
	if verdict, _ := w.run(w.prog, request); verdict != xdpPass {
		t.Errorf("by the driver: verdict %d", verdict)
	}
	native := w.prog
	defer func() { w.prog = native }()
	w.prog = coll.Programs[xdpProgTmbXdp]
	var verdict uint32
	var out []byte
	for range 5 {
		w.run(w.host, request)
		if verdict, out = w.run(w.prog, request); verdict == xdpRedirect {
			break
		}
	}
	mac := macOf(w.s.link("wire"))
	if verdict != xdpRedirect || string(out[:6]) != string(hop) || string(out[6:12]) != string(mac[:]) {
		t.Fatalf("generic: verdict %d, % x", verdict, out[:14])
	}
	sound(t, out, false)
}
