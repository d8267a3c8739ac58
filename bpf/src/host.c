// SPDX-License-Identifier: Apache-2.0
/* Between this node and everything outside: clients of node ports and external
 * addresses in, pods out into the world by the node's address, and the guard that
 * nothing which belongs in the tunnel passes beside it.
 *
 * Attaches: tcx (or clsact) on each uplink: tmb_from_world at ingress,
 *           tmb_to_world at egress.
 * Sees:     all that comes from or goes out to the network, the tunnel's own
 *           packets and other programs' redirections too.
 * Reads:    services, slots, Maglev tables, source ranges, health, endpoints,
 *           ipcache, policy, epoch, config, devices; sockets of the host.
 * Writes:   flows, fragments, affinity, counters, events.
 * Returns:  from_world: redirect into a pod of this node, or out to a backend on
 *           another node or to the client that asked; NEXT for all that is not
 *           ours. to_world: NEXT. SHOT, counted by reason, for what may not pass.
 *
 * A packet whose source becomes an address of this node never goes by the stack,
 * which would take it for forged: it leaves by redirect_neigh. */
#include "kernel.h"
#include "answer.h"
#include "deliver.h"
#include "icmp.h"
#include "outside.h"

static __always_inline struct tmb_config *config(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&tmb_config_1, &zero);
}

/* Does what belongs to this address travel through the tunnel, and only there? */
static __always_inline bool tunnelled(const struct tmb_ipcache *row)
{
	struct tmb_config *c;

	if (row->flags & TMB_IP_ENCRYPTED)
		return true;
	if (!(row->identity >> IDENTITY_BITS))
		return false;
	c = config();
	return c && c->flags & TMB_ENCRYPT_ALL && row->identity >> IDENTITY_BITS == c->cluster;
}

/* Another CNI is in charge of the stack, and kube-proxy of node ports: both go by
 * conntrack, which has to see both ways of a connection. The guard alone is ours. */
static __always_inline bool chained(void)
{
	struct tmb_config *c = config();

	return c && c->flags & TMB_CHAINED;
}

/* A tagged packet is of another network, and has a device of its own. */
static __always_inline bool other_network(struct __sk_buff *skb)
{
	return skb->vlan_present && skb->vlan_tci & 0xfff;
}

/* Nobody outside has an address of this node or its pods, or one that belongs in
 * the tunnel. 0, or the reason to drop. */
__noinline int tmb_guard_source(const struct tmb_packet *p)
{
	struct tmb_ipcache *row;

	if (!p)
		return TMB_DROP_MALFORMED;
	row = tmb_owner(&p->src);
	if (!row)
		return 0;
	if (row->identity == IDENTITY_HOST || row->flags & (TMB_IP_HERE | TMB_IP_TUNNEL_ADDRESS))
		return TMB_DROP_HOST_SOURCE;
	if (row->identity >> IDENTITY_BITS && bpf_map_lookup_elem(&tmb_endpoint_2, &p->src))
		return TMB_DROP_HOST_SOURCE;
	return tunnelled(row) ? TMB_DROP_CLEARTEXT : 0;
}

__noinline int tmb_flow_known(const struct tmb_packet *p)
{
	struct tmb_flow_key key TMB_ALIGNED;

	if (!p)
		return 0;
	tmb_flow_key(&key, &p->src, &p->dst, p->sport, p->dport, p->proto);
	return bpf_map_lookup_elem(&tmb_flow_1, &key) != NULL;
}

/* An ICMP error. TMB_NOT_OURS if it is about no flow that we know: the host's. */
static __always_inline int track_error(struct __sk_buff *skb, struct tmb_packet *p, union tmb_work *w)
{
	int reason;

	__builtin_memset(w, 0, sizeof(*w));
	if (tmb_parse_inner(skb, p, &w->inner) || !tmb_flow_known(&w->inner))
		return TMB_NOT_OURS;
	reason = tmb_judge_error(p, &w->inner, 0);
	if (!reason && w->inner.what & TMB_IS_TRANSLATED)
		reason = tmb_rewrite_error(skb, p, &w->inner);
	return reason;
}

/* A packet without a row: a service's, or for a pod of this node. */
static __always_inline int from_world_new(struct __sk_buff *skb, struct tmb_packet *p, union tmb_work *w)
{
	bool held = false;
	int reason;

	__builtin_memset(w, 0, sizeof(*w));
	reason = tmb_service_outside(p, w);
	if (reason == TMB_NOT_OURS) {
		if (!bpf_map_lookup_elem(&tmb_endpoint_2, &p->dst))
			return TMB_NOT_OURS;
		return tmb_flow_new(skb, p, &w->flow);
	}
	if (reason)
		return reason;
	tmb_count(TMB_NODEPORT);
	w->flow.ifindex = skb->ifindex;
	if (!tmb_same(&p->to_src, &p->src)) {
		reason = tmb_snat_hold(skb, p, &w->flow);
		if (reason)
			return reason;
		held = true;
	}
	w->flow.flags = TMB_FLOW_SERVICE | TMB_FLOW_OUTSIDE;
	reason = tmb_flow_new(skb, p, &w->flow);
	if (reason && held)
		tmb_snat_let_go(p);
	return reason;
}

/* 0: may go on, as p says, and has been rewritten. TMB_NOT_OURS, TMB_REFUSE_IT, or
 * the reason to drop. answer: it goes against the direction in which its flow was
 * opened, or is an error. */
static __always_inline int track_from_world(struct __sk_buff *skb, struct tmb_packet *p, union tmb_work *w, bool *answer)
{
	int reason = TMB_FRESH;
	struct tmb_flow *f;
	bool forward;

	if (p->what & TMB_IS_ERROR) {
		*answer = true;
		return track_error(skb, p, w);
	}
	forward = tmb_flow_key(&w->key, &p->src, &p->dst, p->sport, p->dport, p->proto);
	f = bpf_map_lookup_elem(&tmb_flow_1, &w->key);
	if (f && !(f->flags & TMB_FLOW_FROM_A))
		forward = !forward;
	*answer = f && !forward;
	if (f && tmb_flow_is_plain(f, p, forward, tmb_epoch(), bpf_ktime_get_coarse_ns())) {
		tmb_flow_take(f, p, forward);
		reason = 0;
	} else if (f) {
		reason = tmb_flow_hit(skb, p, TMB_RAW);
	}
	if (reason == TMB_FRESH) {
		p->what &= ~TMB_IS_TRANSLATED;
		p->out = 0;
		*answer = false;
		reason = from_world_new(skb, p, w);
	}
	if (!reason && p->what & TMB_IS_TRANSLATED)
		reason = tmb_rewrite(skb, p);
	return reason;
}

static __always_inline int leave(struct __sk_buff *skb, struct tmb_packet *p, __u32 ifindex)
{
	int verdict = tmb_leave(skb, ifindex);

	return verdict ? verdict : tmb_drop(skb, p, TMB_DROP_NO_ROOM);
}

/* The device that leads to a backend on another node. Not asked of the routes:
 * the kernel lets only programs under the GPL do that. */
__noinline int tmb_device_to(const struct tmb_packet *p, __u32 came_by)
{
	struct tmb_ipcache *at;
	__u32 which, *ifindex;

	if (!p)
		return 0;
	at = tmb_owner(&p->to_dst);
	which = at && at->flags & TMB_IP_ENCRYPTED ? TMB_DEVICE_TUNNEL : TMB_DEVICE_UNDERLAY;
	ifindex = bpf_map_lookup_elem(&tmb_devices_1, &which);
	if (ifindex && *ifindex)
		return *ifindex;
	return which == TMB_DEVICE_UNDERLAY ? came_by : 0;
}

/* A packet that may go on, and has been rewritten. */
static __always_inline int forward_from_world(struct __sk_buff *skb, struct tmb_packet *p, bool answer)
{
	bool translated = p->what & TMB_IS_TRANSLATED;
	struct tmb_endpoint *to = bpf_map_lookup_elem(&tmb_endpoint_2, translated ? &p->to_dst : &p->dst);
	struct tmb_ipcache *at;
	int verdict;

	if (to && to->ifindex) {
		/* Or clang keeps a pointer into the context, which the verifier refuses. */
		asm volatile("" : "+r"(skb));
		verdict = tmb_deliver(skb, to);
		if (!verdict)
			return tmb_drop(skb, p, TMB_DROP_NO_ROOM);
		return verdict;
	}
	if (!translated || to)
		return TC_ACT_UNSPEC;
	if (answer) {
		at = tmb_owner(&p->to_dst);
		if (at && at->flags & TMB_IP_HERE)
			return tmb_drop(skb, p, TMB_DROP_NO_ENDPOINT); /* the pod that asked is gone */
		return p->out ? leave(skb, p, p->out) : TC_ACT_UNSPEC;
	}
	if (tmb_same(&p->src, &p->to_src))
		return TC_ACT_UNSPEC; /* a backend on the host itself */
	verdict = tmb_device_to(p, skb->ifindex);
	return verdict ? leave(skb, p, verdict) : tmb_drop(skb, p, TMB_DROP_NO_TUNNEL);
}

SEC("tc") int tmb_from_world(struct __sk_buff *skb)
{
	struct tmb_packet p TMB_ALIGNED = {};
	union tmb_work w TMB_ALIGNED;
	bool answer = false;
	int reason, bad;

	if (skb->pkt_type == PACKET_OTHERHOST || other_network(skb))
		return TC_ACT_UNSPEC;
	bad = tmb_parse(skb, &p);
	if (bad == TMB_DROP_NOT_IP || bad == TMB_DROP_VLAN)
		return TC_ACT_UNSPEC;
	if (bad == TMB_DROP_MAPPED || (bad && !p.what && !p.proto))
		return tmb_drop(skb, &p, bad); /* not even its addresses can be told */
	reason = tmb_guard_source(&p);
	if (reason)
		return tmb_drop(skb, &p, reason);
	/* What goes to a pod there its own program judges on its way out of the stack. */
	if (chained())
		return TC_ACT_UNSPEC;
	/* Of the rest the host's own stack makes what it will. */
	if (bad || p.what & TMB_IS_NEIGHBOUR || tmb_is_multicast(&p.dst))
		return TC_ACT_UNSPEC;
	reason = track_from_world(skb, &p, &w, &answer);
	if (reason == TMB_NOT_OURS)
		return TC_ACT_UNSPEC;
	if (reason == TMB_REFUSE_IT || reason == TMB_DROP_BACKEND_GONE) {
		tmb_drop(skb, &p, reason == TMB_REFUSE_IT ? TMB_DROP_NO_BACKEND : TMB_DROP_BACKEND_GONE);
		return tmb_refuse(skb, &p) ? TC_ACT_SHOT : bpf_redirect(skb->ifindex, 0);
	}
	if (reason)
		return tmb_drop(skb, &p, reason);
	return forward_from_world(skb, &p, answer);
}

/* Do a pod's packets to this destination leave by the node's address? Those to
 * the world do, and to other nodes by the underlay, which know no pods. */
static __always_inline bool masqueraded(const struct tmb_addr *dst)
{
	struct tmb_config *c = config();
	struct tmb_ipcache *row;

	if (!c || !(c->flags & TMB_MASQUERADE))
		return false;
	row = tmb_owner(dst);
	return !row || (!(row->identity >> IDENTITY_BITS) && row->identity != IDENTITY_HOST && !(row->flags & TMB_IP_ENCRYPTED));
}

/* A flow to a service whose backend is out in the world goes by the frontend: its
 * row there gets both translations, the one by the backend goes. p->dst becomes
 * what the pod asked for. */
__noinline int tmb_masquerade_original(struct tmb_packet *p)
{
	struct tmb_flow_key key TMB_ALIGNED;
	struct tmb_flow *row;

	if (!p)
		return 0;
	tmb_flow_key(&key, &p->src, &p->dst, p->sport, p->dport, p->proto);
	row = bpf_map_lookup_elem(&tmb_flow_1, &key);
	if (!row || !(row->flags & TMB_FLOW_REPLY))
		return 0;
	tmb_copy(&p->dst, &row->to_src);
	p->dport = row->src_port;
	bpf_map_delete_elem(&tmb_flow_1, &key);
	return 1;
}

/* The rows of a pod's flow once it has the node's address. */
__noinline int tmb_masquerade_rows(struct tmb_packet *p, struct tmb_flow *f, __u32 ifindex)
{
	struct tmb_flow_key key TMB_ALIGNED;
	struct tmb_flow *row;

	if (!p || !f)
		return 0;
	tmb_flow_key(&key, &p->src, &p->dst, p->sport, p->dport, p->proto);
	row = bpf_map_lookup_elem(&tmb_flow_1, &key);
	if (row) {
		*f = *row;
	} else { /* pushed out since the pod's own program allowed it */
		__builtin_memset(f, 0, sizeof(*f));
		f->epoch = tmb_epoch();
	}
	f->flags |= TMB_FLOW_TO_SRC | TMB_FLOW_OUTSIDE;
	if (!tmb_same(&p->dst, &p->to_dst) || p->dport != p->to_dport)
		f->flags |= TMB_FLOW_TO_DST;
	f->ifindex = ifindex;
	return tmb_flow_write(p, f);
}

/* A pod's flow gets the node's address. The pod's own program has allowed it and
 * written its row; from now on that translates, too, and sends it out by this
 * device. */
static __always_inline int masquerade(struct __sk_buff *skb, struct tmb_packet *p, union tmb_work *w)
{
	struct tmb_addr dst TMB_ALIGNED;
	__be16 dport = p->dport;
	int reason;

	tmb_to_same(p);
	p->what |= TMB_IS_TRANSLATED;
	if (!tmb_node_address(&p->to_src, p->what & TMB_IS_V4, false))
		return TMB_DROP_PROTOCOL; /* this node has no address of the family */
	reason = tmb_can_rewrite(p);
	if (reason)
		return reason;
	tmb_copy(&dst, &p->dst);
	tmb_masquerade_original(p);
	__builtin_memset(w, 0, sizeof(*w));
	reason = tmb_snat_hold(skb, p, &w->flow);
	if (!reason) {
		tmb_count(TMB_MASQUERADED);
		tmb_masquerade_rows(p, &w->flow, skb->ifindex);
	}
	tmb_copy(&p->dst, &dst); /* as it is in the packet */
	p->dport = dport;
	return reason;
}

/* 0, or the reason to drop. */
static __always_inline int track_to_world(struct __sk_buff *skb, struct tmb_packet *p, union tmb_work *w)
{
	__u32 flags = 0, own = !skb->ingress_ifindex;
	struct tmb_flow *f;
	bool forward;
	int reason;

	if (p->what & TMB_IS_ERROR) {
		if (!own) /* a pod's, and done with */
			return 0;
		reason = track_error(skb, p, w);
		return reason == TMB_NOT_OURS ? 0 : reason;
	}
	forward = tmb_flow_key(&w->key, &p->src, &p->dst, p->sport, p->dport, p->proto);
	f = bpf_map_lookup_elem(&tmb_flow_1, &w->key);
	if (f) {
		flags = f->flags;
		if (!(flags & TMB_FLOW_FROM_A))
			forward = !forward;
		/* Translated already, on its way here. */
		if (forward && flags & TMB_FLOW_REPLY && flags & TMB_FLOW_TO_DST && !own)
			return 0;
		if (tmb_flow_is_plain(f, p, forward, tmb_epoch(), bpf_ktime_get_coarse_ns())) {
			tmb_flow_take(f, p, forward);
		} else {
			reason = tmb_flow_hit(skb, p, own ? TMB_RAW : 0);
			if (reason && reason != TMB_FRESH)
				return reason;
		}
		if (!forward || flags & (TMB_FLOW_ANSWERED | TMB_FLOW_TO_SRC))
			return 0; /* goes on as it began */
	}
	if (own || !bpf_map_lookup_elem(&tmb_endpoint_2, &p->src) || !masqueraded(&p->dst))
		return 0;
	return masquerade(skb, p, w);
}

SEC("tc") int tmb_to_world(struct __sk_buff *skb)
{
	struct tmb_packet p TMB_ALIGNED = {};
	union tmb_work w TMB_ALIGNED;
	struct tmb_ipcache *to;
	int reason, bad;

	if (other_network(skb))
		return TC_ACT_UNSPEC;
	bad = tmb_parse(skb, &p);
	if (bad == TMB_DROP_NOT_IP || bad == TMB_DROP_VLAN)
		return TC_ACT_UNSPEC;
	if (bad == TMB_DROP_MAPPED || (bad && !p.what && !p.proto))
		return tmb_drop(skb, &p, bad);
	to = tmb_owner(&p.dst);
	if (to && tunnelled(to))
		return tmb_drop(skb, &p, TMB_DROP_CLEARTEXT);
	if (chained())
		return TC_ACT_UNSPEC;
	if (bad || p.what & TMB_IS_NEIGHBOUR || tmb_is_multicast(&p.dst))
		return TC_ACT_UNSPEC;
	reason = track_to_world(skb, &p, &w);
	if (!reason && p.what & TMB_IS_TRANSLATED && !(p.what & TMB_IS_ERROR))
		reason = tmb_rewrite(skb, &p);
	if (reason)
		return tmb_drop(skb, &p, reason);
	return TC_ACT_UNSPEC;
}

/* None of the helpers above asks for a GPL-compatible licence. */
char tmb_license[] SEC("license") = "Apache-2.0";
