package lab

import (
	"bytes"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

func netnsFd(h *host) (netns.NsHandle, error) { return netns.GetFromPath(h.netnsPath()) }

// Capture counts packets on every link of the underlay, and those among them
// that hold one of the marks in clear: on their way between clusters, where none
// may, and within one, where direct routes carry them as they are.
type Capture struct {
	packets, marked, inside, missed, bytes atomic.Int64
	marks                                  [][]byte
	fd                                     int
	stop, done                             chan struct{}

	mu sync.Mutex
	to map[netip.Addr]int64 // packets by the address they were sent to
}

// Capture starts counting. Close it, or the lab does.
func (l *Lab) Capture(marks ...string) (*Capture, error) {
	c := &Capture{stop: make(chan struct{}), done: make(chan struct{}), to: map[netip.Addr]int64{}}
	for _, m := range marks {
		c.marks = append(c.marks, []byte(m))
	}
	err := l.under.in(func() (err error) {
		c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
		if err != nil {
			return err
		}
		// Short waits let Close end the reader.
		return unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000})
	})
	if err != nil {
		return nil, fmt.Errorf("capture on the underlay: %w", err)
	}
	if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20); err != nil {
		return nil, err
	}
	go c.read()
	l.closeLater(c)
	return c, nil
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

func (c *Capture) read() {
	defer close(c.done)
	buf := make([]byte, 1<<16)
	for {
		select {
		case <-c.stop:
			return
		default:
		}
		n, _, err := unix.Recvfrom(c.fd, buf, 0)
		if err != nil {
			if err != unix.EAGAIN && err != unix.EINTR && err != unix.ENETDOWN {
				return
			}
			continue
		}
		c.packets.Add(1)
		c.bytes.Add(int64(n))
		inside := c.note(buf[:n])
		for _, m := range c.marks {
			if bytes.Contains(buf[:n], m) {
				if inside {
					c.inside.Add(1)
				} else {
					c.marked.Add(1)
				}
				break
			}
		}
	}
}

// note counts a frame by its destination and says whether it stays within one
// cluster; whatever is not IP is passed over.
func (c *Capture) note(frame []byte) (inside bool) {
	const header = 14 // of Ethernet
	var from, to netip.Addr
	switch {
	case len(frame) >= header+20 && frame[12] == 0x08 && frame[13] == 0x00:
		from, to = netip.AddrFrom4([4]byte(frame[header+12:header+16])), netip.AddrFrom4([4]byte(frame[header+16:header+20]))
	case len(frame) >= header+40 && frame[12] == 0x86 && frame[13] == 0xdd:
		from, to = netip.AddrFrom16([16]byte(frame[header+8:header+24])), netip.AddrFrom16([16]byte(frame[header+24:header+40]))
	default:
		return false
	}
	c.mu.Lock()
	c.to[to]++
	c.mu.Unlock()
	return clusterOf(from) != 0 && clusterOf(from) == clusterOf(to)
}

// clusterOf says which cluster of a lab an address belongs to, be it a host's
// or a pod's; 0 = none.
func clusterOf(a netip.Addr) int {
	var id byte
	if a.Is4() {
		b := a.As4()
		if b[0] != 10 {
			return 0
		}
		id = b[1]
		if id > 100 {
			id -= 100 // an underlay address
		}
		return int(id)
	}
	b := a.As16()
	if b[0] != 0xfd {
		return 0
	}
	if id = b[3]; id == 0x64 {
		id = b[5] // an underlay address
	}
	return int(id)
}

// Inside is how many packets held a mark on their way within one cluster: proof
// that the capture would see one.
func (c *Capture) Inside() int64 { return c.inside.Load() }

// To is how many packets so far were sent to addresses within the prefixes.
func (c *Capture) To(prefixes ...netip.Prefix) (n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for addr, count := range c.to {
		for _, p := range prefixes {
			if p.Contains(addr) {
				n += count
				break
			}
		}
	}
	return n
}

// Count is packets seen so far, how many held a mark on their way between
// clusters, and how many the kernel had to drop before we could look.
func (c *Capture) Count() (packets, marked, missed int64) {
	if st, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
		c.missed.Add(int64(st.Drops)) // the kernel's counter starts anew with every read
	}
	return c.packets.Load(), c.marked.Load(), c.missed.Load()
}

// Close ends the capture. Count stays readable but for missed.
func (c *Capture) Close() error {
	select {
	case <-c.stop:
		return nil
	default:
		close(c.stop)
	}
	select {
	case <-c.done:
	case <-time.After(time.Second):
	}
	return unix.Close(c.fd)
}
