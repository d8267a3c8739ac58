// SPDX-License-Identifier: Apache-2.0
/* What comes out of the tunnel: who sent it, and is it for somebody here.
 *
 * Attaches: tcx (or clsact) ingress of the WireGuard device. That is an L3
 *           device: the packet starts with its IP header.
 * Sees:     decrypted packets of peers; WireGuard has checked that the source
 *           lies in the prefixes of the peer that sent it.
 * Reads:    ipcache (addresses, then prefixes), endpoints, policy, epoch, config.
 * Writes:   flows, fragments, counters, events.
 * Returns:  redirect into the pod, past this host's stack, or out by the device a
 *           translated flow came in by; NEXT for the node's own tunnel addresses,
 *           and for addresses of its pod prefixes that nobody has (a route
 *           answers); at a gateway, redirect back into the tunnel for what is
 *           between a node of its own cluster and another cluster; SHOT, counted by
 *           reason, for all else: a peer neither reaches the node's other addresses
 *           nor is routed on.
 *
 * TTL stays: nothing is routed. */
#include "kernel.h"
#include "deliver.h"
#include "track.h"

/* Of the reserved identities only those of other nodes come through a tunnel:
 * unknown, host, world and unmanaged are what somebody on this side is called. */
static __always_inline bool may_send(__u32 identity)
{
	return identity >> IDENTITY_BITS || identity == IDENTITY_REMOTE_NODE || identity == IDENTITY_HEALTH;
}

/* A tunnel address of this node is a single address with that flag, which no
 * record of anybody can give. */
static __always_inline bool is_ours(const struct tmb_addr *a)
{
	struct tmb_ipcache *row = tmb_owner(a);

	return row && row->flags & (TMB_IP_TUNNEL_ADDRESS | TMB_IP_HERE);
}

/* A gateway sends on what one of its cluster's nodes and another cluster say to one
 * another, and nothing else: not between nodes that have ways of their own, not
 * between two other clusters, not to a host. Back into the tunnel, past the host's
 * stack: what the peer there may have is for WireGuard to say, and there is no
 * moment in clear. Nothing can go in circles: what came from another cluster goes
 * to a node, what came from a node to another cluster. Policy is the two ends'. */
static __always_inline bool sends_on(const struct tmb_ipcache *from, const struct tmb_addr *dst)
{
	struct tmb_ipcache *to = tmb_owner(dst);
	struct tmb_config *config;
	__u32 zero = 0;

	if (!to || !may_send(to->identity) || !((to->flags ^ from->flags) & TMB_IP_ACROSS))
		return false;
	config = bpf_map_lookup_elem(&tmb_config_1, &zero);
	return config && config->flags & TMB_GATEWAY;
}

SEC("tc") int tmb_tunnel(struct __sk_buff *skb)
{
	struct tmb_packet p TMB_ALIGNED = {};
	struct tmb_endpoint *to;
	struct tmb_ipcache *from;
	int reason, verdict;

	reason = tmb_parse(skb, &p);
	if (reason)
		return tmb_drop(skb, &p, reason);
	from = tmb_owner(&p.src);
	if (!from)
		return tmb_drop(skb, &p, TMB_DROP_UNKNOWN_SOURCE);
	if (!may_send(from->identity))
		return tmb_drop(skb, &p, TMB_DROP_RESERVED_SOURCE);
	/* Our own cluster's identities do come this way: between nodes that share no
	 * L2, and through gateways. Our own addresses never do. */
	if (bpf_map_lookup_elem(&tmb_endpoint_2, &p.src))
		return tmb_drop(skb, &p, TMB_DROP_LOCAL_SOURCE);
	if (p.what & TMB_IS_NEIGHBOUR)
		return tmb_drop(skb, &p, TMB_DROP_NOT_HERE); /* of another link */

	to = bpf_map_lookup_elem(&tmb_endpoint_2, &p.dst);
	if (to) {
		reason = tmb_track(skb, &p, 0, NULL);
	} else if (is_ours(&p.dst)) {
		/* What this node has itself sent on in its name has a flow. */
		reason = tmb_track_known(skb, &p);
	} else if (sends_on(from, &p.dst)) {
		tmb_count(TMB_TUNNEL_FORWARDED);
		return bpf_redirect(skb->ifindex, 0);
	} else {
		reason = TMB_DROP_NOT_HERE;
	}
	if (reason)
		return tmb_drop(skb, &p, reason);

	if (p.what & TMB_IS_TRANSLATED)
		to = bpf_map_lookup_elem(&tmb_endpoint_2, &p.to_dst);
	else
		to = bpf_map_lookup_elem(&tmb_endpoint_2, &p.dst);
	if (to && to->ifindex) {
		verdict = tmb_deliver(skb, to);
		if (!verdict)
			return tmb_drop(skb, &p, TMB_DROP_NO_ROOM);
		tmb_count(TMB_TUNNEL_DELIVERED);
		return verdict;
	}
	tmb_count(TMB_TUNNEL_STACK);
	if (to || !p.out)
		return TC_ACT_UNSPEC;
	verdict = tmb_leave(skb, p.out);
	return verdict ? verdict : tmb_drop(skb, &p, TMB_DROP_NO_ROOM);
}

/* None of the helpers above asks for a GPL-compatible licence. */
char tmb_license[] SEC("license") = "Apache-2.0";
