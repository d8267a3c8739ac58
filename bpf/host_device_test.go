package bpf

import (
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

// seen are the addresses that a server was reached from.
type seen struct {
	mu   sync.Mutex
	from []netip.AddrPort
}

func (s *seen) note(a net.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.from = append(s.from, netip.MustParseAddrPort(a.String()))
}

func (s *seen) take() []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	from := s.from
	s.from = nil
	return from
}

// serve answers streams with their digest and notes who asked.
func (s *seen) serve(c net.Conn) {
	s.note(c.RemoteAddr())
	digest(c)
}

// echo answers datagrams with themselves, in a namespace, and notes who asked.
func (s *seen) echo(t testing.TB, in *space, address string) (port string) {
	t.Helper()
	var c net.PacketConn
	in.in(func() (err error) {
		c, err = net.ListenPacket("udp", net.JoinHostPort(address, "0"))
		return err
	})
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			s.note(from)
			c.WriteTo(buf[:n], from)
		}
	}()
	_, port, _ = net.SplitHostPort(c.LocalAddr().String())
	return port
}

// connect from an address of a namespace, "" = any.
func (s *space) connect(network, from, to string) (c net.Conn, err error) {
	s.in(func() error {
		d := net.Dialer{Timeout: 3 * time.Second}
		if from != "" {
			if network == "udp" {
				d.LocalAddr = net.UDPAddrFromAddrPort(netip.MustParseAddrPort(from))
			} else {
				d.LocalAddr = net.TCPAddrFromAddrPort(netip.MustParseAddrPort(from))
			}
		}
		c, err = d.Dial(network, to)
		return nil
	})
	return c, err
}

// exchange sends one datagram and waits for it to come back.
func exchange(c net.Conn, what string) error {
	if _, err := c.Write([]byte(what)); err != nil {
		return err
	}
	c.SetReadDeadline(time.Now().Add(3 * time.Second))
	buf := make([]byte, 1<<16)
	n, err := c.Read(buf)
	if err == nil && string(buf[:n]) != what {
		err = net.UnknownNetworkError("another answer: " + string(buf[:n]))
	}
	return err
}

// noDrops fails for drops, but for those of what pods' links say of themselves.
func noDrops(t testing.TB, did map[string]uint64) {
	t.Helper()
	for name := range did {
		if strings.HasPrefix(name, "drop_") && name != "drop_multicast" && name != "drop_spoofed" {
			t.Errorf("dropped: %v", did)
			return
		}
	}
}

// clientAt is the client's first address of the other end's family, any port.
func (u *uplink) clientAt(hostport string) string {
	if netip.MustParseAddrPort(hostport).Addr().Is4() {
		return "192.0.2.9:0"
	}
	return "[2001:db8::9]:0"
}

// A client outside reaches pods of this node and of another by the node's port,
// by an external address, in both families, by streams (large segments, checksums)
// and datagrams. Who answers sees the client, or if it is on another node, this one.
func TestNodePort(t *testing.T) {
	u := newUplink(t)
	o, _ := load(t)
	u.node1(o, nil)
	u.attach(o)
	u.client.route("eth0", nil, map[string]string{"203.0.113.0/24": "192.0.2.1", "2001:db8:cafe::/64": "2001:db8::1"})
	var who seen
	id := uint64(100)
	for _, c := range []struct {
		name, frontend string
		server         *space
		backend        string
		sees           string
	}{
		{"node port, pod here", "192.0.2.1:30080", u.pod, "10.1.1.5", "192.0.2.9"},
		{"node port, pod here, v6", "[2001:db8::1]:30080", u.pod, "fd00:1:1::5", "2001:db8::9"},
		{"external address, pod here", "203.0.113.80:80", u.pod, "10.1.1.5", "192.0.2.9"},
		{"external address, pod here, v6", "[2001:db8:cafe::80]:80", u.pod, "fd00:1:1::5", "2001:db8::9"},
		{"node port, pod on another node", "192.0.2.1:30081", u.far, "10.1.2.5", "192.0.2.1"},
		{"node port, pod on another node, v6", "[2001:db8::1]:30081", u.far, "fd00:1:2::5", "2001:db8::1"},
		{"node port, host network here", "192.0.2.1:30082", u.node, "192.0.2.1", "192.0.2.9"},
		{"node port, host network here, v6", "[2001:db8::1]:30082", u.node, "2001:db8::1", "2001:db8::9"},
		{"node port, host network of another node", "192.0.2.1:30083", u.other, "192.0.2.2", "192.0.2.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tcpPort := c.server.listen(c.backend, who.serve)
			udpPort := who.echo(t, c.server, c.backend)
			o.outside(t, c.frontend, tcp, id, 0, net.JoinHostPort(c.backend, tcpPort))
			o.outside(t, c.frontend, udp, id+1, 0, net.JoinHostPort(c.backend, udpPort))
			id += 2
			did := grown(t, o.Maps, func() {
				conn, err := u.client.connect("tcp", u.clientAt(c.frontend), c.frontend)
				if err != nil {
					t.Error(err)
					return
				}
				took, err := transfer(conn, 32<<20)
				if err != nil {
					t.Error(err)
				}
				t.Logf("32 MiB in %v", took)
			})
			if from := who.take(); len(from) != 1 || from[0].Addr().String() != c.sees {
				t.Errorf("reached from %v, expected %s", from, c.sees)
			}
			if did["nodeport"] != 1 || did["flow_new"] != 1 {
				t.Errorf("counted: %v", did)
			}
			noDrops(t, did)
			conn, err := u.client.connect("udp", u.clientAt(c.frontend), c.frontend)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			for range 3 {
				if err := exchange(conn, "a datagram"); err != nil {
					t.Fatal(err)
				}
			}
			for _, from := range who.take() {
				if from.Addr().String() != c.sees {
					t.Errorf("a datagram came from %v, expected %s", from, c.sees)
				}
			}
		})
	}
}
