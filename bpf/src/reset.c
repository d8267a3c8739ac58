// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Ends sockets whose backend is gone: their owners get an error, and connect anew.
 *
 * Attaches: iterators over the TCP and UDP sockets of the network namespace of the
 *           thread that reads them.
 * Sees:     every socket there, one at a time.
 * Reads:    tmb_gone, the backend, which the loader sets.
 * Writes:   how many it ended.
 * Returns:  0: go on.
 *
 * Optional (6.5): the kernel's functions for it are for GPL-compatible programs
 * alone, hence the licence of this file. Without it: SOCK_DESTROY by netlink. */
#include "kernel.h"

struct tmb_gone {
	__u32 addr[4]; /* v4-mapped, network order */
	__u16 port;    /* network order */
	__u16 pad;
	__u32 ended;
} tmb_gone = {};

#define AF_INET 2
#define AF_INET6 10

/* Only what we use; where it lies the loader finds out. */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct in6_addr {
	union {
		__u32 u6_addr32[4];
	} in6_u;
};

struct sock_common {
	__u32 skc_daddr;
	__u16 skc_dport;
	unsigned short skc_family;
	struct in6_addr skc_v6_daddr;
};

struct sock {
	struct sock_common __sk_common;
};

struct inet_sock {
	struct sock sk;
};

struct udp_sock {
	struct inet_sock inet;
};

struct bpf_iter_meta;

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
};

struct bpf_iter__udp {
	struct bpf_iter_meta *meta;
	struct udp_sock *udp_sk;
};

#pragma clang attribute pop

extern int bpf_sock_destroy(struct sock_common *sk) __attribute__((section(".ksyms")));

static __always_inline int end(struct sock_common *sk)
{
	if (sk->skc_dport != tmb_gone.port || !tmb_gone.port)
		return 0;
	if (sk->skc_family == AF_INET) {
		if (tmb_gone.addr[0] || tmb_gone.addr[1] || tmb_gone.addr[2] != bpf_htonl(0xffff) ||
		    sk->skc_daddr != tmb_gone.addr[3])
			return 0;
	} else if (sk->skc_family == AF_INET6) {
		if (sk->skc_v6_daddr.in6_u.u6_addr32[0] != tmb_gone.addr[0] ||
		    sk->skc_v6_daddr.in6_u.u6_addr32[1] != tmb_gone.addr[1] ||
		    sk->skc_v6_daddr.in6_u.u6_addr32[2] != tmb_gone.addr[2] ||
		    sk->skc_v6_daddr.in6_u.u6_addr32[3] != tmb_gone.addr[3])
			return 0;
	} else {
		return 0;
	}
	if (!bpf_sock_destroy(sk))
		tmb_gone.ended++;
	return 0;
}

SEC("iter/tcp") int tmb_reset_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *sk = ctx->sk_common;

	return sk ? end(sk) : 0;
}

SEC("iter/udp") int tmb_reset_udp(struct bpf_iter__udp *ctx)
{
	struct udp_sock *sk = ctx->udp_sk;

	return sk ? end((struct sock_common *)sk) : 0;
}

char tmb_license[] SEC("license") = "Dual BSD/GPL";
