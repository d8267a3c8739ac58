// SPDX-License-Identifier: Apache-2.0
/* What whoever watches is told: drops, new flows, flows that were cut. The ring
 * is for people; what it has no room for is counted and lost. */
#pragma once

#include "ipcache.h"
#include "packet.h"

__noinline int tmb_tell(struct __sk_buff *skb, struct tmb_packet *p, __u32 kind, __u32 reason)
{
	struct tmb_event *e;

	if (!p)
		return 0;
	e = bpf_ringbuf_reserve(&tmb_events_1, sizeof(*e), 0);
	if (!e) {
		tmb_count(TMB_EVENT_LOST);
		return 0;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->time = bpf_ktime_get_coarse_ns();
	tmb_copy(&e->src, &p->src);
	tmb_copy(&e->dst, &p->dst);
	e->sport = p->sport;
	e->dport = p->dport;
	if (p->what & TMB_IS_TRANSLATED && !tmb_same(&p->dst, &p->to_dst)) {
		tmb_copy(&e->backend, &p->to_dst);
		e->backend_port = p->to_dport;
	}
	e->proto = p->proto;
	e->kind = kind;
	e->reason = reason;
	e->rule = p->rule;
	e->ifindex = skb->ifindex;
	e->src_identity = tmb_identity(&p->src);
	e->dst_identity = tmb_identity(p->what & TMB_IS_TRANSLATED ? &p->to_dst : &p->dst);
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/* The one way out for what is dropped: counted once, and told. */
__noinline int tmb_drop(struct __sk_buff *skb, struct tmb_packet *p, __u32 reason)
{
	if (!p)
		return TC_ACT_SHOT;
	tmb_count(reason);
	tmb_tell(skb, p, TMB_EVENT_DROP, reason);
	return TC_ACT_SHOT;
}
