package linux

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/bpf"
)

const (
	eventsAtOnce = 4096
	// eventsPause is how long events gather before they are read. Not only does
	// one pass then serve many: while events wait that nobody has read, programs
	// that add one wake nobody up.
	eventsPause = 25 * time.Millisecond
)

// ReadEvents reads the ring of events until ctx ends, and gives them to tell in
// order. One process can read it at a time; what is read is gone. tell's slice is
// used again. While tell takes long, the ring fills, and the programs count what
// they find no room for (event_lost).
func ReadEvents(ctx context.Context, ring *ebpf.Map, tell func(context.Context, []agent.FlowEvent) error) error {
	r, err := ringbuf.NewReader(ring)
	if err != nil {
		return fmt.Errorf("read the ring of events: %w", err)
	}
	defer r.Close()
	stop := context.AfterFunc(ctx, func() { r.Close() })
	defer stop()
	var rec ringbuf.Record
	events := make([]agent.FlowEvent, 0, eventsAtOnce)
	for {
		r.SetDeadline(time.Time{})
		err := r.ReadInto(&rec) // the first one is waited for
		boot := bootTime()
		for err == nil {
			if e, ok := flowEvent(rec.RawSample, boot); ok {
				events = append(events, e)
			}
			if len(events) == cap(events) {
				break
			}
			r.SetDeadline(time.Unix(1, 0)) // the others are there, or not
			err = r.ReadInto(&rec)
		}
		switch {
		case errors.Is(err, ringbuf.ErrClosed):
			return nil
		case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("read the ring of events: %w", err)
		}
		if err := tell(ctx, events); err != nil && ctx.Err() != nil {
			return nil
		}
		events = events[:0]
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(eventsPause):
		}
	}
}

// bootTime is the time of day at the kernel's zero. It is asked for with every
// batch: the clock may be set.
func bootTime() time.Time {
	var since unix.Timespec
	wall := time.Now().Round(0)
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &since); err != nil {
		return wall // every Linux has that clock
	}
	return wall.Add(-time.Duration(since.Nano()))
}

// flowEvent takes a record apart; false: it is none of this version.
func flowEvent(raw []byte, boot time.Time) (agent.FlowEvent, bool) {
	var e bpf.Event
	if len(raw) < int(unsafe.Sizeof(e)) {
		return agent.FlowEvent{}, false
	}
	// The rows of the kernel and of Go have one layout (bpf2go made the one of the
	// other), and any bytes are a valid one.
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&e)), unsafe.Sizeof(e)), raw)
	return agent.FlowEvent{
		Time: boot.Add(time.Duration(e.Time)), Verdict: flowVerdict(e.Kind), Src: fromAddr(e.Src), Dst: fromAddr(e.Dst), Backend: fromAddr(e.Backend),
		SrcPort: swap(e.Sport), DstPort: swap(e.Dport), BackendPort: swap(e.BackendPort), Proto: e.Proto,
		Reason: flowReason(e), SrcIdentity: e.SrcIdentity, DstIdentity: e.DstIdentity, Rule: e.Rule, IfIndex: e.Ifindex,
	}, true
}

// flowReason is why: programs give no reason for what they let through.
func flowReason(e bpf.Event) string {
	if e.Kind == bpf.EventNew {
		return bpf.FlowNew.String()
	}
	return bpf.Reason(e.Reason).String()
}

func flowVerdict(kind uint8) agent.FlowVerdict {
	switch kind {
	case bpf.EventDrop:
		return agent.FlowDropped
	case bpf.EventNew:
		return agent.FlowForwarded
	case bpf.EventCut:
		return agent.FlowCut
	}
	return agent.FlowVerdict(fmt.Sprintf("kind %d", kind))
}
