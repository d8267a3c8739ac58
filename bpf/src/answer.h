// SPDX-License-Identifier: Apache-2.0
/* The answer to a packet that goes nowhere, made of the packet itself: a TCP reset,
 * or an ICMP "port unreachable" with its beginning in it, from the address that was
 * called. The caller sends it back where the packet came from.
 *
 * Checksums are whole. If the packet's was left to its device, the kernel still
 * takes the answer's to be: in the sender's own namespace nobody computes it. */
#pragma once

#include "nat.h"

#define TMB_QUOTE4 68 /* of the packet: any IP header, and 8 bytes */
#define TMB_QUOTE6 96

static __always_inline __u64 tmb_sum(const void *data, __u32 size)
{
	const __u32 *w = data;
	__u64 sum = 0;
	__u32 i;

#pragma unroll
	for (i = 0; i < size / 4; i++)
		sum += w[i];
	return sum;
}

/* Ethernet addresses change places. */
static __always_inline void tmb_turn_eth(struct tmb_eth *e, __be16 proto)
{
	__u8 mac[6];

	__builtin_memcpy(mac, e->dst, 6);
	__builtin_memcpy(e->dst, e->src, 6);
	__builtin_memcpy(e->src, mac, 6);
	e->proto = proto;
}

static __always_inline void tmb_header4(struct tmb_ip4 *h, const struct tmb_packet *p, __u32 len)
{
	h->version_ihl = 0x45;
	h->tos = 0;
	h->len = bpf_htons((__u16)len);
	h->id = 0;
	h->frag = bpf_htons(0x4000);
	h->ttl = 64;
	h->proto = p->proto == IPPROTO_TCP ? IPPROTO_TCP : IPPROTO_ICMP;
	h->check = 0;
	h->src = ((const __u32 *)p->dst.b)[3];
	h->dst = ((const __u32 *)p->src.b)[3];
	h->check = ~tmb_fold16(tmb_sum(h, sizeof(*h)));
}

static __always_inline void tmb_header6(struct tmb_ip6 *h, const struct tmb_packet *p, __u32 len)
{
	h->version = bpf_htonl(0x60000000);
	h->len = bpf_htons((__u16)len);
	h->next = p->proto == IPPROTO_TCP ? IPPROTO_TCP : IPPROTO_ICMPV6;
	h->hops = 64;
	__builtin_memcpy(h->src, &p->dst, 16);
	__builtin_memcpy(h->dst, &p->src, 16);
}

/* Both addresses, length and protocol: v4-mapped prefixes are taken out again. */
static __always_inline __u64 tmb_pseudo(const struct tmb_packet *p, __u32 len, __u8 proto)
{
	__u64 sum = tmb_sum(&p->src, 32) + bpf_htonl(len) + bpf_htonl(proto);

	if (p->what & TMB_IS_V4) {
		const __u32 *s = (const __u32 *)p->src.b, *d = (const __u32 *)p->dst.b;

		sum = (__u64)s[3] + d[3] + bpf_htonl(len) + bpf_htonl(proto);
	}
	return sum;
}

/* The packet becomes a reset of itself. 0, or it cannot. */
__noinline int tmb_make_reset(struct __sk_buff *skb, struct tmb_packet *p)
{
	struct {
		struct tmb_ip6 ip;
		struct tmb_tcp tcp;
	} out = {};
	struct tmb_ip4 ip4;
	__u32 ip = sizeof(out.ip), payload;
	struct tmb_tcp *t = &out.tcp, old;
	struct tmb_eth e;

	if (!p || p->tcp & TMB_RST || bpf_skb_load_bytes(skb, p->l4, &old, sizeof(old)))
		return -1;
	if (tmb_l2_len && bpf_skb_load_bytes(skb, 0, &e, sizeof(e)))
		return -1;
	payload = skb->len - p->l4 - (old.doff >> 4) * 4;
	if (payload > 65535) /* the header says less than there is: padding, or a lie */
		payload = 0;
	t->sport = old.dport;
	t->dport = old.sport;
	t->doff = 5 << 4;
	if (old.flags & TMB_ACK) {
		t->seq = old.ack;
		t->flags = TMB_RST;
	} else {
		t->ack = bpf_htonl(bpf_htonl(old.seq) + payload + !!(old.flags & TMB_SYN) + !!(old.flags & TMB_FIN));
		t->flags = TMB_RST | TMB_ACK;
	}
	t->check = ~tmb_fold16(tmb_sum(t, sizeof(*t)) + tmb_pseudo(p, sizeof(*t), IPPROTO_TCP));
	if (p->what & TMB_IS_V4)
		ip = sizeof(ip4);
	if (bpf_skb_change_tail(skb, tmb_l2_len + ip + sizeof(*t), 0))
		return -1;
	if (tmb_l2_len) {
		tmb_turn_eth(&e, e.proto);
		if (bpf_skb_store_bytes(skb, 0, &e, sizeof(e), 0))
			return -1;
	}
	if (p->what & TMB_IS_V4) {
		tmb_header4(&ip4, p, sizeof(ip4) + sizeof(*t));
		return bpf_skb_store_bytes(skb, tmb_l2_len, &ip4, sizeof(ip4), 0) ||
		       bpf_skb_store_bytes(skb, tmb_l2_len + sizeof(ip4), t, sizeof(*t), 0);
	}
	tmb_header6(&out.ip, p, sizeof(*t));
	return bpf_skb_store_bytes(skb, tmb_l2_len, &out, sizeof(out), 0);
}

/* The packet gets an ICMP header before it. 0, or it cannot. */
__noinline int tmb_make_unreachable(struct __sk_buff *skb, struct tmb_packet *p)
{
	__u32 quote[TMB_QUOTE6 / 4] = {}, n = skb->len - tmb_l2_len, icmp[2] = {}, at;
	bool v4;
	struct tmb_eth e;
	__u64 sum;

	if (!p || (tmb_l2_len && bpf_skb_load_bytes(skb, 0, &e, sizeof(e))))
		return -1;
	v4 = p->what & TMB_IS_V4;
	if (v4 && n > TMB_QUOTE4)
		n = TMB_QUOTE4;
	if (n > TMB_QUOTE6)
		n = TMB_QUOTE6;
	if (n < 28 || bpf_skb_load_bytes(skb, tmb_l2_len, quote, n))
		return -1;
	if (tmb_l2_len + n < skb->len && bpf_skb_change_tail(skb, tmb_l2_len + n, 0))
		return -1;
	icmp[0] = v4 ? bpf_htonl(0x03030000) : bpf_htonl(0x01040000);
	sum = icmp[0] + tmb_sum(quote, sizeof(quote));
	if (!v4)
		sum += tmb_pseudo(p, n + sizeof(icmp), IPPROTO_ICMPV6);
	*((__u16 *)icmp + 1) = ~tmb_fold16(sum);

	at = tmb_l2_len + (v4 ? sizeof(struct tmb_ip4) : sizeof(struct tmb_ip6));
	/* Behind the Ethernet header, so that the kernel knows where IP begins. */
	if (bpf_skb_adjust_room(skb, at - tmb_l2_len + sizeof(icmp), BPF_ADJ_ROOM_MAC, 0))
		return -1;
	if (tmb_l2_len) {
		tmb_turn_eth(&e, e.proto);
		if (bpf_skb_store_bytes(skb, 0, &e, sizeof(e), 0))
			return -1;
	}
	if (bpf_skb_store_bytes(skb, at, icmp, sizeof(icmp), 0))
		return -1;
	if (v4) {
		struct tmb_ip4 h;

		tmb_header4(&h, p, sizeof(h) + sizeof(icmp) + n);
		return bpf_skb_store_bytes(skb, tmb_l2_len, &h, sizeof(h), 0);
	} else {
		struct tmb_ip6 h;

		tmb_header6(&h, p, sizeof(icmp) + n);
		return bpf_skb_store_bytes(skb, tmb_l2_len, &h, sizeof(h), 0);
	}
}

/* The packet becomes the answer that nobody is there. 0, or it cannot. */
static __always_inline int tmb_refuse(struct __sk_buff *skb, struct tmb_packet *p)
{
	return p->proto == IPPROTO_TCP ? tmb_make_reset(skb, p) : tmb_make_unreachable(skb, p);
}
