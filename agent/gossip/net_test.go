package gossip

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// wire is a network in memory. A machine without power neither sends nor hears; a
// machine whose agent is gone refuses.
type wire struct {
	mu   sync.Mutex
	ends map[netip.AddrPort]*end
	dark map[netip.Addr]bool
}

type end struct {
	wire    *wire
	at      netip.AddrPort
	packets chan *memberlist.Packet
	streams chan net.Conn
	closed  chan struct{}
	once    sync.Once
}

var _ memberlist.Transport = (*end)(nil)

func newWire() *wire { return &wire{ends: map[netip.AddrPort]*end{}, dark: map[netip.Addr]bool{}} }

// plug makes the transport of one agent.
func (w *wire) plug(at netip.AddrPort) *end {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := &end{wire: w, at: at, packets: make(chan *memberlist.Packet, 1024), streams: make(chan net.Conn, 16), closed: make(chan struct{})}
	w.ends[at] = e
	return e
}

func (w *wire) power(a netip.Addr, on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dark[a] = !on
}

// to is who listens at an address; nil = nobody that from can reach.
func (w *wire) to(from netip.AddrPort, addr string) *end {
	at, err := netip.ParseAddrPort(addr)
	w.mu.Lock()
	defer w.mu.Unlock()
	if e := w.ends[at]; err == nil && e != nil && !w.dark[from.Addr()] && !w.dark[at.Addr()] {
		return e
	}
	return nil
}

// FinalAdvertiseAddr implements memberlist.Transport.
func (e *end) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return e.at.Addr().AsSlice(), int(e.at.Port()), nil
}

// WriteTo implements memberlist.Transport.
func (e *end) WriteTo(b []byte, addr string) (time.Time, error) {
	now := time.Now()
	if to := e.wire.to(e.at, addr); to != nil {
		select {
		case to.packets <- &memberlist.Packet{Buf: append([]byte(nil), b...), From: net.UDPAddrFromAddrPort(e.at), Timestamp: now}:
		default: // as UDP does
		}
	}
	return now, nil
}

// PacketCh implements memberlist.Transport.
func (e *end) PacketCh() <-chan *memberlist.Packet { return e.packets }

// DialTimeout implements memberlist.Transport.
func (e *end) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	to := e.wire.to(e.at, addr)
	if to == nil {
		time.Sleep(timeout)
		return nil, errors.New("no route")
	}
	here, there := net.Pipe()
	select {
	case to.streams <- there:
		return here, nil
	case <-to.closed:
	}
	return nil, errors.New("refused")
}

// StreamCh implements memberlist.Transport.
func (e *end) StreamCh() <-chan net.Conn { return e.streams }

// Shutdown implements memberlist.Transport.
func (e *end) Shutdown() error {
	e.once.Do(func() {
		e.wire.mu.Lock()
		if e.wire.ends[e.at] == e {
			delete(e.wire.ends, e.at)
		}
		e.wire.mu.Unlock()
		close(e.closed)
	})
	return nil
}
