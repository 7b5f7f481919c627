/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether NetworkPolicy lets a packet pass, and the maps that say so. The same text for every hook, both families and
 * both directions; who is the client of a flow is for the hook to know.
 *
 * Contract: `judge` takes a packet as its flow's client would have sent it (of a reply: see `turn`) and what the
 * parser said of it. It knows the rules of this moment, and nothing of packets before (see memo.h). It passes if the
 * client's egress set and the server's ingress set, as far as there are any, both allow it. What cannot be judged
 * although an end is isolated does not pass. Every verdict is counted; what a set denies is told, so often as the
 * rate of the pod allows.
 */
#ifndef BGPD_VERDICT_H
#define BGPD_VERDICT_H

#include "bgpd/layout.h"
#include "bgpd/parse.h"

#define POLICY_HASH(name, key_type, value_type, entries)                                                             \
	struct {                                                                                                     \
		__uint(type, BPF_MAP_TYPE_HASH);                                                                     \
		__type(key, key_type);                                                                               \
		__type(value, value_type);                                                                           \
		__uint(max_entries, entries);                                                                        \
		__uint(map_flags, BPF_F_NO_PREALLOC);                                                                \
	} name SEC(".maps")

#define POLICY_TRIE(name, key_type, value_type, entries)                                                             \
	struct {                                                                                                     \
		__uint(type, BPF_MAP_TYPE_LPM_TRIE);                                                                 \
		__type(key, key_type);                                                                               \
		__type(value, value_type);                                                                           \
		__uint(max_entries, entries);                                                                        \
		__uint(map_flags, BPF_F_NO_PREALLOC);                                                                \
	} name SEC(".maps")

POLICY_HASH(policy_peers, struct policy_address, struct policy_peer, POLICY_PEERS);
POLICY_TRIE(policy_cidrs_v4, struct lpm_key_v4, __u32, POLICY_CIDRS); /* a class */
POLICY_TRIE(policy_cidrs_v6, struct lpm_key_v6, __u32, POLICY_CIDRS);
POLICY_HASH(policy_rules, struct policy_rule_key, struct policy_rule, POLICY_RULES);
POLICY_HASH(policy_ports, struct policy_port_key, struct policy_port, POLICY_PORTS);
POLICY_TRIE(policy_ranges, struct policy_range_key, struct policy_port, POLICY_RANGES);

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32); /* enum policy_verdict */
	__type(value, __u64);
	__uint(max_entries, POLICY_VERDICTS);
} policy_verdicts SEC(".maps");

/* Of a pod that has been heard of: the theoretical arrival time of the generic cell rate algorithm, ITU-T I.371. */
struct pace {
	__u64 due_ns;
	__u32 lost;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct policy_address);
	__type(value, struct pace);
	__uint(max_entries, POLICY_PACES);
} policy_paces SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, POLICY_EVENT_BYTES);
} policy_events SEC(".maps");

/* Never called. BTF tells of what functions take, and of this type there are only pointers: it is compared. */
static __attribute__((used)) const struct policy_event *policy_event_type(const struct policy_event *event)
{
	return event;
}

/* What one set says of a packet. */
struct decision {
	enum policy_verdict verdict;
	__u32 cookie;
};

/* One side of a flow: whose rules are asked, of whom. */
struct side {
	const struct policy_address *pod;
	__u32 set;
	__u32 class; /* of the other end */
	int ingress;
};

static __always_inline int passes(enum policy_verdict verdict)
{
	return verdict < POLICY_DENIED_EGRESS;
}

static __always_inline enum policy_verdict counted(enum policy_verdict verdict)
{
	__u32 index = verdict;
	__u64 *counter = bpf_map_lookup_elem(&policy_verdicts, &index);

	if (counter)
		++*counter;
	return verdict;
}

/* Whether this pod may be heard of now, and how much of it was not since it last could. */
static __always_inline int in_pace(const struct policy_address *pod, __u64 now_ns, __u32 *lost)
{
	const __u64 burst_ns = POLICY_EVENT_BURST * POLICY_EVENT_INTERVAL_NS;
	struct pace *pace = bpf_map_lookup_elem(&policy_paces, pod), fresh = {};

	*lost = 0;
	if (!pace) {
		fresh.due_ns = now_ns + POLICY_EVENT_INTERVAL_NS;
		bpf_map_update_elem(&policy_paces, pod, &fresh, BPF_ANY);
		return 1;
	}
	if (pace->due_ns < now_ns)
		pace->due_ns = now_ns;
	if (pace->due_ns - now_ns > burst_ns) {
		__sync_fetch_and_add(&pace->lost, 1);
		return 0;
	}
	pace->due_ns += POLICY_EVENT_INTERVAL_NS;
	*lost = pace->lost;
	pace->lost = 0;
	return 1;
}

/*
 * To the ring buffer, or to what was lost. Off the way of packets that pass. The end whose rules were asked is the
 * side's: of a packet astray it is not the one that the packet names.
 */
static __noinline int tell(const struct packet *packet, const struct side *side, const struct decision *decision,
			   int flags)
{
	const __u64 now_ns = bpf_ktime_get_ns();
	struct policy_event *event;
	struct pace *pace;
	__u32 lost;

	if (!in_pace(side->pod, now_ns, &lost))
		return 0;
	event = bpf_ringbuf_reserve(&policy_events, sizeof(*event), 0);
	if (!event) {
		pace = bpf_map_lookup_elem(&policy_paces, side->pod);
		if (pace)
			__sync_fetch_and_add(&pace->lost, lost + 1);
		return 0;
	}
	event->at_ns = now_ns;
	event->client = *(side->ingress ? &packet->source : side->pod);
	event->server = *(side->ingress ? side->pod : &packet->destination);
	event->class = side->class;
	event->cookie = decision->cookie;
	event->lost = lost;
	event->client_port = packet->source_port;
	event->server_port = packet->destination_port;
	event->protocol = packet->protocol;
	event->verdict = decision->verdict;
	event->ingress = side->ingress;
	event->flags = flags;
	event->pad = 0;
	bpf_ringbuf_submit(event, 0);
	return 1;
}

/* Tries are the dearest to ask, so they are only where a rule of the pod has an ipBlock. */
static __always_inline __u32 class_of(const struct policy_address *address, const struct policy_peer *peer, int cidrs)
{
	struct lpm_key_v6 key;
	__u32 *class;

	if (peer)
		return peer->class;
	if (!cidrs)
		return 0;
	if (is_v4(address)) {
		key.prefixlen = 32;
		__builtin_memcpy(key.addr, address->bytes + 12, 4);
		class = bpf_map_lookup_elem(&policy_cidrs_v4, &key);
	} else {
		key.prefixlen = 128;
		__builtin_memcpy(key.addr, address->bytes, 16);
		class = bpf_map_lookup_elem(&policy_cidrs_v6, &key);
	}
	return class ? *class : 0;
}

static __always_inline const struct policy_port *port_of(const struct policy_rule *rule, const struct packet *packet)
{
	struct policy_range_key key = {
		.prefixlen = 8 * (sizeof(key) - sizeof(key.prefixlen)),
		.portset = rule->portset,
		.protocol = packet->protocol,
		.port = packet->destination_port,
	};
	const struct policy_port *port = NULL;

	if (rule->flags & POLICY_HAS_PORTS)
		port = bpf_map_lookup_elem(&policy_ports, &key.portset);
	if (!port && rule->flags & POLICY_HAS_RANGES)
		port = bpf_map_lookup_elem(&policy_ranges, &key);
	return port;
}

static __always_inline struct decision ask(const struct side *side, const struct packet *packet,
					   enum packet_state state)
{
	const enum policy_verdict denied = side->ingress ? POLICY_DENIED_INGRESS : POLICY_DENIED_EGRESS;
	struct policy_rule_key key = {.set = side->set, .class = side->class};
	const struct policy_rule *rule;
	const struct policy_port *port;

	if (state == PACKET_NO_TRANSPORT)
		return (struct decision){POLICY_NO_TRANSPORT, 0};
	rule = bpf_map_lookup_elem(&policy_rules, &key);
	if (!rule)
		return (struct decision){denied, 0};
	if (rule->flags) {
		if (state == PACKET_LATE_FRAGMENT)
			return (struct decision){POLICY_LATE_FRAGMENT, rule->cookie};
		port = port_of(rule, packet);
		if (port)
			return (struct decision){port->verdict == POLICY_ALLOW ? POLICY_ALLOWED : denied,
						 port->cookie};
	}
	return (struct decision){rule->verdict == POLICY_ALLOW ? POLICY_ALLOWED : denied, rule->cookie};
}

static __always_inline enum policy_verdict judge_side(const struct side *side, const struct packet *packet,
						      enum packet_state state, int reply, int audited)
{
	struct decision decision = ask(side, packet, state);

	if (passes(decision.verdict))
		return decision.verdict;
	if (audited)
		counted(decision.verdict);
	tell(packet, side, &decision, (reply ? POLICY_EVENT_REPLY : 0) | (audited ? POLICY_EVENT_AUDITED : 0));
	return audited ? POLICY_AUDITED : decision.verdict;
}

/* Neighbor discovery that cannot have been routed here. Without it no address on a link is found. */
static __always_inline int is_neighbor_discovery(const struct packet *packet)
{
	return packet->protocol == IPPROTO_ICMPV6 && packet->hop_limit == 255 && packet->icmp_type >= 133 &&
	       packet->icmp_type <= 137;
}

/* The two of a flow: whose rules are asked (NULL: it has none), and as what the other's rules know it, if asked. */
struct ends {
	const struct policy_peer *client, *server;
	__u32 client_class, server_class;
};

static __always_inline enum policy_verdict judge_ends(const struct ends *ends, const struct packet *packet,
						      enum packet_state state, int reply)
{
	const struct policy_peer *client = ends->client, *server = ends->server;
	enum policy_verdict verdict = POLICY_NOT_ISOLATED, said;
	struct side side;

	if (client && client->egress_set) {
		if (is_neighbor_discovery(packet))
			return POLICY_NEIGHBOR;
		side = (struct side){&packet->source, client->egress_set, ends->server_class, 0};
		verdict = judge_side(&side, packet, state, reply, !!(client->flags & POLICY_AUDIT));
		if (!passes(verdict))
			return verdict;
	}
	if (server && server->ingress_set) {
		if (is_neighbor_discovery(packet))
			return POLICY_NEIGHBOR;
		side = (struct side){&packet->destination, server->ingress_set, ends->client_class, 1};
		said = judge_side(&side, packet, state, reply, !!(server->flags & POLICY_AUDIT));
		if (!passes(said) || verdict != POLICY_AUDITED)
			verdict = said;
	}
	return verdict;
}

static __always_inline enum policy_verdict judge(const struct packet *packet, enum packet_state state, int reply)
{
	const struct policy_address *source = &packet->source, *destination = &packet->destination;
	const struct policy_peer *client, *server;
	struct ends ends = {};

	if (same_address(source, destination))
		return POLICY_SELF;
	ends.client = client = bpf_map_lookup_elem(&policy_peers, source);
	ends.server = server = bpf_map_lookup_elem(&policy_peers, destination);
	if (client && client->egress_set)
		ends.server_class = class_of(destination, server, client->flags & POLICY_EGRESS_CIDRS);
	if (server && server->ingress_set)
		ends.client_class = class_of(source, client, server->flags & POLICY_INGRESS_CIDRS);
	return judge_ends(&ends, packet, state, reply);
}

/*
 * Of a frame that a pod gets although it is not addressed to one of the pod's addresses: broadcast, multicast,
 * link-local. No rule knows these, but whether the pod may be sent to at all, from there, its ingress rules say: they
 * are asked as if a packet from `source` was for `pod`. NULL: the pod is not isolated.
 */
static __always_inline const struct policy_peer *astray(const struct policy_address *source,
							const struct policy_address *pod, struct side *side)
{
	const struct policy_peer *client, *server = bpf_map_lookup_elem(&policy_peers, pod);

	if (!server || !server->ingress_set)
		return NULL;
	client = bpf_map_lookup_elem(&policy_peers, source);
	side->ingress = 1;
	side->pod = pod;
	side->set = server->ingress_set;
	side->class = class_of(source, client, server->flags & POLICY_INGRESS_CIDRS);
	return server;
}

/* Of a packet from server to client the one that the client would have sent. */
static __always_inline void turn(struct packet *packet)
{
	__u64 *source = (void *)packet->source.bytes, *destination = (void *)packet->destination.bytes, word;
	__be16 port = packet->source_port;

	for (int each = 0; each < 2; each++) {
		word = source[each];
		source[each] = destination[each];
		destination[each] = word;
	}
	packet->source_port = packet->destination_port;
	packet->destination_port = port;
}

#endif /* BGPD_VERDICT_H */
