// SPDX-License-Identifier: Apache-2.0
/* The maps and their rows, defined once: bpf2go makes the Go of them.
 * Addresses: 16 bytes, IPv4 v4-mapped, network order. Ports: network order.
 * Everything else: host order. No implicit padding: rows are compared bytewise. */
#pragma once

#define TMB_MAX_TIERS 4
#define TMB_MAX_GROUPS 20
#define TMB_MAX_WALK 64 /* slots tried in one group */

/* What programs did, and why they dropped: the rows of tmb_counters_1, counted
 * since the map was made. The Go names are in reasons.go. Append only. */
enum tmb_reason {
	TMB_SOCK_CONNECT,	   /* connections given a backend */
	TMB_SOCK_DATAGRAM,	   /* unconnected UDP: backends drawn (not datagrams) */
	TMB_SOCK_NO_BACKEND,	   /* refused: the service has no backends */
	TMB_SOCK_FAMILY,	   /* refused: the backend has an address the socket cannot use */
	TMB_SOCK_NONE_UP,	   /* nothing was up, the first draw stood */
	TMB_SOCK_NO_REVERSE,	   /* the reverse row could not be written */
	TMB_TUNNEL_DELIVERED,	   /* to a pod on this node */
	TMB_TUNNEL_STACK,	   /* to a tunnel address of this node */
	TMB_DROP_NOT_IP,	   /* neither IPv4 nor IPv6 */
	TMB_DROP_MALFORMED,	   /* truncated, or a header that contradicts itself */
	TMB_DROP_MAPPED,	   /* IPv6 with a v4-mapped address: would pass for IPv4 */
	TMB_DROP_UNKNOWN_SOURCE,   /* in neither ipcache */
	TMB_DROP_RESERVED_SOURCE,  /* an identity that never sends through a tunnel */
	TMB_DROP_LOCAL_SOURCE,	   /* claims to come from this node */
	TMB_DROP_NOT_HERE,	   /* no pod or tunnel address of this node */
	TMB_DROP_NO_ROOM,	   /* no memory for an Ethernet header */
	TMB_REASONS
};

struct tmb_addr {
	__u8 b[16];
};

struct tmb_service_key {
	struct tmb_addr addr;
	__be16 port;
	__u8 proto;
	__u8 pad;
};

struct tmb_tier {
	__u8 first;   /* index of the first group */
	__u8 groups;
	__u16 share;  /* of 65535: what stays in this tier (min-healthy) */
};

struct tmb_group {
	__u16 cluster;
	__u16 weight;
	__u32 count;  /* slots */
};

struct tmb_service {
	__u64 id;
	__u8 flags;
	__u8 num_tiers;
	__u8 pad[6];
	struct tmb_tier tiers[TMB_MAX_TIERS];
	struct tmb_group groups[TMB_MAX_GROUPS];
};

struct tmb_slot_key {
	__u64 service;
	__u32 slot;
	__u16 cluster;
	__u16 pad;
};

struct tmb_slot {
	struct tmb_addr addr;
	__be16 port;
	__u16 cluster;
	__u16 node;
	__u16 pad;
};

struct tmb_node_key {
	__u16 cluster;
	__u16 node;
};

struct tmb_health {
	__u64 since; /* Unix seconds; present = down */
};

/* A connected socket has backend and port zero, so that its release can find the
 * row; unconnected UDP has one row per backend. */
struct tmb_reverse_key {
	__u64 cookie;
	struct tmb_addr backend;
	__be16 port;
	__u8 pad[6];
};

struct tmb_reverse {
	struct tmb_addr frontend;
	__be16 port;
	__u8 pad[6];
};

/* Unconnected UDP: what a socket was given for a frontend, valid while the slot still says so. */
struct tmb_choice_key {
	__u64 cookie;
	struct tmb_addr frontend;
	__be16 port;
	__u8 pad[6];
};

struct tmb_choice {
	struct tmb_slot_key at;
	struct tmb_slot slot;
};

struct tmb_ipcache {
	__u32 identity;
	__u16 node;
	__u16 pad;
};

struct tmb_prefix {
	__u32 bits; /* of the 16 bytes: BPF_MAP_TYPE_LPM_TRIE key */
	struct tmb_addr addr;
};

/* ifindex 0: to the stack, which knows the way. The node's tunnel addresses need
 * no row here: the ipcache says host of them. */
struct tmb_endpoint {
	__u32 ifindex;
	__u32 identity;
	__u8 pod_mac[6];
	__u8 host_mac[6];
};
