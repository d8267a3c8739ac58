package linux

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/bpf"
)

// Narrow policy rows are written before wide ones, and leave after them: what
// a map that fills up holds, and one whose last key is bad, shows the order.
func TestPolicyRowsNarrowFirst(t *testing.T) {
	rows := map[agent.PolicyKey]agent.PolicyRow{}
	add := func(proto, bits uint8) agent.PolicyKey {
		k := agent.PolicyKey{Subject: 7, Peer: 1<<20 | 5, Proto: proto, Bits: bits}
		rows[k] = agent.PolicyRow{Allow: uint32(bits) + 1}
		return k
	}
	narrow := []agent.PolicyKey{add(6, 16), add(6, 12), add(6, 3), add(17, 16)}
	wide := []agent.PolicyKey{add(6, 0), add(0, 0)}
	bad := agent.PolicyKey{Subject: 7, Peer: 1<<20 | 5, Proto: 6, Bits: 40} // no such length: the kernel stops here
	for _, single := range []bool{false, true} {
		m := makeMap[bpf.PolicyKey, bpf.Policy](t, ebpf.LPMTrie, uint32(len(narrow)))
		table := newMap("policy", m, toPolicyKey, fromPolicyKey, toPolicy, fromPolicy).ordered(narrowFirst)
		table.single = single
		if err := table.Put(rows); !errors.Is(err, agent.ErrFull) {
			t.Fatalf("a full map said %v", err)
		}
		held := dump(t, table)
		for _, k := range narrow {
			if _, in := held[k]; !in {
				t.Errorf("%+v is not in, wider ones are: %v", k, held)
			}
		}

		m = makeMap[bpf.PolicyKey, bpf.Policy](t, ebpf.LPMTrie, 100)
		table = newMap("policy", m, toPolicyKey, fromPolicyKey, toPolicy, fromPolicy).ordered(narrowFirst)
		table.single = single
		if err := table.Put(rows); err != nil {
			t.Fatal(err)
		}
		keys := append([]agent.PolicyKey{bad}, wide...)
		if err := table.Delete(keys); err == nil {
			t.Fatal("the bad key went through")
		}
		if n := len(dump(t, table)); n != len(narrow) {
			t.Errorf("%d rows are left: the narrow key was not the last", n)
		}
	}
}
