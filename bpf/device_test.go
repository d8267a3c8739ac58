package bpf

import (
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// world is a node of cluster 1 with one pod, and somebody at the other end of
// its tunnel. The two TUN devices are one wire.
//
//	remote: tun1 10.2.1.9, 10.2.1.1 ══ node: tun0 ── veth ── pod: eth0 10.1.1.5
//	                                   lo 10.1.1.1 (tunnel address), 192.0.2.1 (another)
type world struct {
	remote, node, pod *space
	wire              *os.File // the node's end of the tunnel, for hand-made packets
	objects           *Objects
	options           Options
	tunnel            netlink.Link
	large             int // packets over 2000 bytes that went to the node; read after close
	close             func()
}

func newWorld(t testing.TB, attach bool, change ...func(*Options)) *world {
	t.Helper()
	w := &world{remote: newSpace(t), node: newSpace(t), pod: newSpace(t)}
	tun1 := w.remote.tun("tun1")
	w.wire = w.node.tun("tun0")
	var splices sync.WaitGroup
	splices.Go(func() { splice(tun1, w.wire, &w.large) })
	splices.Go(func() { splice(w.wire, tun1, nil) })
	w.close = sync.OnceFunc(func() {
		tun1.Close()
		w.wire.Close()
		splices.Wait()
	})
	t.Cleanup(w.close)

	off := map[string]string{"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1", "ipv4/conf/all/rp_filter": "0"}
	w.node.sysctl(off)
	w.remote.up("tun1")
	w.remote.addr("tun1", "10.2.1.9/32", "10.2.1.1/32", "fd00:2:1::9/128")
	w.remote.route("tun1", nil, map[string]string{"10.1.0.0/16": "", "fd00:1::/32": "", "192.0.2.0/24": "", "2001:db8::/32": ""})
	w.tunnel = w.node.up("tun0")
	w.node.route("tun0", nil, map[string]string{"10.2.0.0/16": "", "fd00:2::/32": ""})
	w.node.addr("lo", "10.1.1.1/32", "192.0.2.1/32", "fd00:1:1::1/128", "2001:db8::1/128")

	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "pod0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(w.pod.ns))}
	if err := w.node.nl.LinkAdd(veth); err != nil {
		t.Fatalf("make veth: %v", err)
	}
	host, inside := w.node.up("pod0"), w.pod.up("eth0")
	w.pod.addr("eth0", "10.1.1.5/32", "fd00:1:1::5/128")
	w.pod.route("eth0", host.Attrs().HardwareAddr, map[string]string{"0.0.0.0/0": "169.254.1.1", "::/0": "fe80::1"})
	w.node.route("pod0", inside.Attrs().HardwareAddr, map[string]string{"10.1.1.5/32": "", "fd00:1:1::5/128": ""})

	if attach {
		w.objects, w.options = load(t, change...)
		tunnelRows(t, w.objects.Maps, uint32(host.Attrs().Index), macOf(inside), macOf(host))
		w.attach(t)
	}
	return w
}

func (w *world) attach(t testing.TB) {
	t.Helper()
	w.node.in(func() error { return w.objects.AttachTunnel(w.tunnel.Attrs().Index) })
}

// listen in a namespace; what it accepts goes to serve.
func (s *space) listen(address string, serve func(net.Conn)) string {
	s.t.Helper()
	var l net.Listener
	s.in(func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(address, "0"))
		return err
	})
	s.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c)
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

func (s *space) dial(address, port string, timeout time.Duration) (c net.Conn, err error) {
	s.in(func() error {
		c, err = net.DialTimeout("tcp", net.JoinHostPort(address, port), timeout)
		return nil
	})
	return c, err
}

// digest answers a stream that has ended with the sum of its bytes.
func digest(c net.Conn) {
	h := sha256.New()
	io.Copy(h, c)
	c.Write(h.Sum(nil))
	c.Close()
}

// transfer sends size bytes and returns whether they arrived whole, and how long it took.
func transfer(c net.Conn, size int) (time.Duration, error) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	data := make([]byte, 1<<16)
	rng := rand.NewChaCha8([32]byte{1})
	rng.Read(data)
	h := sha256.New()
	began := time.Now()
	for sent := 0; sent < size; sent += len(data) {
		h.Write(data)
		if _, err := c.Write(data); err != nil {
			return 0, err
		}
	}
	c.(*net.TCPConn).CloseWrite()
	got, err := io.ReadAll(c)
	if err == nil && string(got) != string(h.Sum(nil)) {
		err = fmt.Errorf("what arrived is not what was sent (%d bytes of digest)", len(got))
	}
	return time.Since(began), err
}

// Large TCP segments of both families reach the pod whole, by tcx and by clsact.
func TestTunnelDevice(t *testing.T) {
	for _, noTCX := range []bool{false, true} {
		w := newWorld(t, true, func(o *Options) { o.NoTCX = noTCX })
		how := w.objects.Features().Tunnel
		if noTCX != (how == "clsact") {
			t.Logf("attached by %s", how)
		}
		t.Run(how, func(t *testing.T) {
			port := w.pod.listen("", digest)
			for _, to := range []string{"10.1.1.5", "fd00:1:1::5"} {
				delivered := w.objects.counted(t, rowsTmbReasonTMB_TUNNEL_DELIVERED, func() {
					c, err := w.remote.dial(to, port, 3*time.Second)
					if err != nil {
						t.Fatal(err)
					}
					took, err := transfer(c, 32<<20)
					if err != nil {
						t.Fatalf("to %s: %v", to, err)
					}
					t.Logf("to %s: 32 MiB in %v", to, took)
				})
				if delivered == 0 {
					t.Errorf("to %s: no packet went by the program", to)
				}
			}
			host := w.node.listen("", digest)
			for _, to := range []string{"10.1.1.1", "fd00:1:1::1"} {
				c, err := w.remote.dial(to, host, 3*time.Second)
				if err != nil {
					t.Errorf("the tunnel address %s: %v", to, err)
					continue
				}
				if _, err := transfer(c, 1<<16); err != nil {
					t.Errorf("the tunnel address %s: %v", to, err)
				}
			}
			for _, to := range []string{"192.0.2.1", "2001:db8::1"} {
				dropped := w.objects.counted(t, rowsTmbReasonTMB_DROP_NOT_HERE, func() {
					if c, err := w.remote.dial(to, host, 200*time.Millisecond); err == nil {
						c.Close()
						t.Errorf("a peer reached the node's other address %s", to)
					}
				})
				if dropped == 0 {
					t.Errorf("%s: no drop was counted", to)
				}
			}
		})
		w.close()
		if w.large == 0 {
			t.Error("no large segment crossed the tunnel: GSO was not exercised")
		}
		t.Logf("%d large segments", w.large)
	}
}

// Hostile packets as they come out of a real L3 device, cut ones too: each is
// counted once, and the node and its pod still work.
func TestTunnelDeviceFuzz(t *testing.T) {
	w := newWorld(t, true)
	seed := rand.Uint64()
	t.Logf("seed %#x", seed)
	r := rand.New(rand.NewPCG(seed, 2))
	counters := func() uint64 {
		c, err := w.objects.Counters()
		if err != nil {
			t.Fatal(err)
		}
		return verdictsCounted(c)
	}
	before, sent := counters(), 0
	for range 100_000 {
		p := append(make([]byte, vnetHeader), hostile(r)...)
		if len(p) == vnetHeader {
			continue
		}
		if _, err := w.wire.Write(p); err == nil {
			sent++ // the device itself refuses what is neither IPv4 nor IPv6
		}
	}
	// Answers to some (resets, ICMP) come back; nothing else enters the tunnel
	// meanwhile but the remote's answers to those, so there may be more, not fewer.
	if counted := counters() - before; counted < uint64(sent) || sent < 50_000 {
		t.Errorf("%d packets entered, %d were counted", sent, counted)
	}
	port := w.pod.listen("", digest)
	c, err := w.remote.dial("10.1.1.5", port, 3*time.Second)
	if err != nil {
		t.Fatalf("after the storm: %v", err)
	}
	if _, err := transfer(c, 1<<20); err != nil {
		t.Errorf("after the storm: %v", err)
	}
}
