package lab

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/tombolo-mesh/tombolo/test/lab/fault"
)

// Fault is what happens to the packets of the underlay that it matches. Zero
// fields match anything. Faults act where a host's packets enter the underlay.
type Fault struct {
	From, To  string // a cluster, or one of its nodes ("aws/n1"); "" = any
	Proto     uint8  // IP protocol of the underlay packet: 17 for tunnels, 6 for the mesh port
	Port      uint16 // at either end
	Loss      float64
	Duplicate float64
	Seed      uint32 // replays the same losses for the same packets
}

const maxRules = 16

// faults are the loaded program, its rules, and where it is attached.
type faults struct {
	lab   *Lab
	objs  fault.FaultObjects
	links []link.Link
	used  [maxRules]bool
}

func newFaults(l *Lab) (*faults, error) {
	f := &faults{lab: l}
	if err := fault.LoadFaultObjects(&f.objs, nil); err != nil {
		return nil, fmt.Errorf("load fault program: %w", err)
	}
	return f, nil
}

func (f *faults) close() {
	if f == nil {
		return
	}
	for _, l := range f.links {
		l.Close()
	}
	f.objs.Close()
}

// attach puts the program on a port of the underlay.
func (f *faults) attach(port string) error {
	return f.lab.under.in(func() error {
		dev, err := netlink.LinkByName(port)
		if err != nil {
			return err
		}
		l, err := link.AttachTCX(link.TCXOptions{Interface: dev.Attrs().Index, Program: f.objs.Fault, Attach: ebpf.AttachTCXIngress})
		if err != nil {
			return fmt.Errorf("attach faults to %s: %w", port, err)
		}
		f.links = append(f.links, l)
		return nil
	})
}

// Inject puts a fault in force until heal is called. Where a cluster has two
// address families, both are hit.
func (l *Lab) Inject(ft Fault) (heal func() error, err error) {
	var slots []uint32
	heal = func() error {
		var errs []error
		for _, i := range slots {
			errs = append(errs, l.faults.objs.Rules.Put(i, fault.FaultRule{}))
			l.faults.used[i] = false
		}
		slots = nil
		return errors.Join(errs...)
	}
	for family := range 2 {
		rule := fault.FaultRule{Port: ft.Port, Proto: ft.Proto, Active: 1, Seed: ft.Seed,
			Loss: share(ft.Loss), Dup: share(ft.Duplicate)}
		for _, end := range []struct {
			name      string
			net, mask *[16]uint8
		}{{ft.From, &rule.Src, &rule.SrcMask}, {ft.To, &rule.Dst, &rule.DstMask}} {
			if end.name == "" {
				continue
			}
			at, err := l.places(end.name)
			if err != nil {
				return nil, errors.Join(err, heal())
			}
			*end.net, *end.mask = netAndMask(at[family])
		}
		i, err := l.faults.free()
		if err != nil {
			return nil, errors.Join(err, heal())
		}
		if err := l.faults.objs.Rules.Put(i, rule); err != nil {
			return nil, errors.Join(fmt.Errorf("set fault: %w", err), heal())
		}
		slots = append(slots, i)
	}
	return heal, nil
}

// places are where the machines of a cluster are, or one node of it: IPv4, IPv6.
func (l *Lab) places(name string) (at [2]netip.Prefix, err error) {
	cluster, node, one := strings.Cut(name, "/")
	c := l.Cluster(cluster)
	if c == nil {
		return at, fmt.Errorf("no cluster %q in this lab", cluster)
	}
	if !one {
		at[0], at[1] = underlayPrefixes(c.ID)
		return at, nil
	}
	for _, n := range c.Nodes {
		if n.Name == node {
			return [2]netip.Prefix{netip.PrefixFrom(n.Underlay(), 32), netip.PrefixFrom(n.Underlay6(), 128)}, nil
		}
	}
	return at, fmt.Errorf("no node %q in cluster %s", node, cluster)
}

// Partition cuts two clusters, or nodes of theirs, off each other, both ways.
func (l *Lab) Partition(a, b string) (heal func() error, err error) {
	there, err := l.Inject(Fault{From: a, To: b, Loss: 1})
	if err != nil {
		return nil, err
	}
	back, err := l.Inject(Fault{From: b, To: a, Loss: 1})
	if err != nil {
		return nil, errors.Join(err, there())
	}
	return func() error { return errors.Join(there(), back()) }, nil
}

func (f *faults) free() (uint32, error) {
	for i := range f.used {
		if !f.used[i] {
			f.used[i] = true
			return uint32(i), nil
		}
	}
	return 0, fmt.Errorf("more than %d faults at once (each takes two rules)", maxRules/2)
}

// share is p as a fraction of 2^32-1.
func share(p float64) uint32 { return uint32(min(1, max(0, p)) * math.MaxUint32) }

func netAndMask(p netip.Prefix) (net, mask [16]uint8) {
	net = p.Masked().Addr().As16()
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	for i := range bits {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return net, mask
}
