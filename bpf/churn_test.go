package bpf

import (
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Rows come and go under the programs: a connection to one service never ends at
// another's backend, whatever memory the kernel gives a new row. UDP connect,
// which is the hooks and little else, so that the two meet often.
func TestChurnKeepsServicesApart(t *testing.T) {
	o, opts := load(t)
	enter(t, opts.CgroupPath)
	const services = 4
	front := func(s int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{172, 20, 1, byte(s)}), 80)
	}
	tables := func(s, n int) (Service, map[SlotKey]Slot) {
		var b []testBackend
		for i := range n {
			b = append(b, testBackend{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 9, byte(s), byte(i + 1)}), 9), uint16(i)})
		}
		return rowsOf(uint64(s+1), oneOf(b...))
	}
	for s := range services {
		svc, slots := tables(s, 8)
		for k, v := range slots {
			put(t, o.Slots, k, v)
		}
		put(t, o.Services, frontendKey(front(s), udp), svc)
	}

	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		r := rand.New(rand.NewPCG(1, 2))
		for {
			select {
			case <-stop:
				return
			default:
			}
			s := r.IntN(services)
			svc, slots := tables(s, 1+r.IntN(8))
			if r.IntN(3) == 0 {
				o.Services.Delete(frontendKey(front(s), udp))
			}
			for k := range slots {
				o.Slots.Delete(k)
			}
			for k, v := range slots {
				o.Slots.Put(k, v)
			}
			o.Services.Put(frontendKey(front(s), udp), svc)
		}
	})
	c := newClient(t, false, udp)
	unhooked := 0
	connects := 0
	for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); {
		for s := range services {
			err := c.connect(front(s))
			connects++
			if err != nil {
				unhooked++ // no slots just now, or no service and thus no route
				continue
			}
			// The real peer: the kernel's table knows it, and getsockname's route.
			peer := realPeer(t, o.Maps, c)
			if peer.Addr() == front(s).Addr() {
				unhooked++
				continue
			}
			if a := peer.Addr().As4(); a[0] != 127 || a[1] != 9 || int(a[2]) != s || peer.Port() != 9 {
				t.Fatalf("after %d connects: service %d led to %s", connects, s, peer)
			}
		}
	}
	close(stop)
	writer.Wait()
	t.Logf("%d connects, %d while the service was away", connects, unhooked)
	if unhooked == connects {
		t.Error("no connect met its service")
	}
}

// realPeer is what the socket is connected to: getpeername with the row that
// dresses it up taken away.
func realPeer(t *testing.T, m *Maps, c *client) netip.AddrPort {
	t.Helper()
	m.SocketReverse.Delete(ReverseKey{Cookie: c.cookie()})
	sa, err := unix.Getpeername(c.fd)
	if err != nil {
		t.Fatal(err)
	}
	return addrPort(sa)
}
