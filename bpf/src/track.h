// SPDX-License-Identifier: Apache-2.0
/* A packet on its way through conntrack: the same for every hook. */
#pragma once

#include "flow.h"
#include "icmp.h"

/* A packet for which there is something to decide or to note. find: the backend of
 * a service for a flow that begins; NULL where packets come translated. */
static __always_inline int tmb_consider(struct __sk_buff *skb, struct tmb_packet *p, __u32 how,
					 int (*find)(struct tmb_packet *, struct tmb_flow *))
{
	struct tmb_flow f = {};
	int reason;

	reason = tmb_flow_hit(skb, p, how);
	if (reason != TMB_FRESH)
		return reason;
	p->what &= ~TMB_IS_TRANSLATED;
	if (find) {
		reason = find(p, &f);
		if (reason)
			return reason;
	}
	return tmb_flow_new(skb, p, &f);
}

/* Most packets end here: their flow is known and has nothing to be told. */
static __always_inline bool tmb_track_plain(struct tmb_packet *p)
{
	struct tmb_flow_key key TMB_ALIGNED;
	struct tmb_flow *f;
	bool forward;

	forward = tmb_flow_key(&key, &p->src, &p->dst, p->sport, p->dport, p->proto);
	f = bpf_map_lookup_elem(&tmb_flow_1, &key);
	if (!f)
		return false;
	if (!(f->flags & TMB_FLOW_FROM_A))
		forward = !forward;
	if (!tmb_flow_is_plain(f, p, forward, tmb_epoch(), bpf_ktime_get_coarse_ns()))
		return false;
	tmb_flow_take(f, p, forward);
	return true;
}

/* What to do with a packet by its flow, and that done to it. 0: it may go on;
 * else a reason to drop, or TMB_REFUSE_IT from find. */
static __always_inline int tmb_track(struct __sk_buff *skb, struct tmb_packet *p, __u32 how,
				      int (*find)(struct tmb_packet *, struct tmb_flow *))
{
	int reason;

	if (p->what & TMB_IS_ERROR)
		return tmb_error(skb, p, how);
	if (!tmb_track_plain(p)) {
		reason = tmb_consider(skb, p, how, find);
		if (reason)
			return reason;
	}
	return p->what & TMB_IS_TRANSLATED ? tmb_rewrite(skb, p) : 0;
}

/* For addresses of this node: what has a flow is treated by it, all else is the
 * stack's, and has none. */
static __always_inline int tmb_track_known(struct __sk_buff *skb, struct tmb_packet *p)
{
	int reason;

	if (p->what & TMB_IS_ERROR)
		return tmb_error(skb, p, 0);
	if (!tmb_track_plain(p)) {
		reason = tmb_flow_hit(skb, p, 0);
		if (reason == TMB_FRESH) {
			p->what &= ~TMB_IS_TRANSLATED;
			return 0;
		}
		if (reason)
			return reason;
	}
	return p->what & TMB_IS_TRANSLATED ? tmb_rewrite(skb, p) : 0;
}
