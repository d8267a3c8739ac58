package lab

import (
	"container/heap"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The relay: delay and reordering between clusters. The lab's kernel may have no
// netem, so packets take a detour through user space:
//
//	br-a ─► rule (iif br-a, to b) ─► table 7000 ─► relay0 (TUN) ─► wait ─► relay0 ─► table main ─► br-b
//
// Only packets between clusters match a rule, and what comes out of the TUN
// matches none, so that no packet goes round twice.
const (
	relayDevice   = "relay0"
	relayTable    = 7000
	relayPriority = 100
	// relayQueue bounds the packets that wait, as a link's buffer would.
	relayQueue = 1 << 14
)

// Delay makes every packet between clusters that exist by now wait for base plus
// a random share of jitter, both families and directions; packets overtake each
// other where their waits say so. The n-th packet always waits as long under
// the same seed. heal ends it and lets go at once of what still waits.
func (l *Lab) Delay(base, jitter time.Duration, seed uint64) (heal func() error, err error) {
	if base < 0 || jitter < 0 {
		return nil, fmt.Errorf("delay of %s and jitter of %s: neither can be negative", base, jitter)
	}
	r := &relay{base: base, jitter: jitter, random: rand.New(rand.NewPCG(seed, 0)), lab: l,
		wake: make(chan struct{}, 1), stop: make(chan struct{})}
	if err := l.under.in(r.divert); err != nil {
		return nil, errors.Join(fmt.Errorf("delay packets between clusters: %w", err), r.Close())
	}
	r.running.Go(r.read)
	r.running.Go(r.write)
	l.closeLater(r)
	return r.Close, nil
}

// relay holds the packets that wait.
type relay struct {
	lab          *Lab
	base, jitter time.Duration
	random       *rand.Rand // the reader's alone
	file         *os.File
	rules        []*netlink.Rule

	mu      sync.Mutex
	waiting packetHeap
	wake    chan struct{} // something came to wait
	stop    chan struct{}
	once    sync.Once
	err     error
	running sync.WaitGroup
}

// waitingPacket is a packet and when it goes on; number keeps equal ones in order.
type waitingPacket struct {
	due    time.Time
	number uint64
	data   []byte
}

type packetHeap []waitingPacket

func (h packetHeap) Len() int { return len(h) }
func (h packetHeap) Less(i, j int) bool {
	if !h[i].due.Equal(h[j].due) {
		return h[i].due.Before(h[j].due)
	}
	return h[i].number < h[j].number
}
func (h packetHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *packetHeap) Push(x any)   { *h = append(*h, x.(waitingPacket)) }
func (h *packetHeap) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = waitingPacket{}
	*h = old[:len(old)-1]
	return last
}

// divert makes the TUN and sends packets between clusters into it. The calling
// thread is in the underlay.
func (r *relay) divert() error {
	if err := r.openTUN(); err != nil {
		return err
	}
	// A packet comes back from a device that does not lead to its sender.
	if err := sysctls(map[string]string{"net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/" + relayDevice + "/rp_filter": "0"}); err != nil {
		return err
	}
	tun, err := netlink.LinkByName(relayDevice)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetMTU(tun, underlayMTU); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(tun); err != nil {
		return err
	}
	for _, all := range []string{"0.0.0.0/0", "::/0"} {
		_, dst, _ := net.ParseCIDR(all)
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: tun.Attrs().Index, Dst: dst, Table: relayTable, Scope: netlink.SCOPE_LINK}); err != nil {
			return fmt.Errorf("route %s into %s: %w", all, relayDevice, err)
		}
	}
	for _, from := range r.lab.clusters {
		for _, to := range r.lab.clusters {
			if from != to {
				if err := r.addRules(from, to); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (r *relay) openTUN() error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	req, err := unix.NewIfreq(relayDevice)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		unix.Close(fd)
		return fmt.Errorf("make %s (one delay at a time): %w", relayDevice, err)
	}
	r.file = os.NewFile(uintptr(fd), relayDevice)
	return nil
}

func (r *relay) addRules(from, to *Cluster) error {
	v4, v6 := underlayPrefixes(to.ID)
	for family, prefix := range map[int]netip.Prefix{netlink.FAMILY_V4: v4, netlink.FAMILY_V6: v6} {
		rule := netlink.NewRule()
		rule.Family, rule.Table, rule.Priority, rule.IifName = family, relayTable, relayPriority, from.bridge()
		rule.Dst = &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}
		if err := netlink.RuleAdd(rule); err != nil {
			return fmt.Errorf("divert %s → %s: %w", from.Name, to.Name, err)
		}
		r.rules = append(r.rules, rule)
	}
	return nil
}

// read takes packets out of the TUN and gives each its time.
func (r *relay) read() {
	buf := make([]byte, 1<<16)
	for number := uint64(0); ; number++ {
		n, err := r.file.Read(buf)
		if err != nil {
			return // closed
		}
		wait := r.base
		if r.jitter > 0 {
			wait += time.Duration(r.random.Int64N(int64(r.jitter)))
		}
		p := waitingPacket{due: time.Now().Add(wait), number: number, data: append([]byte(nil), buf[:n]...)}
		r.mu.Lock()
		if len(r.waiting) < relayQueue {
			heap.Push(&r.waiting, p)
		}
		r.mu.Unlock()
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
}

// write sends packets on when their time has come.
func (r *relay) write() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		data, wait := r.next(time.Now())
		if data != nil {
			r.file.Write(data) // what the kernel does not take is lost, as on a link
			continue
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-r.wake:
		case <-r.stop:
			return
		}
	}
}

// next is a packet whose time has come, or how long to wait for one.
func (r *relay) next(now time.Time) (data []byte, wait time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.waiting) == 0 {
		return nil, time.Hour
	}
	if wait := r.waiting[0].due.Sub(now); wait > 0 {
		return nil, wait
	}
	return heap.Pop(&r.waiting).(waitingPacket).data, 0
}

// Close lets packets go straight again. It may be called twice.
func (r *relay) Close() error {
	r.once.Do(func() {
		r.err = r.lab.under.in(func() error {
			var errs []error
			for _, rule := range r.rules {
				errs = append(errs, netlink.RuleDel(rule))
			}
			return errors.Join(errs...)
		})
		close(r.stop)
		if r.file == nil {
			return
		}
		for data, _ := r.next(time.Now().Add(time.Hour)); data != nil; data, _ = r.next(time.Now().Add(time.Hour)) {
			r.file.Write(data)
		}
		// The device goes with its file, and the routes with the device.
		r.err = errors.Join(r.err, r.file.Close())
		r.running.Wait()
	})
	return r.err
}
