package bpf

import (
	"errors"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Two pods that use the same source port reach a server outside by the node's
// address, each with a port of its own, and what comes back finds each of them.
func TestMasquerade(t *testing.T) {
	u := newUplink(t)
	o, _ := load(t)
	u.node1(o, nil)
	u.attach(o)
	var who seen
	for _, c := range []struct{ name, server, node, pod, pod2 string }{
		{"v4", "192.0.2.9", "192.0.2.1", "10.1.1.5", "10.1.1.6"},
		{"v6", "2001:db8::9", "2001:db8::1", "fd00:1:1::5", "fd00:1:1::6"},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := net.JoinHostPort(c.server, u.client.listen(c.server, who.serve))
			udpServer := net.JoinHostPort(c.server, who.echo(t, u.client, c.server))
			var conns []net.Conn
			for _, p := range []struct {
				pod *space
				at  string
			}{{u.pod, c.pod}, {u.pod2, c.pod2}} {
				conn, err := p.pod.connect("tcp", net.JoinHostPort(p.at, "33333"), server)
				if err != nil {
					t.Fatal(err)
				}
				conns = append(conns, conn)
			}
			for _, conn := range conns {
				if took, err := transfer(conn, 16<<20); err != nil {
					t.Error(err)
				} else {
					t.Logf("16 MiB in %v", took)
				}
			}
			ports := distinct(t, who.take(), c.node)
			if !ports[33333] {
				t.Errorf("nobody kept the original port: %v", ports)
			}
			for _, p := range []struct {
				pod *space
				at  string
			}{{u.pod, c.pod}, {u.pod2, c.pod2}} {
				conn, err := p.pod.connect("udp", net.JoinHostPort(p.at, "33333"), udpServer)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { conn.Close() })
				conns = append(conns, conn)
			}
			for i, conn := range conns[2:] {
				if err := exchange(conn, "datagram of pod "+strconv.Itoa(i)); err != nil {
					t.Error(err)
				}
			}
			distinct(t, who.take(), c.node)
			// A socket of the host has its port first.
			hosts, err := u.node.connect("tcp", net.JoinHostPort(c.node, "34444"), server)
			if err != nil {
				t.Fatal(err)
			}
			defer hosts.Close()
			pods, err := u.pod.connect("tcp", net.JoinHostPort(c.pod, "34444"), server)
			if err != nil {
				t.Fatal(err)
			}
			for _, conn := range []net.Conn{pods, hosts} {
				if _, err := transfer(conn, 1<<16); err != nil {
					t.Error(err)
				}
			}
			distinct(t, who.take(), c.node)
		})
	}
	// To pods of other nodes on the same L2 nothing is translated.
	far := u.far.listen("10.1.2.5", who.serve)
	conn, err := u.pod.connect("tcp", "", net.JoinHostPort("10.1.2.5", far))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := transfer(conn, 16<<20); err != nil {
		t.Error(err)
	}
	if from := who.take(); len(from) != 1 || from[0].Addr() != netip.MustParseAddr("10.1.1.5") {
		t.Errorf("a pod on another node saw %v", from)
	}
}

// distinct fails unless all come from the node's address by two ports.
func distinct(t *testing.T, from []netip.AddrPort, node string) map[uint16]bool {
	t.Helper()
	ports := make(map[uint16]bool)
	for _, f := range from {
		ports[f.Port()] = true
		if f.Addr().Unmap() != netip.MustParseAddr(node) {
			t.Errorf("reached from %v, expected %s", f, node)
		}
	}
	if len(from) != 2 || len(ports) != 2 {
		t.Errorf("two flows came from %v", from)
	}
	return ports
}

// A range of three ports serves three flows of one source port besides the one
// that keeps it; a fifth is refused, and that is counted. Ports of flows that have
// ended are used again.
func TestMasqueradePortsRunOut(t *testing.T) {
	u := newUplink(t)
	o, _ := load(t)
	u.node1(o, func(c *Config) { c.PortMin, c.PortMax = 41000, 41002 })
	u.attach(o)
	var who seen
	server := net.JoinHostPort("192.0.2.9", who.echo(t, u.client, "192.0.2.9"))
	u.pod.addr("eth0", "10.1.1.21/32", "10.1.1.22/32", "10.1.1.23/32")
	ep := Endpoint{Ifindex: uint32(u.podVeth.Attrs().Index), Identity: identityOwn, PodMac: macOf(u.pod.link("eth0")), HostMac: macOf(u.podVeth)}
	for _, a := range []string{"10.1.1.21", "10.1.1.22", "10.1.1.23"} {
		put(t, o.Endpoints, addr(a), ep)
		put(t, o.IPCache, addr(a), IPCache{Identity: identityOwn, Node: 1})
	}
	ask := func(pod *space, at string) error {
		conn, err := pod.connect("udp", net.JoinHostPort(at, "40500"), server)
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("x")); err != nil {
			return err
		}
		conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		_, err = conn.Read(make([]byte, 9))
		return err
	}
	for _, at := range []string{"10.1.1.5", "10.1.1.21", "10.1.1.22", "10.1.1.23"} {
		if err := ask(u.pod, at); err != nil {
			t.Fatalf("%s: %v", at, err)
		}
	}
	ports := map[uint16]bool{}
	for _, f := range who.take() {
		ports[f.Port()] = true
	}
	for _, p := range []uint16{40500, 41000, 41001, 41002} {
		if !ports[p] {
			t.Errorf("ports %v, expected 40500 and 41000 to 41002", ports)
		}
	}
	n := o.counted(t, rowsTmbReasonTMB_DROP_NAT_EXHAUSTED, func() {
		if err := ask(u.pod2, "10.1.1.6"); err == nil {
			t.Error("a fifth flow found a port")
		}
	})
	if n != 1 {
		t.Errorf("counted %d times", n)
	}
}

// ICMP errors find the sender by what is in them, and it understands them: nobody
// listens, and the path is narrower than the link. Through masquerading, and
// through a node port.
func TestErrorsAreTranslated(t *testing.T) {
	u := newUplink(t)
	o, _ := load(t)
	u.node1(o, nil)
	u.attach(o)
	behind := newSpace(t)
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "narrow", MTU: 1300}, PeerName: "eth0", PeerMTU: 1300, PeerNamespace: netlink.NsFd(int(behind.ns))}
	if err := u.client.nl.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	u.client.sysctl(map[string]string{"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"})
	u.client.up("narrow")
	u.client.addr("narrow", "198.51.100.129/25", "2001:db8:9:1::1/64")
	behind.up("eth0")
	behind.addr("eth0", "198.51.100.130/25", "2001:db8:9:1::2/64")
	behind.route("eth0", nil, map[string]string{"192.0.2.0/24": "198.51.100.129", "2001:db8::/64": "2001:db8:9:1::1"})
	u.node.route("eth0", nil, map[string]string{"2001:db8:9:1::/64": "2001:db8::9"})

	for _, c := range []struct{ name, server, closed, front, pod string }{
		{"v4", "198.51.100.130", "192.0.2.9", "192.0.2.1", "10.1.1.5"},
		{"v6", "2001:db8:9:1::2", "2001:db8::9", "2001:db8::1", "fd00:1:1::5"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, err := u.pod.connect("udp", "", net.JoinHostPort(c.closed, "9"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			refused(t, "a pod that asks the world", conn)

			o.outside(t, net.JoinHostPort(c.front, "30090"), udp, 900, 0, net.JoinHostPort(c.pod, "9"))
			asks, err := u.client.connect("udp", "", net.JoinHostPort(c.front, "30090"))
			if err != nil {
				t.Fatal(err)
			}
			defer asks.Close()
			refused(t, "a client at a node port", asks)

			var who seen
			wide, err := u.pod.connect("udp", "", net.JoinHostPort(c.server, who.echo(t, behind, c.server)))
			if err != nil {
				t.Fatal(err)
			}
			defer wide.Close()
			level, option, do := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO
			if c.name == "v6" {
				level, option, do = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO
			}
			raw, err := wide.(*net.UDPConn).SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, do) })
			if err != nil {
				t.Fatal(err)
			}
			if err := exchange(wide, "fits"); err != nil {
				t.Fatal(err)
			}
			deadline := time.Now().Add(3 * time.Second)
			for {
				_, err := wide.Write(make([]byte, 1400))
				if errors.Is(err, unix.EMSGSIZE) {
					break // the pod has learnt how wide the path is
				}
				if time.Now().After(deadline) {
					t.Fatalf("the pod never learnt that the path is narrow: %v", err)
				}
				time.Sleep(10 * time.Millisecond)
			}
			err = exchange(wide, string(make([]byte, 1200)))
			for errors.Is(err, unix.EMSGSIZE) && time.Now().Before(deadline) {
				err = exchange(wide, string(make([]byte, 1200))) // that was about an earlier one
			}
			if err != nil {
				t.Errorf("what fits the path: %v", err)
			}
		})
	}
}

// refused sends until the sender is told that nobody listens.
func refused(t *testing.T, who string, c net.Conn) {
	t.Helper()
	deadline := time.Now().Add(3 * time.Second)
	for {
		c.Write([]byte("anybody?"))
		c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		_, err := c.Read(make([]byte, 9))
		if errors.Is(err, unix.ECONNREFUSED) {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("%s was never told that nobody listens: %v", who, err)
			return
		}
	}
}
