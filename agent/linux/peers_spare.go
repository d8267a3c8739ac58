package linux

import (
	"net"
	"slices"
	"strings"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/tombolo-mesh/tombolo/agent"
)

// Replacing a peer's allowed IPs takes all of them away and gives them back one by
// one; what is sent meanwhile is dropped. A gateway's peer has those of many nodes.
// So prefixes are only added where that is enough: WireGuard itself takes a prefix
// from the peer that had it.

// givenBy are the prefixes that rows give to somebody.
func givenBy(rows map[agent.PeerKey]agent.PeerRow) map[string]struct{} {
	given := map[string]struct{}{}
	for _, row := range rows {
		for _, prefix := range allowedList(row) {
			given[prefix] = struct{}{}
		}
	}
	return given
}

func allowedList(row agent.PeerRow) []string {
	if row.Allowed == "" {
		return nil
	}
	return strings.Split(row.Allowed, ",")
}

// spare takes out of a known peer's configuration what would change nothing: the
// endpoint it has (or has roamed from), and the replacement of its allowed IPs if
// it loses none but those that others are given at the same time.
func spare(p *wgtypes.PeerConfig, have, want agent.PeerRow, given map[string]struct{}) {
	if have.Endpoint == want.Endpoint {
		p.Endpoint = nil
	}
	had := map[string]bool{}
	for _, prefix := range allowedList(have) {
		if _, stays := given[prefix]; !stays {
			return
		}
		had[prefix] = true
	}
	p.ReplaceAllowedIPs = false
	p.AllowedIPs = slices.DeleteFunc(p.AllowedIPs, func(n net.IPNet) bool {
		prefix, ok := prefixOf(n)
		return ok && had[prefix.String()]
	})
}
