//go:build ignore

// SPDX-License-Identifier: Apache-2.0
/* Link faults of the lab's underlay.
 *
 * Attaches: tcx ingress of every port of the underlay (packets a host sends).
 * Sees:     Ethernet frames, IPv4 and IPv6; others pass.
 * Reads:    rules. Writes: rules (counters).
 * Returns:  TCX_NEXT, or TCX_DROP for what a rule loses. A duplicate enters
 *           the same port again, marked so that no rule sees it twice.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#define MAX_RULES 16
/* Not in the headers of Debian 12. */
#define TCX_NEXT -1
#define TCX_DROP 2

#define DUPLICATE 0x7d0b

struct rule {
	__u8 src[16], src_mask[16]; /* IPv4 v4-mapped; mask 0 = any */
	__u8 dst[16], dst_mask[16];
	__u16 port;                 /* either end, host order; 0 = any */
	__u8 proto;                 /* 0 = any */
	__u8 active;
	__u32 loss;                 /* of 2^32-1 */
	__u32 dup;
	__u32 seed;
	__u64 seen;                 /* packets matched */
	__u64 lost;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_RULES);
	__type(key, __u32);
	__type(value, struct rule);
} rules SEC(".maps");

struct packet {
	__u8 src[16], dst[16];
	__u16 sport, dport;
	__u8 proto;
};

static __always_inline int parse(struct __sk_buff *skb, struct packet *p)
{
	__u8 h[40];
	__u32 l4;
	__be16 ports[2];

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, ETH_HLEN, h, 20))
			return -1;
		p->src[10] = p->src[11] = p->dst[10] = p->dst[11] = 0xff;
		__builtin_memcpy(p->src + 12, h + 12, 4);
		__builtin_memcpy(p->dst + 12, h + 16, 4);
		p->proto = h[9];
		l4 = ETH_HLEN + (h[0] & 15) * 4;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes(skb, ETH_HLEN, h, 40))
			return -1;
		__builtin_memcpy(p->src, h + 8, 16);
		__builtin_memcpy(p->dst, h + 24, 16);
		p->proto = h[6];
		l4 = ETH_HLEN + 40;
	} else {
		return -1;
	}
	if (!bpf_skb_load_bytes(skb, l4, ports, 4)) {
		p->sport = bpf_ntohs(ports[0]);
		p->dport = bpf_ntohs(ports[1]);
	}
	return 0;
}

static __always_inline int within(const __u8 *addr, const __u8 *net, const __u8 *mask)
{
	for (int i = 0; i < 16; i++)
		if ((addr[i] & mask[i]) != net[i])
			return 0;
	return 1;
}

/* The n-th draw of a seed: the same for every run that sends the same packets. */
static __always_inline __u32 draw(__u32 seed, __u64 n)
{
	__u64 x = ((__u64)seed << 32) + n * 0x9e3779b97f4a7c15ULL;

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
	return x >> 32;
}

SEC("tc")
int fault(struct __sk_buff *skb)
{
	struct packet p = {};

	if (skb->mark == DUPLICATE) {
		skb->mark = 0;
		return TCX_NEXT;
	}
	if (parse(skb, &p))
		return TCX_NEXT;
	for (__u32 i = 0; i < MAX_RULES; i++) {
		__u32 key = i;
		struct rule *r = bpf_map_lookup_elem(&rules, &key);

		if (!r || !r->active)
			continue;
		if (r->proto && r->proto != p.proto)
			continue;
		if (r->port && r->port != p.sport && r->port != p.dport)
			continue;
		if (!within(p.src, r->src, r->src_mask) || !within(p.dst, r->dst, r->dst_mask))
			continue;
		__u64 n = __sync_fetch_and_add(&r->seen, 1);
		if (r->loss && draw(r->seed, 2 * n) <= r->loss) {
			__sync_fetch_and_add(&r->lost, 1);
			return TCX_DROP;
		}
		if (r->dup && draw(r->seed, 2 * n + 1) <= r->dup) {
			skb->mark = DUPLICATE;
			bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS);
			skb->mark = 0;
		}
	}
	return TCX_NEXT;
}

char _license[] SEC("license") = "GPL";
