// SPDX-License-Identifier: Apache-2.0
/* A pod's own link: what it sends, and what this node's stack sends to it.
 *
 * Attaches: tcx (or clsact) on the host's end of each pod's veth: tmb_from_pod at
 *           ingress, tmb_to_pod at egress.
 * Sees:     everything the pod sends; of what is sent to it, what comes by the
 *           stack (its host, other nodes without a tunnel, the world). What the
 *           other programs deliver does not pass here.
 * Reads:    endpoints, services, slots, health, policy, ipcache, epoch, config.
 * Writes:   flows, fragments, affinity, counters, events.
 * Returns:  from_pod: redirect into another pod of this node; NEXT where the stack
 *           knows the way; redirect out for flows that came in there; to_pod: NEXT.
 *           SHOT, counted by reason, for all else. */
#include "kernel.h"
#include "deliver.h"
#include "flow.h"
#include "service.h"

/* ARP, and neighbour discovery: what a link needs before there are addresses. Its
 * neighbour table on our side is of this one link, and the pod's alone. */
static __always_inline bool link_talk(struct __sk_buff *skb, const struct tmb_packet *p, int reason)
{
	if (reason == TMB_DROP_NOT_IP && skb->protocol == bpf_htons(ETH_P_ARP))
		return true;
	return !reason && p->what & TMB_IS_NEIGHBOUR;
}

/* A packet for which there is something to decide or to note. */
static __always_inline int consider(struct __sk_buff *skb, struct tmb_packet *p, __u32 how)
{
	struct tmb_flow f = {};
	int reason;

	reason = tmb_flow_hit(skb, p, how);
	if (reason != TMB_FRESH)
		return reason;
	p->what &= ~TMB_IS_TRANSLATED;
	if (how & TMB_RAW) {
		reason = tmb_service_inside(p, &f);
		if (reason)
			return reason;
	}
	return tmb_flow_new(skb, p, &f);
}

static __always_inline int track(struct __sk_buff *skb, struct tmb_packet *p, __u32 how)
{
	struct tmb_flow_key key TMB_ALIGNED;
	struct tmb_flow *f;
	bool forward;
	int reason;

	forward = tmb_flow_key(&key, &p->src, &p->dst, p->sport, p->dport, p->proto);
	f = bpf_map_lookup_elem(&tmb_flow_1, &key);
	if (f && !(f->flags & TMB_FLOW_FROM_A))
		forward = !forward;
	if (f && tmb_flow_is_plain(f, p, forward, tmb_epoch(), bpf_ktime_get_coarse_ns())) {
		tmb_flow_take(f, p, forward);
	} else {
		reason = consider(skb, p, how);
		if (reason)
			return reason;
	}
	return p->what & TMB_IS_TRANSLATED ? tmb_rewrite(skb, p) : 0;
}

SEC("tc") int tmb_from_pod(struct __sk_buff *skb)
{
	struct tmb_packet p TMB_ALIGNED = {};
	struct tmb_endpoint *from, *to;
	int reason, verdict;

	reason = tmb_parse(skb, &p);
	if (reason || p.what & TMB_IS_NEIGHBOUR) {
		if (link_talk(skb, &p, reason)) {
			tmb_count(TMB_POD_STACK);
			return TC_ACT_UNSPEC;
		}
		return tmb_drop(skb, &p, reason);
	}
	from = bpf_map_lookup_elem(&tmb_endpoint_2, &p.src);
	if (!from || from->ifindex != skb->ifindex)
		return tmb_drop(skb, &p, TMB_DROP_SPOOFED);
	if (tmb_is_multicast(&p.dst))
		return tmb_drop(skb, &p, TMB_DROP_MULTICAST);
	reason = track(skb, &p, TMB_RAW);
	if (reason == TMB_REFUSE_IT)
		reason = TMB_DROP_NO_BACKEND;
	if (reason)
		return tmb_drop(skb, &p, reason);

	to = bpf_map_lookup_elem(&tmb_endpoint_2, p.what & TMB_IS_TRANSLATED ? &p.to_dst : &p.dst);
	if (to && to->ifindex) {
		verdict = tmb_deliver(skb, to);
		if (!verdict)
			return tmb_drop(skb, &p, TMB_DROP_NO_ROOM);
		tmb_count(TMB_POD_DELIVERED);
		return verdict;
	}
	tmb_count(TMB_POD_STACK);
	return !to && p.out ? tmb_leave(p.out) : TC_ACT_UNSPEC;
}

SEC("tc") int tmb_to_pod(struct __sk_buff *skb)
{
	struct tmb_packet p TMB_ALIGNED = {};
	struct tmb_endpoint *to;
	int reason;

	reason = tmb_parse(skb, &p);
	if (reason || p.what & TMB_IS_NEIGHBOUR) {
		if (link_talk(skb, &p, reason)) {
			tmb_count(TMB_POD_FROM_STACK);
			return TC_ACT_UNSPEC;
		}
		return tmb_drop(skb, &p, reason);
	}
	if (tmb_is_multicast(&p.dst))
		return tmb_drop(skb, &p, TMB_DROP_MULTICAST);
	reason = track(skb, &p, 0);
	if (reason)
		return tmb_drop(skb, &p, reason);
	/* A pod's link, and its alone. */
	to = bpf_map_lookup_elem(&tmb_endpoint_2, p.what & TMB_IS_TRANSLATED ? &p.to_dst : &p.dst);
	if (!to || to->ifindex != skb->ifindex)
		return tmb_drop(skb, &p, TMB_DROP_NO_ENDPOINT);
	tmb_count(TMB_POD_FROM_STACK);
	return TC_ACT_UNSPEC;
}

/* None of the helpers above asks for a GPL-compatible licence. */
char tmb_license[] SEC("license") = "Apache-2.0";
