// SPDX-License-Identifier: Apache-2.0
/* ICMP errors. One says something about a packet that went the other way, and has
 * its beginning in it: by that it belongs to a flow, passes if the flow may be,
 * and is translated as the flow's packets are, outside and inside.
 *
 * The transport checksum inside stays: it may never have been whole, and nobody
 * looks at it. */
#pragma once

#include "flow.h"

/* The beginning of the packet inside, read as one that goes the error's way:
 * its source is what was sent to. l4 is where its ports stand. 0, or a reason. */
__noinline int tmb_parse_inner(struct __sk_buff *skb, struct tmb_packet *p, struct tmb_packet *q)
{
	__be16 h[4];
	__u32 off;

	if (!p || !q)
		return TMB_DROP_MALFORMED;
	off = p->l4 + 8;
	if (p->what & TMB_IS_V4) {
		struct tmb_ip4 ip;

		if (bpf_skb_load_bytes(skb, off, &ip, sizeof(ip)))
			return TMB_DROP_MALFORMED;
		if (ip.version_ihl >> 4 != 4 || (ip.version_ihl & 15) < 5)
			return TMB_DROP_MALFORMED;
		if (ip.frag & bpf_htons(0x1fff))
			return TMB_DROP_FRAGMENT;
		tmb_set4(&q->src, ip.dst);
		tmb_set4(&q->dst, ip.src);
		q->what = TMB_IS_V4;
		q->proto = ip.proto;
		off += (ip.version_ihl & 15) * 4;
	} else {
		struct tmb_ip6 ip;
		__u8 x[8];
		int i;

		if (bpf_skb_load_bytes(skb, off, &ip, sizeof(ip)))
			return TMB_DROP_MALFORMED;
		tmb_set6(&q->src, ip.dst);
		tmb_set6(&q->dst, ip.src);
		if (tmb_is4(&q->src) || tmb_is4(&q->dst))
			return TMB_DROP_MAPPED;
		q->proto = ip.next;
		off += sizeof(ip);
		for (i = 0; i < TMB_MAX_EXTENSIONS; i++) {
			if (!tmb_is_extension(q->proto))
				break;
			if (bpf_skb_load_bytes(skb, off, x, sizeof(x)))
				return TMB_DROP_MALFORMED;
			if (q->proto == 44 && *(__be16 *)(x + 2) & bpf_htons(0xfff8))
				return TMB_DROP_FRAGMENT;
			off += q->proto == 44 ? 8 : q->proto == 51 ? (x[1] + 2) * 4 : (x[1] + 1) * 8;
			q->proto = x[0];
		}
	}
	/* What is behind the packet's end is not in its checksum either. */
	if (off + sizeof(h) > p->end || bpf_skb_load_bytes(skb, off, h, sizeof(h)))
		return TMB_DROP_MALFORMED;
	q->l4 = off;
	switch (q->proto) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		q->sport = h[1];
		q->dport = h[0];
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		q->sport = h[2];
		q->dport = h[2];
		break;
	}
	return 0;
}

/* Inside: what went forth had the addresses of q, turned round. Returns by how much
 * the sum of what is inside has changed. */
static __always_inline int tmb_rewrite_inner(struct __sk_buff *skb, __u32 off, const struct tmb_packet *q, __u32 *changed)
{
	__u32 addrs = tmb_addr_diff(q), ports = 0;
	__be16 words[2];

	if (q->what & TMB_IS_V4) {
		struct tmb_ip4 ip;

		if (bpf_skb_load_bytes(skb, off, &ip, sizeof(ip)))
			return TMB_DROP_MALFORMED;
		ip.src = ((const __u32 *)q->to_dst.b)[3];
		ip.dst = ((const __u32 *)q->to_src.b)[3];
		ip.check = ~tmb_fold16((__u64)(__u16)~ip.check + addrs);
		addrs = 0; /* the header's own sum makes up for it */
		if (bpf_skb_store_bytes(skb, off, &ip, sizeof(ip), 0))
			return TMB_DROP_MALFORMED;
	} else if (bpf_skb_store_bytes(skb, off + 8, &q->to_dst, 16, 0) ||
		   bpf_skb_store_bytes(skb, off + 24, &q->to_src, 16, 0)) {
		return TMB_DROP_MALFORMED;
	}
	words[0] = q->to_dport;
	words[1] = q->to_sport;
	if (q->proto == IPPROTO_TCP || q->proto == IPPROTO_UDP || q->proto == IPPROTO_SCTP) {
		ports = (__u32)(__u16)~q->sport + q->to_sport + (__u16)~q->dport + q->to_dport;
		if (bpf_skb_store_bytes(skb, q->l4, words, 4, 0))
			return TMB_DROP_MALFORMED;
	} else if (q->to_sport != q->sport || q->to_dport != q->dport) {
		__be16 id = q->to_sport != q->sport ? q->to_sport : q->to_dport;

		ports = (__u32)(__u16)~q->sport + id;
		if (bpf_skb_store_bytes(skb, q->l4 + 4, &id, 2, 0))
			return TMB_DROP_MALFORMED;
	}
	*changed = tmb_fold32((__u64)addrs + ports);
	return 0;
}

/* Translates the error p about q's flow, whose translation q has; p->to_* are then
 * its addresses. */
__noinline int tmb_rewrite_error(struct __sk_buff *skb, struct tmb_packet *p, struct tmb_packet *q)
{
	__u32 inside, outside, check;
	int reason;

	if (!p || !q)
		return TMB_DROP_MALFORMED;
	check = p->l4 + 2;
	tmb_to_same(p);
	tmb_copy(&p->to_dst, &q->to_dst);
	if (tmb_same(&p->src, &q->src)) /* else somebody on the way sent it */
		tmb_copy(&p->to_src, &q->to_src);
	p->what |= TMB_IS_TRANSLATED;
	p->out = q->out;
	if (tmb_is4(&q->to_src) != !!(p->what & TMB_IS_V4) || tmb_is4(&q->to_dst) != !!(p->what & TMB_IS_V4))
		return TMB_DROP_PROTOCOL;
	reason = tmb_rewrite_inner(skb, p->l4 + 8, q, &inside);
	if (reason)
		return reason;
	outside = tmb_addr_diff(p);
	reason = tmb_rewrite_ip(skb, p, outside);
	if (reason)
		return reason;
	if (bpf_l4_csum_replace(skb, check, 0, inside, 0))
		return TMB_DROP_MALFORMED;
	if (p->what & TMB_IS_V4)
		return 0;
	if (bpf_l4_csum_replace(skb, check, 0, outside, BPF_F_PSEUDO_HDR))
		return TMB_DROP_MALFORMED;
	bpf_csum_update(skb, outside); /* as in tmb_rewrite */
	return 0;
}

/* May the flow that it is about be? q->to_* then are that flow's translation. */
__noinline int tmb_judge_error(struct tmb_packet *p, struct tmb_packet *q, __u32 how)
{
	struct tmb_flow_key key TMB_ALIGNED;
	struct tmb_flow *f;
	bool forward;
	int reason;

	if (!p || !q)
		return TMB_DROP_MALFORMED;
	if (!tmb_same(&q->dst, &p->dst) || tmb_same(&q->src, &q->dst))
		return TMB_DROP_MALFORMED; /* about a packet that its receiver has not sent, or to itself */
	if (how & TMB_RAW && !tmb_same(&q->src, &p->src))
		return TMB_DROP_SPOOFED; /* nor did a pod get what was not sent to it */
	forward = tmb_flow_key(&key, &q->src, &q->dst, q->sport, q->dport, q->proto);
	f = bpf_map_lookup_elem(&tmb_flow_1, &key);
	if (f) {
		if (!(f->flags & TMB_FLOW_FROM_A))
			forward = !forward;
		tmb_flow_take(f, q, forward);
		if (f->epoch == tmb_epoch()) {
			p->rule = f->rule;
			return 0;
		}
		reason = tmb_judge(q, forward); /* forbidden: the flow's next packet cuts it */
	} else {
		reason = tmb_judge(q, true);
		if (reason)
			reason = tmb_judge(q, false);
		if (!reason)
			tmb_count(TMB_FLOW_EVICTED);
	}
	p->rule = q->rule;
	return reason;
}

/* An ICMP error. 0: it may go on, translated where its flow is. */
static __always_inline int tmb_error(struct __sk_buff *skb, struct tmb_packet *p, __u32 how)
{
	struct tmb_packet q TMB_ALIGNED = {};
	int reason;

	reason = tmb_parse_inner(skb, p, &q);
	if (!reason)
		reason = tmb_judge_error(p, &q, how);
	if (!reason && q.what & TMB_IS_TRANSLATED)
		reason = tmb_rewrite_error(skb, p, &q);
	return reason;
}
