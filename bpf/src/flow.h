// SPDX-License-Identifier: Apache-2.0
/* Connection tracking: the rows of tmb_flow_1 (see tmb_flow in maps.h).
 *
 *   hot    tmb_flow_find, tmb_flow_is_plain: most packets, nothing to decide
 *   hit    tmb_flow_hit: there is a row, and something to decide or note
 *   miss   TMB_FRESH: find a backend if need be, then tmb_flow_new
 *
 * `seen` is CLOCK_MONOTONIC (coarse), written about once a second; then, or when
 * the state changes, the other row of a translated flow is told. */
#pragma once

#include "events.h"
#include "judge.h"
#include "lb.h"
#include "nat.h"

#define TMB_SECOND 1000000000ULL
#define TMB_LATE (5 * TMB_SECOND)

/* What these functions return: 0, a reason to drop, or one of: */
#define TMB_FRESH 0x1000  /* no row stands: this packet opens a flow, or does so anew */
#define TMB_REFUSE_IT 0x1001 /* a service without backends */

/* How packets are looked at. */
#define TMB_RAW 1 /* as the sender made them: nobody has translated them yet */

/* The key, from either side. True: src is a. */
static __always_inline bool tmb_flow_key(struct tmb_flow_key *k, const struct tmb_addr *src, const struct tmb_addr *dst,
					 __be16 sport, __be16 dport, __u8 proto)
{
	const __u64 *s = (const __u64 *)src->b, *d = (const __u64 *)dst->b;
	bool a;

	*(__u32 *)&k->proto = proto; /* and the padding */
	if (s[1] != d[1])
		a = __builtin_bswap64(s[1]) < __builtin_bswap64(d[1]);
	else
		a = bpf_htons(sport) <= bpf_htons(dport);
	if (s[0] != d[0])
		a = __builtin_bswap64(s[0]) < __builtin_bswap64(d[0]);
	if (a) {
		tmb_copy(&k->a, src);
		tmb_copy(&k->b, dst);
		k->aport = sport;
		k->bport = dport;
	} else {
		tmb_copy(&k->a, dst);
		tmb_copy(&k->b, src);
		k->aport = dport;
		k->bport = sport;
	}
	return a;
}

static __always_inline bool tmb_closed(__u32 flags)
{
	return flags & (TMB_FLOW_RESET | TMB_FLOW_GONE) || (flags & TMB_FLOW_FIN_A && flags & TMB_FLOW_FIN_B);
}

static __always_inline bool tmb_is_stream(const struct tmb_packet *p)
{
	return p->proto == IPPROTO_TCP || p->proto == IPPROTO_SCTP;
}

/* Does the packet ask for a new connection? */
static __always_inline bool tmb_is_open(const struct tmb_packet *p)
{
	return (p->tcp & (TMB_SYN | TMB_ACK | TMB_RST | TMB_FIN)) == TMB_SYN;
}

/* May it be the first of its flow? Else it belongs to one that is not known. */
static __always_inline bool tmb_may_open(const struct tmb_packet *p)
{
	if (tmb_is_stream(p))
		return tmb_is_open(p);
	return !(p->what & TMB_IS_REPLY);
}

/* Nothing to decide or to note about this packet of a flow: it was allowed, and
 * still is. */
static __always_inline bool tmb_flow_is_plain(const struct tmb_flow *f, const struct tmb_packet *p, bool forward,
					      __u32 epoch, __u64 now)
{
	__u32 flags = f->flags;

	if (f->epoch != epoch || now - f->seen >= TMB_SECOND || p->tcp & (TMB_SYN | TMB_FIN | TMB_RST))
		return false;
	if (!forward)
		return (flags & (TMB_FLOW_ANSWERED | TMB_FLOW_GONE)) == TMB_FLOW_ANSWERED;
	if (flags & (TMB_FLOW_REPLY | TMB_FLOW_GONE))
		return false;
	return !(flags & TMB_FLOW_SERVICE) || p->proto != IPPROTO_UDP;
}

/* Translation of this packet, if its flow has one in this direction, into p->to_*. */
static __always_inline void tmb_flow_take(const struct tmb_flow *f, struct tmb_packet *p, bool forward)
{
	__u32 flags = f->flags;

	if (!(flags & (TMB_FLOW_TO_SRC | TMB_FLOW_TO_DST)) || forward == !!(flags & TMB_FLOW_REPLY))
		return;
	p->what |= TMB_IS_TRANSLATED;
	tmb_to_same(p);
	if (flags & TMB_FLOW_TO_SRC) {
		tmb_copy(&p->to_src, &f->to_src);
		p->to_sport = f->src_port;
	}
	if (flags & TMB_FLOW_TO_DST) {
		tmb_copy(&p->to_dst, &f->to_dst);
		p->to_dport = f->dst_port;
	}
	if (flags & TMB_FLOW_OUTSIDE)
		p->out = f->ifindex;
}

/* Is the backend of a service's flow still one, and nothing known against it? */
static __always_inline bool tmb_backend_stands(const struct tmb_flow *f, bool up)
{
	struct tmb_slot *slot = bpf_map_lookup_elem(&tmb_slots_1, &f->at);

	if (!slot || slot->port != f->dst_port || !tmb_same(&slot->addr, &f->to_dst))
		return false;
	return !up || (!tmb_cluster_down(slot->cluster) && !tmb_node_down(slot->cluster, slot->node));
}

/* A flow whose backend is gone, or another by now. The opener is told, and may open
 * it anew; its reset goes on, so that a backend which lives after all hears of it.
 * What a backend was asked for before datagrams went to another may still come, for
 * a while. */
static __always_inline bool tmb_flow_is_over(const struct tmb_flow *f, const struct tmb_packet *p, bool forward)
{
	if (!(f->flags & TMB_FLOW_GONE))
		return false;
	if (forward)
		return !(p->tcp & TMB_RST);
	return !tmb_is_stream(p) && bpf_ktime_get_coarse_ns() - f->seen >= TMB_LATE;
}

/* What a packet does to the state of its flow. */
static __always_inline __u32 tmb_flow_state(__u32 flags, const struct tmb_packet *p, bool forward)
{
	bool from_a = forward == !!(flags & TMB_FLOW_FROM_A);

	if (!forward)
		flags |= TMB_FLOW_ANSWERED;
	if (p->tcp & TMB_RST)
		flags |= TMB_FLOW_RESET;
	if (p->tcp & TMB_FIN)
		flags |= from_a ? TMB_FLOW_FIN_A : TMB_FLOW_FIN_B;
	return flags;
}

/* The row by the addresses after translation, from the one by those before:
 * f is changed into it. */
static __always_inline void tmb_flow_turn(struct tmb_flow *f, const struct tmb_packet *p, bool opener_is_a)
{
	__u32 flags = f->flags, turned = flags & (TMB_FLOW_ANSWERED | TMB_FLOW_RESET | TMB_FLOW_OUTSIDE | TMB_FLOW_HAIRPIN);

	turned |= TMB_FLOW_REPLY | (opener_is_a ? TMB_FLOW_FROM_A : 0);
	if (flags & TMB_FLOW_TO_DST)
		turned |= TMB_FLOW_TO_SRC;
	if (flags & TMB_FLOW_TO_SRC)
		turned |= TMB_FLOW_TO_DST;
	f->flags = turned;
	tmb_copy(&f->to_src, &p->dst);
	tmb_copy(&f->to_dst, &p->src);
	f->src_port = p->dport;
	f->dst_port = p->sport;
}

/* Writes the row or both, for a packet that goes forward (ANSWERED: the other
 * way); f is used up. p->to_* is what f->to_* are made of. */
__noinline int tmb_flow_write(struct tmb_packet *p, struct tmb_flow *f)
{
	struct tmb_flow_key key TMB_ALIGNED;
	bool opener_is_a;

	if (!p || !f)
		return 0;
	opener_is_a = tmb_flow_key(&key, &p->src, &p->dst, p->sport, p->dport, p->proto) != !!(f->flags & TMB_FLOW_ANSWERED);
	f->seen = bpf_ktime_get_coarse_ns();
	f->flags &= ~TMB_FLOW_FROM_A;
	f->flags |= opener_is_a ? TMB_FLOW_FROM_A : 0;
	if (p->what & TMB_IS_TRANSLATED) {
		tmb_copy(&f->to_src, &p->to_src);
		tmb_copy(&f->to_dst, &p->to_dst);
		f->src_port = p->to_sport;
		f->dst_port = p->to_dport;
	}
	if (bpf_map_update_elem(&tmb_flow_1, &key, f, BPF_ANY))
		tmb_count(TMB_FLOW_NO_ROOM);
	if (!(p->what & TMB_IS_TRANSLATED))
		return 0;
	opener_is_a = tmb_flow_key(&key, &p->to_src, &p->to_dst, p->to_sport, p->to_dport, p->proto);
	tmb_flow_turn(f, p, opener_is_a);
	if (bpf_map_update_elem(&tmb_flow_1, &key, f, BPF_ANY))
		tmb_count(TMB_FLOW_NO_ROOM);
	return 0;
}

/* The other row of a translated flow learns of the state of this one; where it
 * was pushed out, it is written again if this one says enough. */
__noinline int tmb_flow_sync(struct tmb_packet *p)
{
	struct tmb_flow_key key TMB_ALIGNED;
	struct tmb_flow *one, *two, f;
	__u32 state;
	bool a;

	if (!p || !(p->what & TMB_IS_TRANSLATED))
		return 0;
	tmb_flow_key(&key, &p->src, &p->dst, p->sport, p->dport, p->proto);
	one = bpf_map_lookup_elem(&tmb_flow_1, &key);
	if (!one)
		return 0;
	a = tmb_flow_key(&key, &p->to_src, &p->to_dst, p->to_sport, p->to_dport, p->proto);
	two = bpf_map_lookup_elem(&tmb_flow_1, &key);
	if (!two) {
		if (one->flags & TMB_FLOW_REPLY)
			return 0;
		f = *one;
		tmb_flow_turn(&f, p, a);
		bpf_map_update_elem(&tmb_flow_1, &key, &f, BPF_ANY);
		return 0;
	}
	state = one->flags & (TMB_FLOW_ANSWERED | TMB_FLOW_RESET);
	if (one->flags & (one->flags & TMB_FLOW_FROM_A ? TMB_FLOW_FIN_A : TMB_FLOW_FIN_B)) /* of the opener */
		state |= two->flags & TMB_FLOW_FROM_A ? TMB_FLOW_FIN_A : TMB_FLOW_FIN_B;
	if (one->flags & (one->flags & TMB_FLOW_FROM_A ? TMB_FLOW_FIN_B : TMB_FLOW_FIN_A))
		state |= two->flags & TMB_FLOW_FROM_A ? TMB_FLOW_FIN_B : TMB_FLOW_FIN_A;
	two->flags |= state;
	two->seen = one->seen;
	return 0;
}

/* Policy forbids it now. A stream's row stays and says so: without it, its next
 * packet would be taken for one of a connection that was pushed out. */
static __always_inline void tmb_flow_forbid(struct tmb_flow_key *key, bool stream)
{
	struct tmb_flow *f;

	if (!stream) {
		bpf_map_delete_elem(&tmb_flow_1, key);
		return;
	}
	f = bpf_map_lookup_elem(&tmb_flow_1, key);
	if (f)
		f->flags |= TMB_FLOW_FORBIDDEN;
}

__noinline int tmb_flow_cut(struct __sk_buff *skb, struct tmb_packet *p, __u32 reason)
{
	struct tmb_flow_key key TMB_ALIGNED;

	if (!p)
		return 0;
	tmb_count(TMB_FLOW_CUT);
	tmb_tell(skb, p, TMB_EVENT_CUT, reason);
	tmb_flow_key(&key, &p->src, &p->dst, p->sport, p->dport, p->proto);
	tmb_flow_forbid(&key, tmb_is_stream(p));
	if (p->what & TMB_IS_TRANSLATED) {
		tmb_flow_key(&key, &p->to_src, &p->to_dst, p->to_sport, p->to_dport, p->proto);
		tmb_flow_forbid(&key, tmb_is_stream(p));
	}
	return 0;
}

/* A packet that has a row, or not (TMB_FRESH). 0: it may go on, translated into
 * p->to_* where its flow is. */
__noinline int tmb_flow_hit(struct __sk_buff *skb, struct tmb_packet *p, __u32 how)
{
	struct tmb_flow_key key TMB_ALIGNED;
	__u32 flags, next, epoch;
	struct tmb_flow *f;
	bool forward;
	__u64 now;
	int reason;

	if (!p)
		return TMB_DROP_MALFORMED;
	forward = tmb_flow_key(&key, &p->src, &p->dst, p->sport, p->dport, p->proto);
	f = bpf_map_lookup_elem(&tmb_flow_1, &key);
	if (!f)
		return TMB_FRESH;
	flags = f->flags;
	if (!(flags & TMB_FLOW_FROM_A))
		forward = !forward;
	if (tmb_is_open(p)) {
		if (tmb_closed(flags))
			return TMB_FRESH;
		if (!forward) { /* both at once, or another connection: by its own right */
			if (flags & TMB_FLOW_REPLY)
				return TMB_DROP_NAT_CONFLICT;
			reason = tmb_judge(p, true);
			if (reason)
				return reason;
			if (flags & TMB_FLOW_FORBIDDEN)
				return TMB_FRESH;
		} else if (flags & TMB_FLOW_SERVICE && !tmb_backend_stands(f, true)) {
			return TMB_FRESH;
		}
	}
	if (forward && flags & TMB_FLOW_SERVICE && p->proto == IPPROTO_UDP && !tmb_backend_stands(f, true))
		return TMB_FRESH;
	if (forward && flags & TMB_FLOW_REPLY && how & TMB_RAW)
		return TMB_DROP_NAT_CONFLICT; /* answers to it would be taken for the service's */
	if (tmb_flow_is_over(f, p, forward)) {
		if (forward && !tmb_is_stream(p)) /* once */
			bpf_map_delete_elem(&tmb_flow_1, &key);
		return TMB_DROP_BACKEND_GONE;
	}
	tmb_flow_take(f, p, forward);
	epoch = tmb_epoch();
	if (f->epoch != epoch) {
		reason = tmb_judge(p, forward);
		if (reason) { /* and the row's epoch stays that of before */
			f->seen = bpf_ktime_get_coarse_ns();
			if (!(flags & TMB_FLOW_FORBIDDEN))
				tmb_flow_cut(skb, p, reason);
			return reason;
		}
		f->rule = p->rule;
		f->epoch = epoch;
		flags &= ~TMB_FLOW_FORBIDDEN;
	}
	p->rule = f->rule;
	if (flags & TMB_FLOW_GONE && !tmb_is_stream(p))
		return 0; /* late: it keeps nothing alive */
	next = tmb_flow_state(flags, p, forward);
	now = bpf_ktime_get_coarse_ns();
	if (next != f->flags || now - f->seen >= TMB_SECOND) {
		f->flags = next;
		f->seen = now;
		tmb_flow_sync(p);
	}
	return 0;
}

/* A source port with which nobody else has these addresses; the wanted one stands
 * in p->to_sport. 0, or the reason to drop. */
__noinline int tmb_free_port(struct tmb_packet *p)
{
	struct tmb_flow_key key TMB_ALIGNED;
	__u32 i, zero = 0, min = 32768, max = 60999;
	struct tmb_config *config;
	struct tmb_flow *f;
	bool echo;

	if (!p)
		return TMB_DROP_NAT_EXHAUSTED;
	echo = p->proto == IPPROTO_ICMP || p->proto == IPPROTO_ICMPV6;
	config = bpf_map_lookup_elem(&tmb_config_1, &zero);
	if (config && config->port_min && config->port_max >= config->port_min) {
		min = config->port_min;
		max = config->port_max;
	}
	for (i = 0; i < 32; i++) {
		tmb_flow_key(&key, &p->to_src, &p->to_dst, p->to_sport, p->to_dport, p->proto);
		f = bpf_map_lookup_elem(&tmb_flow_1, &key);
		if (!f || tmb_closed(f->flags))
			return 0;
		/* The flow's own, of before it was opened anew. */
		if (f->flags & TMB_FLOW_REPLY && f->dst_port == p->sport && f->src_port == p->dport &&
		    tmb_same(&f->to_dst, &p->src) && tmb_same(&f->to_src, &p->dst))
			return 0;
		if (p->proto == IPPROTO_SCTP)
			return TMB_DROP_NAT_CONFLICT;
		p->to_sport = bpf_htons((__u16)(min + (((__u64)bpf_get_prandom_u32() * (max - min + 1)) >> 32)));
		if (echo)
			p->to_dport = p->to_sport;
	}
	return TMB_DROP_NAT_EXHAUSTED;
}

/* Datagrams that had a backend are about to get another: what the old one was asked
 * for is still the frontend's answer, but not what it sends for long. */
__noinline int tmb_flow_move(struct tmb_packet *p)
{
	struct tmb_flow_key key TMB_ALIGNED;
	const struct tmb_addr *src, *dst;
	__be16 sport, dport;
	struct tmb_flow *f;

	if (!p || tmb_is_stream(p))
		return 0;
	tmb_flow_key(&key, &p->src, &p->dst, p->sport, p->dport, p->proto);
	f = bpf_map_lookup_elem(&tmb_flow_1, &key);
	if (!f || f->flags & TMB_FLOW_REPLY || !(f->flags & TMB_FLOW_TO_DST))
		return 0;
	src = f->flags & TMB_FLOW_TO_SRC ? &f->to_src : &p->src;
	sport = f->flags & TMB_FLOW_TO_SRC ? f->src_port : p->sport;
	dst = &f->to_dst;
	dport = f->dst_port;
	if (dport == p->to_dport && sport == p->to_sport && tmb_same(dst, &p->to_dst) && tmb_same(src, &p->to_src))
		return 0;
	tmb_flow_key(&key, src, dst, sport, dport, p->proto);
	f = bpf_map_lookup_elem(&tmb_flow_1, &key);
	if (!f || !(f->flags & TMB_FLOW_REPLY) || f->src_port != p->dport || !tmb_same(&f->to_src, &p->dst))
		return 0; /* another's by now */
	f->seen = bpf_ktime_get_coarse_ns();
	f->flags |= TMB_FLOW_GONE;
	return 1;
}

/* A packet without a row: may its flow be? Then it has one, or two. f says what
 * the caller found out (flags, at, ifindex); the rest of it is zero. 0, or the
 * reason to drop. */
__noinline int tmb_flow_new(struct __sk_buff *skb, struct tmb_packet *p, struct tmb_flow *f)
{
	int reason, other;

	if (!p || !f)
		return TMB_DROP_MALFORMED;
	f->epoch = tmb_epoch(); /* before it is asked for */
	reason = tmb_judge(p, true);
	if (!tmb_may_open(p)) {
		/* Its flow may have been pushed out, and this be an answer. */
		if (reason && !(p->what & TMB_IS_TRANSLATED)) {
			other = tmb_judge(p, false);
			if (!other) {
				reason = 0;
				f->flags |= TMB_FLOW_ANSWERED;
			}
		}
		if (!reason)
			tmb_count(TMB_FLOW_EVICTED);
	}
	if (reason)
		return reason;
	if (p->what & TMB_IS_TRANSLATED) {
		reason = tmb_can_rewrite(p);
		if (!reason)
			reason = tmb_free_port(p);
		if (reason)
			return reason;
		if (!tmb_same(&p->src, &p->to_src) || p->sport != p->to_sport)
			f->flags |= TMB_FLOW_TO_SRC;
		if (!tmb_same(&p->dst, &p->to_dst) || p->dport != p->to_dport)
			f->flags |= TMB_FLOW_TO_DST;
		tmb_flow_move(p);
	}
	if (p->tcp & TMB_RST)
		f->flags |= TMB_FLOW_RESET;
	f->rule = p->rule;
	tmb_flow_write(p, f);
	tmb_count(TMB_FLOW_NEW);
	tmb_tell(skb, p, TMB_EVENT_NEW, 0);
	return 0;
}
