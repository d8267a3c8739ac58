// SPDX-License-Identifier: Apache-2.0
/* Test only: runs the choice of maglev.h on one request in place of a packet.
 * Request: 14 bytes of Ethernet, then struct request; the answer overwrites it. */
#include "kernel.h"
#include "maglev.h"

struct request {
	struct tmb_service_key key;
	struct tmb_asker who;
	__u32 hash;
	struct tmb_draw draw;
	__u32 result;
	__u32 pad;
};

SEC("tc") int tmb_pick_outside(struct __sk_buff *skb)
{
	struct request r = {};

	if (bpf_skb_load_bytes(skb, 14, &r, sizeof(r)))
		return TC_ACT_SHOT;
	__builtin_memset(&r.draw, 0, sizeof(r.draw));
	r.hash = tmb_maglev_hash(&r.who);
	r.result = tmb_choose_outside(&r.key, r.hash, &r.draw);
	return bpf_skb_store_bytes(skb, 14, &r, sizeof(r), 0) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

char tmb_license[] SEC("license") = "Apache-2.0";
