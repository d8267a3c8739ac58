// SPDX-License-Identifier: Apache-2.0
/* A source port on an address of this node for somebody else's flow: a pod's into
 * the world, a client's to a backend on another node.
 *
 * A port is free if no flow has the translated addresses and no socket of the host
 * would get the answers. The original one is tried first, then TMB_SNAT_TRIES drawn
 * from the configured range. What holds a port is the row that leads answers back:
 * it is written only where there is none, so two CPUs never get the same one. The
 * range left to itself, ports of flows that have ended are taken over, in one step
 * likewise. */
#pragma once

#include "flow.h"

#define TMB_SNAT_TRIES 64

/* One after the other, never two at once: the stack has 512 bytes for all
 * functions that are at work. Declare it TMB_ALIGNED. */
union tmb_work {
	struct tmb_flow_key key;
	struct tmb_draw draw;
	struct tmb_flow flow;
	struct tmb_packet inner; /* of an ICMP error */
};

/* Would a socket of the host get what the flow's far end sends? */
__noinline int tmb_socket_has(struct __sk_buff *skb, const struct tmb_packet *p)
{
	struct bpf_sock_tuple t TMB_ALIGNED = {};
	const __u32 *src, *dst;
	struct bpf_sock *sk;
	__u32 size;

	if (!p)
		return 1;
	src = (const __u32 *)p->to_src.b;
	dst = (const __u32 *)p->to_dst.b;
	if (p->what & TMB_IS_V4) {
		t.ipv4.saddr = dst[3];
		t.ipv4.daddr = src[3];
		t.ipv4.sport = p->to_dport;
		t.ipv4.dport = p->to_sport;
		size = sizeof(t.ipv4);
	} else {
		t.ipv6.saddr[0] = dst[0];
		t.ipv6.saddr[1] = dst[1];
		t.ipv6.saddr[2] = dst[2];
		t.ipv6.saddr[3] = dst[3];
		t.ipv6.daddr[0] = src[0];
		t.ipv6.daddr[1] = src[1];
		t.ipv6.daddr[2] = src[2];
		t.ipv6.daddr[3] = src[3];
		t.ipv6.sport = p->to_dport;
		t.ipv6.dport = p->to_sport;
		size = sizeof(t.ipv6);
	}
	if (p->proto == IPPROTO_TCP)
		sk = bpf_skc_lookup_tcp(skb, &t, size, BPF_F_CURRENT_NETNS, 0);
	else if (p->proto == IPPROTO_UDP)
		sk = bpf_sk_lookup_udp(skb, &t, size, BPF_F_CURRENT_NETNS, 0);
	else
		return 0;
	if (!sk)
		return 0;
	bpf_sk_release(sk);
	return 1;
}

/* The row by which answers to p, translated, find back. */
static __always_inline void tmb_snat_row(struct tmb_flow *f, const struct tmb_packet *p, bool opener_is_a)
{
	f->seen = bpf_ktime_get_coarse_ns();
	f->epoch = tmb_epoch();
	f->flags = TMB_FLOW_REPLY | TMB_FLOW_TO_DST | TMB_FLOW_OUTSIDE | (opener_is_a ? TMB_FLOW_FROM_A : 0);
	if (!tmb_same(&p->dst, &p->to_dst) || p->dport != p->to_dport)
		f->flags |= TMB_FLOW_TO_SRC;
	tmb_copy(&f->to_src, &p->dst);
	tmb_copy(&f->to_dst, &p->src);
	f->src_port = p->dport;
	f->dst_port = p->sport;
}

/* Takes p->to_sport if it is free, f being the row's room. ended: also from a flow
 * that has ended. */
__noinline int tmb_snat_take(struct __sk_buff *skb, struct tmb_packet *p, struct tmb_flow *f, __u32 ended)
{
	struct tmb_flow_key key TMB_ALIGNED;
	struct tmb_flow *there;
	__u32 flags;
	bool a;

	if (!p || !f)
		return 0;
	a = tmb_flow_key(&key, &p->to_src, &p->to_dst, p->to_sport, p->to_dport, p->proto);
	there = bpf_map_lookup_elem(&tmb_flow_1, &key);
	if (!there) {
		if (tmb_socket_has(skb, p))
			return 0;
		tmb_snat_row(f, p, a);
		return !bpf_map_update_elem(&tmb_flow_1, &key, f, BPF_NOEXIST);
	}
	flags = there->flags;
	/* Of an earlier connection of the same two, by the same ports. */
	if (flags & TMB_FLOW_REPLY && there->dst_port == p->sport && there->src_port == p->dport &&
	    tmb_same(&there->to_dst, &p->src) && tmb_same(&there->to_src, &p->dst))
		return 1;
	if (!ended || !tmb_closed(flags) || tmb_socket_has(skb, p))
		return 0;
	/* Who changes the flags first has it. */
	tmb_snat_row(f, p, a);
	if (__sync_val_compare_and_swap(&there->flags, flags, f->flags) != flags)
		return 0;
	return !bpf_map_update_elem(&tmb_flow_1, &key, f, BPF_ANY);
}

/* p->to_* says all but the source's port, which is the original one: finds a free
 * one and holds it. f is zero but for what both rows of the flow are to say (at,
 * ifindex, rule), and has been written to. 0, or the reason to drop. */
__noinline int tmb_snat_hold(struct __sk_buff *skb, struct tmb_packet *p, struct tmb_flow *f)
{
	__u32 i, zero = 0, min = 32768, max = 60999;
	struct tmb_config *config;
	bool echo;

	if (!p || !f)
		return TMB_DROP_NAT_EXHAUSTED;
	if (tmb_snat_take(skb, p, f, 0))
		return 0;
	if (p->proto == IPPROTO_SCTP) /* its ports cannot be changed */
		return TMB_DROP_NAT_CONFLICT;
	config = bpf_map_lookup_elem(&tmb_config_1, &zero);
	if (config && config->port_min && config->port_max >= config->port_min) {
		min = config->port_min;
		max = config->port_max;
	}
	echo = p->proto == IPPROTO_ICMP || p->proto == IPPROTO_ICMPV6;
	for (i = 0; i < TMB_SNAT_TRIES; i++) {
		p->to_sport = bpf_htons((__u16)(min + (((__u64)bpf_get_prandom_u32() * (max - min + 1)) >> 32)));
		if (echo) /* its identifier is both ports */
			p->to_dport = p->to_sport;
		if (tmb_snat_take(skb, p, f, i >= TMB_SNAT_TRIES / 2))
			return 0;
	}
	return TMB_DROP_NAT_EXHAUSTED;
}

/* The flow may not be after all. */
__noinline int tmb_snat_let_go(struct tmb_packet *p)
{
	struct tmb_flow_key key TMB_ALIGNED;

	if (!p)
		return 0;
	tmb_flow_key(&key, &p->to_src, &p->to_dst, p->to_sport, p->to_dport, p->proto);
	bpf_map_delete_elem(&tmb_flow_1, &key);
	return 0;
}

/* The node's own address of the packet's family: that of the tunnel, or of the
 * underlay. False: it has none. */
static __always_inline bool tmb_node_address(struct tmb_addr *a, bool v4, bool tunnel)
{
	__u32 zero = 0;
	struct tmb_config *c = bpf_map_lookup_elem(&tmb_config_1, &zero);
	const __u64 *w;

	if (!c)
		return false;
	tmb_copy(a, v4 ? (tunnel ? &c->tunnel4 : &c->node4) : (tunnel ? &c->tunnel6 : &c->node6));
	w = (const __u64 *)a->b;
	return w[0] || w[1];
}
