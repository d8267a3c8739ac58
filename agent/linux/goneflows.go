package linux

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/bpf"
)

// goneFlows are the backends that are gone, and whose flows are wanted.
type goneFlows struct {
	backends map[agent.BackendKey]bool
	// sockets: also what sockets were translated to, since nobody could end those.
	sockets bool
}

func newGoneFlows(backends []agent.BackendKey, sockets bool) goneFlows {
	g := goneFlows{backends: make(map[agent.BackendKey]bool, len(backends)), sockets: sockets}
	for _, b := range backends {
		g.backends[b] = true
	}
	return g
}

// leads reports whether an opener's row leads to a backend that is gone, and its
// client is to be told. Datagrams to a service need no telling: the next one goes
// to another backend.
func (g goneFlows) leads(k bpf.FlowKey, f bpf.Flow) bool {
	if f.Flags&(bpf.FlowReply|bpf.FlowGone) != 0 || k.Proto == protoTCP && !established(f) {
		return false
	}
	b := agent.BackendKey{Addr: f.ToDst.B, Port: swap(f.DstPort), Proto: k.Proto}
	switch {
	case f.Flags&bpf.FlowService != 0:
		return k.Proto == protoTCP && g.backends[b]
	case !g.sockets || f.Flags&bpf.FlowToDst != 0 || k.Proto != protoTCP && k.Proto != unix.IPPROTO_UDP:
		return false
	}
	_, b.Addr, b.Port = ends(k, f)
	return g.backends[b]
}

// established reports whether a stream's client waits for its backend: there was an
// answer, and not both ends have closed. Before and after that there is nothing to
// tell: the client's next SYN opens the flow anew by itself.
func established(f bpf.Flow) bool {
	const fins = bpf.FlowFinA | bpf.FlowFinB
	return f.Flags&bpf.FlowAnswered != 0 && f.Flags&bpf.FlowReset == 0 && f.Flags&fins != fins
}

// ends are the opener of a flow and whom it called, by an opener's row.
func ends(k bpf.FlowKey, f bpf.Flow) (opener, called [16]byte, port uint16) {
	if f.Flags&bpf.FlowFromA != 0 {
		return k.A.B, k.B.B, swap(k.Bport)
	}
	return k.B.B, k.A.B, swap(k.Aport)
}

// mark has the programs tell the clients of those flows, with the next packet of
// each, that their backend is gone. It returns the rows of the openers.
//
// A row can only be written as a whole, and the programs write it, too: what they write
// between our reading and our writing, some microseconds, or as long as this thread is
// off the processor then, is lost. Of a packet of the same connection that is its time,
// or a FIN. A connection that takes the place of this one in that time would be
// reset: as rows of streams that are open alone are marked, its client must have
// forgotten an open connection, as after a crash, and used the same port again.
func (g goneFlows) mark(flows *ebpf.Map) (marked map[bpf.FlowKey]bpf.Flow, err error) {
	marked = map[bpf.FlowKey]bpf.Flow{}
	err = eachFlow(flows, func(k bpf.FlowKey, f bpf.Flow) {
		if g.leads(k, f) {
			marked[k] = f
		}
	})
	if err != nil {
		return nil, err
	}
	for k := range marked {
		// It may have been opened anew since: reading all of them takes long.
		var f bpf.Flow
		if flows.Lookup(k, &f) != nil || !g.leads(k, f) {
			delete(marked, k)
			continue
		}
		if err := markFlow(flows, k, f); err != nil {
			return nil, err
		}
		marked[k] = f
		if other, ok := partner(k, f); ok {
			var two bpf.Flow
			if flows.Lookup(other, &two) != nil || two.Flags&bpf.FlowReply == 0 {
				continue
			}
			if err := markFlow(flows, other, two); err != nil {
				return nil, err
			}
		}
	}
	return marked, nil
}

func markFlow(flows *ebpf.Map, k bpf.FlowKey, f bpf.Flow) error {
	f.Flags |= bpf.FlowGone
	if err := flows.Update(k, &f, ebpf.UpdateExist); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("mark a flow: %w", err)
	}
	return nil
}
