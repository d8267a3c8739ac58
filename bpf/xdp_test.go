package bpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	xdpDrop = 1
	xdpPass = 2
	xdpTX   = 3

	xdpRedirect = 4
)

// xdpWorld is node1 with one uplink, on which a backend's node and the client's
// router are neighbours, and host.c and xdp.c for test runs there.
type xdpWorld struct {
	t            testing.TB
	s            *space
	o            *Objects
	up           netlink.Link
	host, prog   *ebpf.Program
	node, router net.HardwareAddr
	config       Config
}

func newXDPWorld(t *testing.T) *xdpWorld {
	s := newSpace(t)
	w := &xdpWorld{t: t, s: s, node: net.HardwareAddr{2, 0, 0, 0, 0, 2}, router: net.HardwareAddr{2, 0, 0, 0, 0, 9}}
	if err := s.nl.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "up0"}, PeerName: "wire"}); err != nil {
		t.Fatal(err)
	}
	s.up("wire")
	w.up = s.up("up0")
	s.addr("up0", "192.0.2.1/24", "2001:db8::1/64")
	s.sysctl(map[string]string{"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"})
	s.route("up0", w.node, map[string]string{"10.1.2.0/24": "192.0.2.2", "fd00:1:2::/64": "2001:db8::2"})
	s.route("up0", w.router, map[string]string{"198.51.100.0/24": "192.0.2.9", "2001:db8:9::/64": "2001:db8::9"})
	w.config = Config{Node4: addr("192.0.2.1"), Node6: addr("2001:db8::1"), Cluster: 1, Node: 1, PortMin: 40000, PortMax: 40999}
	o, _, _ := hostOnFrames(t, w.config)
	w.o = o
	put(t, o.IPCache, addr("10.1.2.5"), IPCache{Identity: identityOwn, Node: 2})
	put(t, o.IPCache, addr("fd00:1:2::5"), IPCache{Identity: identityOwn, Node: 2})
	host, err := loadTC(loadHost, o.Maps, ethLen)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(host.Close)
	xdp, err := loadXDPCode(o.Maps, xdpKind{mac: macOf(w.up)})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(xdp.Close)
	w.host, w.prog = host.Programs[hostProgTmbFromWorld], xdp.Programs[xdpProgTmbXdp]
	return w
}

// frame is a packet as it comes in by the uplink.
func (w *xdpWorld) frame(packet []byte) []byte {
	f := frame(packet)
	mac := macOf(w.up)
	copy(f, mac[:])
	copy(f[6:], []byte{2, 0, 0, 0, 0, 77})
	return f
}

// run is what a program makes of a frame that comes in by the uplink.
func (w *xdpWorld) run(prog *ebpf.Program, f []byte) (verdict uint32, out []byte) {
	w.t.Helper()
	index := uint32(w.up.Attrs().Index)
	opts := &ebpf.RunOptions{Data: f, DataOut: make([]byte, len(f)+256), Context: [11]uint32{10: index}}
	if prog == w.prog {
		opts.Context = [4]uint32{1: uint32(len(f)), 3: index}
	}
	w.s.in(func() (err error) {
		verdict, err = prog.Run(opts)
		return err
	})
	return verdict, opts.DataOut
}

// transport is a packet whose checksums are right; noSum: UDP without one.
func transport(src, dst string, proto byte, flags byte, payload string, noSum bool) []byte {
	from, to := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	l4 := make([]byte, 8, 64)
	if proto == tcp {
		l4 = l4[:20]
		l4[12], l4[13], l4[14] = 0x50, flags, 0x10
	} else {
		binary.BigEndian.PutUint16(l4[4:], uint16(8+len(payload)))
	}
	binary.BigEndian.PutUint16(l4, from.Port())
	binary.BigEndian.PutUint16(l4[2:], to.Port())
	l4 = append(l4, payload...)
	p := ip6(from.Addr().String(), to.Addr().String(), proto, l4)
	if from.Addr().Is4() {
		p = ip4(from.Addr().String(), to.Addr().String(), proto, l4)
	}
	if !noSum {
		sum := l4Sum(p)
		if proto == udp && sum == 0 {
			sum = 0xffff
		}
		binary.BigEndian.PutUint16(p[sumAt(p):], sum)
	}
	return p
}

func headerLen(p []byte) int {
	if p[0]>>4 == 4 {
		return 20
	}
	return 40
}

func sumAt(p []byte) int {
	if p[9] == tcp && p[0]>>4 == 4 || p[6] == tcp && p[0]>>4 == 6 {
		return headerLen(p) + 16
	}
	return headerLen(p) + 6
}

// l4Sum is the checksum over the transport header, what follows it and the pseudo
// header; 0 if the one in the packet is right.
func l4Sum(p []byte) uint16 {
	h := headerLen(p)
	b := bytes.Clone(p[12:20])
	proto := p[9]
	if h == 40 {
		b, proto = bytes.Clone(p[8:40]), p[6]
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(p)-h))
	b = append(b, 0, proto)
	b = append(b, p[h:]...)
	if len(b)%2 == 1 {
		b = append(b, 0)
	}
	return checksum(b)
}

// sound checks the sums of a frame.
func sound(t testing.TB, f []byte, noSum bool) {
	t.Helper()
	p := f[14:]
	if p[0]>>4 == 4 && checksum(p[:20]) != 0 {
		t.Errorf("IP checksum is wrong: % x", p[:20])
	}
	if noSum {
		if !bytes.Equal(p[sumAt(p):sumAt(p)+2], []byte{0, 0}) {
			t.Error("no UDP checksum became one")
		}
	} else if s := l4Sum(p); s != 0 {
		t.Errorf("transport checksum is off by %#x", s)
	}
}

// xdpCase is one established flow: an open packet, and a packet each way.
type xdpCase struct {
	front, client, backend, node string
	proto                        byte
	noSum                        bool
	payload                      string
}

var xdpCases = map[string]xdpCase{
	"tcp4":            {front: "192.0.2.1:30080", client: "198.51.100.9:5555", backend: "10.1.2.5:8080", node: "192.0.2.1", proto: tcp, payload: "hello"},
	"udp4":            {front: "192.0.2.1:30080", client: "198.51.100.9:5555", backend: "10.1.2.5:8080", node: "192.0.2.1", proto: udp, payload: "hello!"},
	"udp4 without":    {front: "192.0.2.1:30081", client: "198.51.100.9:5555", backend: "10.1.2.5:8080", node: "192.0.2.1", proto: udp, payload: "hello!", noSum: true},
	"udp4 of nothing": {front: "192.0.2.1:30082", client: "198.51.100.9:5555", backend: "10.1.2.5:8080", node: "192.0.2.1", proto: udp},
	"tcp6":            {front: "[2001:db8::1]:30080", client: "[2001:db8:9::9]:5555", backend: "[fd00:1:2::5]:8080", node: "2001:db8::1", proto: tcp, payload: "hello"},
	"udp6":            {front: "[2001:db8::1]:30080", client: "[2001:db8:9::9]:5555", backend: "[fd00:1:2::5]:8080", node: "2001:db8::1", proto: udp, payload: "hello!"},
}

// establish lets host.c take the flow in and returns the frames of both
// directions, before translation.
func (w *xdpWorld) establish(c xdpCase, id uint64) (request, answer []byte) {
	w.t.Helper()
	w.o.outside(w.t, c.front, c.proto, id, 0, c.backend)
	verdict, out := w.run(w.host, w.frame(transport(c.client, c.front, c.proto, 2, "", c.noSum)))
	if verdict != verdictRedirect {
		w.t.Fatalf("host.c: verdict %d", int32(verdict))
	}
	h := 14 + headerLen(out[14:])
	back := netip.AddrPortFrom(netip.MustParseAddr(c.node), binary.BigEndian.Uint16(out[h:])).String()
	if verdict, _ := w.run(w.host, w.frame(transport(c.backend, back, c.proto, 0x12, "", c.noSum))); verdict != verdictRedirect {
		w.t.Fatalf("host.c, of the answer: verdict %d", int32(verdict))
	}
	return w.frame(transport(c.client, c.front, c.proto, 0x10, c.payload, c.noSum)),
		w.frame(transport(c.backend, back, c.proto, 0x10, c.payload+"...", c.noSum))
}

// fast runs xdp.c; the flow is noted by host.c first, so that its second is not over.
func (w *xdpWorld) fast(f []byte) (verdict uint32, out []byte) {
	for range 5 {
		w.run(w.host, f)
		if verdict, out = w.run(w.prog, f); verdict == xdpTX {
			break
		}
	}
	return verdict, out
}

// agrees: xdp.c sends what host.c would, one hop older, by the same neighbour.
func (w *xdpWorld) agrees(in, out []byte, hop net.HardwareAddr) {
	w.t.Helper()
	_, want := w.run(w.host, in)
	mac := macOf(w.up)
	copy(want, hop)
	copy(want[6:], mac[:])
	if want[14]>>4 == 4 {
		want[14+8]--
		want[14+10], want[14+11] = 0, 0
		binary.BigEndian.PutUint16(want[14+10:], checksum(want[14:34]))
	} else {
		want[14+7]--
	}
	if !bytes.Equal(out, want) {
		w.t.Errorf("sent\n% x, host.c would\n% x", out, want)
	}
}

// Packets of flows that host.c has taken in go on from the driver, as host.c would
// send them.
func TestXDPForwards(t *testing.T) {
	w := newXDPWorld(t)
	id := uint64(0)
	for name, c := range xdpCases {
		id++
		t.Run(name, func(t *testing.T) {
			w.t = t
			request, answer := w.establish(c, id)
			for _, d := range []struct {
				name     string
				f        []byte
				hop      net.HardwareAddr
				src, dst string
			}{{"request", request, w.node, c.node, c.backend}, {"answer", answer, w.router, c.front, c.client}} {
				verdict, out := w.fast(d.f)
				if verdict != xdpTX {
					t.Fatalf("%s: verdict %d", d.name, verdict)
				}
				sound(t, out, c.noSum)
				w.agrees(d.f, out, d.hop)
				src, dst := endsOf(out[14:])
				if dst.String() != d.dst || src.String() != d.src && src.Addr().String() != d.src {
					t.Errorf("%s: %s > %s, expected %s > %s", d.name, src, dst, d.src, d.dst)
				}
			}
		})
	}
}

func endsOf(p []byte) (src, dst netip.AddrPort) {
	h := headerLen(p)
	n := 4
	if h == 40 {
		n = 16
	}
	a, _ := netip.AddrFromSlice(p[h-2*n : h-n])
	b, _ := netip.AddrFromSlice(p[h-n : h])
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(p[h:])), netip.AddrPortFrom(b, binary.BigEndian.Uint16(p[h+2:]))
}

// row finds the flow's row for a frame and lets change edit it; what it returns
// puts the row back.
func (w *xdpWorld) row(f []byte, change func(*Flow)) (back func()) {
	w.t.Helper()
	src, dst := endsOf(f[14:])
	proto := f[14+9]
	if f[14]>>4 == 6 {
		proto = f[14+6]
	}
	x := FlowKey{A: Addr{B: src.Addr().As16()}, Aport: port(int(src.Port())), B: Addr{B: dst.Addr().As16()}, Bport: port(int(dst.Port())), Proto: proto}
	y := FlowKey{A: x.B, Aport: x.Bport, B: x.A, Bport: x.Aport, Proto: proto}
	for _, k := range []FlowKey{x, y} {
		var row Flow
		if w.o.Flows.Lookup(k, &row) == nil {
			was := row
			change(&row)
			put(w.t, w.o.Flows, k, row)
			return func() { put(w.t, w.o.Flows, k, was) }
		}
	}
	w.t.Fatal("the flow has no row")
	return nil
}

// What is left to host.c, untouched, and the same packet again once what was in
// the way is gone.
func TestXDPLeavesToHost(t *testing.T) {
	w := newXDPWorld(t)
	c := xdpCases["tcp4"]
	request, answer := w.establish(c, 1)
	datagram, _ := w.establish(xdpCases["udp4"], 2)
	request6, _ := w.establish(xdpCases["tcp6"], 3)
	edit := func(f []byte, change func(ip []byte)) []byte {
		f = bytes.Clone(f)
		change(f[14:])
		return f
	}
	flags := func(set, clear uint32) func(f []byte) func() {
		return func(f []byte) func() { return w.row(f, func(r *Flow) { r.Flags = r.Flags&^clear | set }) }
	}
	config := func(change func(*Config)) func([]byte) func() {
		return func([]byte) func() {
			c := w.config
			change(&c)
			put(t, w.o.Config, uint32(0), c)
			return func() { put(t, w.o.Config, uint32(0), w.config) }
		}
	}
	owner := func(a string, row IPCache) func([]byte) func() {
		return func([]byte) func() {
			var was IPCache
			had := w.o.IPCache.Lookup(addr(a), &was) == nil
			put(t, w.o.IPCache, addr(a), row)
			return func() {
				if had {
					put(t, w.o.IPCache, addr(a), was)
				} else if err := w.o.IPCache.Delete(addr(a)); err != nil {
					t.Error(err)
				}
			}
		}
	}
	endpoint := func(a string) func([]byte) func() {
		return func([]byte) func() {
			put(t, w.o.Endpoints, addr(a), Endpoint{Ifindex: podIfIndex, Identity: identityOwn})
			return func() { w.o.Endpoints.Delete(addr(a)) }
		}
	}
	neighbour := func(ip string, mac net.HardwareAddr) func([]byte) func() {
		return func([]byte) func() {
			n := &netlink.Neigh{LinkIndex: w.up.Attrs().Index, IP: net.ParseIP(ip), HardwareAddr: mac, State: netlink.NUD_PERMANENT}
			if err := w.s.nl.NeighDel(n); err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := w.s.nl.NeighSet(n); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	tcpFlags := func(f byte) []byte { return w.frame(transport(c.client, c.front, tcp, f, c.payload, false)) }
	large := w.frame(transport(c.client, c.front, tcp, 0x10, strings.Repeat("x", 1400), false))
	vlan := append(append(bytes.Clone(request[:12]), 0x81, 0, 0, 5), request[12:]...)
	dest := append(bytes.Clone(request6[:54]), 6, 0, 1, 4, 0, 0, 0, 0)
	dest = append(dest, request6[54:]...)
	dest[14+6] = 60
	dest[14+5] += 8
	options := append(append(bytes.Clone(request[:34]), 1, 1, 1, 1), request[34:]...)
	options[14] = 0x46
	options[17] += 4
	for _, l := range []struct {
		name  string
		f     []byte
		world func(f []byte) (back func()) // nil: it is the frame
	}{
		{"SYN", tcpFlags(2), nil},
		{"SYN ACK", tcpFlags(0x12), nil},
		{"FIN", tcpFlags(0x11), nil},
		{"RST", tcpFlags(4), nil},
		{"VLAN", vlan, nil},
		{"extension header", dest, nil},
		{"options", options, nil},
		{"first fragment", edit(request, func(ip []byte) { ip[6] = 0x20 }), nil},
		{"later fragment", edit(request, func(ip []byte) { ip[7] = 1 }), nil},
		{"last hop", edit(request, func(ip []byte) { ip[8] = 1 }), nil},
		{"no hop", edit(request, func(ip []byte) { ip[8] = 0 }), nil},
		{"last hop v6", edit(request6, func(ip []byte) { ip[7] = 1 }), nil},
		{"longer than the frame", edit(request, func(ip []byte) { ip[3]++ }), nil},
		{"another protocol", edit(request, func(ip []byte) { ip[9] = 132 }), nil},
		{"another's frame", append([]byte{2, 0, 0, 0, 0, 3}, request[6:]...), nil},
		{"no flow", w.frame(transport("198.51.100.9:5556", c.front, tcp, 0x10, "", false)), nil},
		{"sum still to be made", edit(request, func(ip []byte) {
			pseudo := append(bytes.Clone(ip[12:20]), 0, 6, 0, byte(len(ip)-20))
			binary.BigEndian.PutUint16(ip[36:], ^checksum(pseudo))
		}), nil},
		{"not answered", request, flags(0, FlowAnswered)},
		{"answer not noted", answer, flags(0, FlowAnswered)},
		{"reset", request, flags(FlowReset, 0)},
		{"closed", request, flags(FlowFinA|FlowFinB, 0)},
		{"forbidden", request, flags(uint32(rowsTmbFlowFlagsTMB_FLOW_FORBIDDEN), 0)},
		{"not from outside", request, flags(0, FlowOutside)},
		{"no service", request, flags(0, FlowService)},
		{"the source stays", request, flags(0, FlowToSrc)},
		{"masqueraded", answer, flags(0, FlowToSrc)},
		{"another epoch", request, func([]byte) func() {
			put(t, w.o.Epoch, uint32(0), uint32(7))
			return func() { put(t, w.o.Epoch, uint32(0), uint32(0)) }
		}},
		{"older than a second", request, func(f []byte) func() {
			return w.row(f, func(r *Flow) { r.Seen -= uint64(time.Second) })
		}},
		{"by another device", answer, func(f []byte) func() { return w.row(f, func(r *Flow) { r.Ifindex++ }) }},
		{"underlay elsewhere", request, func([]byte) func() {
			w.s.in(func() error { return w.o.SetUnderlay(w.s.link("wire").Attrs().Index) })
			return func() { w.o.SetUnderlay(0) }
		}},
		{"backend gone, UDP", datagram, func([]byte) func() {
			var was Slot
			k := SlotKey{Service: 2, Cluster: 1}
			for k.Slot = 0; w.o.Slots.Lookup(k, &was) != nil; k.Slot++ {
				if k.Slot > 3 {
					t.Fatal("no slot")
				}
			}
			w.o.Slots.Delete(k)
			return func() { put(t, w.o.Slots, k, was) }
		}},
		{"backend in the tunnel", request, owner("10.1.2.5", IPCache{Identity: identityRemote, Node: 2, Flags: IPEncrypted})},
		{"backend on this node's host", request, owner("10.1.2.5", IPCache{Identity: 1, Node: 1})},
		{"backend is a pod here", request, endpoint("10.1.2.5")},
		{"client in the tunnel", answer, owner("198.51.100.9", IPCache{Identity: identityRemote, Node: 2, Flags: IPEncrypted})},
		{"client has our address", request, owner("198.51.100.9", IPCache{Identity: 1, Node: 1})},
		{"client has a pod's address", request, endpoint("198.51.100.9")},
		{"client has an address in the tunnel", request, owner("198.51.100.9", IPCache{Identity: identityRemote, Flags: IPEncrypted})},
		{"all in the tunnel", request, config(func(c *Config) { c.Flags |= EncryptAll })},
		{"all in the tunnel, answer", answer, config(func(c *Config) { c.Flags |= EncryptAll })},
		{"no neighbour", request, neighbour("192.0.2.2", w.node)},
		{"no neighbour v6", request6, neighbour("2001:db8::2", w.node)},
		{"larger than the MTU", large, func([]byte) func() {
			w.mtu(len(large) - 15)
			return func() { w.mtu(w.up.Attrs().MTU) }
		}},
	} {
		t.Run(l.name, func(t *testing.T) {
			w.t = t
			if l.world != nil {
				if verdict, _ := w.fast(l.f); verdict != xdpTX {
					t.Fatalf("verdict %d before", verdict)
				}
				defer func() {
					if verdict, _ := w.fast(l.f); verdict != xdpTX {
						t.Errorf("verdict %d afterwards", verdict)
					}
				}()
				defer l.world(l.f)()
			} else {
				w.fast(request)
			}
			var verdict uint32
			var out []byte
			did := grown(t, w.o.Maps, func() { verdict, out = w.run(w.prog, l.f) })
			if verdict != xdpPass || !bytes.Equal(out, l.f) || len(did) != 0 {
				t.Errorf("verdict %d, counted %v; was\n% x, is\n% x", verdict, did, l.f, out)
			}
		})
	}
}

func (w *xdpWorld) mtu(n int) {
	w.t.Helper()
	if err := w.s.nl.LinkSetMTU(w.up, n); err != nil {
		w.t.Fatal(err)
	}
}

// Clients that may not, and services that cannot, are dropped and counted; the
// rest is told by host.c.
func TestXDPRefuses(t *testing.T) {
	w := newXDPWorld(t)
	w.o.outside(t, "192.0.2.1:1", tcp, 1, ServiceRanges, "10.1.2.5:8080")
	w.o.outside(t, "[2001:db8::1]:1", tcp, 2, ServiceRanges, "[fd00:1:2::5]:8080")
	put(t, w.o.SourceRanges, RangeKey{Bits: 64 + 96 + 24, Service: [2]uint32{1}, Addr: addr("198.51.100.0")}, Range{Allow: 1})
	put(t, w.o.SourceRanges, RangeKey{Bits: 64 + 48, Service: [2]uint32{2}, Addr: addr("2001:db8:9::")}, Range{Allow: 1})
	w.o.outside(t, "192.0.2.1:2", udp, 3, ServiceLocal)
	w.o.outside(t, "192.0.2.1:3", udp, 4, ServiceLocal, "10.1.1.5:8080")
	w.o.outside(t, "192.0.2.1:4", udp, 5, 0)
	for _, c := range []struct {
		name, src, dst string
		proto          byte
		reason         string // "": passed
	}{
		{"in range", "198.51.100.9:5", "192.0.2.1:1", tcp, ""},
		{"in range v6", "[2001:db8:9::9]:5", "[2001:db8::1]:1", tcp, ""},
		{"outside", "203.0.113.9:5", "192.0.2.1:1", tcp, "drop_source_range"},
		{"outside v6", "[2001:db8:8::9]:5", "[2001:db8::1]:1", tcp, "drop_source_range"},
		{"outside, no service", "203.0.113.9:5", "192.0.2.1:1", udp, ""},
		{"outside, with an address of the tunnel", "10.2.1.9:5", "192.0.2.1:1", tcp, ""},
		{"outside, with a pod's", "10.1.1.5:5", "192.0.2.1:1", tcp, ""},
		{"local without", "198.51.100.9:5", "192.0.2.1:2", udp, "drop_no_backend"},
		{"local with", "198.51.100.9:5", "192.0.2.1:3", udp, ""},
		{"cluster without", "198.51.100.9:5", "192.0.2.1:4", udp, ""},
	} {
		f := w.frame(transport(c.src, c.dst, c.proto, 2, "", false))
		var verdict uint32
		did := grown(t, w.o.Maps, func() { verdict, _ = w.run(w.prog, f) })
		if c.reason == "" {
			if verdict != xdpPass || len(did) != 0 {
				t.Errorf("%s: verdict %d, counted %v", c.name, verdict, did)
			}
			continue
		}
		if verdict != xdpDrop || did[c.reason] != 1 || len(did) != 1 {
			t.Errorf("%s: verdict %d, counted %v", c.name, verdict, did)
		}
		// host.c says the same.
		did = grown(t, w.o.Maps, func() { verdict, _ = w.run(w.host, f) })
		if verdict != verdictShot || did[c.reason] != 1 {
			t.Errorf("%s: host.c: verdict %d, counted %v", c.name, int32(verdict), did)
		}
	}
}

// Packets of established flows with bytes changed and ends cut off: what is passed
// is untouched, what is sent is what host.c would send.
func TestXDPFuzz(t *testing.T) {
	w := newXDPWorld(t)
	var frames [][]byte
	id := uint64(0)
	for _, name := range []string{"tcp4", "udp4", "udp4 without", "tcp6", "udp6"} {
		id++
		request, answer := w.establish(xdpCases[name], id)
		frames = append(frames, request, answer)
	}
	w.o.outside(t, "192.0.2.1:9", udp, 9, ServiceLocal)
	frames = append(frames, w.frame(transport("198.51.100.9:5", "192.0.2.1:9", udp, 0, "", false)))
	seed := rand.Uint64()
	t.Logf("seed %#x", seed)
	r := rand.New(rand.NewPCG(seed, 8))
	verdicts := make(map[uint32]int)
	dropped := 0
	for range 8000 {
		which := r.IntN(len(frames))
		f := bytes.Clone(frames[which])
		for range r.IntN(3) {
			f[r.IntN(len(f))] = byte(r.Uint32())
		}
		if r.IntN(8) == 0 {
			f = f[:14+r.IntN(len(f)-13)]
		}
		if len(f) < 14+20 {
			continue // newer kernels run no cut-off IP header
		}
		var verdict uint32
		var out []byte
		did := grown(t, w.o.Maps, func() { verdict, out = w.run(w.prog, f) })
		verdicts[verdict]++
		problem := ""
		switch verdict {
		case xdpPass:
			if !bytes.Equal(out, f) || len(did) != 0 {
				problem = fmt.Sprintf("changed, or counted %v", did)
			}
		case xdpDrop:
			dropped++
			if len(did) != 1 || !strings.Contains(fmt.Sprint(did), "drop_no_backend:1") {
				problem = fmt.Sprint("counted ", did)
			}
		case xdpTX:
			hop := w.node
			if which%2 == 1 {
				hop = w.router
			}
			v, _ := w.run(w.host, f)
			if v != verdictRedirect {
				problem = fmt.Sprintf("host.c: verdict %d", int32(v))
			} else if f[14]>>4 == 6 || checksum(f[14:34]) == 0 { // else it stays wrong
				w.agrees(f, out, hop)
			} else if checksum(out[14:34]) == 0 {
				problem = "a wrong IP checksum became right"
			}
		default:
			problem = "no verdict of ours"
		}
		if problem != "" || t.Failed() {
			t.Fatalf("verdict %d: %s\n% x\n% x", verdict, problem, f, out)
		}
		w.run(w.host, frames[which%10]) // the flow's second goes on
	}
	t.Log(verdicts)
	if verdicts[xdpTX] < 100 || verdicts[xdpPass] < 100 || dropped < 10 {
		t.Errorf("%v: not all was hit", verdicts)
	}
}

// The program's way onto devices and off again: by the driver and generic, in turn,
// over a start of another process, and what the user is told where it does not go.
func TestXDPAttach(t *testing.T) {
	s := newSpace(t)
	for _, l := range []netlink.Link{
		&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "up0"}, PeerName: "up0p"},
		&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "up1"}},
	} {
		if err := s.nl.LinkAdd(l); err != nil {
			t.Fatal(err)
		}
	}
	able, unable := s.up("up0").Attrs().Index, s.up("up1").Attrs().Index
	o, opts := load(t)
	state := func(when string, mode uint32, want ...int) {
		t.Helper()
		s.in(func() error {
			got, err := o.AttachedXDPs()
			if err == nil && !slices.Equal(got, want) {
				t.Errorf("%s: attached to %v, expected %v", when, got, want)
			}
			return err
		})
		x := s.link("up0").Attrs().Xdp
		if got := x.AttachMode; got != mode {
			t.Errorf("%s: mode %d, expected %d", when, got, mode)
		}
	}
	attach := func(ifindex int, generic bool) {
		t.Helper()
		s.in(func() error { return o.AttachXDP(ifindex, generic) })
	}
	state("at first", nl.XDP_ATTACHED_NONE)
	for range 2 {
		attach(able, false)
		state("native", nl.XDP_ATTACHED_DRV, able)
	}
	attach(unable, true)
	attach(able, true)
	state("generic", nl.XDP_ATTACHED_SKB, able, unable)
	was := s.link("up0").Attrs().Xdp.ProgId
	o.Close()
	s.in(func() (err error) {
		o, err = Load(opts)
		return err
	})
	t.Cleanup(func() { o.Close() })
	state("another process", nl.XDP_ATTACHED_SKB, able, unable)
	if s.link("up0").Attrs().Xdp.ProgId == was {
		t.Error("the program is still the earlier process's")
	}
	attach(able, false)
	state("native again", nl.XDP_ATTACHED_DRV, able, unable)
	if err := s.nl.LinkDel(s.link("up1")); err != nil {
		t.Fatal(err)
	}
	state("a device is gone", nl.XDP_ATTACHED_DRV, able)
	if _, err := os.Stat(filepath.Join(opts.PinDir, xdpHook.pin(unable))); err == nil {
		t.Error("its pin is left")
	}
	for range 2 {
		s.in(func() error { return o.DetachXDP(able) })
		state("detached", nl.XDP_ATTACHED_NONE)
	}
	if err := s.nl.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "up1"}}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		device  string
		generic bool
		says    string
	}{{"up1", false, "use the slower generic mode"}, {"lo", true, "no Ethernet device"}} {
		s.in(func() error {
			if err := o.AttachXDP(s.link(c.device).Attrs().Index, c.generic); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v", c.device, err)
			}
			return nil
		})
	}
	s.in(func() error {
		if err := o.AttachXDP(1<<20, false); !errors.Is(err, unix.ENODEV) {
			t.Errorf("no device: %v", err)
		}
		return nil
	})
	attach(able, false)
	o.Close()
	s.in(func() error { return Unload(opts.PinDir) })
	if x := s.link("up0").Attrs().Xdp; x.Attached {
		t.Error("still attached after Unload")
	}
}
