// SPDX-License-Identifier: Apache-2.0
/* Addresses: 16 bytes, IPv4 v4-mapped. Copied and compared by words: a struct of
 * bytes would be copied by bytes. Whatever holds one on the stack is aligned to 8. */
#pragma once

#include "tables.h"

#define TMB_ALIGNED __attribute__((aligned(8)))

static __always_inline void tmb_copy(struct tmb_addr *to, const struct tmb_addr *from)
{
	__u64 *t = (__u64 *)to->b;
	const __u64 *f = (const __u64 *)from->b;

	t[0] = f[0];
	t[1] = f[1];
}

static __always_inline bool tmb_same(const struct tmb_addr *x, const struct tmb_addr *y)
{
	const __u64 *a = (const __u64 *)x->b, *b = (const __u64 *)y->b;

	return a[0] == b[0] && a[1] == b[1];
}

static __always_inline bool tmb_is4(const struct tmb_addr *a)
{
	const __u32 *w = (const __u32 *)a->b;

	return !w[0] && !w[1] && w[2] == bpf_htonl(0xffff);
}

static __always_inline void tmb_set4(struct tmb_addr *a, __be32 ip)
{
	__u32 *w = (__u32 *)a->b;

	w[0] = 0;
	w[1] = 0;
	w[2] = bpf_htonl(0xffff);
	w[3] = ip;
}

static __always_inline void tmb_set6(struct tmb_addr *a, const __u32 *ip)
{
	__u32 *w = (__u32 *)a->b;

	w[0] = ip[0];
	w[1] = ip[1];
	w[2] = ip[2];
	w[3] = ip[3];
}

static __always_inline bool tmb_is_multicast(const struct tmb_addr *a)
{
	if (tmb_is4(a))
		return a->b[12] >= 224; /* groups, reserved, broadcast */
	return a->b[0] == 0xff;
}

static __always_inline bool tmb_is_link_local6(const struct tmb_addr *a)
{
	return a->b[0] == 0xfe && (a->b[1] & 0xc0) == 0x80;
}
