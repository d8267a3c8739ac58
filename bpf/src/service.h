// SPDX-License-Identifier: Apache-2.0
/* A service's backend for a packet of a pod of this node (scope INSIDE), for what
 * has no socket here: virtual machines, sandboxes, forwarded traffic. */
#pragma once

#include "flow.h"

/* The source under which a pod reaches itself: IPv4, the gateway that every pod
 * has, nobody's address but on a pod's own link; IPv6, the node's tunnel address.
 * Its gateway there is link-local, and a server that answers a datagram from such
 * an address does so from a link-local one of its own. */
static __always_inline void tmb_gateway(struct tmb_addr *a, bool v4)
{
	const __u32 g6[4] = {bpf_htonl(0xfe800000), 0, 0, bpf_htonl(1)};
	struct tmb_config *config;
	__u32 zero = 0;

	if (v4) {
		tmb_set4(a, bpf_htonl(0xa9fe0101)); /* 169.254.1.1 */
		return;
	}
	config = bpf_map_lookup_elem(&tmb_config_1, &zero);
	if (config && config->tunnel6.b[0])
		tmb_copy(a, &config->tunnel6);
	else
		tmb_set6(a, g6); /* fe80::1: before the node is registered */
}

/* Nothing is up: a flow that has a backend keeps it, if it stands at all. */
__noinline int tmb_stay(struct tmb_packet *p, struct tmb_draw *d)
{
	struct tmb_flow_key key TMB_ALIGNED;
	struct tmb_slot *slot;
	struct tmb_flow *f;

	if (!p || !d)
		return 0;
	tmb_flow_key(&key, &p->src, &p->dst, p->sport, p->dport, p->proto);
	f = bpf_map_lookup_elem(&tmb_flow_1, &key);
	if (!f || !(f->flags & TMB_FLOW_SERVICE) || !tmb_backend_stands(f, false))
		return 0;
	slot = bpf_map_lookup_elem(&tmb_slots_1, &f->at);
	if (!slot)
		return 0;
	d->at = f->at;
	d->slot = *slot;
	return 1;
}

/* 0: no service, or p->to_* and f say which backend; TMB_REFUSE_IT; or a reason
 * to drop. */
__noinline int tmb_service_inside(struct tmb_packet *p, struct tmb_flow *f)
{
	struct tmb_service_key key TMB_ALIGNED = {};
	struct tmb_draw d TMB_ALIGNED = {};
	struct tmb_service *svc;
	int chosen, refuse;

	if (!p || !f)
		return 0;
	if (p->proto != IPPROTO_TCP && p->proto != IPPROTO_UDP && p->proto != IPPROTO_SCTP)
		return 0;
	tmb_copy(&key.addr, &p->dst);
	key.port = p->dport;
	key.proto = p->proto;
	key.scope = TMB_INSIDE;
	svc = bpf_map_lookup_elem(&tmb_services_1, &key);
	if (!svc)
		return 0;
	if (p->what & TMB_IS_LATER)
		return TMB_DROP_FRAGMENT; /* the first piece's backend is not known any more */
	refuse = svc->flags & TMB_SVC_LOCAL ? TMB_DROP_NO_BACKEND : TMB_REFUSE_IT;
	chosen = tmb_choose_client(&key, &p->src, &d);
	if (chosen == TMB_NO_SERVICE)
		return 0;
	if (chosen != TMB_CHOSEN)
		return refuse;
	if (!d.up) {
		tmb_count(TMB_SOCK_NONE_UP);
		tmb_stay(p, &d);
	}
	f->flags |= TMB_FLOW_SERVICE;
	f->at = d.at;
	tmb_to_same(p);
	p->what |= TMB_IS_TRANSLATED;
	tmb_copy(&p->to_dst, &d.slot.addr);
	p->to_dport = d.slot.port;
	if (tmb_same(&p->to_dst, &p->src)) { /* itself: answers must come by here */
		f->flags |= TMB_FLOW_HAIRPIN;
		tmb_gateway(&p->to_src, p->what & TMB_IS_V4);
	}
	return 0;
}
