package linux

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// Prober sends ICMP echo requests and waits for the far kernel's answer: a node
// whose agent is dead is not a dead node. One raw socket per family serves all
// probes. Safe for concurrent use.
type Prober struct {
	v4, v6 *echoSocket
}

// NewProber opens the sockets in the calling thread's network namespace.
func NewProber() (*Prober, error) {
	v4, err := openEcho("ip4:icmp", "0.0.0.0")
	if err != nil {
		return nil, err
	}
	v6, err := openEcho("ip6:ipv6-icmp", "::")
	if err != nil {
		v4.close()
		return nil, err
	}
	var filter ipv6.ICMPFilter
	filter.SetAll(true)
	filter.Accept(ipv6.ICMPTypeEchoReply)
	v6.conn.IPv6PacketConn().SetICMPFilter(&filter) // an optimisation; replies are checked anyway
	return &Prober{v4: v4, v6: v6}, nil
}

// Close ends all probes.
func (p *Prober) Close() {
	p.v4.close()
	p.v6.close()
}

// Probe sends one request from a local address (the tunnel address; not valid =
// any) to another, and returns how long its reply took; an error when none came
// within timeout.
func (p *Prober) Probe(ctx context.Context, from, to netip.Addr, timeout time.Duration) (time.Duration, error) {
	s := p.v6
	if to.Is4() {
		s = p.v4
	}
	return s.probe(ctx, from, to, timeout)
}

// echoSocket matches replies to requests by a 32-bit number: ICMP's ID and
// sequence together, drawn at random to begin with.
type echoSocket struct {
	conn *icmp.PacketConn
	v4   bool
	done chan struct{}

	mu      sync.Mutex
	next    uint32
	waiting map[uint32]*echoWait
}

type echoWait struct {
	to    netip.Addr
	reply chan time.Time // when it came; taken by the receiver, so that a busy prober adds nothing
}

func openEcho(network, any string) (*echoSocket, error) {
	conn, err := icmp.ListenPacket(network, any)
	if err != nil {
		return nil, fmt.Errorf("open ICMP socket for probes: %w; needs CAP_NET_RAW", err)
	}
	s := &echoSocket{conn: conn, v4: network == "ip4:icmp", done: make(chan struct{}), next: rand.Uint32(), waiting: map[uint32]*echoWait{}}
	go s.receive()
	return s, nil
}

func (s *echoSocket) close() {
	s.conn.Close()
	<-s.done
}

func (s *echoSocket) receive() {
	defer close(s.done)
	buf := make([]byte, 1500)
	for {
		n, from, err := s.conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error queued on the socket; the probe times out by itself
		}
		s.answered(buf[:n], from)
	}
}

func (s *echoSocket) answered(packet []byte, from net.Addr) {
	proto, want := ipv6.ICMPTypeEchoReply.Protocol(), icmp.Type(ipv6.ICMPTypeEchoReply)
	if s.v4 {
		proto, want = ipv4.ICMPTypeEchoReply.Protocol(), ipv4.ICMPTypeEchoReply
	}
	m, err := icmp.ParseMessage(proto, packet)
	if err != nil || m.Type != want {
		return
	}
	echo, ok := m.Body.(*icmp.Echo)
	ip, isIP := from.(*net.IPAddr)
	if !ok || !isIP {
		return
	}
	addr, _ := netip.AddrFromSlice(ip.IP)
	id := uint32(echo.ID)<<16 | uint32(echo.Seq)
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.waiting[id]; w != nil && w.to == addr.Unmap() {
		delete(s.waiting, id)
		w.reply <- now
	}
}

func (s *echoSocket) probe(ctx context.Context, from, to netip.Addr, timeout time.Duration) (time.Duration, error) {
	w := &echoWait{to: to.Unmap(), reply: make(chan time.Time, 1)}
	s.mu.Lock()
	s.next++
	id := s.next
	s.waiting[id] = w
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.waiting, id)
		s.mu.Unlock()
	}()
	sent := time.Now()
	if err := s.send(id, from, to); err != nil {
		return 0, fmt.Errorf("probe %s from %s: %w", to, from, err)
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case at := <-w.reply:
		return at.Sub(sent), nil
	case <-timer.C:
		return 0, fmt.Errorf("probe %s from %s: no answer within %s", to, from, timeout)
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-s.done:
		return 0, net.ErrClosed
	}
}

func (s *echoSocket) send(id uint32, from, to netip.Addr) error {
	m := icmp.Message{Type: ipv6.ICMPTypeEchoRequest, Body: &icmp.Echo{ID: int(id >> 16), Seq: int(id & 0xffff), Data: []byte("tombolo")}}
	if s.v4 {
		m.Type = ipv4.ICMPTypeEcho
	}
	packet, err := m.Marshal(nil) // the kernel computes ICMPv6's checksum
	if err != nil {
		return err
	}
	dst := &net.IPAddr{IP: to.AsSlice()}
	for try := 0; ; try++ {
		if s.v4 {
			var cm *ipv4.ControlMessage
			if from.IsValid() {
				cm = &ipv4.ControlMessage{Src: from.AsSlice()}
			}
			_, err = s.conn.IPv4PacketConn().WriteTo(packet, cm, dst)
		} else {
			var cm *ipv6.ControlMessage
			if from.IsValid() {
				cm = &ipv6.ControlMessage{Src: from.AsSlice()}
			}
			_, err = s.conn.IPv6PacketConn().WriteTo(packet, cm, dst)
		}
		// An earlier probe's ICMP error may be reported on this send; once more tells.
		if try > 0 || !(errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ECONNREFUSED)) {
			return err
		}
	}
}
