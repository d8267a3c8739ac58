// SPDX-License-Identifier: Apache-2.0
/* What a packet is: addresses, ports, flags. Nothing is taken for true that lies
 * outside the packet: every read is bounded, lengths that contradict each other
 * are refused.
 *
 * tmb_parse reads what is usual (TCP or UDP right behind the IP header) straight
 * from the packet; all else (options, extension headers, fragments, ICMP, other
 * protocols) takes tmb_parse_slow. */
#pragma once

#include "addr.h"

/* Bytes before the IP header: 14, or 0 on an L3 device. Set by the loader. */
const volatile __u32 tmb_l2_len = 0;

#define ETH_LEN 14
#define TMB_MAX_EXTENSIONS 6 /* IPv6 headers before the transport header */
#define TMB_MAX_L4 500	     /* where a transport header begins at the latest */

struct tmb_eth {
	__u8 dst[6];
	__u8 src[6];
	__be16 proto;
};

struct tmb_ip4 {
	__u8 version_ihl;
	__u8 tos;
	__be16 len;
	__be16 id;
	__be16 frag;
	__u8 ttl;
	__u8 proto;
	__be16 check;
	__be32 src;
	__be32 dst;
};

struct tmb_ip6 {
	__be32 version;
	__be16 len;
	__u8 next;
	__u8 hops;
	__u32 src[4];
	__u32 dst[4];
};

struct tmb_tcp {
	__be16 sport;
	__be16 dport;
	__be32 seq;
	__be32 ack;
	__u8 doff;
	__u8 flags;
	__be16 window;
	__be16 check;
	__be16 urgent;
};

/* TCP's flags; SCTP's chunks that begin and end an association count as the same. */
#define TMB_FIN 1
#define TMB_SYN 2
#define TMB_RST 4
#define TMB_ACK 16

enum tmb_what {
	TMB_IS_V4 = 1,
	TMB_IS_LATER = 2,      /* a later fragment: no transport header; ports of the first one */
	TMB_IS_ERROR = 4,      /* an ICMP error: about the packet in it */
	TMB_IS_NEIGHBOUR = 8,  /* neighbour or router discovery that came over one link */
	TMB_IS_TRANSLATED = 16, /* `to` is what it becomes, or has become */
	TMB_IS_REPLY = 32,     /* an ICMP echo reply: cannot open a flow */
};

/* A packet, and what becomes of it. Declare it TMB_ALIGNED, and zero it. */
struct tmb_packet {
	struct tmb_addr src;
	struct tmb_addr dst;
	__be16 sport; /* ICMP echo: the identifier, in both */
	__be16 dport;
	__u16 l4; /* where the transport header begins */
	__u8 proto;
	__u8 what; /* enum tmb_what */
	__u8 tcp;  /* flags */
	__u8 type; /* ICMP */
	__be16 to_sport;
	__be16 to_dport;
	__u16 end; /* of the IP packet; what is behind it is no part of it. By tmb_parse_slow alone */
	struct tmb_addr to_src; /* with TRANSLATED: all four of them */
	struct tmb_addr to_dst;
	__u32 out;  /* the device it leaves by, 0 = not known */
	__u32 rule; /* that decided, 0 = none */
};

/* Ports, flags, types: what stands at p->l4. 0, or the reason to drop. */
static __always_inline int tmb_parse_l4(struct __sk_buff *skb, struct tmb_packet *p)
{
	__u8 h[20];

	switch (p->proto) {
	case IPPROTO_TCP:
		if (bpf_skb_load_bytes(skb, p->l4, h, 20) || h[12] >> 4 < 5)
			return TMB_DROP_MALFORMED;
		p->tcp = h[13];
		break;
	case IPPROTO_UDP:
		if (bpf_skb_load_bytes(skb, p->l4, h, 8))
			return TMB_DROP_MALFORMED;
		break;
	case IPPROTO_SCTP:
		if (bpf_skb_load_bytes(skb, p->l4, h, 16))
			return TMB_DROP_MALFORMED;
		p->tcp = h[12] == 1 ? TMB_SYN :			/* INIT */
			 h[12] == 2 ? TMB_SYN | TMB_ACK :	/* INIT ACK */
			 h[12] == 6 || h[12] == 14 ? TMB_RST :	/* ABORT, SHUTDOWN COMPLETE */
			 h[12] == 7 || h[12] == 8 ? TMB_FIN :	/* SHUTDOWN, SHUTDOWN ACK */
						    TMB_ACK;
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6: {
		bool v4 = p->what & TMB_IS_V4;

		if (v4 != (p->proto == IPPROTO_ICMP))
			return TMB_DROP_MALFORMED;
		if (bpf_skb_load_bytes(skb, p->l4, h, 8))
			return TMB_DROP_MALFORMED;
		p->type = h[0];
		if (v4 ? h[0] == 8 || h[0] == 0 : h[0] == 128 || h[0] == 129) {
			p->sport = *(__be16 *)(h + 4);
			p->dport = p->sport;
			if (h[0] == 0 || h[0] == 129)
				p->what |= TMB_IS_REPLY;
		} else if (v4 ? h[0] == 3 || h[0] == 4 || h[0] == 5 || h[0] == 11 || h[0] == 12 : h[0] && h[0] < 5) {
			p->what |= TMB_IS_ERROR;
		}
		return 0;
	}
	default:
		return 0; /* a flow of its addresses */
	}
	p->sport = *(__be16 *)h;
	p->dport = *(__be16 *)(h + 2);
	return 0;
}

/* A packet in pieces: the first one's ports are kept for those that follow. */
static __always_inline int tmb_fragment(struct __sk_buff *skb, struct tmb_packet *p, __be32 id, __u32 offset)
{
	struct tmb_frag_key key TMB_ALIGNED = {.id = id, .proto = p->proto};
	struct tmb_frag frag, *first;
	int reason;

	tmb_copy(&key.src, &p->src);
	tmb_copy(&key.dst, &p->dst);
	if (offset) {
		/* A piece that would overwrite the header that was judged. */
		if (p->proto == IPPROTO_TCP && offset < 20)
			return TMB_DROP_MALFORMED;
		first = bpf_map_lookup_elem(&tmb_frag_1, &key);
		if (!first)
			return TMB_DROP_FRAGMENT;
		p->sport = first->sport;
		p->dport = first->dport;
		p->what |= TMB_IS_LATER;
		p->tcp = TMB_ACK; /* opens nothing, ends nothing */
		return 0;
	}
	reason = tmb_parse_l4(skb, p);
	if (reason)
		return reason;
	if (p->what & TMB_IS_ERROR)
		return TMB_DROP_MALFORMED; /* errors are made to fit */
	frag.sport = p->sport;
	frag.dport = p->dport;
	/* Failing, the later pieces are dropped and counted. */
	bpf_map_update_elem(&tmb_frag_1, &key, &frag, BPF_ANY);
	return 0;
}

/* An IP packet of len bytes ends here. */
static __always_inline void tmb_end(struct tmb_packet *p, __u32 len)
{
	len += tmb_l2_len;
	p->end = len > 65535 ? 65535 : len;
}

static __always_inline int tmb_parse4(struct __sk_buff *skb, struct tmb_packet *p)
{
	struct tmb_ip4 h;
	__u32 len, ihl, room = skb->len - tmb_l2_len;

	if (bpf_skb_load_bytes(skb, tmb_l2_len, &h, sizeof(h)))
		return TMB_DROP_MALFORMED;
	ihl = (h.version_ihl & 15) * 4;
	len = bpf_htons(h.len);
	if (!len && room > 65535) /* several segments in one (big TCP) */
		len = room;
	if (h.version_ihl >> 4 != 4 || ihl < 20 || len < ihl || len > room)
		return TMB_DROP_MALFORMED;
	tmb_set4(&p->src, h.src);
	tmb_set4(&p->dst, h.dst);
	p->what = TMB_IS_V4;
	p->proto = h.proto;
	p->l4 = tmb_l2_len + ihl;
	tmb_end(p, len);
	if (h.frag & bpf_htons(0x3fff))
		return tmb_fragment(skb, p, h.id, (bpf_htons(h.frag) & 0x1fff) * 8);
	return tmb_parse_l4(skb, p);
}

static __always_inline bool tmb_is_extension(__u8 next)
{
	return next == 0 || next == 43 || next == 44 || next == 51 || next == 60;
}

static __always_inline int tmb_parse6(struct __sk_buff *skb, struct tmb_packet *p)
{
	__u32 off = tmb_l2_len + sizeof(struct tmb_ip6), room = skb->len - tmb_l2_len, len;
	struct tmb_ip6 h;
	__u8 x[8], next;
	int i;

	if (bpf_skb_load_bytes(skb, tmb_l2_len, &h, sizeof(h)))
		return TMB_DROP_MALFORMED;
	len = bpf_htons(h.len);
	if ((h.version & bpf_htonl(0xf0000000)) != bpf_htonl(0x60000000))
		return TMB_DROP_MALFORMED;
	if (len + sizeof(h) > room)
		return TMB_DROP_MALFORMED;
	tmb_end(p, len + sizeof(h));
	tmb_set6(&p->src, h.src);
	tmb_set6(&p->dst, h.dst);
	if (tmb_is4(&p->src) || tmb_is4(&p->dst))
		return TMB_DROP_MAPPED; /* our maps would take them for IPv4 */
	next = h.next;
	for (i = 0; i < TMB_MAX_EXTENSIONS; i++) {
		if (!tmb_is_extension(next))
			break;
		if (off > TMB_MAX_L4 || bpf_skb_load_bytes(skb, off, x, sizeof(x)))
			return TMB_DROP_MALFORMED;
		/* A list of hops to come: the destination is not the one it shows. */
		if (next == 43 && x[3])
			return TMB_DROP_MALFORMED;
		if (next == 44) {
			__u32 frag = bpf_htons(*(__be16 *)(x + 2));

			off += 8;
			p->proto = x[0];
			p->l4 = off;
			if (!(frag & ~6U)) { /* whole, for all its header */
				next = x[0];
				continue;
			}
			/* Later pieces do not say what stands behind more headers. */
			if (tmb_is_extension(x[0]) || off > TMB_MAX_L4)
				return TMB_DROP_FRAGMENT;
			return tmb_fragment(skb, p, *(__be32 *)(x + 4), frag & ~7U);
		}
		off += next == 51 ? (x[1] + 2) * 4 : (x[1] + 1) * 8;
		next = x[0];
	}
	if (tmb_is_extension(next) || off > TMB_MAX_L4 || off > skb->len)
		return TMB_DROP_MALFORMED;
	p->proto = next;
	p->l4 = off;
	i = tmb_parse_l4(skb, p);
	if (p->proto == IPPROTO_ICMPV6 && h.hops == 255 && p->type >= 133 && p->type <= 136)
		p->what |= TMB_IS_NEIGHBOUR;
	return i;
}

__noinline int tmb_parse_slow(struct __sk_buff *skb, struct tmb_packet *p)
{
	if (!p)
		return TMB_DROP_MALFORMED;
	if (skb->vlan_present)
		return TMB_DROP_VLAN;
	switch (skb->protocol) {
	case bpf_htons(ETH_P_IP):
		return tmb_parse4(skb, p);
	case bpf_htons(ETH_P_IPV6):
		return tmb_parse6(skb, p);
	case bpf_htons(ETH_P_8021Q):
	case bpf_htons(ETH_P_8021AD):
		return TMB_DROP_VLAN;
	}
	return TMB_DROP_NOT_IP;
}

/* What is usual, without a call. False: ask tmb_parse_slow. */
static __always_inline bool tmb_parse_fast(struct __sk_buff *skb, struct tmb_packet *p)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct tmb_tcp *t;
	__u32 off;

	if (skb->vlan_present)
		return false;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct tmb_ip4 *h = data + tmb_l2_len;

		off = tmb_l2_len + sizeof(*h);
		if ((void *)(h + 1) > end || h->version_ihl != 0x45 || h->frag & bpf_htons(0x3fff))
			return false;
		if (bpf_htons(h->len) < 40 || bpf_htons(h->len) > skb->len - tmb_l2_len)
			return false;
		p->proto = h->proto;
		p->what = TMB_IS_V4;
		tmb_set4(&p->src, h->src);
		tmb_set4(&p->dst, h->dst);
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct tmb_ip6 *h = data + tmb_l2_len;

		off = tmb_l2_len + sizeof(*h);
		if ((void *)(h + 1) > end || (h->version & bpf_htonl(0xf0000000)) != bpf_htonl(0x60000000))
			return false;
		if (bpf_htons(h->len) < 20 || bpf_htons(h->len) + sizeof(*h) > skb->len - tmb_l2_len)
			return false;
		p->proto = h->next;
		tmb_set6(&p->src, h->src);
		tmb_set6(&p->dst, h->dst);
		if (tmb_is4(&p->src) || tmb_is4(&p->dst))
			return false;
	} else {
		return false;
	}
	/* A UDP packet with less than 12 bytes in it takes the other way, too. */
	t = data + off;
	if ((void *)(t + 1) > end)
		return false;
	if (p->proto == IPPROTO_TCP) {
		if (t->doff >> 4 < 5)
			return false;
		p->tcp = t->flags;
	} else if (p->proto != IPPROTO_UDP) {
		return false;
	}
	p->l4 = off;
	p->sport = t->sport;
	p->dport = t->dport;
	return true;
}

/* 0, or the reason to drop. */
static __always_inline int tmb_parse(struct __sk_buff *skb, struct tmb_packet *p)
{
	if (tmb_parse_fast(skb, p))
		return 0;
	p->what = 0;
	p->tcp = 0;
	return tmb_parse_slow(skb, p);
}
