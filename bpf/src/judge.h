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


static __always_inline __u32 tmb_epoch(void)
{
	__u32 zero = 0, *epoch = bpf_map_lookup_elem(&tmb_epoch_1, &zero);

	return epoch ? *epoch : 0;
}

static __always_inline int tmb_allows(struct tmb_packet *p, __u64 subject, __u32 dir, const struct tmb_addr *other,
				      __u32 identity, __be16 port)
{
	struct tmb_ask ask TMB_ALIGNED = {
		.subject = subject, .identity = identity, .dir = dir, .proto = p->proto, .port = port,
	};
	bool yes;

	tmb_copy(&ask.address, other);
	yes = tmb_policy_verdict(&ask);
	p->rule = ask.rule;
	if (yes)
		return 0;
	if (ask.reason == TMB_BY_NOT_LOADED)
		return TMB_DROP_POLICY_NOT_READY;
	return dir == TMB_EGRESS ? TMB_DROP_POLICY_EGRESS : TMB_DROP_POLICY_INGRESS;
}

/* Of a packet that goes the way its flow was opened (forward), or the other way.
 * 0, or the reason to drop; p->rule is what decided, 0 = no rule did. */
__noinline int tmb_judge(struct tmb_packet *p, __u32 forward)
{
	__u32 src, dst, closed = 0;
	struct tmb_addr *opener, *other;
	struct tmb_endpoint *from, *to;
	__u64 out = 0, in = 0;
	__be16 port;
	int reason;

	if (!p)
		return TMB_DROP_POLICY_NOT_READY;
	p->rule = 0;
	opener = p->what & TMB_IS_TRANSLATED ? &p->to_dst : &p->dst;
	port = p->what & TMB_IS_TRANSLATED ? p->to_dport : p->dport;
	other = &p->src;
	if (forward) {
		other = opener;
		opener = &p->src;
	} else {
		port = p->sport;
	}
	if (tmb_same(opener, other))
		return 0;
	from = bpf_map_lookup_elem(&tmb_endpoint_2, opener);
	if (from) {
		src = from->identity;
		out = from->subject;
		closed = from->flags & TMB_EP_CLOSED;
	} else {
		src = tmb_identity(opener);
		if (src == IDENTITY_HOST)
			return 0;
	}
	to = bpf_map_lookup_elem(&tmb_endpoint_2, other);
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
		dst = tmb_identity(other);
		if (dst == IDENTITY_HOST)
			return 0;
	}
	if (out) {
		reason = tmb_allows(p, out, TMB_EGRESS, other, dst, port);
		if (reason)
			return reason;
	}
	return in ? tmb_allows(p, in, TMB_INGRESS, opener, src, port) : 0;
}
