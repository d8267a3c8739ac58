// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The node ports' established packets before the host's stack sees them: those
 * between a client outside and a backend on another node that is reached in clear.
 *
 * Attaches: XDP, by the driver or (generic) before tc, on uplinks with Ethernet
 *           headers, only where somebody asked for it.
 * Sees:     whole frames as the device took them in. A VLAN tag that the device
 *           takes off cannot be seen: not for devices that carry VLANs.
 * Reads:    flows, services, source ranges, slots, health, endpoints, ipcache, epoch,
 *           config, devices; the host's routes and neighbours.
 * Writes:   counters and events of what it drops. Not flows.
 * Returns:  TX or REDIRECT: on to the backend or back to the client, rewritten.
 *           DROP, counted by reason: a client outside the source ranges, or a
 *           service with traffic policy Local without backends. PASS, untouched:
 *           all else, for host.c.
 *
 * host.c takes flows in, gives them ports, judges them and notes their state; this
 * program decides nothing that host.c would decide otherwise. A packet is left to
 * it that begins or ends something (SYN, FIN, RST), whose flow nobody has answered,
 * was judged in an earlier epoch or not noted for a second (so host.c sees one a
 * second), for which the kernel has no route, neighbour or room in the MTU, and
 * whatever is not plain TCP or UDP: options, extension headers, fragments.
 *
 * Optional: the kernel lets only programs under the GPL ask its routes, hence the
 * licence of this file. */
#include "kernel.h"

/* What the headers have for a __sk_buff leaves no trace in this object. */
#undef __noinline
#define __noinline static __attribute__((unused))

#include "outside.h"

struct xdp_md {
	__u32 data;
	__u32 data_end;
	__u32 data_meta;
	__u32 ingress_ifindex;
};

enum {
	XDP_DROP = 1,
	XDP_PASS,
	XDP_TX,
};

#define AF_INET 2
#define AF_INET6 10
#define BPF_FIB_LOOKUP_OUTPUT 2 /* by this device, as redirect_neigh would */

struct bpf_fib_lookup {
	__u8 family;
	__u8 l4_protocol;
	__be16 sport;
	__be16 dport;
	__u16 tot_len;
	__u32 ifindex;
	__u32 tos; /* IPv6: flow label and class; after the call something else */
	__u32 src[4];
	__u32 dst[4];
	__u32 vlan;
	__u8 smac[6];
	__u8 dmac[6];
};

static long (*const bpf_fib_lookup)(void *ctx, struct bpf_fib_lookup *params, __u32 size, __u32 flags) = (void *)69;

/* Set by the loader: the device's own address, and whether the program runs in the
 * generic mode. */
const volatile __u8 tmb_xdp_mac[6] = {};
const volatile __u32 tmb_xdp_generic = 0;

/* Frames for others come by, too, on a device that listens to all. */
static __always_inline bool to_us(const struct tmb_eth *e)
{
	return e->dst[0] == tmb_xdp_mac[0] && e->dst[1] == tmb_xdp_mac[1] && e->dst[2] == tmb_xdp_mac[2] &&
	       e->dst[3] == tmb_xdp_mac[3] && e->dst[4] == tmb_xdp_mac[4] && e->dst[5] == tmb_xdp_mac[5];
}

/* The sum over the packet is still to be made (by a device; of what the host put
 * together from several, or was sent by its own veth): a change by difference
 * would spoil it. What stands there is the sum of the pseudo header. */
static __always_inline bool sum_to_come(const struct tmb_packet *p, __u16 check, __u16 len)
{
	const __u32 *s = (const __u32 *)p->src.b, *d = (const __u32 *)p->dst.b;
	__u64 sum = (__u64)s[3] + d[3] + bpf_htons(p->proto) + bpf_htons(len);

	if (!(p->what & TMB_IS_V4))
		sum += (__u64)s[0] + d[0] + s[1] + d[1] + s[2] + d[2];
	return check == tmb_fold16(sum);
}

/* Ports and flags of the len bytes at l4. False: not for us. */
static __always_inline bool parse_l4(void *l4, void *end, __u16 len, struct tmb_packet *p)
{
	struct tmb_tcp *t = l4;
	__be16 *u = l4;

	if ((void *)(u + 4) > end)
		return false;
	p->sport = u[0];
	p->dport = u[1];
	if (p->proto == IPPROTO_UDP)
		return len >= 8 && (!u[3] || !sum_to_come(p, u[3], len));
	if (p->proto != IPPROTO_TCP || (void *)(t + 1) > end || len < 20 || t->doff >> 4 < 5)
		return false;
	p->tcp = t->flags;
	return !sum_to_come(p, t->check, len);
}

/* Addresses, ports, and into fib what the routes are asked with but for addresses.
 * False: not for us. */
static __always_inline bool parse(struct xdp_md *ctx, struct tmb_packet *p, struct bpf_fib_lookup *fib)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct tmb_eth *e = data;
	__u64 room = (__u64)end - (__u64)data;
	__u32 len;

	if ((void *)(e + 1) > end || !to_us(e))
		return false;
	room -= ETH_LEN;
	if (e->proto == bpf_htons(ETH_P_IP)) {
		struct tmb_ip4 *h = (void *)(e + 1);

		if ((void *)(h + 1) > end || h->version_ihl != 0x45 || h->frag & bpf_htons(0x3fff) || h->ttl <= 1)
			return false;
		len = bpf_htons(h->len);
		if (len < sizeof(*h) || len > room)
			return false;
		p->what = TMB_IS_V4;
		p->proto = h->proto;
		tmb_set4(&p->src, h->src);
		tmb_set4(&p->dst, h->dst);
		fib->family = AF_INET;
		fib->tot_len = len;
		fib->tos = h->tos;
		return parse_l4(h + 1, end, len - sizeof(*h), p);
	}
	if (e->proto == bpf_htons(ETH_P_IPV6)) {
		struct tmb_ip6 *h = (void *)(e + 1);

		if ((void *)(h + 1) > end || (h->version & bpf_htonl(0xf0000000)) != bpf_htonl(0x60000000) || h->hops <= 1)
			return false;
		len = bpf_htons(h->len);
		if (len > 65535 - sizeof(*h) || len + sizeof(*h) > room)
			return false;
		p->proto = h->next;
		tmb_set6(&p->src, h->src);
		tmb_set6(&p->dst, h->dst);
		if (tmb_is4(&p->src) || tmb_is4(&p->dst))
			return false;
		fib->family = AF_INET6;
		fib->tot_len = len + sizeof(*h);
		fib->tos = h->version & bpf_htonl(0x0fffffff);
		return parse_l4(h + 1, end, len, p);
	}
	return false;
}

/* Neither this node's or its pods' address, nor one that belongs in the tunnel. */
static __always_inline bool far_in_clear(const struct tmb_addr *a)
{
	struct tmb_ipcache *row = tmb_owner(a);
	struct tmb_config *c;
	__u32 zero = 0;

	if (bpf_map_lookup_elem(&tmb_endpoint_2, a))
		return false;
	if (!row)
		return true;
	if (row->identity == IDENTITY_HOST || row->flags)
		return false;
	if (!(row->identity >> IDENTITY_BITS))
		return true;
	c = bpf_map_lookup_elem(&tmb_config_1, &zero);
	return c && !(c->flags & TMB_ENCRYPT_ALL && row->identity >> IDENTITY_BITS == c->cluster);
}

/* A client's packet to a service that nobody may, or can, answer. The reason to
 * drop; 0: host.c sees to it. */
static __always_inline int refused(const struct tmb_packet *p)
{
	struct tmb_service_key key TMB_ALIGNED = {.port = p->dport, .proto = p->proto, .scope = TMB_OUTSIDE};
	struct tmb_service *svc;
	int i;

	tmb_copy(&key.addr, &p->dst);
	svc = bpf_map_lookup_elem(&tmb_services_1, &key);
	if (!svc)
		return 0;
	if (svc->flags & TMB_SVC_RANGES && !tmb_in_range(svc->id, &p->src))
		return TMB_DROP_SOURCE_RANGE;
	if (!(svc->flags & TMB_SVC_LOCAL) || svc->maglev)
		return 0;
	for (i = 0; i < TMB_MAX_GROUPS; i++) {
		if (svc->groups[i].count)
			return 0;
	}
	return TMB_DROP_NO_BACKEND;
}

/* Between a client outside and a backend elsewhere, and nothing to decide or note. */
static __always_inline bool is_ours(const struct tmb_flow *f, const struct tmb_packet *p, bool forward)
{
	const __u32 both = TMB_FLOW_OUTSIDE | TMB_FLOW_ANSWERED | TMB_FLOW_TO_SRC | TMB_FLOW_TO_DST;
	__u32 flags = f->flags;

	if ((flags & both) != both || flags & (TMB_FLOW_FORBIDDEN | TMB_FLOW_HAIRPIN) || tmb_closed(flags))
		return false;
	if (f->epoch != tmb_epoch() || bpf_ktime_get_coarse_ns() - f->seen >= TMB_SECOND || p->tcp & (TMB_SYN | TMB_FIN | TMB_RST))
		return false;
	if (!forward)
		return flags & TMB_FLOW_REPLY;
	if (flags & TMB_FLOW_REPLY || !(flags & TMB_FLOW_SERVICE))
		return false;
	return p->proto != IPPROTO_UDP || tmb_backend_stands(f, true);
}

/* The device by which host.c would send it; 0: none that we can. */
static __always_inline __u32 device(struct xdp_md *ctx, const struct tmb_packet *p, bool forward)
{
	__u32 which = TMB_DEVICE_UNDERLAY, out = p->out, *underlay;

	if (forward) {
		underlay = bpf_map_lookup_elem(&tmb_devices_1, &which);
		out = underlay && *underlay ? *underlay : ctx->ingress_ifindex;
	}
	/* Another device's driver may have no room for our frames, and would lose them
	 * without a word; the generic mode asks no driver. */
	return out == ctx->ingress_ifindex || tmb_xdp_generic ? out : 0;
}

/* The neighbour. False: host.c finds one, or says why not. */
static __always_inline bool next_hop(struct xdp_md *ctx, const struct tmb_packet *p, struct bpf_fib_lookup *fib, __u32 out)
{
	const __u32 *s = (const __u32 *)p->to_src.b, *d = (const __u32 *)p->to_dst.b;

	fib->l4_protocol = p->proto;
	fib->sport = p->to_sport;
	fib->dport = p->to_dport;
	fib->ifindex = out;
	if (p->what & TMB_IS_V4) {
		fib->src[0] = s[3];
		fib->dst[0] = d[3];
	} else {
		tmb_copy((struct tmb_addr *)fib->src, &p->to_src);
		tmb_copy((struct tmb_addr *)fib->dst, &p->to_dst);
	}
	return !bpf_fib_lookup(ctx, fib, sizeof(*fib), BPF_FIB_LOOKUP_OUTPUT) && fib->ifindex == out;
}

/* The frame becomes what p->to_* says, one hop older, for the neighbour. All of it
 * is known to be there before the first byte is changed. */
static __always_inline bool rewrite(struct xdp_md *ctx, const struct tmb_packet *p, const struct bpf_fib_lookup *fib)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	const __u32 *s = (const __u32 *)p->to_src.b, *d = (const __u32 *)p->to_dst.b;
	__u32 diff = tmb_addr_diff(p), ip = p->what & TMB_IS_V4 ? sizeof(struct tmb_ip4) : sizeof(struct tmb_ip6);
	struct tmb_eth *e = data;
	__be16 *l4, *check;

	l4 = data + ETH_LEN + ip;
	check = l4 + (p->proto == IPPROTO_TCP ? 8 : 3);
	if ((void *)(l4 + 4) > end || (void *)(check + 1) > end)
		return false;
	if (p->what & TMB_IS_V4) {
		struct tmb_ip4 *h = (void *)(e + 1);
		__u16 was;

		if ((void *)(h + 1) > end)
			return false;
		was = h->ttl | h->proto << 8;
		h->ttl--;
		h->src = s[3];
		h->dst = d[3];
		h->check = ~tmb_fold16((__u64)(__u16)~h->check + diff + (__u16)~was + (__u16)(was - 1));
	} else {
		struct tmb_ip6 *h = (void *)(e + 1);

		if ((void *)(h + 1) > end)
			return false;
		h->hops--;
		tmb_set6((struct tmb_addr *)h->src, s);
		tmb_set6((struct tmb_addr *)h->dst, d);
	}
	l4[0] = p->to_sport;
	l4[1] = p->to_dport;
	if (p->proto == IPPROTO_TCP || *check) { /* UDP: no checksum stays none */
		*check = ~tmb_fold16((__u64)(__u16)~*check + diff + (__u16)~p->sport + p->to_sport + (__u16)~p->dport + p->to_dport);
		if (p->proto == IPPROTO_UDP && !*check)
			*check = 0xffff;
	}
	__builtin_memcpy(e->dst, fib->dmac, sizeof(e->dst));
	__builtin_memcpy(e->src, fib->smac, sizeof(e->src));
	return true;
}

SEC("xdp") int tmb_xdp(struct xdp_md *ctx)
{
	struct bpf_fib_lookup fib TMB_ALIGNED = {};
	struct tmb_packet p TMB_ALIGNED = {};
	struct tmb_flow_key key TMB_ALIGNED;
	struct tmb_flow *f;
	bool forward;
	__u32 out;

	if (!parse(ctx, &p, &fib))
		return XDP_PASS;
	forward = tmb_flow_key(&key, &p.src, &p.dst, p.sport, p.dport, p.proto);
	f = bpf_map_lookup_elem(&tmb_flow_1, &key);
	if (!f) {
		struct __sk_buff at = {.ifindex = ctx->ingress_ifindex}; /* all that an event wants of it */
		int reason = refused(&p);

		if (!reason || !far_in_clear(&p.src))
			return XDP_PASS;
		tmb_drop(&at, &p, reason);
		return XDP_DROP;
	}
	if (!(f->flags & TMB_FLOW_FROM_A))
		forward = !forward;
	if (!is_ours(f, &p, forward))
		return XDP_PASS;
	tmb_flow_take(f, &p, forward);
	if (!far_in_clear(&p.src) || !far_in_clear(&p.to_dst) || tmb_can_rewrite(&p))
		return XDP_PASS;
	out = device(ctx, &p, forward);
	if (!out || !next_hop(ctx, &p, &fib, out) || !rewrite(ctx, &p, &fib))
		return XDP_PASS;
	return out == ctx->ingress_ifindex ? XDP_TX : bpf_redirect(out, 0);
}

char tmb_license[] SEC("license") = "Dual BSD/GPL";
