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
	TMB_POD_DELIVERED,	   /* by a pod's own program, to another pod of this node */
	TMB_POD_STACK,		   /* from a pod to the stack (or past another CNI's, see pod.c): other nodes, the host, the world */
	TMB_POD_FROM_STACK,	   /* from the stack to a pod */
	TMB_NODEPORT,		   /* connections from outside given a backend */
	TMB_MASQUERADED,	   /* connections to the world given an address of this node */
	TMB_FLOW_NEW,		   /* flows taken into conntrack */
	TMB_FLOW_EVICTED,	   /* packets amid a connection that conntrack did not know: rows were pushed out */
	TMB_FLOW_CUT,		   /* flows that policy newly forbids */
	TMB_FLOW_NO_ROOM,	   /* conntrack rows that could not be written */
	TMB_EVENT_LOST,		   /* events for which the ring had no room */
	TMB_DROP_SPOOFED,	   /* a pod sent with an address that is not its own */
	TMB_DROP_NO_ENDPOINT,	   /* to or from a pod's link that has no endpoint row (yet) */
	TMB_DROP_POLICY_EGRESS,	   /* forbidden by the policy of who sends */
	TMB_DROP_POLICY_INGRESS,   /* forbidden by the policy of who is sent to */
	TMB_DROP_POLICY_NOT_READY, /* the pod's policy is not in the kernel (yet) */
	TMB_DROP_NO_BACKEND,	   /* a service without backends, per packet */
	TMB_DROP_SOURCE_RANGE,	   /* outside loadBalancerSourceRanges */
	TMB_DROP_NAT_EXHAUSTED,	   /* no source port was free */
	TMB_DROP_NAT_CONFLICT,	   /* another flow has the translated addresses */
	TMB_DROP_FRAGMENT,	   /* a later fragment whose first one was not seen */
	TMB_DROP_VLAN,		   /* a tagged packet where none belongs */
	TMB_DROP_PROTOCOL,	   /* translation of a protocol or a port that cannot be translated */
	TMB_DROP_CLEARTEXT,	   /* would leave, or came, outside the tunnel that it belongs in */
	TMB_DROP_HOST_SOURCE,	   /* from outside, with an address of this node or its pods as source */
	TMB_DROP_MULTICAST,	   /* pods do not send to groups */
	TMB_DROP_NO_TUNNEL,	   /* to a node behind the tunnel, which has no device (yet) */
	TMB_TUNNEL_FORWARDED,	   /* by a gateway, between a node of its cluster and another cluster */
	TMB_DROP_BACKEND_GONE,	   /* of an open connection whose backend is gone: the client is told */
	TMB_REASONS
};

struct tmb_addr {
	__u8 b[16];
};

/* Who asks: a process or pod of this node (all frontends), or a packet from
 * outside (node ports, external addresses: where externalTrafficPolicy counts). */
enum tmb_scope {
	TMB_INSIDE,
	TMB_OUTSIDE,
};

struct tmb_service_key {
	struct tmb_addr addr;
	__be16 port;
	__u8 proto;
	__u8 scope; /* enum tmb_scope */
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

enum tmb_service_flags {
	TMB_SVC_LOCAL = 1,	 /* traffic policy Local: without a backend here packets are dropped, not refused */
	TMB_SVC_KEEP_SOURCE = 2, /* from outside: never masqueraded (all backends are on this node) */
	TMB_SVC_RANGES = 4,	 /* from outside: only sources in tmb_srcrange_1 */
	TMB_SVC_DRAINED = 8,	 /* clients with session affinity leave groups of weight 0 */
};

struct tmb_service {
	__u64 id;
	__u8 flags;	/* enum tmb_service_flags */
	__u8 num_tiers;
	__u16 maglev;	/* size of the consistent table in tmb_maglev_1; 0 = none */
	__u32 affinity; /* sessionAffinity ClientIP: its timeout in seconds; 0 = none */
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

enum tmb_ipcache_flags {
	TMB_IP_TUNNEL_ADDRESS = 1, /* a tunnel address of this node: peers may reach it */
	TMB_IP_ENCRYPTED = 2,	   /* another node's: travels through the tunnel, never in clear */
	TMB_IP_HERE = 4,	   /* a pod prefix of this node */
	TMB_IP_ACROSS = 8,	   /* of another cluster; said at gateways alone */
};

struct tmb_ipcache {
	__u32 identity;
	__u16 node;
	__u16 flags; /* enum tmb_ipcache_flags */
};

struct tmb_prefix {
	__u32 bits; /* of the 16 bytes: BPF_MAP_TYPE_LPM_TRIE key */
	struct tmb_addr addr;
};

enum tmb_endpoint_flags {
	TMB_EP_CLOSED = 1, /* nothing passes but what its own host sends: its labels are not known yet */
};

/* A pod of this node. ifindex 0: to the stack, which knows the way. The node's
 * tunnel addresses need no row here: the ipcache says host of them. */
struct tmb_endpoint {
	__u64 subject; /* of its policy (tmb_subject_1); 0 = no policy selects it */
	__u32 ifindex;
	__u32 identity;
	__u8 pod_mac[6];
	__u8 host_mac[6];
	__u32 flags; /* enum tmb_endpoint_flags */
};

/* What policy says. A subject stands for all that decides about a pod but for
 * the other end, and is made from that content: a changed policy is another
 * subject, whose rows are all there before a pod is given it. */
#define TMB_PEER_ANY (~0ULL)	   /* rows that hold for everybody */
#define TMB_PEER_CLASS (1ULL << 63) /* this bit: an address class; else an identity */

enum tmb_subject_flags {
	TMB_ISOLATED_IN = 1, /* what no NetworkPolicy allows is forbidden */
	TMB_ISOLATED_OUT = 2,
	TMB_CLASSES_IN = 4, /* the class of the other end counts, too */
	TMB_CLASSES_OUT = 8,
	TMB_SUBJECT_CLOSED = 16, /* its rows are not all there: nothing passes */
};

struct tmb_subject {
	__u32 flags; /* enum tmb_subject_flags */
	__u32 pad;
};

enum tmb_direction {
	TMB_INGRESS,
	TMB_EGRESS,
};

/* bits: the 17 bytes up to dir always count (136), then proto (144; a row for any
 * protocol ends before it), then as many bits of the port as the row covers. */
struct tmb_policy_key {
	__u32 bits;
	__u32 subject[2]; /* low, high: so that no padding is needed */
	__u32 peer[2];
	__u8 dir; /* enum tmb_direction */
	__u8 proto;
	__be16 port;
};

enum tmb_verdict {
	TMB_NO_VERDICT,
	TMB_ACCEPT,
	TMB_DENY,
	TMB_PASS,
};

/* Lower rank wins between the rows of identity and of class. */
struct tmb_stage {
	__u32 rule; /* for events: which rule (agent: rule names) */
	__u16 rank;
	__u8 verdict; /* enum tmb_verdict */
	__u8 pad;
};

struct tmb_policy {
	struct tmb_stage admin;
	struct tmb_stage base;
	__u32 allow; /* the rule of a NetworkPolicy that allows; 0 = none does */
	__u32 pad;
};

/* The class of an address: a hash of all that rules by address can tell of it. */
struct tmb_class {
	__u64 id; /* with TMB_PEER_CLASS */
};

/* Connection tracking. One row per flow and pair of addresses, found from both
 * sides: the lower (address, port) is a. A translated flow has two rows: one by
 * the addresses before, one by those after. */
struct tmb_flow_key {
	struct tmb_addr a;
	struct tmb_addr b;
	__be16 aport; /* ICMP echo: the identifier, in both */
	__be16 bport;
	__u8 proto;
	__u8 pad[3];
};

enum tmb_flow_flags {
	TMB_FLOW_FROM_A = 1,	/* the connection was opened by a */
	TMB_FLOW_ANSWERED = 2,	/* a packet of the other side was seen */
	TMB_FLOW_FIN_A = 4,	/* a has sent its last byte */
	TMB_FLOW_FIN_B = 8,
	TMB_FLOW_RESET = 16,
	TMB_FLOW_SERVICE = 32,	/* by the frontend: to_dst is the backend, at and service its slot */
	TMB_FLOW_REPLY = 64,	/* the row of the addresses after translation */
	TMB_FLOW_TO_SRC = 128,	/* opener's packets get source to_src (REPLY: answers get it) */
	TMB_FLOW_TO_DST = 256,	/* opener's packets get destination to_dst (REPLY: answers get it) */
	TMB_FLOW_OUTSIDE = 512, /* came in by ifindex (or goes out there, masqueraded): answers leave there */
	TMB_FLOW_HAIRPIN = 1024, /* a pod that reached itself */
	TMB_FLOW_FORBIDDEN = 2048, /* cut: its packets are dropped until policy allows it again */
	TMB_FLOW_GONE = 4096,	/* its backend is gone: the opener is told so (the agent marks those, both rows) */
};

struct tmb_flow {
	__u64 seen;    /* ns since boot of the last packet, coarse */
	__u32 epoch;   /* of policy, when the verdict was made */
	__u32 flags;   /* enum tmb_flow_flags */
	struct tmb_addr to_src;
	struct tmb_addr to_dst;
	__be16 src_port;
	__be16 dst_port;
	__u32 ifindex;
	__u32 rule; /* that allowed it */
	__u32 pad;
	struct tmb_slot_key at; /* SERVICE: whose backend this is */
};

/* Later fragments have no ports: those of the first one. */
struct tmb_frag_key {
	struct tmb_addr src;
	struct tmb_addr dst;
	__be32 id;
	__u8 proto;
	__u8 pad[3];
};

struct tmb_frag {
	__be16 sport;
	__be16 dport;
};

/* ClientIP affinity. client: the address of a packet, or the network namespace
 * cookie of a socket (in the first 8 bytes, the others 0xff). */
struct tmb_affinity_key {
	__u64 service;
	struct tmb_addr client;
};

struct tmb_affinity {
	__u64 seen; /* ns since boot */
	struct tmb_slot_key at;
	struct tmb_slot slot;
};

/* The consistent table of a service in pieces: bucket n is entry n % 128 of chunk
 * n / 128. An entry: cluster << 16 | slot. */
#define TMB_MAGLEV_CHUNK 128

struct tmb_maglev_key {
	__u64 service;
	__u32 chunk;
	__u32 pad;
};

struct tmb_maglev {
	__u32 entry[TMB_MAGLEV_CHUNK];
};

/* A row = these sources may reach the service from outside. */
struct tmb_range_key {
	__u32 bits; /* 64 of the service, then of the address */
	__u32 service[2];
	struct tmb_addr addr;
};

struct tmb_range {
	__u32 allow;
};

enum tmb_config_flags {
	TMB_ENCRYPT_ALL = 1, /* between nodes of the own cluster, too */
	TMB_MASQUERADE = 2,  /* pods reach the world by the node's address */
	TMB_CHAINED = 4,     /* another CNI is in charge of the node's stack */
	TMB_GATEWAY = 8,     /* other nodes of the cluster reach other clusters by this one */
};

/* The node itself: row 0. Addresses that are not there are zero. */
struct tmb_config {
	struct tmb_addr node4; /* underlay: what masquerading uses */
	struct tmb_addr node6;
	struct tmb_addr tunnel4;
	struct tmb_addr tunnel6;
	__u32 flags;   /* enum tmb_config_flags */
	__u16 cluster; /* ID */
	__u16 node;    /* number */
	__u16 port_min; /* source ports for translation, host order */
	__u16 port_max;
	__u16 tunnel_mtu; /* what fits into the tunnel, where it is for us to ask; 0 = it is not */
	__u16 pad;
};

/* Devices that programs send to, by interface index; 0 = none. Written by who
 * attaches the programs. */
enum tmb_device {
	TMB_DEVICE_TUNNEL,   /* WireGuard's */
	TMB_DEVICE_UNDERLAY, /* to the other nodes; none: by which a packet came */
	TMB_DEVICES
};

/* For whoever watches. What is dropped, and the first packet of each flow. */
enum tmb_event_kind {
	TMB_EVENT_DROP,
	TMB_EVENT_NEW, /* a flow was allowed */
	TMB_EVENT_CUT, /* a flow was open and is now forbidden */
};

struct tmb_event {
	__u64 time; /* ns since boot */
	struct tmb_addr src; /* as the packet had it */
	struct tmb_addr dst;
	struct tmb_addr backend; /* what it was translated to; zero = not */
	__be16 sport;
	__be16 dport;
	__be16 backend_port;
	__u8 proto;
	__u8 kind; /* enum tmb_event_kind */
	__u32 reason; /* enum tmb_reason */
	__u32 src_identity;
	__u32 dst_identity;
	__u32 rule;
	__u32 ifindex;
};
