// SPDX-License-Identifier: Apache-2.0
/* May this flow be? Asked of both ends that are pods of this node, whatever hook
 * asks, always in the direction in which the flow was opened and with the
 * destination after translation.
 *
 * Before policy: a pod may reach itself; this node may reach its pods (the
 * kubelet's probes), and they it. */
#pragma once

#include "ipcache.h"
#include "packet.h"
#include "policy.h"


/* Declare it TMB_ALIGNED. */
struct tmb_ends {
	struct tmb_addr src;
	struct tmb_addr dst;
	__be16 port; /* of the destination */
	__u8 proto;
	__u8 pad;
	__u32 rule; /* out: what decided; 0 = no rule did */
};

static __always_inline __u32 tmb_epoch(void)
{
	__u32 zero = 0, *epoch = bpf_map_lookup_elem(&tmb_epoch_1, &zero);

	return epoch ? *epoch : 0;
}

static __always_inline bool tmb_allows(struct tmb_ends *e, __u64 subject, __u32 dir, struct tmb_addr *other,
				       __u32 identity, bool *ready)
{
	struct tmb_ask ask TMB_ALIGNED = {
		.subject = subject, .identity = identity, .dir = dir, .proto = e->proto, .port = e->port,
	};
	bool yes;

	tmb_copy(&ask.address, other);
	yes = tmb_policy_verdict(&ask);
	e->rule = ask.rule;
	*ready = ask.reason != TMB_BY_NOT_LOADED;
	return yes;
}

/* 0, or the reason to drop. */
__noinline int tmb_judge(struct tmb_ends *e)
{
	struct tmb_endpoint *from, *to;
	__u32 src, dst, closed = 0;
	__u64 out = 0, in = 0;
	bool ready;

	if (!e)
		return TMB_DROP_POLICY_NOT_READY;
	e->rule = 0;
	if (tmb_same(&e->src, &e->dst))
		return 0;
	from = bpf_map_lookup_elem(&tmb_endpoint_2, &e->src);
	if (from) {
		src = from->identity;
		out = from->subject;
		closed = from->flags & TMB_EP_CLOSED;
	} else {
		src = tmb_identity(&e->src);
		if (src == IDENTITY_HOST)
			return 0;
	}
	to = bpf_map_lookup_elem(&tmb_endpoint_2, &e->dst);
	if (to) {
		dst = to->identity;
		in = to->subject;
		closed |= to->flags & TMB_EP_CLOSED;
	}
	if (closed)
		return TMB_DROP_POLICY_NOT_READY;
	if (!to) {
		if (!out)
			return 0;
		dst = tmb_identity(&e->dst);
		if (dst == IDENTITY_HOST)
			return 0;
	}
	if (out && !tmb_allows(e, out, TMB_EGRESS, &e->dst, dst, &ready))
		return ready ? TMB_DROP_POLICY_EGRESS : TMB_DROP_POLICY_NOT_READY;
	if (in && !tmb_allows(e, in, TMB_INGRESS, &e->src, src, &ready))
		return ready ? TMB_DROP_POLICY_INGRESS : TMB_DROP_POLICY_NOT_READY;
	return 0;
}
