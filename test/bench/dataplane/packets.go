package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/test/bench/stats"
)

// packetFigures are nanoseconds per packet of pod.c on one kind of packet, run by
// run, each beside the empty program of the same moment. The same rows and cache
// lines are hit each time: real traffic is dearer.
type packetFigures struct {
	Kind            string
	Services, Rules int
	NS, Empty       []float64
	Ratio           []float64
}

// packetKind is a kind of packet: which pod sends it, and whether each is the
// first of its flow.
type packetKind struct {
	name       string
	fromServer bool
	service    bool
	first      bool
	ports      uint16 // the first source port, or that of the flow
}

// Source ports are out of each other's way, and of other traffic's.
var packetKinds = []packetKind{
	{name: "established, pod to pod", ports: 64_001},
	{name: "established, to a service", service: true, ports: 64_002},
	{name: "established, its answer", service: true, fromServer: true, ports: 64_002},
	{name: "first packet, pod to pod", first: true, ports: 42_000},
	{name: "first packet, to a service", service: true, first: true, ports: 20_000},
}

const (
	establishedPackets = 200_000 // of one measurement
	firstPackets       = 4_000
	mostFirstRuns      = 5 // as many fit between the source ports
)

// packets runs the programs that are attached to the pods' links on packets of
// our own.
func (r *runner) packets(ctx context.Context) error {
	var bodies []*testRuns
	defer func() {
		for _, b := range bodies {
			b.close()
		}
	}()
	for _, v := range r.opts.variants() {
		if v.Way != packet {
			continue
		}
		b, err := r.prepare(ctx, v)
		if err != nil {
			return err
		}
		bodies = append(bodies, b)
		for _, k := range packetKinds {
			r.out.Packets = append(r.out.Packets, packetFigures{Kind: k.name, Services: v.Services, Rules: v.Rules})
		}
	}
	for run := range r.opts.runs {
		progress("packets, run %d of %d, load average %s", run+1, r.opts.runs, load())
		for i, b := range bodies {
			if err := b.measure(r.out.Packets[i*len(packetKinds):], run); err != nil {
				return fmt.Errorf("%s, %d services, %d rules: %w", b.variant, b.Services, b.Rules, err)
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}
	return nil
}

// testRuns is a lane whose programs are run on packets.
type testRuns struct {
	*lane
	fromClient, fromServer *ebpf.Program
	cpu                    int
	replays                []*replay
	frames                 [][]byte
}

func (r *runner) prepare(ctx context.Context, v variant) (*testRuns, error) {
	l, err := r.build(ctx, v)
	if err != nil {
		return nil, err
	}
	b := &testRuns{lane: l, cpu: r.opts.cpu}
	if err := b.make(); err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

func (b *testRuns) make() (err error) {
	if b.fromClient, err = b.attached(b.clientPod); err != nil {
		return err
	}
	if b.fromServer, err = b.attached(b.serverPod); err != nil {
		return err
	}
	// The kernel gives test runs the loopback device: both pods are behind it now.
	b.clientPod.IfIndex, b.serverPod.IfIndex = 1, 1
	if err := putPods(b.tables, b.world, b.Rules); err != nil {
		return err
	}
	for _, k := range packetKinds {
		f := b.frame(k, ack)
		if k.first {
			f = b.frame(k, syn)
		}
		one, err := newReplay(f, k.first)
		if err != nil {
			return err
		}
		b.frames, b.replays = append(b.frames, f), append(b.replays, one)
	}
	return b.node.in(b.establish)
}

// attached is the program that sees what a pod sends.
func (b *testRuns) attached(p agent.LocalPod) (*ebpf.Program, error) {
	l, err := link.LoadPinnedLink(filepath.Join(b.pins, fmt.Sprintf("tmb_from_pod_%d", p.IfIndex)), nil)
	if err != nil {
		return nil, fmt.Errorf("the program of a pod's link: %w", err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return nil, err
	}
	return ebpf.NewProgramFromID(info.Program)
}

// establish opens the flows that established packets belong to.
func (b *testRuns) establish() error {
	for _, k := range packetKinds {
		if k.first || k.fromServer {
			continue
		}
		back := k
		back.fromServer = true
		for _, step := range []struct {
			k     packetKind
			flags byte
		}{{k, syn}, {back, syn | ack}, {k, ack}} {
			verdict, _, err := b.program(step.k).Test(b.frame(step.k, step.flags))
			if err == nil && verdict != verdictRedirect {
				err = fmt.Errorf("verdict %d, not delivered", int32(verdict))
			}
			if err != nil {
				return fmt.Errorf("open a flow, %s, flags %d: %w", step.k.name, step.flags, err)
			}
		}
	}
	return nil
}

func (b *testRuns) program(k packetKind) *ebpf.Program {
	if k.fromServer {
		return b.fromServer
	}
	return b.fromClient
}

// frame is a packet of the kind as its sender makes it.
func (b *testRuns) frame(k packetKind, flags byte) []byte {
	from, to := netip.AddrPortFrom(b.clientPod.Addresses[0], k.ports), b.backend()
	if k.fromServer {
		return frame(to, from, flags)
	}
	if k.service {
		to = b.targets[0]
	}
	return frame(from, to, flags)
}

// measure adds one run's figures of all kinds.
func (b *testRuns) measure(into []packetFigures, run int) error {
	return b.node.in(func() error {
		if err := runFirst(b.cpu); err != nil {
			return err
		}
		for i, k := range packetKinds {
			repeat := establishedPackets
			if k.first {
				if repeat = firstPackets; run >= mostFirstRuns {
					continue
				}
			}
			each, empty, err := b.replays[i].each(b.program(k), b.frames[i], repeat, verdictRedirect)
			if err != nil {
				return fmt.Errorf("%s: %w", k.name, err)
			}
			f := &into[i]
			f.NS, f.Empty = append(f.NS, each), append(f.Empty, empty)
			f.Ratio = append(f.Ratio, each/empty)
		}
		return nil
	})
}

func (b *testRuns) close() {
	for _, r := range b.replays {
		r.close()
	}
	for _, p := range []*ebpf.Program{b.fromClient, b.fromServer} {
		if p != nil {
			p.Close()
		}
	}
	b.lane.close()
}

func printPackets(w io.Writer, all []packetFigures) {
	rows := [][]string{{"pod.c", "services", "rules", "ns a packet", "empty program", "to empty"}}
	for _, k := range packetKinds {
		for _, f := range all {
			if f.Kind == k.name {
				rows = append(rows, []string{k.name, count(f.Services), count(f.Rules), spread(f.NS), spread(f.Empty), "×" + spread(f.Ratio)})
			}
		}
	}
	fmt.Fprint(w, "\n## Per packet, by BPF_PROG_TEST_RUN\n\n")
	markdown(w, rows)
}

// packetLimit is what an established flow may cost, in empty programs.
const packetLimit = 5

func packetAims(all []packetFigures) []aim {
	var worst *packetFigures
	for i, f := range all {
		if isEstablished(f.Kind) && (worst == nil || stats.Median(f.Ratio) > stats.Median(worst.Ratio)) {
			worst = &all[i]
		}
	}
	if worst == nil {
		return nil
	}
	r := stats.Median(worst.Ratio)
	return []aim{{fmt.Sprintf("a packet of an established flow: at most %d empty programs", packetLimit),
		fmt.Sprintf("%.2f: %s, %s services, %s rules", r, worst.Kind, count(worst.Services), count(worst.Rules)), r <= packetLimit}}
}

func isEstablished(name string) bool {
	for _, k := range packetKinds {
		if k.name == name {
			return !k.first
		}
	}
	return false
}
