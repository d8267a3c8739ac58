package linux

import (
	"bytes"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/tombolo-mesh/tombolo/agent"
)

// Two nodes learn of each other at the same moment, when their clusters join. If
// both then speak at once their first messages cross, each ends up as the one
// who answered, neither can send, and WireGuard tries again after 5 s (REKEY_TIMEOUT)
// or with the next keepalive. So of two that are new to each other the one with
// the greater public key yields: for a moment it knows the peer, and can answer,
// but has no prefix of it, and so nothing that would make it speak. What is sent
// to the peer meanwhile is dropped, as to any prefix that nobody has.
const yieldFor = 400 * time.Millisecond

// yields reports whether own lets peer speak first.
func yields(own wgtypes.Key, peer agent.PeerKey) bool { return bytes.Compare(own[:], peer[:]) > 0 }

// yield makes the configurations of new peers to which own yields such that they
// wait for the other side, and completes them after yieldFor.
func (t *peers) yield(own wgtypes.Key, cfgs []wgtypes.PeerConfig, rows, actual map[agent.PeerKey]agent.PeerRow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	waiting := map[agent.PeerKey]agent.PeerRow{}
	for i := range cfgs {
		key := agent.PeerKey(cfgs[i].PublicKey)
		delete(t.held, key)
		if _, known := actual[key]; known || !yields(own, key) {
			continue
		}
		cfgs[i].AllowedIPs, cfgs[i].PersistentKeepaliveInterval = nil, nil
		t.held[key], waiting[key] = rows[key], rows[key]
	}
	if len(waiting) > 0 {
		time.AfterFunc(yieldFor, func() { t.complete(waiting) })
	}
}

// complete gives peers that were held what they were held back from, unless
// they were changed or deleted meanwhile.
func (t *peers) complete(waiting map[agent.PeerKey]agent.PeerRow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var cfg wgtypes.Config
	for key, row := range waiting {
		if held, ok := t.held[key]; !ok || held != row {
			continue
		}
		delete(t.held, key)
		if p, err := peerConfig(key, row); err == nil {
			p.UpdateOnly = true
			p.Endpoint = nil // it has it, or has learnt a better one
			cfg.Peers = append(cfg.Peers, p)
		}
	}
	if len(cfg.Peers) > 0 {
		// An error is the device's absence; the next reading finds what is missing.
		_ = t.wg.ConfigureDevice(t.device, cfg)
	}
}

// heldRow is what a held peer will be, which is what readers are told.
func (t *peers) heldRow(key agent.PeerKey) (agent.PeerRow, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	row, ok := t.held[key]
	return row, ok
}

func (t *peers) forgetHeld(key agent.PeerKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.held, key)
}
