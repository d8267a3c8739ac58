// SPDX-License-Identifier: Apache-2.0
/* Test only: runs policy.h on one request in place of a packet. Request: 14 bytes
 * of Ethernet, then struct request; the answer overwrites it. */
#include "kernel.h"
#include "policy.h"

struct request {
	struct tmb_ask ask;
	__u32 allow;
	__u32 pad;
};

SEC("tc") int tmb_ask_policy(struct __sk_buff *skb)
{
	struct request r = {};

	if (bpf_skb_load_bytes(skb, 14, &r, sizeof(r)))
		return TC_ACT_SHOT;
	r.allow = tmb_policy_verdict(&r.ask);
	return bpf_skb_store_bytes(skb, 14, &r, sizeof(r), 0) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

char tmb_license[] SEC("license") = "Apache-2.0";
