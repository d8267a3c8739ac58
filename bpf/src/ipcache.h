// SPDX-License-Identifier: Apache-2.0
/* Who an address belongs to. */
#pragma once

#include "addr.h"

/* Reserved identities are those of cluster 0 (clustermesh/records.go). */
#define IDENTITY_BITS 20
#define IDENTITY_HOST 1
#define IDENTITY_WORLD 2
#define IDENTITY_REMOTE_NODE 3
#define IDENTITY_HEALTH 5

/* Single addresses first, then prefixes. NULL: nobody the mesh knows. */
static __always_inline struct tmb_ipcache *tmb_owner(const struct tmb_addr *a)
{
	struct tmb_ipcache *row = bpf_map_lookup_elem(&tmb_ipcache_1, a);
	struct tmb_prefix p;
	__u32 *w = (__u32 *)p.addr.b;
	const __u32 *f = (const __u32 *)a->b;

	if (row)
		return row;
	p.bits = 128;
	w[0] = f[0];
	w[1] = f[1];
	w[2] = f[2];
	w[3] = f[3];
	return bpf_map_lookup_elem(&tmb_ipprefix_1, &p);
}

static __always_inline __u32 tmb_identity(const struct tmb_addr *a)
{
	struct tmb_ipcache *row = tmb_owner(a);

	return row ? row->identity : IDENTITY_WORLD;
}
