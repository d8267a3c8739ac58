package bpf

import (
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// yard is a node with two pods, pod.c on their links, and nothing else that
// forwards.
//
//	pod a: eth0 10.1.1.5 ── veth ── node (lo 10.1.1.1) ── veth ── pod b: eth0 10.1.1.6
type yard struct {
	*podNode
	node    *space
	pods    map[string]*space
	hosts   map[string]netlink.Link
	options Options
}

func newYard(t testing.TB, change ...func(*Options)) *yard {
	t.Helper()
	y := &yard{node: newSpace(t), pods: make(map[string]*space), hosts: make(map[string]netlink.Link)}
	y.node.addr("lo", "10.1.1.1/32", "fd00:1:1::1/128")
	o, opts := load(t, append(change, func(o *Options) { o.Sizes.Flows, o.Sizes.Fragments, o.Sizes.Affinity = 4096, 512, 512 })...)
	y.podNode, y.options = &podNode{Objects: o}, opts
	for _, a := range []string{"10.1.1.1", "fd00:1:1::1"} {
		put(t, o.IPCache, addr(a), IPCache{Identity: 1, Node: 1, Flags: IPTunnelAddress})
	}
	for i, a := range []string{podA, podB} {
		pod, name := newSpace(t), "pod"+strconv.Itoa(i)
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(pod.ns))}
		if err := y.node.nl.LinkAdd(veth); err != nil {
			t.Fatalf("make veth: %v", err)
		}
		host, inside := y.node.up(name), pod.up("eth0")
		y.node.addr(name, "169.254.1.1/32")
		pod.addr("eth0", a+"/32", six(a)+"/128")
		pod.route("eth0", host.Attrs().HardwareAddr, map[string]string{"0.0.0.0/0": "169.254.1.1", "::/0": "fe80::1"})
		y.node.route(name, inside.Attrs().HardwareAddr, map[string]string{a + "/32": "", six(a) + "/128": ""})
		for _, a := range []string{a, six(a)} {
			put(t, o.Endpoints, addr(a), Endpoint{Ifindex: uint32(host.Attrs().Index), Identity: uint32(1<<20 | 50 + i), PodMac: macOf(inside), HostMac: macOf(host)})
			put(t, o.IPCache, addr(a), IPCache{Identity: uint32(1<<20 | 50 + i), Node: 1})
		}
		y.pods[a], y.hosts[a] = pod, host
		y.attach(t, a)
	}
	return y
}

func (y *yard) attach(t testing.TB, pod string) {
	t.Helper()
	y.node.in(func() error { return y.AttachPod(y.hosts[pod].Attrs().Index) })
}

func families(f func(at func(string) string)) {
	f(func(s string) string { return s })
	f(six)
}

// Large segments, through a service and back, and with the host; by tcx and by
// clsact.
func TestPodDevices(t *testing.T) {
	for _, noTCX := range []bool{false, true} {
		y := newYard(t, func(o *Options) { o.NoTCX = noTCX })
		t.Run(y.Features().Pods, func(t *testing.T) {
			port := y.pods[podB].listen("", digest)
			back, _ := strconv.Atoi(port)
			y.service(t, vip, 80, tcp, 1, podB, back)
			y.service(t, vip, 81, tcp, 2, podA, back)
			families(func(at func(string) string) {
				delivered := y.counted(t, rowsTmbReasonTMB_POD_DELIVERED, func() {
					for to, port := range map[string]string{at(vip): "80", at(podB): port} {
						c, err := y.pods[podA].dial(to, port, 3*time.Second)
						if err != nil {
							t.Fatal(err)
						}
						took, err := transfer(c, 64<<20)
						if err != nil {
							t.Fatalf("to %s: %v", to, err)
						}
						t.Logf("to %s: 64 MiB in %v", to, took)
					}
				})
				// 128 MiB in packets of at most 64 KiB, with one answer in a while.
				if delivered < 2000 || delivered > 30_000 {
					t.Errorf("%d packets for 128 MiB: large segments were cut, or went another way", delivered)
				}
				c, err := y.node.dial(at(podB), port, 3*time.Second)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := transfer(c, 8<<20); err != nil {
					t.Errorf("from the host: %v", err)
				}
				host := y.node.listen("", digest)
				if c, err = y.pods[podA].dial(at("10.1.1.1"), host, 3*time.Second); err != nil {
					t.Fatal(err)
				}
				if _, err := transfer(c, 8<<20); err != nil {
					t.Errorf("to the host: %v", err)
				}
			})
			y.checkSums(t)
		})
	}
}

// checkSums: no stack saw a wrong checksum.
func (y *yard) checkSums(t testing.TB) {
	t.Helper()
	for name, pod := range y.pods {
		pod.in(func() error {
			for _, file := range []string{"/proc/thread-self/net/snmp", "/proc/thread-self/net/snmp6"} {
				text, err := os.ReadFile(file)
				if err != nil {
					return err
				}
				lines := strings.Split(string(text), "\n")
				for i, l := range lines {
					f := strings.Fields(l)
					if len(f) == 2 && strings.HasSuffix(f[0], "CsumErrors") && f[1] != "0" {
						t.Errorf("pod %s: %s", name, l)
					}
					if i == 0 || len(f) < 2 || f[0] != strings.SplitN(lines[i-1], " ", 2)[0] {
						continue
					}
					head := strings.Fields(lines[i-1])
					if at := slices.Index(head, "InCsumErrors"); at > 0 && f[at] != "0" {
						t.Errorf("pod %s: %s checksum errors: %s", name, f[0], f[at])
					}
				}
			}
			return nil
		})
	}
}

// A pod reaches itself by its service; what nobody answers is refused at once,
// whoever says so; datagrams in pieces arrive.
func TestPodDevicesEdges(t *testing.T) {
	y := newYard(t)
	a, b := y.pods[podA], y.pods[podB]
	port := a.listen("", digest)
	own, _ := strconv.Atoi(port)
	y.service(t, vip, 80, tcp, 1, podA, own)
	families(func(at func(string) string) {
		c, err := a.dial(at(vip), "80", 3*time.Second)
		if err != nil {
			t.Fatalf("a pod to itself: %v", err)
		}
		if _, err := transfer(c, 4<<20); err != nil {
			t.Errorf("a pod to itself: %v", err)
		}
		// No backend at all, and one where nobody listens.
		at53 := func(p uint16) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(at(vip)), p) }
		y.program(t, at53(90), tcp, 90, testTier{all, nil})
		y.program(t, at53(91), udp, 91, testTier{all, nil})
		y.service(t, vip, 92, udp, 92, podB, 9)
		y.service(t, vip, 93, tcp, 93, podB, 9)
		for _, p := range []string{"90", "93"} {
			began := time.Now()
			if _, err := a.dial(at(vip), p, 5*time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("dial port %s: %v", p, err)
			}
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("port %s: refused after %v", p, took)
			}
		}
		for _, p := range []string{"91", "92"} {
			if err := ping(a, at(vip), p, 10); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("datagram to port %s: %v", p, err)
			}
		}
		// Pieces, there and back.
		echo := echoUDP(t, b)
		y.service(t, vip, 94, udp, 94, podB, echo)
		for _, size := range []int{1, 3, 1400, 3000, 20_000} {
			if err := ping(a, at(vip), "94", size); err != nil {
				all, _ := y.Counters()
				t.Errorf("%d bytes: %v; %v", size, err, nonzero(all))
			}
		}
	})
	y.checkSums(t)
}

// ping sends a datagram and waits for the same one.
func ping(s *space, to, port string, size int) (err error) {
	s.in(func() error {
		var c net.Conn
		if c, err = net.Dial("udp", net.JoinHostPort(to, port)); err != nil {
			return nil
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(3 * time.Second))
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(i * 7)
		}
		if _, err = c.Write(data); err != nil {
			return nil
		}
		got := make([]byte, size+1)
		var n int
		if n, err = c.Read(got); err == nil && string(got[:n]) != string(data) {
			err = errors.New("another datagram came back")
		}
		return nil
	})
	return err
}

func echoUDP(t testing.TB, s *space) int {
	t.Helper()
	var c net.PacketConn
	s.in(func() (err error) {
		c, err = net.ListenPacket("udp", ":0")
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
			c.WriteTo(buf[:n], from)
		}
	}()
	return c.LocalAddr().(*net.UDPAddr).Port
}

// Programs are replaced, taken off, and put back, by a process that remembers
// nothing; connections live through it.
func TestPodAttach(t *testing.T) {
	for _, noTCX := range []bool{false, true} {
		y := newYard(t, func(o *Options) { o.NoTCX = noTCX })
		t.Run(y.Features().Pods, func(t *testing.T) {
			index := strconv.Itoa(y.hosts[podA].Attrs().Index)
			var links []string
			for _, p := range pins(t, y.options.PinDir) {
				if strings.HasPrefix(p, "tmb_from_pod") || strings.HasPrefix(p, "tmb_to_pod") {
					links = append(links, p)
				}
			}
			if y.Features().Pods == "tcx" && (len(links) != 4 || !slices.Contains(links, "tmb_from_pod_"+index) || !slices.Contains(links, "tmb_to_pod_"+index)) {
				t.Errorf("pins: %v", links)
			}
			port := y.pods[podB].listen("", digest)
			c, err := y.pods[podA].dial(podB, port, 3*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			y.Objects.Close()
			y.node.in(func() error {
				y.Objects, err = Load(y.options)
				return err
			})
			t.Cleanup(func() { y.Objects.Close() })
			if _, err := transfer(c, 1<<20); err != nil {
				t.Errorf("the connection did not live through a restart: %v", err)
			}
			once := func() uint64 { // does the present program see what a pod sends?
				return y.counted(t, rowsTmbReasonTMB_DROP_MULTICAST, func() {
					y.pods[podA].in(func() error {
						c, err := net.Dial("udp", "224.0.0.9:9")
						if err != nil {
							return err
						}
						defer c.Close()
						_, err = c.Write([]byte("x"))
						return err
					})
				})
			}
			// The kernels of the pods report their multicast groups when they like, and are
			// counted, too; not time after time.
			spoof := func(want uint64) (n uint64) {
				for range 10 {
					if n = once(); n == want {
						break
					}
				}
				return n
			}
			if n := spoof(1); n != 1 {
				t.Errorf("the program ran %d times for a packet", n)
			}
			y.attach(t, podA) // again
			if n := spoof(1); n != 1 {
				t.Errorf("attached twice, the program ran %d times for a packet", n)
			}
			for range 2 {
				y.node.in(func() error { return y.DetachPod(y.hosts[podA].Attrs().Index) })
				if n := spoof(0); n != 0 {
					t.Errorf("taken off, the program ran %d times", n)
				}
			}
			y.attach(t, podA)
			if n := spoof(1); n != 1 {
				t.Errorf("put back, the program ran %d times for a packet", n)
			}
			// The device goes, and its links with it.
			if err := y.node.nl.LinkDel(y.hosts[podA]); err != nil {
				t.Fatal(err)
			}
			y.node.in(func() error { return y.DetachPod(y.hosts[podA].Attrs().Index) })
			y.Objects.Close()
			y.node.in(func() error {
				y.Objects, err = Load(y.options)
				return err
			})
			for _, p := range pins(t, y.options.PinDir) {
				if strings.HasSuffix(p, "pod_"+index) {
					t.Errorf("pin %s of a device that is gone", p)
				}
			}
			y.Objects.Close()
			y.node.in(func() error { return Unload(y.options.PinDir) })
			if _, err := os.Stat(y.options.PinDir); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("unloaded, there is still %s with %v", y.options.PinDir, pins(t, y.options.PinDir))
			}
		})
	}
}
