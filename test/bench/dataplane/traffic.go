package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file is the traffic itself. The calls are raw ones: they block the thread
// they are made on, which is what it is for, and the scheduler has no part in
// what is timed.

const (
	chunk     = 128 << 10 // of one write to a stream
	warmShare = 5         // the first fifth of a stream is not counted
	firstPort = 1025
	lastPort  = 65535
)

func call(trap, a, b, c uintptr) (int, error) {
	for {
		r, _, errno := syscall.RawSyscall(trap, a, b, c)
		if errno == 0 {
			return int(r), nil
		}
		if errno != unix.EINTR {
			return 0, errno
		}
	}
}

func rawRead(fd int, b []byte) (int, error) {
	return call(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
}

func rawWrite(fd int, b []byte) (int, error) {
	return call(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
}

func rawClose(fd int) { syscall.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

// address is a sockaddr_in.
func address(a netip.AddrPort) (sa unix.RawSockaddrInet4) {
	sa.Family, sa.Addr = unix.AF_INET, a.Addr().Unmap().As4()
	p := (*[2]byte)(unsafe.Pointer(&sa.Port))
	p[0], p[1] = byte(a.Port()>>8), byte(a.Port())
	return sa
}

// dial connects from the port; a former connection of the port may be in
// TIME_WAIT still.
func dial(port int, to *unix.RawSockaddrInet4) (int, error) {
	fd, err := call(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return 0, err
	}
	from := address(netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(port)))
	one := int32(1)
	_, _, errno := syscall.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, uintptr(unsafe.Pointer(&one)), 4, 0)
	if errno != 0 {
		err = errno
	} else if _, err = call(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&from)), unix.SizeofSockaddrInet4); err == nil {
		_, err = call(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(to)), unix.SizeofSockaddrInet4)
	}
	if err != nil {
		rawClose(fd)
		return 0, err
	}
	return fd, nil
}

// cubic, as machines differ in their default and some of those pace.
func cubic(fd int) error {
	return unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "cubic")
}

// echo writes one byte and reads one.
func echo(fd int, b []byte) error {
	if _, err := rawWrite(fd, b); err != nil {
		return err
	}
	n, err := rawRead(fd, b)
	if err == nil && n == 0 {
		return errors.New("the server hung up")
	}
	return err
}

// serve answers one connection after the other, until the process ends.
func (j job) serve(ready chan<- struct{}, bits chan<- float64) error {
	fd, err := call(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	if err := cubic(fd); err != nil {
		return err
	}
	sa := address(j.Listen)
	if _, err := call(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unix.SizeofSockaddrInet4); err != nil {
		return fmt.Errorf("bind %v: %w", j.Listen, err)
	}
	if err := unix.Listen(fd, 128); err != nil {
		return err
	}
	close(ready)
	for {
		conn, err := call(unix.SYS_ACCEPT4, uintptr(fd), 0, 0)
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		if j.Kind == stream {
			rate, err := j.drain(conn)
			if err != nil {
				return err
			}
			bits <- rate
		} else {
			answer(conn)
		}
		rawClose(conn)
	}
}

// answer echoes until the client has hung up.
func answer(conn int) {
	var b [1]byte
	for {
		if n, err := rawRead(conn, b[:]); err != nil || n == 0 {
			return
		}
		if _, err := rawWrite(conn, b[:]); err != nil {
			return
		}
	}
}

// drain reads a stream, and says how many bits a second came once it was warm.
func (j job) drain(conn int) (float64, error) {
	b := make([]byte, 2*chunk)
	var begin, counted time.Time
	total := 0
	for {
		n, err := rawRead(conn, b)
		if err != nil {
			return 0, fmt.Errorf("read: %w", err)
		}
		if n == 0 {
			return 0, errors.New("the stream ended too early")
		}
		now := time.Now()
		switch {
		case begin.IsZero():
			begin = now
		case counted.IsZero() && now.Sub(begin) >= j.For/warmShare:
			counted = now
		case !counted.IsZero():
			total += n
			if took := now.Sub(counted); took >= j.For-j.For/warmShare {
				return float64(total*8) / took.Seconds(), nil
			}
		}
	}
}

func (j job) client() (outcome, error) {
	to := make([]unix.RawSockaddrInet4, len(j.Targets))
	for i, t := range j.Targets {
		to[i] = address(t)
	}
	switch j.Kind {
	case crr:
		return j.connects(to)
	case rr:
		return j.roundTrips(&to[0])
	case stream:
		return outcome{}, j.send(&to[0])
	case reach:
		for i := range to {
			if err := once(j.port(i), &to[i]); err != nil {
				return outcome{}, fmt.Errorf("service %v: %w", j.Targets[i], err)
			}
		}
		return outcome{Count: len(to)}, nil
	}
	return outcome{}, fmt.Errorf("no traffic of the kind %q", j.Kind)
}

func (j job) port(i int) int { return firstPort + (j.FirstPort+i)%(lastPort-firstPort+1) }

func once(port int, to *unix.RawSockaddrInet4) error {
	fd, err := dial(port, to)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer rawClose(fd)
	return echo(fd, make([]byte, 1))
}

func (j job) connects(to []unix.RawSockaddrInet4) (outcome, error) {
	took := make([]time.Duration, 0, 1<<20)
	b := make([]byte, 1)
	begin := time.Now()
	last := begin
	for i := 0; last.Sub(begin) < j.For; i++ {
		fd, err := dial(j.port(i), &to[i%len(to)])
		if err != nil {
			return outcome{}, fmt.Errorf("connect %v from port %d: %w", j.Targets[i%len(to)], j.port(i), err)
		}
		if err := echo(fd, b); err != nil {
			return outcome{}, err
		}
		rawClose(fd)
		now := time.Now()
		took, last = append(took, now.Sub(last)), now
	}
	return summary(took, last.Sub(begin)), nil
}

func (j job) roundTrips(to *unix.RawSockaddrInet4) (outcome, error) {
	took := make([]time.Duration, 0, 1<<23)
	b := make([]byte, 1)
	fd, err := dial(j.port(0), to)
	if err != nil {
		return outcome{}, fmt.Errorf("connect: %w", err)
	}
	defer rawClose(fd)
	begin := time.Now()
	last := begin
	for last.Sub(begin) < j.For {
		if err := echo(fd, b); err != nil {
			return outcome{}, err
		}
		now := time.Now()
		took, last = append(took, now.Sub(last)), now
	}
	return summary(took, last.Sub(begin)), nil
}

func (j job) send(to *unix.RawSockaddrInet4) error {
	fd, err := dial(j.port(0), to)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer rawClose(fd)
	if err := cubic(fd); err != nil {
		return err
	}
	b := make([]byte, chunk)
	for { // until the server has seen enough, and hangs up
		if _, err := rawWrite(fd, b); errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
			return nil
		} else if err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
}

func summary(took []time.Duration, all time.Duration) outcome {
	slices.Sort(took)
	return outcome{PerSecond: float64(len(took)) / all.Seconds(), Count: len(took),
		P50: took[len(took)/2], P99: took[len(took)*99/100]}
}
