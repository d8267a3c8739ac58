package bpf

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// policyAsk is struct request of src/policy_test.c. The differential test of the
// C against agent/policy is in test/judge.
type policyAsk struct {
	Subject  uint64
	Address  Addr
	Identity uint32
	Dir      uint8
	Proto    uint8
	Port     uint16 // network order
	Rule     uint32
	Reason   uint32
	Allow    uint32
	Pad      uint32
}

const (
	byNone = iota
	byAdmin
	byAllow
	byIsolation
	byBaseline
	byDefault
	byNotLoaded
)

func loadPolicyTest(t testing.TB) (*Objects, *ebpf.Program) {
	o, _ := load(t)
	spec, err := loadPolicy()
	if err != nil {
		t.Fatal(err)
	}
	coll, err := loadCollection(spec, o.Maps)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(coll.Close)
	return o, coll.Programs[policyProgTmbAskPolicy]
}

// policyKey: bits of the port (0–16), or -1 for any protocol.
func policyKey(subject, peer uint64, dir, proto uint8, p, bits int) PolicyKey {
	k := PolicyKey{Subject: [2]uint32{uint32(subject), uint32(subject >> 32)}, Peer: [2]uint32{uint32(peer), uint32(peer >> 32)}, Dir: dir}
	if bits < 0 {
		k.Bits = PolicyBitsAny
		return k
	}
	k.Bits, k.Proto, k.Port = PolicyBitsProto+uint32(bits), proto, port(p)
	return k
}

func TestPolicyVerdict(t *testing.T) {
	o, prog := loadPolicyTest(t)
	const in, out = 0, 1
	const both, open, tiers, shut = 1 << 40, 1<<40 + 1, 3, 4
	const web, db, class = 1<<20 | 5, 1<<20 | 6, PolicyPeerClass | 77
	put(t, o.Subjects, uint64(both), Subject{Flags: IsolatedIn | ClassesIn})
	put(t, o.Subjects, uint64(open), Subject{Flags: IsolatedOut})
	put(t, o.Subjects, uint64(tiers), Subject{Flags: ClassesIn | ClassesOut})
	put(t, o.Subjects, uint64(shut), Subject{Flags: SubjectClosed})
	rule := func(n uint32) Policy { return Policy{Allow: n} }
	put(t, o.Policy, policyKey(both, web, in, tcp, 80, 16), rule(1))
	put(t, o.Policy, policyKey(both, web, in, tcp, 1024, 6), rule(2)) // 1024–2047
	put(t, o.Policy, policyKey(both, db, in, 0, 0, -1), rule(3))
	put(t, o.Policy, policyKey(both, PolicyPeerAny, in, tcp, 443, 16), rule(4))
	put(t, o.Policy, policyKey(both, class, in, udp, 0, 0), rule(5))
	stage := func(rank uint16, verdict uint8, rule uint32) Stage {
		return Stage{Rank: rank, Verdict: verdict, Rule: rule}
	}
	const accept, deny, pass = 1, 2, 3
	put(t, o.Policy, policyKey(tiers, web, in, 0, 0, -1), Policy{Admin: stage(3, deny, 31), Base: stage(1, deny, 32)})
	put(t, o.Policy, policyKey(tiers, class, in, tcp, 80, 16), Policy{Admin: stage(2, accept, 33)})
	put(t, o.Policy, policyKey(tiers, class, in, tcp, 81, 16), Policy{Admin: stage(4, accept, 34)})
	put(t, o.Policy, policyKey(tiers, class, in, tcp, 82, 16), Policy{Admin: stage(1, pass, 35)})
	put(t, o.Policy, policyKey(tiers, class, in, tcp, 83, 16), Policy{Admin: stage(1, pass, 35), Base: stage(2, accept, 36)})
	put(t, o.Policy, policyKey(tiers, db, out, tcp, 1, 16), Policy{Base: stage(2, accept, 37)})
	put(t, o.Policy, policyKey(tiers, class, out, 0, 0, -1), Policy{Base: stage(3, deny, 38)})
	put(t, o.Classes, addr("10.0.0.7"), Class{Id: class})
	put(t, o.ClassPrefixes, Prefix{Bits: 96 + 16, Addr: addr("192.0.0.0")}, Class{Id: class})
	put(t, o.ClassPrefixes, Prefix{Bits: 96 + 24, Addr: addr("192.0.2.0")}, Class{})

	for _, c := range []struct {
		name    string
		subject uint64
		dir     uint8
		id      uint32
		address string
		proto   uint8
		port    int
		allow   uint32
		rule    uint32
		reason  uint32
	}{
		{"no policy", 0, in, web, "10.0.0.1", tcp, 80, 1, 0, byNone},
		{"no row", 999, in, web, "10.0.0.1", tcp, 80, 0, 0, byNotLoaded},
		{"closed", shut, in, web, "10.0.0.1", tcp, 80, 0, 0, byNotLoaded},
		{"a port", both, in, web, "10.0.0.1", tcp, 80, 1, 1, byAllow},
		{"another port", both, in, web, "10.0.0.1", tcp, 81, 0, 0, byIsolation},
		{"the first of a range", both, in, web, "10.0.0.1", tcp, 1024, 1, 2, byAllow},
		{"the last of a range", both, in, web, "10.0.0.1", tcp, 2047, 1, 2, byAllow},
		{"behind a range", both, in, web, "10.0.0.1", tcp, 2048, 0, 0, byIsolation},
		{"another protocol", both, in, web, "10.0.0.1", udp, 80, 0, 0, byIsolation},
		{"another direction", both, out, web, "10.0.0.1", tcp, 80, 1, 0, byDefault},
		{"any protocol", both, in, db, "10.0.0.1", 132, 9, 1, 3, byAllow},
		{"ICMP, any protocol", both, in, db, "10.0.0.1", 1, 0, 1, 3, byAllow},
		{"ICMP, of rules with ports", both, in, web, "10.0.0.1", 1, 0, 0, 0, byIsolation},
		{"anybody", both, in, 2, "8.8.8.8", tcp, 443, 1, 4, byAllow},
		{"anybody, from where there are other rows", both, in, web, "8.8.8.8", tcp, 443, 1, 4, byAllow},
		{"class of an address", both, in, web, "10.0.0.7", udp, 53, 1, 5, byAllow},
		{"class of a prefix", both, in, 2, "192.0.1.1", udp, 53, 1, 5, byAllow},
		{"a prefix left out", both, in, 2, "192.0.2.1", udp, 53, 0, 0, byIsolation},
		{"no class", both, in, 2, "192.1.2.1", udp, 53, 0, 0, byIsolation},
		{"isolated out", open, out, web, "10.0.0.1", tcp, 80, 0, 0, byIsolation},
		{"not isolated in", open, in, web, "10.0.0.1", tcp, 80, 1, 0, byDefault},
		{"admin denies", tiers, in, web, "10.0.0.1", tcp, 80, 0, 31, byAdmin},
		{"the class accepts before", tiers, in, web, "10.0.0.7", tcp, 80, 1, 33, byAdmin},
		{"the class accepts too late", tiers, in, web, "10.0.0.7", tcp, 81, 0, 31, byAdmin},
		{"passed on to base", tiers, in, web, "10.0.0.7", tcp, 82, 0, 32, byBaseline},
		{"the lower rank of base", tiers, in, web, "10.0.0.7", tcp, 83, 0, 32, byBaseline},
		{"base accepts", tiers, out, db, "10.0.0.7", tcp, 1, 1, 37, byBaseline},
		{"base denies by class", tiers, out, db, "10.0.0.7", tcp, 2, 0, 38, byBaseline},
		{"nothing said", tiers, out, db, "10.0.0.8", tcp, 2, 1, 0, byDefault},
	} {
		got := askPolicy(t, prog, policyAsk{Subject: c.subject, Dir: c.dir, Identity: c.id, Address: addr(c.address), Proto: c.proto, Port: port(c.port)})
		if got.Allow != c.allow || got.Rule != c.rule || got.Reason != c.reason {
			t.Errorf("%s: allow %d by rule %d, reason %d; want %d, %d, %d", c.name, got.Allow, got.Rule, got.Reason, c.allow, c.rule, c.reason)
		}
	}
}

func askPolicy(t testing.TB, prog *ebpf.Program, ask policyAsk) policyAsk {
	t.Helper()
	buf := bytes.NewBuffer(make([]byte, 14))
	binary.Write(buf, binary.LittleEndian, ask)
	verdict, out, err := prog.Test(buf.Bytes())
	if err != nil || verdict != verdictNext {
		t.Fatalf("verdict %d, %v", verdict, err)
	}
	if err := binary.Read(bytes.NewReader(out[14:]), binary.LittleEndian, &ask); err != nil {
		t.Fatal(err)
	}
	return ask
}

// BenchmarkPolicyVerdict: by identity alone, and with a class, beside 20,000 rows
// of other identities. The request's copying in and out is in the figure.
func BenchmarkPolicyVerdict(b *testing.B) {
	o, prog := loadPolicyTest(b)
	const class = PolicyPeerClass | 77
	for subject, flags := range []uint32{1: IsolatedIn, 2: IsolatedIn | ClassesIn} {
		put(b, o.Subjects, uint64(subject), Subject{Flags: flags})
		for id := range 3000 {
			put(b, o.Policy, policyKey(uint64(subject), uint64(1<<20+id), 0, tcp, 80, 16), Policy{Allow: 1})
		}
	}
	put(b, o.Policy, policyKey(2, class, 0, tcp, 80, 16), Policy{Allow: 1})
	put(b, o.ClassPrefixes, Prefix{Bits: 96 + 8, Addr: addr("10.0.0.0")}, Class{Id: class})
	for _, c := range []struct {
		name    string
		subject uint64
	}{{"none", 0}, {"identity", 1}, {"class", 2}} {
		b.Run(c.name, func(b *testing.B) {
			buf := bytes.NewBuffer(make([]byte, 14))
			binary.Write(buf, binary.LittleEndian, policyAsk{Subject: c.subject, Identity: 1<<20 + 1500, Address: addr("10.0.0.1"), Proto: tcp, Port: port(80)})
			const repeat = 200_000
			for b.Loop() {
				_, took, err := prog.Benchmark(buf.Bytes(), repeat, nil)
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(took/time.Nanosecond), "ns/verdict")
			}
		})
	}
}
