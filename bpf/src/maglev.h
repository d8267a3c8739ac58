// SPDX-License-Identifier: Apache-2.0
/* The choice of a backend for a packet from outside, the same on every node: who
 * asks is hashed to a bucket of the service's table (agent/maglev.go makes it),
 * which leads to a slot. From a bucket whose backend is down or gone: on to the
 * next, at most TMB_MAGLEV_WALK. Those give nothing, or there is no table: the
 * choice of lb.h, drawn with the hash as its seed, so that nodes with the same
 * rows agree there, too.
 *
 * The Go twin is maglev_test.go: change both. */
#pragma once

#include "lb.h"

#define TMB_MAGLEV_WALK 64

/* Who asks for what. Ten words, none of them padding that is not zero. */
struct tmb_asker {
	struct tmb_addr client;
	struct tmb_addr frontend;
	__be16 client_port; /* 0: all connections of a client go one way */
	__be16 port;
	__u8 proto;
	__u8 pad[3];
};

static __always_inline __u32 tmb_rotate(__u32 x, __u32 by)
{
	return x << by | x >> (32 - by);
}

/* MurmurHash3 (32 bits) of the ten words. Not the kernel's hash of a packet: that
 * has a key of its own on each node. */
__noinline __u32 tmb_maglev_hash(const struct tmb_asker *a)
{
	const __u32 *w = (const __u32 *)a;
	__u32 i, h = 0x7462;

	if (!a)
		return 0;
	for (i = 0; i < sizeof(*a) / sizeof(*w); i++) {
		h ^= tmb_rotate(w[i] * 0xcc9e2d51, 15) * 0x1b873593;
		h = tmb_rotate(h, 13) * 5 + 0xe6546b64;
	}
	h ^= sizeof(*a);
	h ^= h >> 16;
	h *= 0x85ebca6b;
	h ^= h >> 13;
	h *= 0xc2b2ae35;
	return h ^ h >> 16;
}

/* What a bucket leads to, if that is up. By itself, so that the walk below has one
 * path for the verifier. */
__noinline int tmb_maglev_bucket(struct tmb_draw *d, __u64 service, __u32 bucket)
{
	struct tmb_maglev_key piece = {.service = service, .chunk = bucket / TMB_MAGLEV_CHUNK};
	struct tmb_slot_key at = {.service = service};
	struct tmb_maglev *row;
	struct tmb_slot *slot;
	__u32 entry;

	if (!d)
		return 0;
	row = bpf_map_lookup_elem(&tmb_maglev_1, &piece);
	if (!row)
		return 0;
	entry = row->entry[bucket % TMB_MAGLEV_CHUNK];
	at.cluster = entry >> 16;
	at.slot = entry & 0xffff;
	if (!entry || tmb_cluster_down(at.cluster))
		return 0;
	slot = bpf_map_lookup_elem(&tmb_slots_1, &at);
	if (!slot || tmb_node_down(slot->cluster, slot->node))
		return 0;
	d->at = at;
	d->slot = *slot;
	d->found = 1;
	d->up = 1;
	return 1;
}

/* The first backend that is up from the hash's bucket on. True: d has it. */
static __always_inline bool tmb_maglev_walk(struct tmb_draw *d, __u64 service, __u32 size, __u32 hash)
{
	__u32 i, start = ((__u64)hash * size) >> 32;

	for (i = 0; i < TMB_MAGLEV_WALK; i++) {
		if (i >= size)
			break;
		if (tmb_maglev_bucket(d, service, (start + i) % size))
			return true;
	}
	return false;
}

/* By the table alone: TMB_NO_BACKEND if it gives none. */
__noinline int tmb_choose_bucket(struct tmb_service_key *key, __u32 hash, struct tmb_draw *d)
{
	struct tmb_service *svc;
	struct tmb_slot *slot;
	__u32 i;

	if (!key || !d)
		return TMB_NO_SERVICE;
	for (i = 0; i < TMB_MAX_TRIES; i++) {
		svc = bpf_map_lookup_elem(&tmb_services_1, key);
		if (!svc)
			return TMB_NO_SERVICE;
		__builtin_memset(d, 0, sizeof(*d));
		if (!tmb_maglev_walk(d, svc->id, svc->maglev, hash))
			break;
		svc = bpf_map_lookup_elem(&tmb_services_1, key);
		if (!svc || svc->id != d->at.service)
			continue;
		slot = bpf_map_lookup_elem(&tmb_slots_1, &d->at);
		if (slot && tmb_same_slot(slot, &d->slot))
			return TMB_CHOSEN;
	}
	return TMB_NO_BACKEND;
}

/* As tmb_choose_for, for somebody outside, by the hash of who asks. Checked again
 * as there. Inline, for the sake of the stack. */
static __always_inline int tmb_choose_outside(struct tmb_service_key *key, __u32 hash, struct tmb_draw *d)
{
	int chosen = tmb_choose_bucket(key, hash, d);

	if (chosen != TMB_NO_BACKEND)
		return chosen;
	d->seed = (hash + 1ULL) * 0x9e3779b97f4a7c15;
	return tmb_choose_for(key, d);
}
