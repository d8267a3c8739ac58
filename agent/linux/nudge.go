package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/tombolo-mesh/tombolo/bpf"
)

// nudge makes the clients of marked flows send something, which is then answered by
// a reset: who waits for an answer would else wait until its own timeouts, and most
// have none. A TCP stack answers a segment outside its window by one that says what
// it expects (RFC 9293, 3.10.7.4). Nobody here knows the window: of two segments
// half the space of sequence numbers apart one lies outside.
//
// To pods of this node past the programs on their link; to clients outside as the
// node would send it. In the node's network namespace.
func nudge(marked map[bpf.FlowKey]bpf.Flow, endpoints *ebpf.Map) error {
	n := nudger{}
	defer n.close()
	var errs []error
	for k, f := range marked {
		if k.Proto != protoTCP || f.Flags&bpf.FlowAnswered == 0 {
			continue
		}
		if err := n.send(k, f, endpoints); err != nil {
			errs = append(errs, err)
			break // the others would fare no better
		}
	}
	return errors.Join(errs...)
}

// nudger keeps its sockets, by address family; AF_PACKET for pods.
type nudger map[int]int

func (n nudger) close() {
	for _, fd := range n {
		unix.Close(fd)
	}
}

func (n nudger) socket(family int) (int, error) {
	if fd, ok := n[family]; ok {
		return fd, nil
	}
	protocol := unix.IPPROTO_RAW // the IP header is ours
	if family == unix.AF_PACKET {
		protocol = 0 // nothing is received
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return 0, fmt.Errorf("open a raw socket: %w", err)
	}
	n[family] = fd
	if family == unix.AF_PACKET {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1); err != nil {
			return 0, fmt.Errorf("set a packet socket up: %w", err)
		}
	}
	return fd, nil
}

func (n nudger) send(k bpf.FlowKey, f bpf.Flow, endpoints *ebpf.Map) error {
	client, called, port := ends(k, f)
	from := netip.AddrPortFrom(netip.AddrFrom16(called).Unmap(), port)
	to := netip.AddrPortFrom(netip.AddrFrom16(client).Unmap(), swap(k.Aport))
	if f.Flags&bpf.FlowFromA == 0 {
		to = netip.AddrPortFrom(to.Addr(), swap(k.Bport))
	}
	family, sa := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Addr: [4]byte(to.Addr().AsSlice()[:4])})
	if to.Addr().Is6() {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Addr: to.Addr().As16()}
	}
	var header []byte
	var pod bpf.Endpoint
	switch err := endpoints.Lookup(bpf.Addr{B: client}, &pod); {
	case err == nil && pod.Ifindex != 0:
		proto := uint16(unix.ETH_P_IP)
		if to.Addr().Is6() {
			proto = unix.ETH_P_IPV6
		}
		header = binary.BigEndian.AppendUint16(append(append(header, pod.PodMac[:]...), pod.HostMac[:]...), proto)
		family, sa = unix.AF_PACKET, &unix.SockaddrLinklayer{Ifindex: int(pod.Ifindex), Protocol: swap(proto)}
	case f.Flags&bpf.FlowOutside == 0:
		return nil // it was a pod of this node, and is gone
	}
	fd, err := n.socket(family)
	if err != nil {
		return err
	}
	for _, seq := range []uint32{0, 1 << 31} {
		err := unix.Sendto(fd, append(header[:len(header):len(header)], segment(from, to, seq)...), 0, sa)
		switch {
		case err == nil, errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENETDOWN):
			// or the pod is on its way out
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EPERM):
			// this one is told when it says something
		default:
			return fmt.Errorf("tell %s that what it reached by %s is gone: %w", to, from, err)
		}
	}
	return nil
}

// segment is an IP packet with an empty TCP segment that acknowledges nothing new.
func segment(from, to netip.AddrPort, seq uint32) []byte {
	tcp := binary.BigEndian.AppendUint16(nil, from.Port())
	tcp = binary.BigEndian.AppendUint16(tcp, to.Port())
	tcp = binary.BigEndian.AppendUint32(tcp, seq)
	tcp = append(tcp, 0, 0, 0, 0, 5<<4, 1<<4, 0, 0, 0, 0, 0, 0) // ACK
	pseudo := append(from.Addr().AsSlice(), to.Addr().AsSlice()...)
	pseudo = append(pseudo, 0, protoTCP, 0, byte(len(tcp)))
	binary.BigEndian.PutUint16(tcp[16:], internetSum(append(pseudo, tcp...)))
	if from.Addr().Is6() {
		ip := append([]byte{6 << 4, 0, 0, 0, 0, byte(len(tcp)), protoTCP, 64}, from.Addr().AsSlice()...)
		return append(append(ip, to.Addr().AsSlice()...), tcp...)
	}
	ip := append([]byte{4<<4 | 5, 0, 0, byte(20 + len(tcp)), 0, 0, 0x40, 0, 64, protoTCP, 0, 0}, from.Addr().AsSlice()...)
	ip = append(ip, to.Addr().AsSlice()...)
	binary.BigEndian.PutUint16(ip[10:], internetSum(ip))
	return append(ip, tcp...)
}

// internetSum is the checksum of IP and TCP over an even number of bytes.
func internetSum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
