// SPDX-License-Identifier: Apache-2.0
/* What policy says of one direction of a connection.
 *
 *   subject   of the pod whose policy is asked; 0: no policy selects it
 *   identity  of the other end, address its address
 *   port      that of who is connected to, whichever end that is
 *
 * Two rows say what rules match: one by identity, or if that has none at this
 * port the one for anybody; one by the class of the address. Then, in order:
 * the Admin tier, where the lower rank of the two wins; NetworkPolicy, final if
 * one isolates the pod; the Baseline tier; else everything may pass.
 *
 * A subject without a row has not got all its rows yet: nothing passes.
 *
 * What is always allowed whatever policy says (a pod and the host it is on) is
 * the caller's. The Go twin is Tables.Lookup of agent/policy: change both. */
#pragma once

#include "tables.h"

/* What a verdict rests on; the same order as Reason in agent/policy. */
enum tmb_policy_reason {
	TMB_BY_NONE,	   /* no policy selects the pod */
	TMB_BY_ADMIN,	   /* a rule of the Admin tier */
	TMB_BY_ALLOW,	   /* a NetworkPolicy rule */
	TMB_BY_ISOLATION,  /* a NetworkPolicy isolates the pod, and none allows */
	TMB_BY_BASELINE,   /* a rule of the Baseline tier */
	TMB_BY_DEFAULT,	   /* no rule had a say */
	TMB_BY_NOT_LOADED, /* the subject has no row (yet) */
};

struct tmb_ask {
	__u64 subject;
	struct tmb_addr address;
	__u32 identity;
	__u8 dir; /* enum tmb_direction, seen from the pod whose policy is asked */
	__u8 proto;
	__be16 port;
	__u32 rule;   /* the answer: which rule decided; 0 = none */
	__u32 reason; /* the answer: enum tmb_policy_reason */
};

#define TMB_POLICY_KEY_BITS 160 /* of a lookup: all that follows the length */

static __always_inline struct tmb_policy *tmb_policy_row(struct tmb_policy_key *key, __u64 peer)
{
	key->peer[0] = peer;
	key->peer[1] = peer >> 32;
	return bpf_map_lookup_elem(&tmb_policy_1, key);
}

/* 0: rules by address say nothing of it. */
static __always_inline __u64 tmb_class_of(struct tmb_addr *addr)
{
	struct tmb_class *c = bpf_map_lookup_elem(&tmb_class_1, addr);

	if (!c) {
		struct tmb_prefix p = {.bits = 128, .addr = *addr};

		c = bpf_map_lookup_elem(&tmb_clsprefix_1, &p);
	}
	return c ? c->id : 0;
}

/* The stage that counts of two, either of which may be missing. */
static __always_inline struct tmb_stage *tmb_first_stage(struct tmb_stage *a, struct tmb_stage *b)
{
	if (!a || !a->rank)
		return b;
	if (!b || !b->rank)
		return a;
	return b->rank < a->rank ? b : a;
}

/* 1: may pass. 0: may not. Sets rule and reason. */
__noinline int tmb_policy_verdict(struct tmb_ask *ask)
{
	struct tmb_policy_key key = {};
	struct tmb_policy *byid, *byclass = NULL;
	struct tmb_subject *subject;
	struct tmb_stage *stage;
	__u32 flags;

	if (!ask)
		return 0;
	ask->rule = 0;
	if (!ask->subject) {
		ask->reason = TMB_BY_NONE;
		return 1;
	}
	subject = bpf_map_lookup_elem(&tmb_subject_1, &ask->subject);
	if (!subject || subject->flags & TMB_SUBJECT_CLOSED) {
		ask->reason = TMB_BY_NOT_LOADED;
		return 0;
	}
	flags = subject->flags;
	if (ask->dir == TMB_EGRESS) /* both directions alike from here on */
		flags >>= 1;

	key.bits = TMB_POLICY_KEY_BITS;
	key.subject[0] = ask->subject;
	key.subject[1] = ask->subject >> 32;
	key.dir = ask->dir;
	key.proto = ask->proto;
	key.port = ask->port;
	byid = tmb_policy_row(&key, ask->identity);
	if (!byid)
		byid = tmb_policy_row(&key, TMB_PEER_ANY);
	if (flags & TMB_CLASSES_IN) {
		__u64 class = tmb_class_of(&ask->address);

		if (class)
			byclass = tmb_policy_row(&key, class);
	}

	stage = tmb_first_stage(byid ? &byid->admin : NULL, byclass ? &byclass->admin : NULL);
	if (stage && (stage->verdict == TMB_ACCEPT || stage->verdict == TMB_DENY)) {
		ask->rule = stage->rule;
		ask->reason = TMB_BY_ADMIN;
		return stage->verdict == TMB_ACCEPT;
	}
	if (flags & TMB_ISOLATED_IN) {
		if (byid)
			ask->rule = byid->allow;
		if (!ask->rule && byclass)
			ask->rule = byclass->allow;
		ask->reason = ask->rule ? TMB_BY_ALLOW : TMB_BY_ISOLATION;
		return ask->rule != 0;
	}
	stage = tmb_first_stage(byid ? &byid->base : NULL, byclass ? &byclass->base : NULL);
	if (stage && (stage->verdict == TMB_ACCEPT || stage->verdict == TMB_DENY)) {
		ask->rule = stage->rule;
		ask->reason = TMB_BY_BASELINE;
		return stage->verdict == TMB_ACCEPT;
	}
	ask->reason = TMB_BY_DEFAULT;
	return 1;
}
