// SPDX-License-Identifier: Apache-2.0
/* The choice of a backend; IPv4 and IPv6 alike, as an address is 16 bytes.
 *
 *   tiers, from the first: a tier keeps `share` of what reaches it, the rest
 *   goes on to the next. From the tier so drawn: it, the ones after it, then
 *   back towards the first.
 *   In a tier: a group by weight among those whose cluster is up.
 *   In a group: a random slot, then on, at most TMB_MAX_WALK, past what is down.
 *   A group that gives nothing leaves the draw; then the next tier.
 *   Groups of weight 0 are drawn (evenly) only once all others gave nothing.
 *   Nothing up anywhere: the first slot that was looked at stands; if health
 *   let none be looked at, the draw is repeated blind to health.
 *
 * The Go twin is choose_test.go: change both. Most functions below are global, so
 * the verifier checks them once, by themselves, whoever calls them. */
#pragma once

#include "tables.h"

struct tmb_draw {
	struct tmb_slot_key at;
	struct tmb_slot slot;
	__u64 seed;  /* 0: the kernel's randomness. Tests give their own */
	__u32 found; /* at and slot hold a backend */
	__u32 up;    /* and nothing is known against it */
	__u32 blind; /* take no notice of health */
	__u32 zero;  /* groups of weight 0, in place of those with a weight */
};

/* Below n; n > 0. */
static __always_inline __u32 tmb_random(struct tmb_draw *d, __u32 n)
{
	__u32 r;

	if (d->seed) { /* xorshift64 */
		__u64 x = d->seed;

		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		d->seed = x;
		r = x >> 32;
	} else {
		r = bpf_get_prandom_u32();
	}
	return ((__u64)r * n) >> 32;
}

static __always_inline bool tmb_cluster_down(__u16 cluster)
{
	return bpf_map_lookup_elem(&tmb_clushlth_1, &cluster) != NULL;
}

static __always_inline bool tmb_node_down(__u16 cluster, __u16 node)
{
	struct tmb_node_key key = {.cluster = cluster, .node = node};

	return bpf_map_lookup_elem(&tmb_nodehlth_1, &key) != NULL;
}

/* A slot of one group. True: d has one that is up (or any, when blind). */
__noinline int tmb_walk(struct tmb_draw *d, __u64 service, __u32 cluster, __u32 count)
{
	struct tmb_slot_key key = {.service = service, .cluster = cluster};
	struct tmb_slot *slot;
	__u32 i, start;

	if (!d || !count)
		return 0;
	start = tmb_random(d, count);
	for (i = 0; i < TMB_MAX_WALK; i++) {
		if (i >= count)
			break;
		key.slot = (start + i) % count;
		slot = bpf_map_lookup_elem(&tmb_slots_1, &key);
		if (!slot)
			continue;
		if (d->blind || !tmb_node_down(slot->cluster, slot->node)) {
			d->at = key;
			d->slot = *slot;
			d->found = 1;
			d->up = !d->blind;
			return 1;
		}
		if (!d->found) { /* the first draw, should nothing be up */
			d->at = key;
			d->slot = *slot;
			d->found = 1;
		}
	}
	return 0;
}

/* May group i be drawn? 0 or 1. By itself, so that the loop below has one path
 * for the verifier, not one for each set of groups; likewise tmb_weight. */
__noinline int tmb_candidate(struct tmb_service *svc, struct tmb_draw *d, __u32 i)
{
	struct tmb_group *g;

	if (!svc || !d || i >= TMB_MAX_GROUPS)
		return 0;
	g = &svc->groups[i];
	if (!g->count || !g->weight != !!d->zero)
		return 0;
	return d->blind || !tmb_cluster_down(g->cluster);
}

/* The groups of a tier that may be drawn, as bits. */
static __always_inline __u32 tmb_candidates(struct tmb_service *svc, struct tmb_draw *d, __u32 tier)
{
	__u32 first = svc->tiers[tier].first, groups = svc->tiers[tier].groups;
	__u32 i, mask = 0;

	for (i = 0; i < TMB_MAX_GROUPS; i++) {
		if (i >= groups)
			break;
		mask |= (__u32)tmb_candidate(svc, d, first + i) << ((first + i) & 31);
	}
	return mask;
}

/* The weight group i has in a draw among those in mask; 1 each if they have none. */
__noinline int tmb_weight(struct tmb_service *svc, __u32 i, __u32 mask, __u32 zero)
{
	if (!svc || i >= TMB_MAX_GROUPS || !(mask & (1U << i)))
		return 0;
	return zero ? 1 : svc->groups[i].weight;
}

/* One of the groups in mask. TMB_MAX_GROUPS: mask is empty. */
__noinline int tmb_draw_group(struct tmb_service *svc, struct tmb_draw *d, __u32 mask)
{
	__u32 i, sum = 0, r;

	if (!svc || !d)
		return TMB_MAX_GROUPS;
	for (i = 0; i < TMB_MAX_GROUPS; i++)
		sum += tmb_weight(svc, i, mask, d->zero);
	if (!sum)
		return TMB_MAX_GROUPS;
	r = tmb_random(d, sum);
	for (i = 0; i < TMB_MAX_GROUPS; i++) {
		__u32 w = tmb_weight(svc, i, mask, d->zero);

		if (r < w)
			return i;
		r -= w;
	}
	return TMB_MAX_GROUPS;
}

/* All groups of one tier, in drawn order, until one gives a backend. */
__noinline int tmb_try_tier(struct tmb_service *svc, struct tmb_draw *d, __u32 tier)
{
	__u32 mask, i;

	if (!svc || !d || tier >= TMB_MAX_TIERS)
		return 0;
	mask = tmb_candidates(svc, d, tier);
	for (i = 0; i < TMB_MAX_GROUPS; i++) {
		__u32 g;

		if (!mask)
			break;
		g = tmb_draw_group(svc, d, mask);
		if (g >= TMB_MAX_GROUPS)
			break;
		if (tmb_walk(d, svc->id, svc->groups[g].cluster, svc->groups[g].count))
			return 1;
		mask &= ~(1U << g);
	}
	return 0;
}

/* The tiers from start on, then back from it. */
static __always_inline int tmb_try_tiers(struct tmb_service *svc, struct tmb_draw *d, __u32 start)
{
	__u32 i, tier, n;

	if (!svc || !d)
		return 0;
	n = svc->num_tiers;
	for (i = 0; i < TMB_MAX_TIERS; i++) {
		if (i >= n)
			break;
		tier = start + i;
		if (tier >= n)
			tier = n - 1 - i;
		if (tmb_try_tier(svc, d, tier))
			return 1;
	}
	return 0;
}

/* The choice. 0: the service has no backend; otherwise d has one. In line: a call
 * less on a stack that packets share with much else. */
static __always_inline int tmb_choose(struct tmb_service *svc, struct tmb_draw *d)
{
	__u32 start, n;

	if (!svc || !d)
		return 0;
	n = svc->num_tiers;
	if (n > TMB_MAX_TIERS)
		n = TMB_MAX_TIERS;
	for (start = 0; start < TMB_MAX_TIERS - 1; start++) {
		if (start + 1 >= n)
			break;
		if (tmb_random(d, 65535) < svc->tiers[start].share)
			break;
	}
	if (tmb_try_tiers(svc, d, start))
		return 1;
	d->zero = 1;
	if (tmb_try_tiers(svc, d, start))
		return 1;
	if (d->found)
		return 1;
	d->blind = 1;
	d->zero = 0;
	if (tmb_try_tiers(svc, d, start))
		return 1;
	d->zero = 1;
	return tmb_try_tiers(svc, d, start);
}

enum tmb_choice_result {
	TMB_NO_SERVICE, /* not a frontend */
	TMB_NO_BACKEND, /* a frontend without backends */
	TMB_CHOSEN,	/* d has one */
};

#define TMB_MAX_TRIES 4

static __always_inline bool tmb_same_slot(const struct tmb_slot *a, const struct tmb_slot *b)
{
	const __u32 *x = (const __u32 *)a, *y = (const __u32 *)b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2] && x[3] == y[3] && x[4] == y[4] && x[5] == y[5];
}

/* The choice for a frontend, and the one to call.
 *
 * The kernel may give the memory of a deleted row to another key at once, while a
 * program still reads it (since 6.1; these programs can be preempted, too). So
 * what was chosen is looked up again: it stands if the frontend still has the
 * service, and the slot the backend, that were read. Else somebody would, once in
 * a hundred thousand times while rows change fast, reach another service. */
__noinline int tmb_choose_for(struct tmb_service_key *key, struct tmb_draw *d)
{
	struct tmb_service *svc;
	struct tmb_slot *slot;
	__u64 seed;
	int i;

	if (!key || !d)
		return TMB_NO_SERVICE;
	seed = d->seed;
	for (i = 0; i < TMB_MAX_TRIES; i++) {
		svc = bpf_map_lookup_elem(&tmb_services_1, key);
		if (!svc)
			return TMB_NO_SERVICE;
		__builtin_memset(d, 0, sizeof(*d));
		d->seed = seed;
		if (!tmb_choose(svc, d))
			return TMB_NO_BACKEND;
		svc = bpf_map_lookup_elem(&tmb_services_1, key);
		if (!svc || svc->id != d->at.service)
			continue;
		slot = bpf_map_lookup_elem(&tmb_slots_1, &d->at);
		if (slot && tmb_same_slot(slot, &d->slot))
			return TMB_CHOSEN;
	}
	return TMB_NO_BACKEND;
}

/* Is the group of that cluster drained, and could another take its clients? 0 or 1.
 * Where none could they stay where they are. */
__noinline int tmb_leaves(struct tmb_service *svc, __u32 cluster)
{
	struct tmb_group *g;
	int i, other = 0;

	if (!svc)
		return 0;
	for (i = 0; i < TMB_MAX_GROUPS; i++) {
		g = &svc->groups[i];
		if (!g->weight || !g->count)
			continue;
		if (g->cluster == cluster)
			return 0;
		if (!other)
			other = !tmb_cluster_down(g->cluster);
	}
	return other;
}

/* sessionAffinity ClientIP: what this client was given, if that is not too long
 * ago and still stands and is up. True: d has it. */
__noinline int tmb_affinity_find(struct tmb_service_key *key, struct tmb_addr *client, struct tmb_draw *d)
{
	struct tmb_affinity_key akey = {};
	struct tmb_affinity *row;
	struct tmb_service *svc;
	struct tmb_slot *slot;
	__u64 now, timeout;

	if (!key || !client || !d)
		return 0;
	svc = bpf_map_lookup_elem(&tmb_services_1, key);
	if (!svc)
		return 0;
	akey.service = svc->id;
	akey.client = *client;
	timeout = svc->affinity * 1000000000ULL;
	row = bpf_map_lookup_elem(&tmb_affinity_1, &akey);
	if (!row)
		return 0;
	now = bpf_ktime_get_coarse_ns();
	if (now - row->seen >= timeout)
		return 0;
	d->at = row->at;
	d->slot = row->slot;
	if (d->at.service != akey.service || tmb_cluster_down(d->slot.cluster) || tmb_node_down(d->slot.cluster, d->slot.node))
		return 0;
	slot = bpf_map_lookup_elem(&tmb_slots_1, &d->at);
	if (!slot || !tmb_same_slot(slot, &d->slot))
		return 0;
	svc = bpf_map_lookup_elem(&tmb_services_1, key); /* as in tmb_choose_for */
	if (!svc || svc->id != akey.service)
		return 0;
	if (svc->flags & TMB_SVC_DRAINED && tmb_leaves(svc, d->slot.cluster))
		return 0;
	row->seen = now;
	d->found = 1;
	d->up = 1;
	return 1;
}

__noinline int tmb_affinity_keep(struct tmb_addr *client, struct tmb_draw *d)
{
	struct tmb_affinity_key akey = {};
	struct tmb_affinity row;

	if (!client || !d)
		return 0;
	akey.service = d->at.service;
	akey.client = *client;
	row.seen = bpf_ktime_get_coarse_ns();
	row.at = d->at;
	row.slot = d->slot;
	/* Failing, the client's next connection draws again. */
	bpf_map_update_elem(&tmb_affinity_1, &akey, &row, BPF_ANY);
	return 0;
}

/* The choice for a client of this node: a pod's address, or a socket's namespace. */
static __always_inline int tmb_choose_client(struct tmb_service_key *key, struct tmb_addr *client, struct tmb_draw *d)
{
	struct tmb_service *svc = bpf_map_lookup_elem(&tmb_services_1, key);
	__u32 affinity;
	int chosen;

	if (!svc)
		return TMB_NO_SERVICE;
	affinity = svc->affinity;
	if (affinity && tmb_affinity_find(key, client, d))
		return TMB_CHOSEN;
	chosen = tmb_choose_for(key, d);
	if (affinity && chosen == TMB_CHOSEN)
		tmb_affinity_keep(client, d);
	return chosen;
}
