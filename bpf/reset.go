package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ResetSockets ends the TCP and connected UDP sockets of the calling thread's
// network namespace that talk to a backend which is gone, and says how many: their
// owners get an error and connect anew, to another backend. A connected UDP socket
// passes no hook of ours when it sends, so it would go on talking to nobody.
//
// By bpf_sock_destroy (6.5); where the kernel has none, by netlink, which some
// kernels are built without: that is an error that errors.Is
// errors.ErrUnsupported.
func ResetSockets(proto uint8, backend netip.AddrPort) (int, error) {
	if proto != unix.IPPROTO_TCP && proto != unix.IPPROTO_UDP {
		return 0, fmt.Errorf("end sockets of protocol %d: only TCP and UDP have connections to end", proto)
	}
	r, err := loadedReset()
	if err != nil {
		return resetByNetlink(proto, backend)
	}
	return r.run(proto, backend)
}

// resetter is reset.c, loaded once: the backend is a variable.
type resetter struct {
	mu   sync.Mutex
	coll *ebpf.Collection
	gone *ebpf.Variable
}

// loadedReset's error says why the kernel does not take reset.c.
var loadedReset = sync.OnceValues(func() (*resetter, error) {
	spec, err := loadReset()
	if err != nil {
		return nil, err
	}
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, err
	}
	return &resetter{coll: coll, gone: coll.Variables["tmb_gone"]}, nil
})

func (r *resetter) run(proto uint8, backend netip.AddrPort) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var row struct {
		Addr  [16]byte
		Port  [2]byte
		_     uint16
		Ended uint32
	}
	row.Addr = backend.Addr().As16()
	row.Port = [2]byte{byte(backend.Port() >> 8), byte(backend.Port())}
	if err := r.gone.Set(&row); err != nil {
		return 0, fmt.Errorf("set the backend: %w", err)
	}
	prog := r.coll.Programs["tmb_reset_tcp"]
	if proto == unix.IPPROTO_UDP {
		prog = r.coll.Programs["tmb_reset_udp"]
	}
	it, err := link.AttachIter(link.IterOptions{Program: prog})
	if err != nil {
		return 0, fmt.Errorf("attach iterator: %w", err)
	}
	defer it.Close()
	sockets, err := it.Open()
	if err != nil {
		return 0, fmt.Errorf("open iterator: %w", err)
	}
	defer sockets.Close()
	if _, err := io.Copy(io.Discard, sockets); err != nil {
		return 0, fmt.Errorf("walk sockets: %w", err)
	}
	if err := r.gone.Get(&row); err != nil {
		return 0, err
	}
	return int(row.Ended), nil
}

// resetByNetlink lists the sockets and ends one by one those of the backend.
func resetByNetlink(proto uint8, backend netip.AddrPort) (int, error) {
	list := netlink.SocketDiagTCP
	if proto == unix.IPPROTO_UDP {
		list = netlink.SocketDiagUDP
	}
	ended := 0
	var errs []error
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		sockets, err := list(family)
		if err != nil {
			return ended, fmt.Errorf("list sockets: %w", err)
		}
		for _, s := range sockets {
			to, ok := netip.AddrFromSlice(s.ID.Destination)
			if !ok || s.ID.DestinationPort != backend.Port() || to.Unmap() != backend.Addr().Unmap() {
				continue
			}
			err := destroySocket(family, proto, s.ID)
			switch {
			case err == nil:
				ended++
			case errors.Is(err, unix.EOPNOTSUPP):
				return ended, fmt.Errorf("the kernel cannot end sockets (before 6.5, and built without INET_DIAG_DESTROY): %w", errors.ErrUnsupported)
			case !errors.Is(err, unix.ENOENT): // it ended by itself
				errs = append(errs, fmt.Errorf("end socket: %w", err))
			}
		}
	}
	return ended, errors.Join(errs...)
}

// destroySocket is SOCK_DESTROY for one socket: struct inet_diag_req_v2. (The
// library's own does TCP over IPv4 alone.)
func destroySocket(family, proto uint8, id netlink.SocketID) error {
	b := make([]byte, 8, 56)
	b[0], b[1] = family, proto
	binary.NativeEndian.PutUint32(b[4:], ^uint32(0)) // any state
	b = binary.BigEndian.AppendUint16(b, id.SourcePort)
	b = binary.BigEndian.AppendUint16(b, id.DestinationPort)
	for _, ip := range []net.IP{id.Source, id.Destination} {
		var a [16]byte
		if family == unix.AF_INET {
			copy(a[:], ip.To4())
		} else {
			copy(a[:], ip.To16())
		}
		b = append(b, a[:]...)
	}
	b = binary.NativeEndian.AppendUint32(b, id.Interface)
	b = binary.NativeEndian.AppendUint32(b, id.Cookie[0])
	b = binary.NativeEndian.AppendUint32(b, id.Cookie[1])
	req := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
	req.AddRawData(b)
	_, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
	return err
}
