package linux

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/bpf"
)

// Resets ends connections to backends that are gone. It is an agent.Resetter.
//
// Sockets, in the node's own network namespace and in those of its pods: a socket
// is seen only from the namespace that it is in. Their owners get an error at once.
// Flows whose packets are translated, of what has no socket here: their clients are
// told with the next packet that they send, and made to send one. So are those of
// sockets that the kernel has no means to end.
type Resets struct {
	pods *Pods
	maps *bpf.Maps
}

var _ agent.Resetter = Resets{}

// NewResets resets sockets of the node and of its pods, and the flows of maps.
func NewResets(pods *Pods, maps *bpf.Maps) Resets { return Resets{pods, maps} }

// Reset implements agent.Resetter. Sockets to a backend that did not come about by
// a service are ended as well: their end is as gone. A pod that ends meanwhile is
// no error.
func (r Resets) Reset(ctx context.Context, backends []agent.BackendKey) error {
	sockets := true // can be ended
	errs := []error{ignoreUnsupported(&sockets, inNetns(r.pods.node, func() error { return resetHere(ctx, backends) }))}
	for uid, path := range r.pods.namespaces() {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		err := ignoreUnsupported(&sockets, InNetns(path, func() error { return resetHere(ctx, backends) }))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("pod %s: %w", uid, err))
		}
	}
	marked, err := newGoneFlows(backends, !sockets).mark(r.maps.Flows)
	if err == nil && len(marked) > 0 {
		err = inNetns(r.pods.node, func() error { return nudge(marked, r.maps.Endpoints) })
	}
	return errors.Join(append(errs, err)...)
}

// ignoreUnsupported notes in can that a kernel has not the means (bpf_sock_destroy,
// or netlink's). The node's own sockets then find out by their own timeouts.
func ignoreUnsupported(can *bool, err error) error {
	if errors.Is(err, errors.ErrUnsupported) {
		*can = false
		return nil
	}
	return err
}

// resetHere does it to the sockets of the calling thread's network namespace.
func resetHere(ctx context.Context, backends []agent.BackendKey) error {
	for _, b := range backends {
		if b.Proto != unix.IPPROTO_TCP && b.Proto != unix.IPPROTO_UDP {
			continue // packets of other protocols are translated one by one
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		_, err := bpf.ResetSockets(b.Proto, netip.AddrPortFrom(b.Addr.IP(), b.Port))
		if err != nil {
			return fmt.Errorf("reset sockets to %s: %w", netip.AddrPortFrom(b.Addr.IP(), b.Port), err)
		}
	}
	return nil
}

// namespaces are the paths of the connected pods' network namespaces, by UID.
func (p *Pods) namespaces() map[string]string {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make(map[string]string, len(p.index))
	for uid := range p.index {
		if path := p.pods[uid].Netns; path != "" {
			out[uid] = path
		}
	}
	return out
}
