// SPDX-License-Identifier: Apache-2.0
/* A pod's own link: what it sends, and what this node's stack sends to it.
 *
 * Attaches: tcx (or clsact) on the host's end of each pod's veth: tmb_from_pod at
 *           ingress, tmb_to_pod at egress.
 * Sees:     everything the pod sends; of what is sent to it, what comes by the
 *           stack (its host, other nodes without a tunnel, the world). What the
 *           other programs deliver does not pass here.
 * Reads:    endpoints, services, slots, health, policy, ipcache, epoch, config,
 *           devices.
 * Writes:   flows, fragments, affinity, counters, events.
 * Returns:  from_pod: redirect into another pod of this node; NEXT where the stack
 *           knows the way; redirect out for flows that came in there; redirect into
 *           the tunnel where another CNI is in charge of the stack; redirect back
 *           for the answer to a service without backends, and to a connection whose
 *           backend is gone. to_pod: NEXT. SHOT,
 *           counted by reason, for all else. */
#include "kernel.h"
#include "answer.h"
#include "deliver.h"
#include "service.h"
#include "track.h"

/* ARP, and neighbour discovery: what a link needs before there are addresses. Its
 * neighbour table on our side is of this one link, and the pod's alone. */
static __always_inline bool link_talk(struct __sk_buff *skb, const struct tmb_packet *p, int reason)
{
	if (reason == TMB_DROP_NOT_IP && skb->protocol == bpf_htons(ETH_P_ARP))
		return true;
	return !reason && p->what & TMB_IS_NEIGHBOUR && (tmb_is_multicast(&p->dst) || tmb_is_link_local6(&p->dst));
}

/* Does a packet fit into the tunnel, and each of its segments if it is cut up later? */
static __always_inline bool fits(struct __sk_buff *skb, const struct tmb_packet *p, __u32 mtu)
{
	__u32 size = skb->gso_size;
	__u8 words = 2 << 4; /* UDP */

	if (!size)
		return skb->len <= mtu + ETH_LEN;
	if (p->proto == IPPROTO_TCP && bpf_skb_load_bytes(skb, p->l4 + 12, &words, 1))
		return false;
	return size + p->l4 + (words >> 4) * 4 <= mtu + ETH_LEN;
}

/* Where another CNI is in charge of the stack, what belongs in the tunnel goes there
 * past it: its masquerading would take the pod's address off, which the tunnel's
 * other end goes by, and its conntrack, which never sees the answers, may take the
 * connection for invalid. All else goes by the stack, and so does what is too large for
 * the tunnel: the route there has its MTU, and the pod is told. */
static __always_inline int into_tunnel(struct __sk_buff *skb, const struct tmb_packet *p)
{
	__u32 which = TMB_DEVICE_TUNNEL, zero = 0, *ifindex;
	struct tmb_config *c = bpf_map_lookup_elem(&tmb_config_1, &zero);
	struct tmb_ipcache *row;

	if (!c || !(c->flags & TMB_CHAINED) || !fits(skb, p, c->tunnel_mtu))
		return TC_ACT_UNSPEC;
	row = tmb_owner(p->what & TMB_IS_TRANSLATED ? &p->to_dst : &p->dst);
	if (!row || !(row->flags & TMB_IP_ENCRYPTED))
		return TC_ACT_UNSPEC;
	ifindex = bpf_map_lookup_elem(&tmb_devices_1, &which);
	return ifindex && *ifindex ? bpf_redirect(*ifindex, 0) : TC_ACT_UNSPEC;
}

SEC("tc") int tmb_from_pod(struct __sk_buff *skb)
{
	struct tmb_packet p TMB_ALIGNED = {};
	struct tmb_endpoint *from, *to;
	int reason, verdict;

	reason = tmb_parse(skb, &p);
	if (link_talk(skb, &p, reason)) {
		tmb_count(TMB_POD_STACK);
		return TC_ACT_UNSPEC;
	}
	if (reason)
		return tmb_drop(skb, &p, reason);
	from = bpf_map_lookup_elem(&tmb_endpoint_2, &p.src);
	if (!from || from->ifindex != skb->ifindex)
		return tmb_drop(skb, &p, TMB_DROP_SPOOFED);
	if (tmb_is_multicast(&p.dst))
		return tmb_drop(skb, &p, TMB_DROP_MULTICAST);
	reason = tmb_track(skb, &p, TMB_RAW, tmb_service_inside);
	if (reason == TMB_REFUSE_IT || reason == TMB_DROP_BACKEND_GONE) {
		tmb_drop(skb, &p, reason == TMB_REFUSE_IT ? TMB_DROP_NO_BACKEND : TMB_DROP_BACKEND_GONE);
		return tmb_refuse(skb, &p) ? TC_ACT_SHOT : bpf_redirect_peer(skb->ifindex, 0);
	}
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
	if (to)
		return TC_ACT_UNSPEC;
	if (!p.out)
		return into_tunnel(skb, &p);
	verdict = tmb_leave(skb, p.out);
	return verdict ? verdict : tmb_drop(skb, &p, TMB_DROP_NO_ROOM);
}

SEC("tc") int tmb_to_pod(struct __sk_buff *skb)
{
	struct tmb_packet p TMB_ALIGNED = {};
	struct tmb_endpoint *to;
	int reason;

	reason = tmb_parse(skb, &p);
	if (link_talk(skb, &p, reason) || (!reason && p.what & TMB_IS_NEIGHBOUR)) {
		tmb_count(TMB_POD_FROM_STACK);
		return TC_ACT_UNSPEC;
	}
	if (reason)
		return tmb_drop(skb, &p, reason);
	if (tmb_is_multicast(&p.dst))
		return tmb_drop(skb, &p, TMB_DROP_MULTICAST);
	reason = tmb_track(skb, &p, 0, NULL);
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
