// SPDX-License-Identifier: Apache-2.0
/* Where a packet that may go on goes: into a pod past the host's stack, or out by
 * a device past its routes. Ingress hooks only: redirect_peer asks for that. TTL
 * stays: nothing was routed. */
#pragma once

#include "packet.h"

/* Into the pod. 0 instead of a verdict: there was no room for the header. */
static __always_inline int tmb_deliver(struct __sk_buff *skb, const struct tmb_endpoint *to)
{
	if (tmb_l2_len) {
		void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
		struct tmb_eth *e = data;

		if ((void *)(e + 1) > end)
			return 0;
		__builtin_memcpy(e->dst, to->pod_mac, sizeof(e->dst));
		__builtin_memcpy(e->src, to->host_mac, sizeof(e->src));
	} else {
		struct tmb_eth e;

		__builtin_memcpy(e.dst, to->pod_mac, sizeof(e.dst));
		__builtin_memcpy(e.src, to->host_mac, sizeof(e.src));
		e.proto = (__be16)skb->protocol;
		if (bpf_skb_change_head(skb, ETH_LEN, 0) || bpf_skb_store_bytes(skb, 0, &e, sizeof(e), 0))
			return 0;
	}
	return bpf_redirect_peer(to->ifindex, 0);
}

/* Out by a device: its own neighbour lookup. Also from an L3 device, for whose
 * packets the kernel wants a header to look at. For packets whose source is now an
 * address of this node: the stack would take them for forged. 0: no room. */
static __always_inline int tmb_leave(struct __sk_buff *skb, __u32 ifindex)
{
	if (!tmb_l2_len) {
		struct tmb_eth e = {.proto = (__be16)skb->protocol};

		if (bpf_skb_change_head(skb, ETH_LEN, 0) || bpf_skb_store_bytes(skb, 0, &e, sizeof(e), 0))
			return 0;
	}
	return bpf_redirect_neigh(ifindex, NULL, 0, 0);
}
