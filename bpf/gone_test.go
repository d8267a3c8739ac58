package bpf

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// markGone marks the flows to a backend as the agent does: both rows of each.
func (m *Maps) markGone(t testing.TB, backend netip.AddrPort) {
	t.Helper()
	at, end := Addr{B: backend.Addr().As16()}, port(int(backend.Port()))
	rows := map[FlowKey]Flow{}
	var k FlowKey
	var f Flow
	for it := m.Flows.Iterate(); it.Next(&k, &f); {
		if f.Flags&FlowService != 0 && f.ToDst == at && f.DstPort == end ||
			f.Flags&FlowReply != 0 && (k.A == at && k.Aport == end || k.B == at && k.Bport == end) {
			rows[k] = f
		}
	}
	if len(rows) == 0 {
		t.Fatalf("no flow to %s", backend)
	}
	for k, f := range rows {
		f.Flags |= FlowGone
		put(t, m.Flows, k, f)
	}
}

// told checks that a packet is answered by a reset from whom it was sent to.
func (n *podNode) told(t testing.TB, in segment) {
	t.Helper()
	var verdict uint32
	var out []byte
	if c := n.counted(t, rowsTmbReasonTMB_DROP_BACKEND_GONE, func() { verdict, out = n.run(t, n.code.from, in.bytes()) }); c != 1 || verdict != verdictRedirect {
		t.Fatalf("%+v: verdict %d, counted %d", in, int32(verdict), c)
	}
	want := in.back(rst)
	if in.flags&ack == 0 {
		want.flags |= ack
	}
	want.data = ""
	if got := readSegment(t, out); got != want {
		t.Fatalf("%+v\nwas told %+v\nexpected %+v", in, got, want)
	}
}

// A connection whose backend is gone is reset by its next packets, and may be opened
// anew at once, also by the same ports; others know nothing of it.
func TestGonePackets(t *testing.T) {
	n := newPodNode(t)
	families(func(at func(string) string) {
		open := func(s, b segment) {
			t.Helper()
			with := func(s segment, flags byte) segment { s.flags = flags; return s }
			n.passes(t, n.code.from, with(s, syn), with(b, syn))
			n.passes(t, n.code.from, b.back(syn|ack), s.back(syn|ack))
			n.passes(t, n.code.from, s, b)
		}
		c := segment{src: at(podA), dst: at(vip), proto: tcp, sport: 40000, dport: 80, flags: ack, data: "hello"}
		b := c
		b.dst, b.dport = at(podB), 8080
		other, otherB := c, b
		n.service(t, vip, 81, tcp, 11, podB, 8081)
		other.dport, otherB.dport = 81, 8081
		open(c, b)
		open(other, otherB)
		n.markGone(t, netip.AddrPortFrom(netip.MustParseAddr(at(podB)), 8080))
		for range 2 {
			n.told(t, c)
			last := c
			last.flags, last.data = fin|ack, ""
			n.told(t, last)
		}
		n.passes(t, n.code.from, other, otherB)

		// What the backend sends, should it live, brings it the client's reset.
		late := b.back(ack)
		n.passes(t, n.code.from, late, c.back(ack))
		end, endB := c, b
		end.flags, end.data, endB.flags, endB.data = rst, "", rst, ""
		n.passes(t, n.code.from, end, endB)
		n.told(t, c)

		n.service(t, vip, 80, tcp, 1, podC, 8080)
		b.dst = at(podC)
		open(c, b)
		n.passes(t, n.code.from, c, b)
		n.passes(t, n.code.from, b.back(ack), c.back(ack))
		n.passes(t, n.code.from, other, otherB)
		n.service(t, vip, 80, tcp, 1, podB, 8080)
	})
}

// Datagrams go to another backend with the next one. What the old one was asked for
// still comes as the frontend's, for a while.
func TestMovedDatagrams(t *testing.T) {
	n := newPodNode(t)
	families(func(at func(string) string) {
		c := segment{src: at(podA), dst: at(vip), proto: udp, sport: 40000, dport: 53, data: "what"}
		old, now := c, c
		old.dst, old.dport, now.dst, now.dport = at(podB), 5353, at(podC), 5353
		n.passes(t, n.code.from, c, old)
		n.passes(t, n.code.from, old.back(0), c.back(0))
		n.service(t, vip, 53, udp, 2, podC, 5353)
		n.passes(t, n.code.from, c, now)
		n.passes(t, n.code.from, now.back(0), c.back(0))
		for range 3 {
			n.passes(t, n.code.from, old.back(0), c.back(0))
			n.passes(t, n.code.from, c, now)
		}
		var k FlowKey
		var f Flow
		aged := 0
		for it := n.Flows.Iterate(); it.Next(&k, &f); {
			if me := addr(at(podA)); f.Flags&FlowGone != 0 && (k.A == me || k.B == me) {
				f.Seen -= uint64(6 * time.Second)
				put(t, n.Flows, k, f)
				aged++
			}
		}
		if aged != 1 {
			t.Fatalf("%d rows are of a former backend, want 1", aged)
		}
		for range 2 { // refused: nobody is there for it
			var verdict uint32
			if c := n.counted(t, rowsTmbReasonTMB_DROP_BACKEND_GONE, func() { verdict, _ = n.run(t, n.code.from, old.back(0).bytes()) }); c != 1 || verdict != verdictRedirect {
				t.Fatalf("a late answer: verdict %d, counted %d", int32(verdict), c)
			}
		}
		n.passes(t, n.code.from, now.back(0), c.back(0))

		// And back.
		n.service(t, vip, 53, udp, 2, podB, 5353)
		n.passes(t, n.code.from, c, old)
		n.passes(t, n.code.from, old.back(0), c.back(0))
		n.passes(t, n.code.from, now.back(0), c.back(0))
	})
}

// A flow of a socket is marked where the kernel cannot end the socket: connected UDP
// is told once, and then goes where it goes.
func TestGoneSocketFlows(t *testing.T) {
	n := newPodNode(t)
	families(func(at func(string) string) {
		for _, proto := range []byte{tcp, udp} {
			c := segment{src: at(podA), dst: at(podB), proto: proto, sport: 41000, dport: 9000}
			if proto == tcp {
				c.flags = syn
			}
			n.passes(t, n.code.from, c, c)
			n.passes(t, n.code.from, c.back(c.flags|c.flags<<3), c.back(c.flags|c.flags<<3))
			var k FlowKey
			var f Flow
			for it := n.Flows.Iterate(); it.Next(&k, &f); {
				if k.Proto == proto && f.Flags&(FlowReply|FlowService) == 0 {
					f.Flags |= FlowGone
					put(t, n.Flows, k, f)
				}
			}
			if proto == tcp {
				c.flags = ack
				n.told(t, c)
				n.told(t, c)
				continue
			}
			if counted := n.counted(t, rowsTmbReasonTMB_DROP_BACKEND_GONE, func() {
				if verdict, out := n.run(t, n.code.from, c.bytes()); verdict != verdictRedirect || out[14+20-11] != 1 && out[14+6] != 58 {
					t.Errorf("verdict %d: % x", int32(verdict), out)
				}
			}); counted != 1 {
				t.Errorf("counted %d", counted)
			}
			n.passes(t, n.code.from, c, c)
		}
	})
}

// Real sockets: one that sends, large segments too, is reset; its neighbour is not.
func TestGoneConnections(t *testing.T) {
	y := newYard(t)
	accept := func(c net.Conn) { io.Copy(io.Discard, c) }
	gone, stays := y.pods[podB].listen("", accept), y.pods[podB].listen("", accept)
	for front, port := range map[int]string{80: gone, 81: stays} {
		p, _ := strconv.Atoi(port)
		y.service(t, vip, front, tcp, uint64(front), podB, p)
	}
	port, _ := strconv.Atoi(gone)
	families(func(at func(string) string) {
		var conns []net.Conn
		for _, front := range []string{"80", "81", "80"} {
			c, err := y.pods[podA].dial(at(vip), front, 3*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Write(make([]byte, 1<<20)); err != nil {
				t.Fatal(err)
			}
			conns = append(conns, c)
		}
		y.markGone(t, netip.AddrPortFrom(netip.MustParseAddr(at(podB)), uint16(port)))
		for i, size := range []int{1, 0, 1 << 20} {
			if size == 0 {
				continue
			}
			begin := time.Now()
			if err := writeUntil(conns[i], size); !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
				t.Errorf("writes of %d bytes: %v", size, err)
			}
			if took := time.Since(begin); took > time.Second {
				t.Errorf("writes of %d bytes end after %v", size, took)
			}
		}
		if _, err := conns[1].Write(make([]byte, 1<<20)); err != nil {
			t.Errorf("to the backend that stays: %v", err)
		}
		c, err := y.pods[podA].dial(at(vip), "80", 3*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("again")); err != nil {
			t.Error(err)
		}
		c.Close()
	})
	y.checkSums(t)
}

// writeUntil writes until it fails, for a few seconds at most.
func writeUntil(c net.Conn, size int) error {
	c.SetDeadline(time.Now().Add(5 * time.Second))
	for {
		if _, err := c.Write(make([]byte, size)); err != nil {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// A client outside, at a node's port, is told by the uplink's program.
func TestGoneFromOutside(t *testing.T) {
	u := newUplink(t)
	o, _ := load(t)
	u.node1(o, nil)
	u.attach(o)
	for _, c := range []struct{ front, pod string }{{"192.0.2.1:30080", "10.1.1.5"}, {"[2001:db8::1]:30080", "fd00:1:1::5"}} {
		port := u.pod.listen(c.pod, func(c net.Conn) { io.Copy(io.Discard, c) })
		o.outside(t, c.front, tcp, 80, 0, net.JoinHostPort(c.pod, port))
		conn, err := u.client.connect("tcp", u.clientAt(c.front), c.front)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
		o.markGone(t, netip.MustParseAddrPort(net.JoinHostPort(c.pod, port)))
		if err := writeUntil(conn, 1); !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
			t.Errorf("%s: %v", c.front, err)
		}
		if again, err := u.client.connect("tcp", u.clientAt(c.front), c.front); err != nil {
			t.Error(err)
		} else {
			again.Close()
		}
	}
}
