package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// reasons names every counter; the order and the values are enum tmb_reason's.
var reasons = [...]string{
	rowsTmbReasonTMB_SOCK_CONNECT:          "connect",
	rowsTmbReasonTMB_SOCK_DATAGRAM:         "datagram_choice",
	rowsTmbReasonTMB_SOCK_NO_BACKEND:       "refused_no_backend",
	rowsTmbReasonTMB_SOCK_FAMILY:           "refused_address_family",
	rowsTmbReasonTMB_SOCK_NONE_UP:          "none_up",
	rowsTmbReasonTMB_SOCK_NO_REVERSE:       "reverse_not_written",
	rowsTmbReasonTMB_TUNNEL_DELIVERED:      "tunnel_delivered",
	rowsTmbReasonTMB_TUNNEL_STACK:          "tunnel_to_stack",
	rowsTmbReasonTMB_DROP_NOT_IP:           "drop_not_ip",
	rowsTmbReasonTMB_DROP_MALFORMED:        "drop_malformed",
	rowsTmbReasonTMB_DROP_MAPPED:           "drop_v4_mapped",
	rowsTmbReasonTMB_DROP_UNKNOWN_SOURCE:   "drop_unknown_source",
	rowsTmbReasonTMB_DROP_RESERVED_SOURCE:  "drop_reserved_source",
	rowsTmbReasonTMB_DROP_LOCAL_SOURCE:     "drop_local_source",
	rowsTmbReasonTMB_DROP_NOT_HERE:         "drop_not_here",
	rowsTmbReasonTMB_DROP_NO_ROOM:          "drop_no_room",
	rowsTmbReasonTMB_POD_DELIVERED:         "pod_delivered",
	rowsTmbReasonTMB_POD_STACK:             "pod_to_stack",
	rowsTmbReasonTMB_POD_FROM_STACK:        "pod_from_stack",
	rowsTmbReasonTMB_NODEPORT:              "nodeport",
	rowsTmbReasonTMB_MASQUERADED:           "masqueraded",
	rowsTmbReasonTMB_FLOW_NEW:              "flow_new",
	rowsTmbReasonTMB_FLOW_EVICTED:          "flow_evicted",
	rowsTmbReasonTMB_FLOW_CUT:              "flow_cut",
	rowsTmbReasonTMB_FLOW_NO_ROOM:          "flow_not_written",
	rowsTmbReasonTMB_EVENT_LOST:            "event_lost",
	rowsTmbReasonTMB_DROP_SPOOFED:          "drop_spoofed",
	rowsTmbReasonTMB_DROP_NO_ENDPOINT:      "drop_no_endpoint",
	rowsTmbReasonTMB_DROP_POLICY_EGRESS:    "drop_policy_egress",
	rowsTmbReasonTMB_DROP_POLICY_INGRESS:   "drop_policy_ingress",
	rowsTmbReasonTMB_DROP_POLICY_NOT_READY: "drop_policy_not_ready",
	rowsTmbReasonTMB_DROP_NO_BACKEND:       "drop_no_backend",
	rowsTmbReasonTMB_DROP_SOURCE_RANGE:     "drop_source_range",
	rowsTmbReasonTMB_DROP_NAT_EXHAUSTED:    "drop_nat_exhausted",
	rowsTmbReasonTMB_DROP_NAT_CONFLICT:     "drop_nat_conflict",
	rowsTmbReasonTMB_DROP_FRAGMENT:         "drop_fragment",
	rowsTmbReasonTMB_DROP_VLAN:             "drop_vlan",
	rowsTmbReasonTMB_DROP_PROTOCOL:         "drop_protocol",
	rowsTmbReasonTMB_DROP_CLEARTEXT:        "drop_cleartext",
	rowsTmbReasonTMB_DROP_HOST_SOURCE:      "drop_host_source",
	rowsTmbReasonTMB_DROP_MULTICAST:        "drop_multicast",
	rowsTmbReasonTMB_DROP_NO_TUNNEL:        "drop_no_tunnel",
	rowsTmbReasonTMB_TUNNEL_FORWARDED:      "tunnel_forwarded",
	rowsTmbReasonTMB_DROP_BACKEND_GONE:     "drop_backend_gone",
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
