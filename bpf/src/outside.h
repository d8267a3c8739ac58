// SPDX-License-Identifier: Apache-2.0
/* A service's backend for a packet from outside (scope OUTSIDE): node ports, load
 * balancer and external addresses. */
#pragma once

#include "maglev.h"
#include "snat.h"

#define TMB_NOT_OURS 0x1002 /* no service: the packet is somebody else's business */

/* loadBalancerSourceRanges */
static __always_inline bool tmb_in_range(__u64 service, const struct tmb_addr *client)
{
	struct tmb_range_key key = {.bits = 64 + 128, .service = {service, service >> 32}};
	const __u32 *f = (const __u32 *)client->b;
	__u32 *t = (__u32 *)key.addr.b;

	t[0] = f[0];
	t[1] = f[1];
	t[2] = f[2];
	t[3] = f[3];
	return bpf_map_lookup_elem(&tmb_srcrange_1, &key) != NULL;
}

/* With session affinity by address only: all nodes then send a client one way,
 * and the row that remembers is needed only once the backends change. */
__noinline __u32 tmb_hash_asker(const struct tmb_packet *p, __u32 with_port)
{
	struct tmb_asker who TMB_ALIGNED = {};

	if (!p)
		return 0;
	tmb_copy(&who.client, &p->src);
	tmb_copy(&who.frontend, &p->dst);
	who.client_port = with_port ? p->sport : 0;
	who.port = p->dport;
	who.proto = p->proto;
	return tmb_maglev_hash(&who);
}

/* A backend of this node sees the client's own address; one of another node sees
 * this node's, so that answers come back here. 0: that is settled but for the
 * port, if p->to_src is another now; or the reason to drop. */
static __always_inline int tmb_outside_source(struct tmb_packet *p, __u32 service_flags)
{
	struct tmb_ipcache *at;

	if (bpf_map_lookup_elem(&tmb_endpoint_2, &p->to_dst))
		return 0;
	at = tmb_owner(&p->to_dst);
	if (at && at->identity == IDENTITY_HOST)
		return 0;
	if (service_flags & TMB_SVC_KEEP_SOURCE)
		return TMB_DROP_NO_BACKEND; /* it was to be on this node */
	if (!tmb_node_address(&p->to_src, p->what & TMB_IS_V4, at && at->flags & TMB_IP_ENCRYPTED))
		return TMB_DROP_PROTOCOL; /* this node has no address of the family */
	return 0;
}

/* 0: p->to_* say which backend, w->flow which slot; TMB_NOT_OURS; TMB_REFUSE_IT; or
 * a reason to drop. */
__noinline int tmb_service_outside(struct tmb_packet *p, union tmb_work *w)
{
	struct tmb_service_key key TMB_ALIGNED = {};
	struct tmb_service *svc;
	__u32 flags, affinity;
	int chosen;

	if (!p || !w)
		return TMB_NOT_OURS;
	if (p->proto != IPPROTO_TCP && p->proto != IPPROTO_UDP && p->proto != IPPROTO_SCTP)
		return TMB_NOT_OURS;
	tmb_copy(&key.addr, &p->dst);
	key.port = p->dport;
	key.proto = p->proto;
	key.scope = TMB_OUTSIDE;
	svc = bpf_map_lookup_elem(&tmb_services_1, &key);
	if (!svc)
		return TMB_NOT_OURS;
	if (p->what & TMB_IS_LATER)
		return TMB_DROP_FRAGMENT; /* the first piece's backend is not known any more */
	flags = svc->flags;
	if (flags & TMB_SVC_RANGES && !tmb_in_range(svc->id, &p->src))
		return TMB_DROP_SOURCE_RANGE;
	affinity = svc->affinity;
	if (affinity && tmb_affinity_find(&key, &p->src, &w->draw)) {
		chosen = TMB_CHOSEN;
	} else {
		chosen = tmb_choose_outside(&key, tmb_hash_asker(p, !affinity), &w->draw);
		if (affinity && chosen == TMB_CHOSEN)
			tmb_affinity_keep(&p->src, &w->draw);
	}
	if (chosen == TMB_NO_SERVICE)
		return TMB_NOT_OURS;
	if (chosen != TMB_CHOSEN)
		return flags & TMB_SVC_LOCAL ? TMB_DROP_NO_BACKEND : TMB_REFUSE_IT;
	if (!w->draw.up)
		tmb_count(TMB_SOCK_NONE_UP);
	tmb_to_same(p);
	p->what |= TMB_IS_TRANSLATED;
	tmb_copy(&p->to_dst, &w->draw.slot.addr);
	p->to_dport = w->draw.slot.port;
	w->flow.at = w->draw.at; /* which lies before it */
	__builtin_memset(&w->flow, 0, __builtin_offsetof(struct tmb_flow, at));
	chosen = tmb_can_rewrite(p);
	return chosen ? chosen : tmb_outside_source(p, flags);
}
