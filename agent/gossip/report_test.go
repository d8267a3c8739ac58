package gossip

import (
	"maps"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tombolo-mesh/tombolo/agent"
)

func TestReportsSurviveTheWire(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		missing := rapid.MapOf(
			rapid.Custom(func(t *rapid.T) agent.NodeKey {
				return agent.NodeKey{Cluster: rapid.Uint16Range(1, 4).Draw(t, "cluster"), Node: rapid.Uint16().Draw(t, "node")}
			}),
			rapid.Uint8Range(1, 15)).Draw(t, "missing")
		l := newLedger()
		l.joined("node-1", 9)
		for _, p := range parts("node-1", missing) {
			p.life, p.seq = 9, 1
			b := p.encode()
			if len(b) > 1000 {
				t.Fatalf("a report of %d bytes does not fit a packet", len(b))
			}
			back, err := decode(b)
			if err != nil {
				t.Fatal(err)
			}
			if !l.take(back, time.Unix(1, 0)) {
				t.Fatal("refused")
			}
			for cut := range len(b) {
				if short, err := decode(b[:cut]); err == nil && len(short.missing) >= len(p.missing) {
					t.Fatalf("cut to %d of %d bytes it still says all", cut, len(b))
				}
			}
		}
		if got := l.view().Missing["node-1"]; !maps.Equal(got, missing) {
			t.Fatalf("%v became %v", missing, got)
		}
	})
}

func TestDecodeRefusesAnything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 0, 64).Draw(t, "bytes")
		if p, err := decode(b); err == nil && string(p.encode()) != string(b) {
			t.Fatalf("%x was read as %x", b, p.encode())
		}
	})
}

// The order in which words arrive changes nothing, and the word of a process that
// is no more counts no longer.
func TestLedger(t *testing.T) {
	now := time.Unix(100, 0)
	word := func(life, seq uint64, lost uint8) part {
		p := part{prober: "node-1", cluster: 2, life: life, seq: seq, missing: map[uint8]uint8{}}
		if lost > 0 {
			p.missing[7] = lost
		}
		return p
	}
	says := func(l *ledger) uint8 { return l.view().Missing["node-1"][agent.NodeKey{Cluster: 2, Node: 7}] }
	l := newLedger()
	if l.take(word(1, 1, 3), now) {
		t.Error("a word of somebody that is not there")
	}
	l.joined("node-1", 1)
	for _, p := range []part{word(1, 2, 5), word(1, 1, 3), word(1, 2, 5)} {
		l.take(p, now)
	}
	if got := says(l); got != 5 {
		t.Errorf("%d misses, the newest word says 5", got)
	}
	l.joined("node-1", 2)
	if says(l) != 0 || l.take(word(1, 9, 8), now) {
		t.Error("a process that is no more has a say")
	}
	if !l.take(word(2, 1, 4), now) || says(l) != 4 {
		t.Error("the new process has none")
	}
	if l.expire(now.Add(validity-1)) || !l.expire(now.Add(validity)) || says(l) != 0 {
		t.Error("what is not repeated counts until validity, and no longer")
	}
	l.left("node-1", false, now)
	if v := l.view(); len(v.Dead) != 1 || len(v.Alive) != 0 {
		t.Errorf("gone without a word: %+v", v)
	}
	if !l.expire(now.Add(fresh)) || len(l.view().Dead) != 0 {
		t.Error("looked for it for ever")
	}
	l.joined("node-1", 3)
	if l.left("node-1", true, now); len(l.view().Dead) != 0 {
		t.Error("one that took leave is looked for")
	}
}
