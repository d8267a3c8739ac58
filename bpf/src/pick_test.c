// SPDX-License-Identifier: Apache-2.0
/* Test only: runs the choice of lb.h on one request, with a seed, in place of a
 * packet. Request: 14 bytes of Ethernet, then struct request; the answer
 * overwrites it. */
#include "kernel.h"
#include "lb.h"

struct request {
	__u64 seed;
	struct tmb_service_key key;
	__u32 chosen;
	struct tmb_draw draw;
};

SEC("tc") int tmb_pick(struct __sk_buff *skb)
{
	struct request r = {};
	struct tmb_service *svc;

	if (bpf_skb_load_bytes(skb, 14, &r, sizeof(r)))
		return TC_ACT_SHOT;
	svc = bpf_map_lookup_elem(&tmb_services_1, &r.key);
	if (!svc)
		return TC_ACT_SHOT;
	__builtin_memset(&r.draw, 0, sizeof(r.draw));
	r.draw.seed = r.seed;
	r.chosen = tmb_choose(svc, &r.draw);
	return bpf_skb_store_bytes(skb, 14, &r, sizeof(r), 0) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

char tmb_license[] SEC("license") = "Apache-2.0";
