package judge

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/tombolo-mesh/tombolo/agent/policy"
	"github.com/tombolo-mesh/tombolo/bpf"
)

// kernel is bpf/src/policy.h in the kernel, by its test program, with maps of its
// own.
type kernel struct {
	prog                                *ebpf.Program
	rows, subjects, addresses, prefixes *ebpf.Map
}

const (
	askPolicyObject  = "../../bpf/policy_bpfel_test.o"
	askPolicyProgram = "tmb_ask_policy"
)

func newKernel(t testing.TB) *kernel {
	if os.Geteuid() != 0 {
		t.Skip("needs root: loads BPF programs")
	}
	spec, err := ebpf.LoadCollectionSpec(askPolicyObject)
	if err != nil {
		t.Fatal(err)
	}
	for name, m := range spec.Maps {
		switch name {
		case "tmb_policy_1", "tmb_subject_1", "tmb_class_1", "tmb_clsprefix_1":
		default:
			m.MaxEntries = min(m.MaxEntries, 4096) // not looked at; a ring buffer has whole pages
		}
	}
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(coll.Close)
	return &kernel{coll.Programs[askPolicyProgram], coll.Maps["tmb_policy_1"], coll.Maps["tmb_subject_1"], coll.Maps["tmb_class_1"], coll.Maps["tmb_clsprefix_1"]}
}

func swap(p uint16) uint16 { return p<<8 | p>>8 }

func bpfKey(k policy.Key) bpf.PolicyKey {
	out := bpf.PolicyKey{
		Bits:    bpf.PolicyBitsAny,
		Subject: [2]uint32{uint32(k.Subject), uint32(k.Subject >> 32)},
		Peer:    [2]uint32{uint32(k.Peer), uint32(k.Peer >> 32)},
		Dir:     uint8(k.Dir),
	}
	if k.Proto != 0 {
		out.Bits, out.Proto, out.Port = bpf.PolicyBitsProto+uint32(k.Bits), uint8(k.Proto), swap(k.Port)
	}
	return out
}

func bpfStage(s policy.Stage) bpf.Stage {
	return bpf.Stage{Rule: s.Rule, Rank: s.Rank, Verdict: uint8(s.Verdict)}
}

// write puts the tables into the maps, and returns what takes them out again.
func (k *kernel) write(t testing.TB, tables *policy.Tables) (clear func()) {
	t.Helper()
	var undo []func() error
	put := func(m *ebpf.Map, key, value any) {
		if err := m.Put(key, value); err != nil {
			t.Fatal(err)
		}
		undo = append(undo, func() error { return m.Delete(key) })
	}
	for key, row := range tables.Rows {
		put(k.rows, bpfKey(key), bpf.Policy{Admin: bpfStage(row.Admin), Base: bpfStage(row.Base), Allow: row.Allow})
	}
	for s, row := range tables.Subjects {
		put(k.subjects, uint64(s), bpf.Subject{Flags: uint32(row.Flags)})
	}
	for p, c := range tables.Classes {
		a := bpf.Addr{B: p.Addr().As16()}
		if p.IsSingleIP() {
			put(k.addresses, a, bpf.Class{Id: uint64(c)})
			continue
		}
		bits := p.Bits()
		if p.Addr().Is4() {
			bits += 96
		}
		put(k.prefixes, bpf.Prefix{Bits: uint32(bits), Addr: a}, bpf.Class{Id: uint64(c)})
	}
	return func() {
		for _, f := range undo {
			if err := f(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// kernelAsk is struct request of bpf/src/policy_test.c.
type kernelAsk struct {
	Subject  uint64
	Address  [16]byte
	Identity uint32
	Dir      uint8
	Proto    uint8
	Port     uint16
	Rule     uint32
	Reason   uint32
	Allow    uint32
	Pad      uint32
}

func (k *kernel) lookup(t testing.TB, a ask) policy.Decision {
	t.Helper()
	req := kernelAsk{Subject: uint64(a.subject), Address: a.peer.As16(), Identity: uint32(a.identity), Dir: uint8(a.dir), Proto: uint8(a.proto), Port: swap(a.port)}
	buf := bytes.NewBuffer(make([]byte, 14))
	if err := binary.Write(buf, binary.LittleEndian, req); err != nil {
		t.Fatal(err)
	}
	verdict, out, err := k.prog.Test(buf.Bytes())
	if err != nil || verdict != ^uint32(0) {
		t.Fatalf("verdict %d, %v", verdict, err)
	}
	if err := binary.Read(bytes.NewReader(out[14:]), binary.LittleEndian, &req); err != nil {
		t.Fatal(err)
	}
	return policy.Decision{Allow: req.Allow == 1, Rule: req.Rule, Reason: policy.Reason(req.Reason)}
}

// The C in the kernel answers as the Go lookup, rule and reason included, and a
// judge agrees with the verdict.
func TestKernelAgainstTwin(t *testing.T) {
	k, r := newKernel(t), random(t)
	var count tally
	reasons := map[policy.Reason]int{}
	for i := range 60 {
		w := newWorld(r, options{clusters: 1 + i%3, np: r.IntN(6), cnp: r.IntN(6)})
		o := newOurs(t, w, r)
		clear := k.write(t, o.tables)
		g := generator{Rand: r, o: options{clusters: 1 + i%3}}
		for range 60 {
			q, allowed := g.query(w), true
			for _, a := range o.asks(q) {
				got, want := k.lookup(t, a), o.tables.Lookup(a.subject, a.dir, a.identity, a.peer, a.proto, a.port)
				if got != want {
					t.Fatalf("%s, %s: C %+v, Go %+v\n%s", q, a.dir, got, want, w.text())
				}
				allowed = allowed && got.Allow
				reasons[got.Reason]++
			}
			if want := (twin{w}).allows(q); allowed != want {
				t.Fatalf("%s: C %v, judge %v\n%s", q, allowed, want, w.text())
			}
			count.add(allowed)
		}
		clear()
	}
	// A subject that is not there.
	gone := ask{subject: 0xdead, dir: policy.Egress, identity: 2, peer: netip.MustParseAddr("8.8.8.8"), proto: 6, port: 80}
	if got := k.lookup(t, gone); got.Allow || got.Reason != policy.ReasonNotLoaded {
		t.Errorf("%+v", got)
	}
	t.Logf("reasons: %v", reasons)
	count.check(t, 2000)
}
