// SPDX-License-Identifier: Apache-2.0
/* The maps themselves. The symbol is the kernel name (at most 15 characters) and
 * the pin name; the number at its end is the version of the layout: a changed
 * layout takes the next one. Sizes here are defaults; the loader sets them.
 *
 * No preallocation where the agent writes: rows in use cost memory, room does
 * not (but for 16 bytes a bucket). LRU maps, which programs write, have all
 * their rows from the start. */
#pragma once

#include "maps.h"

#define TMB_HASH(name_, key_, value_, size_)              \
	struct {                                          \
		__uint(type, BPF_MAP_TYPE_HASH);          \
		__uint(map_flags, BPF_F_NO_PREALLOC);     \
		__uint(max_entries, size_);               \
		__type(key, key_);                        \
		__type(value, value_);                    \
	} name_ SEC(".maps")

#define TMB_LRU(name_, key_, value_, size_)               \
	struct {                                          \
		__uint(type, BPF_MAP_TYPE_LRU_HASH);      \
		__uint(max_entries, size_);               \
		__type(key, key_);                        \
		__type(value, value_);                    \
	} name_ SEC(".maps")

#define TMB_TRIE(name_, key_, value_, size_)              \
	struct {                                          \
		__uint(type, BPF_MAP_TYPE_LPM_TRIE);      \
		__uint(map_flags, BPF_F_NO_PREALLOC);     \
		__uint(max_entries, size_);               \
		__type(key, key_);                        \
		__type(value, value_);                    \
	} name_ SEC(".maps")

TMB_HASH(tmb_services_1, struct tmb_service_key, struct tmb_service, 65536);
TMB_HASH(tmb_slots_1, struct tmb_slot_key, struct tmb_slot, 524288);
TMB_HASH(tmb_nodehlth_1, struct tmb_node_key, struct tmb_health, 16384);
TMB_HASH(tmb_clushlth_1, __u16, struct tmb_health, 4096);
TMB_HASH(tmb_ipcache_1, struct tmb_addr, struct tmb_ipcache, 524288);
TMB_HASH(tmb_endpoint_2, struct tmb_addr, struct tmb_endpoint, 4096);
TMB_HASH(tmb_subject_1, __u64, struct tmb_subject, 4096);
TMB_HASH(tmb_class_1, struct tmb_addr, struct tmb_class, 65536);
TMB_HASH(tmb_maglev_1, struct tmb_maglev_key, struct tmb_maglev, 65536);

TMB_LRU(tmb_reverse_1, struct tmb_reverse_key, struct tmb_reverse, 65536);
TMB_LRU(tmb_choice_1, struct tmb_choice_key, struct tmb_choice, 32768);

TMB_LRU(tmb_flow_1, struct tmb_flow_key, struct tmb_flow, 131072);
TMB_LRU(tmb_frag_1, struct tmb_frag_key, struct tmb_frag, 8192);
TMB_LRU(tmb_affinity_1, struct tmb_affinity_key, struct tmb_affinity, 65536);

TMB_TRIE(tmb_ipprefix_1, struct tmb_prefix, struct tmb_ipcache, 65536);
TMB_TRIE(tmb_policy_1, struct tmb_policy_key, struct tmb_policy, 262144);
TMB_TRIE(tmb_clsprefix_1, struct tmb_prefix, struct tmb_class, 16384);
TMB_TRIE(tmb_srcrange_1, struct tmb_range_key, struct tmb_range, 16384);

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tmb_config);
} tmb_config_1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TMB_DEVICES);
	__type(key, __u32);
	__type(value, __u32);
} tmb_devices_1 SEC(".maps");

/* Counted up by the agent after rows that verdicts depend on have changed: flows
 * of an earlier epoch are judged anew with their next packet. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} tmb_epoch_1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1048576);
} tmb_events_1 SEC(".maps");

/* The enum is the key so that bpf2go sees it. The kernel wants an int there and
 * refuses the type; the loader then makes the map without types. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TMB_REASONS);
	__type(key, enum tmb_reason);
	__type(value, __u64);
} tmb_counters_1 SEC(".maps");

/* Atomic although the row is this CPU's: sock programs can be preempted. */
static __always_inline void tmb_count(__u32 reason)
{
	__u64 *n = bpf_map_lookup_elem(&tmb_counters_1, &reason);

	if (n)
		__sync_fetch_and_add(n, 1);
}
