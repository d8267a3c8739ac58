package linux

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/bpf"
)

// A client that waits for an answer and says nothing learns at once that its backend
// is gone, by the real programs; its neighbour, of another backend, does not.
func TestNudge(t *testing.T) {
	o := loadObjects(t)
	host, pod := newNS(t), newNS(t)
	host.ip("link", "add", "v0", "type", "veth", "peer", "name", "v1", "netns", pod.name)
	for _, s := range []struct {
		ns        *ns
		dev       string
		addresses []string
	}{{host, "v0", []string{"10.1.1.1/24", "fd00:1::1/64"}}, {pod, "v1", []string{"10.1.1.10/24", "fd00:1::10/64"}}} {
		for _, a := range s.addresses {
			args := []string{"address", "add", a, "dev", s.dev}
			if netip.MustParsePrefix(a).Addr().Is6() {
				args = append(args, "nodad")
			}
			s.ns.ip(args...)
		}
		s.ns.ip("link", "set", s.dev, "up")
	}
	pod.ip("route", "add", "172.20.0.0/16", "via", "10.1.1.1")
	pod.ip("route", "add", "fd00:172::/64", "via", "fd00:1::1")
	device := func(n *ns, name string) (index int, mac [6]byte) {
		n.in(func() error {
			dev, err := net.InterfaceByName(name)
			if err == nil {
				index, mac = dev.Index, [6]byte(dev.HardwareAddr)
			}
			return err
		})
		return index, mac
	}
	row := bpf.Endpoint{Identity: 1<<20 | 5}
	var index int
	index, row.HostMac = device(host, "v0")
	_, row.PodMac = device(pod, "v1")
	row.Ifindex = uint32(index)
	host.in(func() error { return o.AttachPod(index) })
	put := func(m interface{ Put(key, value any) error }, key, value any) {
		t.Helper()
		if err := m.Put(key, value); err != nil {
			t.Fatal(err)
		}
	}
	at := func(s string) bpf.Addr { return toAddr(agent.MakeAddr(netip.MustParseAddr(s))) }
	for i, c := range []struct{ pod, host, vip string }{{"10.1.1.10", "10.1.1.1", "172.20.0.1"}, {"fd00:1::10", "fd00:1::1", "fd00:172::1"}} {
		put(o.Endpoints, at(c.pod), row)
		put(o.IPCache, at(c.pod), bpf.IPCache{Identity: row.Identity, Node: 1})
		put(o.IPCache, at(c.host), bpf.IPCache{Identity: 1, Node: 1})
		var conns []net.Conn
		var gone uint16
		for n := range 2 {
			port := acceptAt(t, host, c.host)
			if n == 0 {
				gone = port
			}
			svc := bpf.Service{Id: uint64(10*i + n + 1), NumTiers: 1}
			svc.Tiers[0].Groups, svc.Tiers[0].Share = 1, 65535
			svc.Groups[0].Cluster, svc.Groups[0].Weight, svc.Groups[0].Count = 1, 1, 1
			put(o.Slots, bpf.SlotKey{Service: svc.Id, Cluster: 1}, bpf.Slot{Addr: at(c.host), Port: swap(port), Cluster: 1, Node: 1})
			put(o.Services, bpf.ServiceKey{Addr: at(c.vip), Port: swap(uint16(80 + n)), Proto: protoTCP}, svc)
			pod.in(func() error {
				conn, err := net.DialTimeout("tcp", netip.AddrPortFrom(netip.MustParseAddr(c.vip), uint16(80+n)).String(), 3*time.Second)
				if err == nil {
					t.Cleanup(func() { conn.Close() })
					conns = append(conns, conn)
					_, err = conn.Write([]byte("hello"))
				}
				return err
			})
		}
		marked, err := newGoneFlows([]agent.BackendKey{{Addr: agent.MakeAddr(netip.MustParseAddr(c.host)), Port: gone, Proto: protoTCP}}, false).mark(o.Flows)
		if err != nil || len(marked) != 1 {
			t.Fatalf("marked %v, %v", marked, err)
		}
		host.in(func() error { return nudge(marked, o.Endpoints) })
		begin := time.Now()
		conns[0].SetReadDeadline(begin.Add(5 * time.Second))
		if _, err := conns[0].Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%s: who waits for the backend that is gone is told %v", c.vip, err)
		} else if took := time.Since(begin); took > time.Second {
			t.Errorf("%s: told after %v", c.vip, took)
		}
		conns[1].SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err := conns[1].Read(make([]byte, 1)); !isTimeout(err) {
			t.Errorf("%s: the other is told %v", c.vip, err)
		}
	}
}

// acceptAt accepts connections, which hear nothing, and returns the port.
func acceptAt(t *testing.T, n *ns, address string) (port uint16) {
	t.Helper()
	n.in(func() error {
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		l, err := lc.Listen(context.Background(), "tcp", net.JoinHostPort(address, "0"))
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		port = uint16(l.Addr().(*net.TCPAddr).Port)
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				t.Cleanup(func() { conn.Close() })
			}
		}()
		return nil
	})
	return port
}
