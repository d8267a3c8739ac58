package linux

import (
	"testing"

	"github.com/tombolo-mesh/tombolo/agent"
)

// Silent peers get their keepalive in portions, each once, and only if they are
// still there.
func TestSpeakInPortions(t *testing.T) {
	p := newPeers(nil, "none")
	for i := range 2*speakAtOnce + 5 {
		p.silent[agent.PeerKey{byte(i), byte(i >> 8)}] = struct{}{}
	}
	seen := map[agent.PeerKey]bool{}
	for _, want := range []int{speakAtOnce, speakAtOnce, 5, 0} {
		cfg := p.nextToSpeak()
		if len(cfg.Peers) != want || p.speaking != (want > 0) {
			t.Fatalf("%d peers, speaking %v; want %d", len(cfg.Peers), p.speaking, want)
		}
		for _, peer := range cfg.Peers {
			key := agent.PeerKey(peer.PublicKey)
			if seen[key] || !peer.UpdateOnly || peer.PersistentKeepaliveInterval == nil || *peer.PersistentKeepaliveInterval != keepalive || peer.ReplaceAllowedIPs {
				t.Fatalf("peer %+v, seen before: %v", peer, seen[key])
			}
			seen[key] = true
		}
	}
}
