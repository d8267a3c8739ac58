// SPDX-License-Identifier: Apache-2.0
/* What comes out of the tunnel: who sent it, and is it for somebody here.
 *
 * Attaches: tcx (or clsact) ingress of the WireGuard device. That is an L3
 *           device: the packet starts with its IP header.
 * Sees:     decrypted packets of peers; WireGuard has checked that the source
 *           lies in the prefixes of the peer that sent it.
 * Reads:    ipcache (addresses, then prefixes), endpoints.
 * Writes:   counters.
 * Returns:  redirect into the pod, past this host's stack; NEXT for the node's
 *           own tunnel addresses; SHOT, counted by reason, for all else: a peer
 *           neither reaches the node's other addresses nor is routed on.
 *
 * Nothing here depends on the transport header: fragments, extension headers and
 * ICMP errors go where their addresses say. TTL stays: nothing is routed. */
#include "kernel.h"
#include "tables.h"

/* Bytes before the IP header: 0; 14 in test runs, which the kernel only makes on
 * Ethernet frames. Set by the loader. */
const volatile __u32 tmb_l2_len = 0;

#define ETH_LEN 14

/* Reserved identities are those of cluster 0 (clustermesh/records.go). */
#define IDENTITY_BITS 20
#define IDENTITY_HOST 1
#define IDENTITY_REMOTE_NODE 3
#define IDENTITY_HEALTH 5

struct ip4 {
	__u8 version_ihl;
	__u8 tos;
	__be16 len;
	__be16 id;
	__be16 frag;
	__u8 ttl;
	__u8 proto;
	__be16 check;
	__be32 src;
	__be32 dst;
};

struct ip6 {
	__be32 version;
	__be16 len;
	__u8 next;
	__u8 hops;
	__u32 src[4];
	__u32 dst[4];
};

struct eth {
	__u8 dst[6];
	__u8 src[6];
	__be16 proto;
};

static __always_inline int drop(__u32 reason)
{
	tmb_count(reason);
	return TC_ACT_SHOT;
}

static __always_inline bool mapped(const __u32 *w)
{
	return !w[0] && !w[1] && w[2] == bpf_htonl(0xffff);
}

static __always_inline void set4(struct tmb_addr *a, __be32 ip)
{
	__u32 *w = (__u32 *)a->b;

	w[0] = 0;
	w[1] = 0;
	w[2] = bpf_htonl(0xffff);
	w[3] = ip;
}

static __always_inline void set6(struct tmb_addr *a, const __u32 *ip)
{
	__u32 *w = (__u32 *)a->b;

	w[0] = ip[0];
	w[1] = ip[1];
	w[2] = ip[2];
	w[3] = ip[3];
}

/* Source and destination as 16 bytes. 0, or the reason to drop. */
static __always_inline __u32 addresses(struct __sk_buff *skb, struct tmb_addr *src, struct tmb_addr *dst)
{
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct ip4 h;

		if (bpf_skb_load_bytes(skb, tmb_l2_len, &h, sizeof(h)))
			return TMB_DROP_MALFORMED;
		if (h.version_ihl >> 4 != 4 || (h.version_ihl & 15) < 5)
			return TMB_DROP_MALFORMED;
		set4(src, h.src);
		set4(dst, h.dst);
		return 0;
	}
	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ip6 h;

		if (bpf_skb_load_bytes(skb, tmb_l2_len, &h, sizeof(h)))
			return TMB_DROP_MALFORMED;
		if ((h.version & bpf_htonl(0xf0000000)) != bpf_htonl(0x60000000))
			return TMB_DROP_MALFORMED;
		/* WireGuard judged these as IPv6; our maps would take them for IPv4. */
		if (mapped(h.src) || mapped(h.dst))
			return TMB_DROP_MAPPED;
		set6(src, h.src);
		set6(dst, h.dst);
		return 0;
	}
	return TMB_DROP_NOT_IP;
}

/* Who an address belongs to: single addresses first, then prefixes. */
static __always_inline struct tmb_ipcache *owner(const struct tmb_addr *a)
{
	struct tmb_prefix p = {.bits = 128, .addr = *a};
	struct tmb_ipcache *row;

	row = bpf_map_lookup_elem(&tmb_ipcache_1, a);
	return row ? row : bpf_map_lookup_elem(&tmb_ipprefix_1, &p);
}

/* Of the reserved identities only those of other nodes come through a tunnel:
 * unknown, host, world and unmanaged are what somebody on this side is called. */
static __always_inline bool may_send(__u32 identity)
{
	return identity >> IDENTITY_BITS || identity == IDENTITY_REMOTE_NODE || identity == IDENTITY_HEALTH;
}

/* The single addresses with the identity host are this node's tunnel addresses,
 * and no others: no record of anybody can give that identity. */
static __always_inline bool is_tunnel_address(const struct tmb_addr *a)
{
	struct tmb_ipcache *row = bpf_map_lookup_elem(&tmb_ipcache_1, a);

	return row && row->flags & TMB_IP_TUNNEL_ADDRESS;
}

static __always_inline int deliver(struct __sk_buff *skb, const struct tmb_endpoint *to)
{
	struct eth e;

	__builtin_memcpy(e.dst, to->pod_mac, sizeof(e.dst));
	__builtin_memcpy(e.src, to->host_mac, sizeof(e.src));
	e.proto = (__be16)skb->protocol;
	if (!tmb_l2_len && bpf_skb_change_head(skb, ETH_LEN, 0))
		return drop(TMB_DROP_NO_ROOM);
	if (bpf_skb_store_bytes(skb, 0, &e, sizeof(e), 0))
		return drop(TMB_DROP_NO_ROOM);
	tmb_count(TMB_TUNNEL_DELIVERED);
	return bpf_redirect_peer(to->ifindex, 0);
}

SEC("tc") int tmb_tunnel(struct __sk_buff *skb)
{
	struct tmb_addr src, dst;
	struct tmb_endpoint *to;
	struct tmb_ipcache *from;
	__u32 reason;

	reason = addresses(skb, &src, &dst);
	if (reason)
		return drop(reason);

	from = owner(&src);
	if (!from)
		return drop(TMB_DROP_UNKNOWN_SOURCE);
	if (!may_send(from->identity))
		return drop(TMB_DROP_RESERVED_SOURCE);
	/* Our own cluster's identities do come this way: between nodes that share no
	 * L2, and through gateways. Our own addresses never do. */
	if (bpf_map_lookup_elem(&tmb_endpoint_2, &src))
		return drop(TMB_DROP_LOCAL_SOURCE);

	to = bpf_map_lookup_elem(&tmb_endpoint_2, &dst);
	if (to && to->ifindex)
		return deliver(skb, to);
	if (!to && !is_tunnel_address(&dst))
		return drop(TMB_DROP_NOT_HERE);
	tmb_count(TMB_TUNNEL_STACK);
	return TC_ACT_UNSPEC;
}

/* None of the helpers above asks for a GPL-compatible licence. */
char tmb_license[] SEC("license") = "Apache-2.0";
