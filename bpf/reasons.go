package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// reasons names every counter; the order and the values are enum tmb_reason's.
var reasons = [...]string{
	rowsTmbReasonTMB_SOCK_CONNECT:         "connect",
	rowsTmbReasonTMB_SOCK_DATAGRAM:        "datagram_choice",
	rowsTmbReasonTMB_SOCK_NO_BACKEND:      "refused_no_backend",
	rowsTmbReasonTMB_SOCK_FAMILY:          "refused_address_family",
	rowsTmbReasonTMB_SOCK_NONE_UP:         "none_up",
	rowsTmbReasonTMB_SOCK_NO_REVERSE:      "reverse_not_written",
	rowsTmbReasonTMB_TUNNEL_DELIVERED:     "tunnel_delivered",
	rowsTmbReasonTMB_TUNNEL_STACK:         "tunnel_to_stack",
	rowsTmbReasonTMB_DROP_NOT_IP:          "drop_not_ip",
	rowsTmbReasonTMB_DROP_MALFORMED:       "drop_malformed",
	rowsTmbReasonTMB_DROP_MAPPED:          "drop_v4_mapped",
	rowsTmbReasonTMB_DROP_UNKNOWN_SOURCE:  "drop_unknown_source",
	rowsTmbReasonTMB_DROP_RESERVED_SOURCE: "drop_reserved_source",
	rowsTmbReasonTMB_DROP_LOCAL_SOURCE:    "drop_local_source",
	rowsTmbReasonTMB_DROP_NOT_HERE:        "drop_not_here",
	rowsTmbReasonTMB_DROP_NO_ROOM:         "drop_no_room",
}

// String is the counter's name: stable, fit for a metric label.
func (r Reason) String() string {
	if int(r) < len(reasons) {
		return reasons[r]
	}
	return fmt.Sprintf("reason_%d", uint32(r))
}

// Counters reads what the programs counted since the maps were made, by name.
// Every reason has an entry, also at 0.
func (m *Maps) Counters() (map[string]uint64, error) {
	out := make(map[string]uint64, len(reasons))
	for r := range reasons {
		var perCPU []uint64
		if err := m.Counts.Lookup(uint32(r), &perCPU); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil, fmt.Errorf("read counter %s: %w", Reason(r), err)
		}
		var sum uint64
		for _, n := range perCPU {
			sum += n
		}
		out[Reason(r).String()] = sum
	}
	return out, nil
}
