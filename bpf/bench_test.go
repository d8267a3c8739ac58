package bpf

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkConnect: TCP connect and close, straight and through sock.c. A
// thousand other services and a table of slots stand beside the one dialled.
func BenchmarkConnect(b *testing.B) {
	o, opts := load(b)
	direct := server(b, "tcp", "127.0.0.1", 'a')
	for i := range 1000 {
		o.program(b, netip.AddrPortFrom(netip.AddrFrom4([4]byte{172, 21, byte(i >> 8), byte(i)}), 80), tcp, uint64(i+10),
			oneOf(testBackend{direct, 1}))
	}
	o.program(b, front4, tcp, 1, testTier{all, []testGroup{
		{1, 3, []testBackend{{direct, 1}, {direct, 2}, {direct, 3}, {direct, 4}}},
		{2, 1, []testBackend{{direct, 1}, {direct, 2}, {direct, 3}, {direct, 4}}},
	}})
	run := func(b *testing.B, to netip.AddrPort) {
		for b.Loop() {
			c := &client{t: b}
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				b.Fatal(err)
			}
			c.fd = fd
			unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
			c.mustConnect(to)
			c.close()
		}
	}
	b.Run("unhooked", func(b *testing.B) { run(b, direct) })
	enter(b, opts.CgroupPath)
	b.Run("direct", func(b *testing.B) { run(b, direct) })
	b.Run("service", func(b *testing.B) { run(b, front4) })
	o.nodeDown(b, 1, 1, true)
	b.Run("service-node-down", func(b *testing.B) { run(b, front4) })
}

// BenchmarkConnectUDP is the hooks' own cost: connect of a UDP socket does
// little else.
func BenchmarkConnectUDP(b *testing.B) {
	o, opts := load(b)
	direct := server(b, "udp", "127.0.0.1", 'a')
	o.program(b, front4, udp, 1, testTier{all, []testGroup{
		{1, 3, []testBackend{{direct, 1}, {direct, 2}}}, {2, 1, []testBackend{{direct, 1}, {direct, 2}}},
	}})
	run := func(b *testing.B, to netip.AddrPort) {
		c := newClient(b, false, udp)
		sa := c.sockaddr(to)
		for b.Loop() {
			if err := unix.Connect(c.fd, sa); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("unhooked", func(b *testing.B) { run(b, direct) })
	enter(b, opts.CgroupPath)
	b.Run("direct", func(b *testing.B) { run(b, direct) })
	b.Run("service", func(b *testing.B) { run(b, front4) })
}

// BenchmarkSendUDP: one datagram of an unconnected socket.
func BenchmarkSendUDP(b *testing.B) {
	o, opts := load(b)
	sink := newClient(b, false, udp)
	if err := unix.Bind(sink.fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		b.Fatal(err)
	}
	sa, _ := unix.Getsockname(sink.fd)
	direct := addrPort(sa)
	o.program(b, front4, udp, 1, oneOf(testBackend{direct, 1}))
	run := func(b *testing.B, to netip.AddrPort) {
		c := newClient(b, false, udp)
		for b.Loop() {
			if err := c.sendTo(to); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("unhooked", func(b *testing.B) { run(b, direct) })
	enter(b, opts.CgroupPath)
	b.Run("direct", func(b *testing.B) { run(b, direct) })
	b.Run("service", func(b *testing.B) { run(b, front4) })
}

// BenchmarkTunnelPacket is tunnel.c alone: ns/packet beside the kernel's own
// cost of a test run (24–30 ns, see "not-ip", which does next to nothing).
func BenchmarkTunnelPacket(b *testing.B) {
	_, prog := tunnelOnFrames(b)
	tcp := make([]byte, 40)
	for _, c := range []struct {
		name  string
		frame []byte
	}{
		{"not-ip", append(append(make([]byte, 12), 8, 6), make([]byte, 60)...)},
		{"v4-deliver", frame(ip4("10.2.1.9", "10.1.1.5", 6, tcp))},
		{"v4-deliver-prefix", frame(ip4("10.2.200.1", "10.1.1.5", 6, tcp))},
		{"v6-deliver", frame(ip6("fd00:2:1::9", "fd00:1:1::5", 6, tcp))},
		{"v4-stack", frame(ip4("10.2.1.1", "10.1.1.1", 1, tcp))},
		{"v4-unknown", frame(ip4("10.3.1.1", "10.1.1.5", 6, tcp))},
	} {
		b.Run(c.name, func(b *testing.B) {
			_, each, err := prog.Benchmark(c.frame, 1_000_000, b.ResetTimer)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(each.Nanoseconds()), "ns/packet")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkTunnelTCP is one TCP stream from the far end of the tunnel into the
// pod: through the host's stack, and by tunnel.c.
func BenchmarkTunnelTCP(b *testing.B) {
	const size = 64 << 20
	for _, attach := range []bool{false, true} {
		w := newWorld(b, attach)
		port := w.pod.listen("", digest)
		name := map[bool]string{false: "host-stack", true: "tunnel.c"}[attach]
		for _, to := range []string{"10.1.1.5", "fd00:1:1::5"} {
			b.Run(fmt.Sprintf("%s/%s", name, map[bool]string{true: "v4", false: "v6"}[netip.MustParseAddr(to).Is4()]), func(b *testing.B) {
				var best time.Duration
				for b.Loop() {
					c, err := w.remote.dial(to, port, 3*time.Second)
					if err != nil {
						b.Fatal(err)
					}
					took, err := transfer(c, size)
					if err != nil {
						b.Fatal(err)
					}
					if best == 0 || took < best {
						best = took
					}
				}
				b.ReportMetric(size*8/best.Seconds()/1e9, "best-Gbit/s")
			})
		}
	}
}
