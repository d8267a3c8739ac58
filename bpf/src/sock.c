// SPDX-License-Identifier: Apache-2.0
/* Service to backend, once per connection, before there is a packet.
 *
 * Attaches: a cgroup: connect4/6, sendmsg4/6, recvmsg4/6, getpeername4/6,
 *           sock_release. All sockets of the cgroup and of those below it.
 * Sees:     no packets: the address a process gives to or gets from the kernel.
 * Reads:    services, slots, node and cluster health.
 * Writes:   socket_reverse (backend to frontend, for what the process is shown),
 *           udp_choice, counters.
 * Returns:  1, with the address rewritten or not; 0 where a service has no
 *           backend: the call fails with EPERM (sock_retval.c: ECONNREFUSED).
 *
 * A health row only tells new connections where not to go; what is open stays.
 * These programs can be preempted: no scratch outside the stack. */
#include "kernel.h"
#include "lb.h"

#ifndef TMB_REFUSE
#define TMB_REFUSE() 0
#endif

#define PASS 1

static __always_inline void addr_from4(struct tmb_addr *a, __be32 ip)
{
	__u32 *w = (__u32 *)a->b;

	w[0] = 0;
	w[1] = 0;
	w[2] = bpf_htonl(0xffff);
	w[3] = ip;
}

static __always_inline bool addr_is4(const struct tmb_addr *a)
{
	const __u32 *w = (const __u32 *)a->b;

	return !w[0] && !w[1] && w[2] == bpf_htonl(0xffff);
}

static __always_inline void addr_from6(struct tmb_addr *a, struct bpf_sock_addr *ctx)
{
	__u32 *w = (__u32 *)a->b;

	w[0] = ctx->user_ip6[0];
	w[1] = ctx->user_ip6[1];
	w[2] = ctx->user_ip6[2];
	w[3] = ctx->user_ip6[3];
}

/* What the process gave, as 16 bytes; v4 tells which hook is running. */
static __always_inline void addr_read(struct tmb_addr *a, struct bpf_sock_addr *ctx, bool v4)
{
	if (v4)
		addr_from4(a, ctx->user_ip4);
	else
		addr_from6(a, ctx);
}

static __always_inline void addr_write(struct bpf_sock_addr *ctx, const struct tmb_addr *a, __be16 port, bool v4)
{
	const __u32 *w = (const __u32 *)a->b;

	if (v4) {
		ctx->user_ip4 = w[3];
	} else {
		ctx->user_ip6[0] = w[0];
		ctx->user_ip6[1] = w[1];
		ctx->user_ip6[2] = w[2];
		ctx->user_ip6[3] = w[3];
	}
	ctx->user_port = port;
}

/* What was dialled. False: no protocol of a service. MPTCP is TCP to whoever
 * describes services. */
static __always_inline bool frontend(struct bpf_sock_addr *ctx, struct tmb_service_key *key, bool v4)
{
	__u32 proto = ctx->protocol;

	if (proto == IPPROTO_MPTCP)
		proto = IPPROTO_TCP;
	addr_read(&key->addr, ctx, v4);
	key->port = (__be16)ctx->user_port;
	key->proto = proto;
	key->scope = TMB_INSIDE;
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP;
}

/* Who asks, where a service keeps its clients: the network namespace, as a socket
 * may not have an address yet. */
static __always_inline int choose(struct bpf_sock_addr *ctx, struct tmb_service_key *key, struct tmb_draw *d)
{
	__u64 client[2] = {bpf_get_netns_cookie(ctx), ~0ULL};

	return tmb_choose_client(key, (struct tmb_addr *)client, d);
}

static __always_inline void forget_connection(__u64 cookie)
{
	struct tmb_reverse_key key = {.cookie = cookie};

	/* Looking first: most sockets have none, and a delete takes a lock. */
	if (bpf_map_lookup_elem(&tmb_reverse_1, &key))
		bpf_map_delete_elem(&tmb_reverse_1, &key);
}

static __always_inline int connect(struct bpf_sock_addr *ctx, bool v4)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct tmb_reverse_key rkey = {.cookie = cookie};
	struct tmb_reverse rev = {};
	struct tmb_service_key key;
	struct tmb_draw d = {};
	int chosen = TMB_NO_SERVICE;

	if (frontend(ctx, &key, v4))
		chosen = choose(ctx, &key, &d);
	if (chosen == TMB_NO_SERVICE) {
		forget_connection(cookie); /* the socket may have been a service's before */
		return PASS;
	}
	if (chosen != TMB_CHOSEN) {
		tmb_count(TMB_SOCK_NO_BACKEND);
		return TMB_REFUSE();
	}
	if (v4 && !addr_is4(&d.slot.addr)) {
		tmb_count(TMB_SOCK_FAMILY);
		return TMB_REFUSE();
	}
	if (!d.up)
		tmb_count(TMB_SOCK_NONE_UP);

	rev.frontend = key.addr;
	rev.port = key.port;
	/* Without the row the connection works, but getpeername tells the backend. */
	if (bpf_map_update_elem(&tmb_reverse_1, &rkey, &rev, BPF_ANY))
		tmb_count(TMB_SOCK_NO_REVERSE);
	addr_write(ctx, &d.slot.addr, d.slot.port, v4);
	tmb_count(TMB_SOCK_CONNECT);
	return PASS;
}

/* Remember who a datagram's answer comes from. Written again only if it changed:
 * looking is cheap and keeps the row young in the LRU. */
static __always_inline void remember_answer(__u64 cookie, const struct tmb_slot *slot, const struct tmb_service_key *front)
{
	struct tmb_reverse_key key = {.cookie = cookie, .backend = slot->addr, .port = slot->port};
	struct tmb_reverse rev = {.frontend = front->addr, .port = front->port};
	const __u32 *a = (const __u32 *)front->addr.b;
	struct tmb_reverse *old;

	old = bpf_map_lookup_elem(&tmb_reverse_1, &key);
	if (old) {
		const __u32 *b = (const __u32 *)old->frontend.b;

		if (old->port == front->port && a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3])
			return;
	}
	if (bpf_map_update_elem(&tmb_reverse_1, &key, &rev, BPF_ANY))
		tmb_count(TMB_SOCK_NO_REVERSE);
}

static __always_inline int sendmsg(struct bpf_sock_addr *ctx, bool v4)
{
	struct tmb_choice_key ckey = {};
	struct tmb_service_key key;
	struct tmb_choice *old, choice;
	struct tmb_service *svc;
	struct tmb_draw d = {};
	bool stands = false;
	int chosen;

	if (!frontend(ctx, &key, v4))
		return PASS;
	svc = bpf_map_lookup_elem(&tmb_services_1, &key);
	if (!svc)
		return PASS;
	ckey.cookie = bpf_get_socket_cookie(ctx);
	ckey.frontend = key.addr;
	ckey.port = key.port;

	old = bpf_map_lookup_elem(&tmb_choice_1, &ckey);
	if (old) {
		struct tmb_slot *now;

		choice = *old;
		now = bpf_map_lookup_elem(&tmb_slots_1, &choice.at);
		stands = choice.at.service == svc->id && now && tmb_same_slot(now, &choice.slot);
		if (stands && !tmb_cluster_down(choice.slot.cluster) && !tmb_node_down(choice.slot.cluster, choice.slot.node))
			goto send;
	}
	chosen = choose(ctx, &key, &d);
	if (chosen == TMB_NO_SERVICE) /* it went in this moment */
		return PASS;
	if (chosen != TMB_CHOSEN) {
		tmb_count(TMB_SOCK_NO_BACKEND);
		return TMB_REFUSE();
	}
	if (!d.up) {
		tmb_count(TMB_SOCK_NONE_UP);
		if (stands) /* nothing better: stay with the one we had */
			goto send;
	}
	choice.at = d.at;
	choice.slot = d.slot;
	/* The kernel takes no v4-mapped address from sendmsg6, nor IPv6 from sendmsg4. */
	if (v4 != addr_is4(&choice.slot.addr)) {
		tmb_count(TMB_SOCK_FAMILY);
		return TMB_REFUSE();
	}
	/* Failing, the next datagram draws again. */
	bpf_map_update_elem(&tmb_choice_1, &ckey, &choice, BPF_ANY);
	tmb_count(TMB_SOCK_DATAGRAM);
send:
	remember_answer(ckey.cookie, &choice.slot, &key);
	addr_write(ctx, &choice.slot.addr, choice.slot.port, v4);
	return PASS;
}

static __always_inline void show_frontend(struct bpf_sock_addr *ctx, struct tmb_reverse_key *key, bool v4)
{
	struct tmb_reverse *rev = bpf_map_lookup_elem(&tmb_reverse_1, key);

	if (rev && (!v4 || addr_is4(&rev->frontend)))
		addr_write(ctx, &rev->frontend, rev->port, v4);
}

static __always_inline int recvmsg(struct bpf_sock_addr *ctx, bool v4)
{
	struct tmb_reverse_key key = {.cookie = bpf_get_socket_cookie(ctx)};

	/* A connected socket hears its peer alone; the others by who answers. */
	if (ctx->sk->state != SOCK_STATE_ESTABLISHED) {
		addr_read(&key.backend, ctx, v4);
		key.port = (__be16)ctx->user_port;
	}
	show_frontend(ctx, &key, v4);
	return PASS;
}

static __always_inline int getpeername(struct bpf_sock_addr *ctx, bool v4)
{
	struct tmb_reverse_key key = {.cookie = bpf_get_socket_cookie(ctx)};

	show_frontend(ctx, &key, v4);
	return PASS;
}

SEC("cgroup/connect4") int tmb_connect4(struct bpf_sock_addr *ctx) { return connect(ctx, true); }
SEC("cgroup/connect6") int tmb_connect6(struct bpf_sock_addr *ctx) { return connect(ctx, false); }
SEC("cgroup/sendmsg4") int tmb_sendmsg4(struct bpf_sock_addr *ctx) { return sendmsg(ctx, true); }
SEC("cgroup/sendmsg6") int tmb_sendmsg6(struct bpf_sock_addr *ctx) { return sendmsg(ctx, false); }
SEC("cgroup/recvmsg4") int tmb_recvmsg4(struct bpf_sock_addr *ctx) { return recvmsg(ctx, true); }
SEC("cgroup/recvmsg6") int tmb_recvmsg6(struct bpf_sock_addr *ctx) { return recvmsg(ctx, false); }
SEC("cgroup/getpeername4") int tmb_getpeername4(struct bpf_sock_addr *ctx) { return getpeername(ctx, true); }
SEC("cgroup/getpeername6") int tmb_getpeername6(struct bpf_sock_addr *ctx) { return getpeername(ctx, false); }

SEC("cgroup/sock_release") int tmb_sock_release(struct bpf_sock *sk)
{
	forget_connection(bpf_get_socket_cookie(sk));
	return PASS;
}

/* None of the helpers above asks for a GPL-compatible licence. */
char tmb_license[] SEC("license") = "Apache-2.0";
