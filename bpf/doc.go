// Package bpf is the data plane's programs and maps: building, loading,
// attaching, pinning, replacing. The C is in src; one file per hook.
//
// Everything that must outlive the process is pinned in one directory of a bpffs,
// all names beginning with "tmb_": maps under their kernel name with the version
// of their layout (tmb_services_1), links under the name of their program
// (tmb_connect4). That prefix in that directory is the ownership mark; where there
// is no tcx, it is a clsact filter named tmb_tunnel.
//
// Load is a no-op in effect when it finds what it left: maps are reused with their
// rows, links get the new program in one step, no packet or connect falls between.
//
// Rows, as programs see them. Addresses are 16 bytes, IPv4 v4-mapped, and like
// ports in network byte order; all else is host order. This package converts
// nothing: byte order is agent/linux's, in one file.
//
//	map (field of Maps)  pinned as        key → value (C: src/maps.h)   Go              meaning (agent/rows.go)
//	Services             tmb_services_1   tmb_service_key → tmb_service  ServiceKey → Service      ServiceKey → ServiceRow
//	Slots                tmb_slots_1      tmb_slot_key → tmb_slot        SlotKey → Slot            SlotKey → SlotRow
//	NodeHealth           tmb_nodehlth_1   tmb_node_key → tmb_health      NodeKey → Health          NodeKey → HealthRow
//	ClusterHealth        tmb_clushlth_1   __u16 → tmb_health             uint16 → Health           ClusterKey → HealthRow
//	IPCache              tmb_ipcache_1    tmb_addr → tmb_ipcache         Addr → IPCache            Addr → IPCacheRow
//	IPPrefixes           tmb_ipprefix_1   tmb_prefix → tmb_ipcache       Prefix → IPCache          Prefix → IPCacheRow
//	Endpoints            tmb_endpoint_2   tmb_addr → tmb_endpoint        Addr → Endpoint           Addr → EndpointRow
//	Devices              tmb_devices_1    enum tmb_device → __u32        uint32 → uint32           written by AttachTunnel, SetUnderlay
//	SocketReverse        tmb_reverse_1    tmb_reverse_key → tmb_reverse  ReverseKey → Reverse      written by sock.c
//	UDPChoice            tmb_choice_1     tmb_choice_key → tmb_choice    ChoiceKey → Choice        written by sock.c
//	Counts               tmb_counters_1   enum tmb_reason → __u64        Reason → uint64 per CPU   Maps.Counters
//
// From the tunnel, tunnel.c lets packets reach the pods in Endpoints, as their
// policy says, and the node's own tunnel addresses, which are the addresses in
// IPCache (not IPPrefixes) with IPTunnelAddress; nothing else. On a pod's link,
// pod.c lets pass what its own addresses send and policy allows; flows are
// remembered in Flows, whose Seen is CLOCK_MONOTONIC. An Endpoint with interface
// index 0 leaves the delivery to the host's stack.
package bpf
