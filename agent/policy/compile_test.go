package policy

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// rowsAt looks up in entries, the longest match first.
func rowsAt(list []entry, proto clustermesh.Protocol, port uint16) (Row, bool) {
	best, bits := -1, -1
	for i, e := range list {
		width := -1
		switch {
		case e.proto == 0:
			width = 0
		case e.proto == proto && port>>(16-e.bits) == e.port>>(16-e.bits):
			width = 1 + int(e.bits)
		}
		if width > bits {
			best, bits = i, width
		}
	}
	if best < 0 {
		return Row{}, false
	}
	return list[best].row, true
}

func randomRule(r *rand.Rand, i int) placed {
	out := placed{rule: &rule{verdict: Verdict(1 + r.IntN(3)), id: uint32(i + 1)}, tier: Tier(r.IntN(3)), rank: uint16(i + 1)}
	if out.all = r.IntN(4) == 0; !out.all {
		for range 1 + r.IntN(3) {
			lo := r.IntN(65536)
			hi := min(65535, lo+r.IntN(1<<r.IntN(17)))
			if r.IntN(3) == 0 {
				hi = lo
			}
			protos := []clustermesh.Protocol{clustermesh.TCP, clustermesh.UDP, clustermesh.SCTP}
			out.ports = append(out.ports, ports{protos[r.IntN(3)], uint16(lo), uint16(hi)})
		}
		out.ports = tidy(out.ports)
	}
	return out
}

// The rows of a peer, and below them those for anybody, say at each port what the
// rules say one by one.
func TestCompileSaysWhatTheRulesSay(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		s := side{}
		for i := range 1 + r.IntN(6) {
			s.rules = append(s.rules, randomRule(r, i))
		}
		var own []int
		for i := range s.rules {
			switch r.IntN(3) {
			case 0:
				s.any = append(s.any, i)
			case 1:
				own = append(own, i)
			}
		}
		mine := compile(s.matches(own))
		anybody := compile(s.matches(s.any))
		check := func(proto clustermesh.Protocol, port uint16) {
			var want Row
			for _, m := range s.matches(own) {
				if m.rule.on(proto, port) {
					m.rule.into(&want)
				}
			}
			got, ok := rowsAt(mine, proto, port)
			if !ok {
				got, _ = rowsAt(anybody, proto, port)
			}
			if got != want {
				t.Fatalf("%s/%d: rows say %s, rules %s\n%v\n%v\nany %v own %v", protoName(proto), port, got, want, mine, anybody, s.any, own)
			}
		}
		for _, proto := range []clustermesh.Protocol{1, clustermesh.TCP, clustermesh.UDP, clustermesh.SCTP} {
			for range 20 {
				check(proto, uint16(r.IntN(65536)))
			}
			for _, rule := range s.rules {
				for _, p := range rule.ports {
					for _, port := range []uint16{p.lo - 1, p.lo, p.lo + 1, p.hi - 1, p.hi, p.hi + 1} {
						check(proto, port)
					}
				}
			}
		}
	}
}

// Rows are few where ports allow it.
func TestCompileIsFrugal(t *testing.T) {
	allow := func(list ...ports) placed {
		return placed{rule: &rule{verdict: Accept, id: 1, all: list == nil}, tier: TierNetworkPolicy, ports: list}
	}
	tcp := func(lo, hi uint16) ports { return ports{clustermesh.TCP, lo, hi} }
	for _, c := range []struct {
		name  string
		rules []placed
		any   int // so many of them, from the first, are for anybody
		rows  int
	}{
		{"everything", []placed{allow()}, 0, 1},
		{"a port", []placed{allow(tcp(80, 80))}, 0, 1},
		{"a protocol", []placed{allow(tcp(0, 65535))}, 0, 1},
		{"all but port 0", []placed{allow(tcp(1, 65535))}, 0, 2},
		{"three ports", []placed{allow(tcp(80, 80), tcp(443, 443), tcp(8080, 8080))}, 0, 3},
		{"a range that is a prefix", []placed{allow(tcp(1024, 2047))}, 0, 1},
		{"from 1024 up", []placed{allow(tcp(1024, 65535))}, 0, 2},
		{"30000 to 32767", []placed{allow(tcp(30000, 32767))}, 0, 5},
		{"a port beside one for anybody", []placed{allow(tcp(443, 443)), allow(tcp(80, 80))}, 1, 1},
		{"everything, and once more a port", []placed{allow(), allow(tcp(80, 80))}, 0, 1},
	} {
		s, own := side{}, []int{}
		for i, r := range c.rules {
			s.rules = append(s.rules, r)
			if i < c.any {
				s.any = append(s.any, i)
			} else {
				own = append(own, i)
			}
		}
		if got := compile(s.matches(own)); len(got) != c.rows {
			t.Errorf("%s: %d rows, want %d: %s", c.name, len(got), c.rows, fmt.Sprint(got))
		}
	}
}
