package bpf

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

// Sockets of a backend that is gone end, at once and with an error; others, of
// another port or another namespace, do not.
func TestResetSockets(t *testing.T) {
	for name, reset := range map[string]func(uint8, netip.AddrPort) (int, error){
		"whichever": ResetSockets, "netlink": resetByNetlink,
	} {
		t.Run(name, func(t *testing.T) {
			s, elsewhere := newSpace(t), newSpace(t)
			if _, err := loadedReset(); err != nil {
				t.Logf("no bpf_sock_destroy: %+v", err)
			}
			for _, at := range []string{"127.0.0.1", "::1"} {
				for _, proto := range []string{"tcp", "udp"} {
					number := map[string]uint8{"tcp": tcp, "udp": udp}[proto]
					gone, stays := resetTarget(t, s, proto, at), resetTarget(t, s, proto, at)
					there := resetTarget(t, elsewhere, proto, at)
					var n int
					s.in(func() (err error) {
						n, err = reset(number, netip.MustParseAddrPort(gone.RemoteAddr().String()))
						return err
					})
					if n != 1 {
						t.Errorf("%s %s: %d sockets ended", proto, at, n)
					}
					gone.SetDeadline(time.Now().Add(3 * time.Second))
					_, err := gone.Read(make([]byte, 1))
					if e, ok := err.(net.Error); err == nil || ok && e.Timeout() {
						t.Errorf("%s %s: the socket lives: %v", proto, at, err)
					}
					for _, c := range []net.Conn{stays, there} {
						if _, err := c.Write([]byte("x")); err != nil {
							t.Errorf("%s %s: another socket: %v", proto, at, err)
						}
					}
				}
			}
		})
	}
}

// resetTarget is a connection to a socket of its own.
func resetTarget(t *testing.T, s *space, proto, at string) (c net.Conn) {
	s.in(func() error {
		to := ""
		if proto == "tcp" {
			l, err := net.Listen(proto, net.JoinHostPort(at, "0"))
			if err != nil {
				return err
			}
			t.Cleanup(func() { l.Close() })
			to = l.Addr().String()
		} else {
			p, err := net.ListenPacket(proto, net.JoinHostPort(at, "0"))
			if err != nil {
				return err
			}
			t.Cleanup(func() { p.Close() })
			to = p.LocalAddr().String()
		}
		var err error
		c, err = net.Dial(proto, to)
		return err
	})
	t.Cleanup(func() { c.Close() })
	return c
}
