package linux

import (
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"pgregory.net/rapid"

	"github.com/tombolo-mesh/tombolo/agent"
)

// Of two nodes exactly one yields, whoever is asked.
func TestOneOfTwoYields(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := [32]byte(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "a"))
		b := [32]byte(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "b"))
		if a != b && yields(wgtypes.Key(a), agent.PeerKey(b)) == yields(wgtypes.Key(b), agent.PeerKey(a)) {
			t.Fatalf("both or none of %x and %x yield", a, b)
		}
	})
}

// A peer that was held back, and is written again among many, is not completed later
// by what it was to have then.
func TestManyPeersLeaveNothingHeld(t *testing.T) {
	p := newPeers(nil, "none") // to configure anything would panic
	old := agent.PeerRow{Allowed: "10.2.1.0/24"}
	waiting := map[agent.PeerKey]agent.PeerRow{}
	var cfgs []wgtypes.PeerConfig
	for i := range speakAtOnce + 1 {
		key := agent.PeerKey{1, byte(i)}
		p.held[key], waiting[key] = old, old
		cfg, err := peerConfig(key, agent.PeerRow{Allowed: "10.2.2.0/24"})
		if err != nil {
			t.Fatal(err)
		}
		cfgs = append(cfgs, cfg)
	}
	other := agent.PeerKey{2}
	p.held[other] = old
	if silent := p.hush(cfgs); len(silent) != len(cfgs) || len(p.held) != 1 {
		t.Errorf("%d of %d peers are silent, %d held, want the other one", len(silent), len(cfgs), len(p.held))
	}
	for _, c := range cfgs {
		if c.PersistentKeepaliveInterval != nil || len(c.AllowedIPs) != 1 {
			t.Fatalf("configuration %+v", c)
		}
	}
	p.complete(waiting)
}
