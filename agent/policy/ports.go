package policy

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// ports is a range of one protocol.
type ports struct {
	proto  clustermesh.Protocol
	lo, hi uint16
}

// portName is a port by its name in the pod that is connected to. proto 0: any.
type portName struct {
	name  string
	proto clustermesh.Protocol
}

func protoName(p clustermesh.Protocol) string {
	switch p {
	case 0:
		return "any"
	case clustermesh.TCP:
		return "tcp"
	case clustermesh.UDP:
		return "udp"
	case clustermesh.SCTP:
		return "sctp"
	}
	return fmt.Sprintf("protocol %d", uint8(p))
}

func (p ports) String() string {
	switch {
	case p.lo == 0 && p.hi == 65535:
		return protoName(p.proto)
	case p.lo == p.hi:
		return fmt.Sprintf("%s/%d", protoName(p.proto), p.lo)
	}
	return fmt.Sprintf("%s/%d-%d", protoName(p.proto), p.lo, p.hi)
}

func (n portName) String() string { return fmt.Sprintf("%s/%q", protoName(n.proto), n.name) }

func comparePorts(a, b ports) int {
	return cmp.Or(cmp.Compare(a.proto, b.proto), cmp.Compare(a.lo, b.lo), cmp.Compare(a.hi, b.hi))
}

func contains(list []ports, proto clustermesh.Protocol, port uint16) bool {
	for _, p := range list {
		if p.proto == proto && p.lo <= port && port <= p.hi {
			return true
		}
	}
	return false
}

// resolve finds the numbers that names have among the ports of a pod.
func resolve(names []portName, have []clustermesh.NamedPort) []ports {
	var out []ports
	for _, n := range names {
		for _, h := range have {
			if h.Name == n.name && h.Port != 0 && (n.proto == 0 || n.proto == h.Protocol) {
				out = append(out, ports{h.Protocol, h.Port, h.Port})
			}
		}
	}
	return tidy(out)
}

// tidy sorts and merges what overlaps or touches.
func tidy(list []ports) []ports {
	slices.SortFunc(list, comparePorts)
	var out []ports
	for _, p := range list {
		if n := len(out); n > 0 && out[n-1].proto == p.proto && uint32(p.lo) <= uint32(out[n-1].hi)+1 {
			out[n-1].hi = max(out[n-1].hi, p.hi)
			continue
		}
		out = append(out, p)
	}
	return out
}
