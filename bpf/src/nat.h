// SPDX-License-Identifier: Apache-2.0
/* Rewriting a packet's addresses and ports to what p->to_* says. The checksum in
 * the packet may be whole or only that of the pseudo header (the device or the
 * receiver does the rest), and a segment may be one of many to come: so sums are
 * changed by difference, addresses and ports apart, as the kernel asks. The IP
 * header is written in place. */
#pragma once

#include "packet.h"

/* The packet as it is, before some of it is given another value. */
static __always_inline void tmb_to_same(struct tmb_packet *p)
{
	tmb_copy(&p->to_src, &p->src);
	tmb_copy(&p->to_dst, &p->dst);
	p->to_sport = p->sport;
	p->to_dport = p->dport;
}

static __always_inline __u32 tmb_fold32(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	return sum;
}

static __always_inline __u16 tmb_fold16(__u64 sum)
{
	__u32 s = tmb_fold32(sum);

	s = (s & 0xffff) + (s >> 16);
	s = (s & 0xffff) + (s >> 16);
	return s;
}

/* What the sum over both addresses changes by: v4-mapped prefixes cancel out. */
static __always_inline __u32 tmb_addr_diff(const struct tmb_packet *p)
{
	const __u32 *s = (const __u32 *)p->src.b, *d = (const __u32 *)p->dst.b;
	const __u32 *ts = (const __u32 *)p->to_src.b, *td = (const __u32 *)p->to_dst.b;
	__u64 sum = 0;

	sum += (__u64)(__u32)~s[3] + ts[3] + (__u32)~d[3] + td[3];
	if (p->what & TMB_IS_V4)
		return tmb_fold32(sum);
	sum += (__u64)(__u32)~s[0] + ts[0] + (__u32)~d[0] + td[0];
	sum += (__u64)(__u32)~s[1] + ts[1] + (__u32)~d[1] + td[1];
	sum += (__u64)(__u32)~s[2] + ts[2] + (__u32)~d[2] + td[2];
	return tmb_fold32(sum);
}

/* Can it be translated at all? 0, or the reason to drop. Asked before a flow is
 * taken in. SCTP's checksum covers its ports, and is not one that can be changed
 * by difference at this price. */
static __always_inline int tmb_can_rewrite(const struct tmb_packet *p)
{
	if (tmb_is4(&p->to_src) != !!(p->what & TMB_IS_V4) || tmb_is4(&p->to_dst) != !!(p->what & TMB_IS_V4))
		return TMB_DROP_PROTOCOL;
	switch (p->proto) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return 0;
	case IPPROTO_SCTP:
		return p->sport == p->to_sport && p->dport == p->to_dport ? 0 : TMB_DROP_PROTOCOL;
	}
	return TMB_DROP_PROTOCOL;
}

/* The IP header's addresses, in place; v4: its checksum, too. */
static __always_inline int tmb_rewrite_ip(struct __sk_buff *skb, struct tmb_packet *p, __u32 diff)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	const __u32 *s = (const __u32 *)p->to_src.b, *d = (const __u32 *)p->to_dst.b;

	if (p->what & TMB_IS_V4) {
		struct tmb_ip4 *h = data + tmb_l2_len;

		if ((void *)(h + 1) > end)
			return TMB_DROP_MALFORMED;
		h->src = s[3];
		h->dst = d[3];
		h->check = ~tmb_fold16((__u64)(__u16)~h->check + diff);
	} else {
		struct tmb_ip6 *h = data + tmb_l2_len;

		if ((void *)(h + 1) > end)
			return TMB_DROP_MALFORMED;
		h->src[0] = s[0];
		h->src[1] = s[1];
		h->src[2] = s[2];
		h->src[3] = s[3];
		h->dst[0] = d[0];
		h->dst[1] = d[1];
		h->dst[2] = d[2];
		h->dst[3] = d[3];
	}
	return 0;
}

/* A TRANSLATED packet becomes what p->to_* says; p itself stays. 0, or a reason. */
__noinline int tmb_rewrite(struct __sk_buff *skb, struct tmb_packet *p)
{
	__u32 at, check, diff, ports = 0, flags = 0, pseudo = BPF_F_PSEUDO_HDR;
	void *data, *end;
	__be16 *word;
	int reason;

	if (!p)
		return TMB_DROP_MALFORMED;
	reason = tmb_can_rewrite(p);
	if (reason)
		return reason;
	at = p->l4 & 511;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (data + at + 8 > end && bpf_skb_pull_data(skb, p->what & TMB_IS_LATER ? at : at + 8))
		return TMB_DROP_MALFORMED;
	diff = tmb_addr_diff(p);
	reason = tmb_rewrite_ip(skb, p, diff);
	if (reason)
		return reason;
	if (p->what & TMB_IS_LATER || p->proto == IPPROTO_SCTP)
		return 0;

	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	word = data + at;
	if ((void *)(word + 4) > end)
		return TMB_DROP_MALFORMED;
	check = at + 2;
	if (p->proto == IPPROTO_TCP || p->proto == IPPROTO_UDP) {
		ports = (__u32)(__u16)~p->sport + p->to_sport + (__u16)~p->dport + p->to_dport;
		word[0] = p->to_sport;
		word[1] = p->to_dport;
		check = at + 16;
		if (p->proto == IPPROTO_UDP) {
			check = at + 6;
			flags = BPF_F_MARK_MANGLED_0;
		}
	} else {
		/* Echo: the identifier is both ports; whichever changed is the new one. */
		__be16 id = p->to_sport != p->sport ? p->to_sport : p->to_dport;

		if (id != p->sport) {
			ports = (__u32)(__u16)~p->sport + id;
			word[2] = id;
		}
		if (p->proto == IPPROTO_ICMP)
			pseudo = 0;
	}
	if (ports && bpf_l4_csum_replace(skb, check, 0, ports, flags))
		return TMB_DROP_MALFORMED;
	if (!pseudo)
		return 0;
	if (bpf_l4_csum_replace(skb, check, 0, diff, flags | pseudo))
		return TMB_DROP_MALFORMED;
	/* A device's sum over the whole packet: the kernel takes the difference off as
	 * if the IP header had made up for it, which only IPv4's does. No effect else. */
	if (!(p->what & TMB_IS_V4))
		bpf_csum_update(skb, diff);
	return 0;
}
