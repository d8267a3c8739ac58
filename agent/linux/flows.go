package linux

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/tombolo-mesh/tombolo/bpf"
	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// FlowTimeouts say how long a flow without packets is remembered. A timeout that
// is too short costs a look at policy with the next packet of a plain flow, and
// breaks a translated one; one that is too long costs a row.
type FlowTimeouts struct {
	Opening time.Duration // TCP and SCTP: no answer yet
	Open    time.Duration // TCP and SCTP: answered
	Closing time.Duration // TCP: one side has sent its last byte
	Closed  time.Duration // TCP: both have, or one has reset it
	Asked   time.Duration // UDP, ICMP and all others: no answer yet
	Talking time.Duration // and answered
}

// DefaultFlowTimeouts are at least what the RFCs ask of a translator: 2 h 4 min
// for TCP that is open and 4 min for what is opening or closing (RFC 5382, REQ-5),
// 2 min for UDP (RFC 4787, REQ-5), 60 s for ICMP queries (RFC 5508, REQ-1).
var DefaultFlowTimeouts = FlowTimeouts{
	Opening: 4 * time.Minute, Open: 2*time.Hour + 4*time.Minute, Closing: 4 * time.Minute, Closed: 10 * time.Second,
	Asked: 60 * time.Second, Talking: 2 * time.Minute,
}

const (
	protoTCP  = unix.IPPROTO_TCP
	protoSCTP = unix.IPPROTO_SCTP
)

// of is the timeout of a flow in its present state.
func (t FlowTimeouts) of(k bpf.FlowKey, f bpf.Flow) time.Duration {
	answered := f.Flags&bpf.FlowAnswered != 0
	switch {
	case f.Flags&bpf.FlowGone != 0 && f.Flags&bpf.FlowReply != 0 && k.Proto != protoTCP:
		return t.Closed // datagrams that went to another backend
	case k.Proto != protoTCP && k.Proto != protoSCTP:
		if answered {
			return t.Talking
		}
		return t.Asked
	case f.Flags&bpf.FlowReset != 0, f.Flags&bpf.FlowFinA != 0 && f.Flags&bpf.FlowFinB != 0:
		return t.Closed
	case f.Flags&(bpf.FlowFinA|bpf.FlowFinB|bpf.FlowGone) != 0:
		return t.Closing
	case answered:
		return t.Open
	}
	return t.Opening
}

// partner is the other row of a translated flow: by the addresses after
// translation for the opener's row, by those before it for the answers' one. ok
// is false for a flow that is not translated.
func partner(k bpf.FlowKey, f bpf.Flow) (other bpf.FlowKey, ok bool) {
	if f.Flags&(bpf.FlowToSrc|bpf.FlowToDst) == 0 {
		return bpf.FlowKey{}, false
	}
	src, sport, dst, dport := k.A, k.Aport, k.B, k.Bport
	if f.Flags&bpf.FlowFromA == 0 {
		src, sport, dst, dport = dst, dport, src, sport
	}
	if f.Flags&bpf.FlowReply != 0 { // what is sent back: from dst to src
		src, sport, dst, dport = dst, dport, src, sport
	}
	if f.Flags&bpf.FlowToSrc != 0 {
		src, sport = f.ToSrc, f.SrcPort
	}
	if f.Flags&bpf.FlowToDst != 0 {
		dst, dport = f.ToDst, f.DstPort
	}
	return flowKey(src, sport, dst, dport, k.Proto), true
}

// flowKey is the key of a flow between two ends: the lower one first, by address
// and then by port, both as bytes.
func flowKey(src bpf.Addr, sport uint16, dst bpf.Addr, dport uint16, proto uint8) bpf.FlowKey {
	if compareEnds(src, sport, dst, dport) > 0 {
		src, sport, dst, dport = dst, dport, src, sport
	}
	return bpf.FlowKey{A: src, B: dst, Aport: sport, Bport: dport, Proto: proto}
}

func compareEnds(a bpf.Addr, aport uint16, b bpf.Addr, bport uint16) int {
	for i := range a.B {
		if a.B[i] != b.B[i] {
			return int(a.B[i]) - int(b.B[i])
		}
	}
	return int(swap(aport)) - int(swap(bport))
}

// FlowCount is what a sweep found.
type FlowCount struct {
	Rows    int    `json:"rows"`    // that are left
	Size    int    `json:"size"`    // that there is room for
	Expired uint64 `json:"expired"` // since the start of this process
}

// nearlyFull is when somebody should know, in percent.
const nearlyFull = 90

// Problem says that flows that are alive may be pushed out. ok = there is none.
func (c FlowCount) Problem() (p clustermesh.Problem, ok bool) {
	if c.Size == 0 || c.Rows*100 < c.Size*nearlyFull {
		return p, true
	}
	return clustermesh.Problem{
		What: fmt.Sprintf("conntrack is nearly full: %d of %d rows", c.Rows, c.Size),
		Why:  "when it is full, the flows that were silent the longest are pushed out: translated ones break, plain ones are judged anew",
		Fix:  fmt.Sprintf("start the agent with --map-size flows=%d or more, or find out who opens that many connections (tombolo flows)", 2*c.Size),
	}, false
}

// Sweeper takes flows out of conntrack that have seen no packet for their
// timeout. Programs put rows in; when there is no room they push out the least
// recently used ones, which may be alive: so a row that is over must not wait
// for that.
type Sweeper struct {
	flows    *ebpf.Map
	timeouts FlowTimeouts

	mu    sync.Mutex
	count FlowCount
}

// NewSweeper sweeps the flows of maps.
func NewSweeper(maps *bpf.Maps, timeouts FlowTimeouts) *Sweeper {
	return &Sweeper{flows: maps.Flows, timeouts: timeouts, count: FlowCount{Size: int(maps.Flows.MaxEntries())}}
}

// Count is what the last sweep found. It may be called from any goroutine.
func (s *Sweeper) Count() FlowCount {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

// sweepEvery is as often as the shortest timeout asks for.
const sweepEvery = 10 * time.Second

// Run sweeps until ctx ends.
func (s *Sweeper) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		if err := s.Sweep(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Sweep does it once.
func (s *Sweeper) Sweep() error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return fmt.Errorf("read the clock: %w", err)
	}
	return s.sweep(uint64(now.Nano()))
}

// sweep takes out what is over at now, in nanoseconds since boot as programs
// count them. A row of a translated flow stays as long as the other row of the
// flow is in use: packets may go one way for long.
func (s *Sweeper) sweep(now uint64) error {
	rows, over, err := s.read(now)
	if err != nil {
		return err
	}
	gone := make([]bpf.FlowKey, 0, len(over))
	for k, f := range over {
		if other, ok := partner(k, f); ok && !s.over(other, k, over, now) {
			continue
		}
		gone = append(gone, k)
	}
	deleted := 0
	for _, k := range gone {
		// A packet may have come since: then the row is in use again.
		var f bpf.Flow
		if s.flows.Lookup(k, &f) == nil && !s.isOver(k, f, now) {
			continue
		}
		err := s.flows.Delete(k)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("delete a flow: %w", err)
		}
		deleted++
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count.Rows, s.count.Expired = rows-deleted, s.count.Expired+uint64(deleted)
	return nil
}

// over tells whether a row is not there, is not that of the same flow as row of, or
// was found to be over: a flow may have been given another backend since.
func (s *Sweeper) over(k, of bpf.FlowKey, over map[bpf.FlowKey]bpf.Flow, now uint64) bool {
	if _, ok := over[k]; ok {
		return true
	}
	var f bpf.Flow
	if s.flows.Lookup(k, &f) != nil {
		return true
	}
	if back, ok := partner(k, f); !ok || back != of {
		return true
	}
	return s.isOver(k, f, now)
}

func (s *Sweeper) isOver(k bpf.FlowKey, f bpf.Flow, now uint64) bool {
	// Programs write seen once in a while, and may have done so after now was read.
	return now > f.Seen && time.Duration(now-f.Seen) > s.timeouts.of(k, f)
}

// read counts all rows and returns those that are over.
func (s *Sweeper) read(now uint64) (rows int, over map[bpf.FlowKey]bpf.Flow, err error) {
	over = map[bpf.FlowKey]bpf.Flow{}
	err = eachFlow(s.flows, func(k bpf.FlowKey, f bpf.Flow) {
		rows++
		if s.isOver(k, f, now) {
			over[k] = f
		}
	})
	return rows, over, err
}

// eachFlow gives all rows to f. Programs write meanwhile: a row that moves may be
// seen twice or not at all, this time.
func eachFlow(m *ebpf.Map, f func(bpf.FlowKey, bpf.Flow)) error {
	var cursor ebpf.MapBatchCursor
	size := min(batchRows, int(m.MaxEntries()))
	keys, flows := make([]bpf.FlowKey, size), make([]bpf.Flow, size)
	for {
		n, err := m.BatchLookup(&cursor, keys, flows, nil)
		for i := range n {
			f(keys[i], flows[i])
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read flows: %w", err)
		}
	}
}
