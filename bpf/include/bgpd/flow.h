/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who is the client of a flow, where the kernel does not track connections: frames that a bridge forwards by itself,
 * frames on the parent of macvlans. The client is who sent first.
 *
 * Contract: `track` turns a packet round if it is a reply, judges it, and remembers the flow of a packet that passes.
 * Remembered is who began, no verdict. A packet that can only be the first of its flow (SYN, echo request) is never
 * taken for a reply. What can only be later, of a connection that is not known, is taken for one if it comes from a
 * server's port and goes to a client's. An ICMP error passes if it is of a flow that is known. A later
 * fragment has the ports of its first one, if that came first; its flow ends as those of the kernel do by default.
 */
#ifndef BGPD_FLOW_H
#define BGPD_FLOW_H

#include "bgpd/layout.h"
#include "bgpd/parse.h"
#include "bgpd/verdict.h"

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct policy_flow_key);
	__type(value, struct policy_flow);
	__uint(max_entries, POLICY_FLOWS);
} policy_tracked SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct policy_fragment_key);
	__type(value, struct policy_flow_ports);
	__uint(max_entries, POLICY_FRAGMENTS);
} policy_fragments SEC(".maps");

#define SECONDS(count) (((count)*1000000000ULL) >> POLICY_TICK_SHIFT)
/* The defaults of net.netfilter.nf_conntrack_*_timeout_*. */
#define FLOW_ESTABLISHED SECONDS(432000)
#define FLOW_OPENING SECONDS(120)
#define FLOW_CLOSING SECONDS(120)
#define FLOW_STREAM SECONDS(120)

/* RFC 9293 section 3.1 */
#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

/* RFC 792 and RFC 4443: linux/icmp.h wants a C library. */
#define ICMP_HEADER 8
#define ICMP_ID_AT 4
enum icmp_type {
	ICMP_ECHO_REPLY = 0,
	ICMP_UNREACHABLE = 3,
	ICMP_SOURCE_QUENCH = 4,
	ICMP_ECHO = 8,
	ICMP_TIME_EXCEEDED = 11,
	ICMP_PARAMETER_PROBLEM = 12,
	ICMPV6_FIRST_INFORMATIONAL = 128,
	ICMPV6_ECHO = 128,
	ICMPV6_ECHO_REPLY = 129,
};

static __always_inline int is_error(const struct packet *packet)
{
	switch (packet->protocol) {
	case IPPROTO_ICMP:
		return packet->icmp_type == ICMP_UNREACHABLE || packet->icmp_type == ICMP_SOURCE_QUENCH ||
		       packet->icmp_type == ICMP_TIME_EXCEEDED || packet->icmp_type == ICMP_PARAMETER_PROBLEM;
	case IPPROTO_ICMPV6:
		return packet->icmp_type < ICMPV6_FIRST_INFORMATIONAL;
	default:
		return 0;
	}
}

static __always_inline int is_echo(const struct packet *packet, __u8 v4, __u8 v6)
{
	return (packet->protocol == IPPROTO_ICMP && packet->icmp_type == v4) ||
	       (packet->protocol == IPPROTO_ICMPV6 && packet->icmp_type == v6);
}

/* Who of a key's two ends. */
enum flow_end {
	FLOW_LOW,
	FLOW_HIGH,
};

static __always_inline enum flow_end lower_of(const struct packet *packet)
{
	const __u64 *source = (const void *)packet->source.bytes,
		    *destination = (const void *)packet->destination.bytes;

	if (source[1] != destination[1])
		return source[1] > destination[1];
	return source[0] > destination[0];
}

/* In words: a key that is written in smaller pieces than it is hashed in has to be waited for. */
static __always_inline void copy_address(struct policy_address *to, const struct policy_address *from)
{
	const __u64 *source = (const void *)from->bytes;
	__u64 *destination = (void *)to->bytes;

	destination[0] = source[0];
	destination[1] = source[1];
}

/* Which flow it is of, and which end has sent it. Echoes have an identifier for ports. */
static __always_inline enum flow_end flow_of(struct __sk_buff *skb, const struct packet *packet,
					     struct policy_flow_key *flow)
{
	enum flow_end sender = lower_of(packet);

	flow->protocol = packet->protocol;
	if (sender == FLOW_LOW) {
		copy_address(&flow->low, &packet->source);
		copy_address(&flow->high, &packet->destination);
		flow->low_port = packet->source_port;
		flow->high_port = packet->destination_port;
	} else {
		copy_address(&flow->low, &packet->destination);
		copy_address(&flow->high, &packet->source);
		flow->low_port = packet->destination_port;
		flow->high_port = packet->source_port;
	}
	if (is_echo(packet, ICMP_ECHO, ICMPV6_ECHO) || is_echo(packet, ICMP_ECHO_REPLY, ICMPV6_ECHO_REPLY)) {
		__be16 id = 0;

		load(skb, packet->transport + ICMP_ID_AT, &id, sizeof(id));
		flow->low_port = flow->high_port = id;
	}
	return sender;
}

/* As `parse_v6` not static. The packet in an ICMP error was sent by whom the error is for. */
__noinline int is_related(struct __sk_buff *skb, const struct packet *packet, __u32 now)
{
	const struct policy_flow *flow;
	struct policy_flow_key key = {};
	struct packet inner = {};
	enum packet_state state;
	__u32 ethertype;

	if (!packet)
		return 0;
	ethertype = packet->protocol == IPPROTO_ICMP ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);
	state = parse(skb, ethertype, packet->transport + ICMP_HEADER, &inner);
	if (state != PACKET_WHOLE || !same_address(&inner.source, &packet->destination))
		return 0;
	flow_of(skb, &inner, &key);
	flow = bpf_map_lookup_elem(&policy_tracked, &key);
	return flow && (flow->until[FLOW_LOW] > now || flow->until[FLOW_HIGH] > now);
}

/* As `parse_v6` not static. Gives a later fragment the ports of the first one, and keeps those of a first one. */
__noinline int assemble(struct packet *packet, __u32 state)
{
	struct policy_fragment_key key = {};
	struct policy_flow_ports ports, *first;

	if (!packet)
		return state;
	key.source = packet->source;
	key.destination = packet->destination;
	key.id = packet->fragment_id;
	key.protocol = packet->protocol;
	if (state == PACKET_WHOLE) {
		ports.client = packet->source_port;
		ports.server = packet->destination_port;
		bpf_map_update_elem(&policy_fragments, &key, &ports, BPF_ANY);
		return state;
	}
	first = bpf_map_lookup_elem(&policy_fragments, &key);
	if (!first)
		return state;
	packet->source_port = first->client;
	packet->destination_port = first->server;
	return PACKET_WHOLE;
}

/* 0, as in the middle of something: of a later fragment, or where they are cut off. */
static __always_inline __u8 tcp_flags(const struct packet *packet)
{
	return packet->protocol == IPPROTO_TCP ? packet->tcp_flags : 0;
}

/* For how long the flow of this packet is remembered. */
static __always_inline __u32 lifetime(const struct packet *packet, __u8 flags)
{
	if (packet->protocol != IPPROTO_TCP)
		return FLOW_STREAM;
	if (flags & (TCP_FIN | TCP_RST))
		return FLOW_CLOSING;
	return flags & TCP_SYN ? FLOW_OPENING : FLOW_ESTABLISHED;
}

/*
 * Until when the flow is to be remembered, 0 if it is already. Written seldom, so that CPUs do not take the entry
 * from each other with every packet.
 */
static __always_inline __u32 renewed(const struct policy_flow *flow, enum flow_end client, __u32 now, __u32 span)
{
	__u32 wanted = now + span, until = flow ? flow->until[client] : 0;

	return until > wanted || wanted - until > span / 8 ? wanted : 0;
}

/* Off the way of most packets. Isolated or not: its pod may become so, or be so for what it does not ask for. */
static __noinline int remember(const struct policy_flow_key *key, struct policy_flow *flow, enum flow_end client,
			       __u32 until)
{
	struct policy_flow fresh;

	if (flow) {
		flow->until[client] = until;
		return 0;
	}
	fresh.until[FLOW_LOW] = client == FLOW_LOW ? until : 0;
	fresh.until[FLOW_HIGH] = client == FLOW_HIGH ? until : 0;
	return bpf_map_update_elem(&policy_tracked, key, &fresh, BPF_ANY);
}

static __always_inline int is_first(const struct packet *packet, __u8 flags)
{
	return (flags & (TCP_SYN | TCP_ACK)) == TCP_SYN || is_echo(packet, ICMP_ECHO, ICMPV6_ECHO);
}

/* Until which tick it is believed of ports who answers; 0: no packet has come yet. Pinned, it outlives the daemon. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
} policy_seeding SEC(".maps");

#define SEEDING SECONDS(600)

/* Whether we judge since so short a time that connections may go on which nobody has seen begin. */
static __noinline int is_seeding(__u32 now)
{
	const __u32 only = 0;
	__u32 *until = bpf_map_lookup_elem(&policy_seeding, &only);

	if (!until)
		return 0;
	if (!*until)
		*until = now + SEEDING;
	return now < *until;
}

/* net.ipv4.ip_local_port_range: clients have ports from there on unless they ask for others, servers seldom do. */
#define FIRST_CLIENT_PORT 32768

/*
 * Of a connection that nobody has seen begin, of pods that ran before we did, the server may speak first: its ports
 * are what is left to tell who it is. Not for longer than needed, for a pod that forges such segments is taken for a
 * server, and servers may answer.
 */
static __always_inline int is_answer(const struct packet *packet, __u8 flags)
{
	return packet->protocol == IPPROTO_TCP && !(flags & TCP_SYN) &&
	       bpf_ntohs(packet->source_port) < FIRST_CLIENT_PORT &&
	       bpf_ntohs(packet->destination_port) >= FIRST_CLIENT_PORT;
}

/* `judge`, or what says the same. */
typedef enum policy_verdict (*judging)(const struct packet *packet, enum packet_state state, int reply);

static __always_inline enum policy_verdict track(struct __sk_buff *skb, struct packet *packet,
						 enum packet_state state, judging judged)
{
	const __u32 now = bpf_ktime_get_coarse_ns() >> POLICY_TICK_SHIFT;
	struct policy_flow_key key = {};
	enum policy_verdict verdict;
	struct policy_flow *flow;
	enum flow_end client;
	__u32 until;
	int reply;
	__u8 flags;

	if (state == PACKET_WHOLE && is_error(packet) && is_related(skb, packet, now))
		return POLICY_RELATED;
	flags = tcp_flags(packet);
	if (packet->fragmented)
		state = assemble(packet, state);
	client = flow_of(skb, packet, &key);
	flow = bpf_map_lookup_elem(&policy_tracked, &key);
	if (is_first(packet, flags))
		reply = 0;
	else if (flow && (flow->until[FLOW_LOW] > now || flow->until[FLOW_HIGH] > now))
		reply = flow->until[!client] > now;
	else
		reply = is_seeding(now) && state == PACKET_WHOLE && is_answer(packet, flags);
	if (reply) {
		client = !client;
		turn(packet);
	}
	until = state == PACKET_WHOLE ? renewed(flow, client, now, lifetime(packet, flags)) : 0;
	verdict = judged(packet, state, reply);
	if (until && passes(verdict) && verdict != POLICY_NEIGHBOR)
		remember(&key, flow, client, until);
	return verdict;
}

#endif /* BGPD_FLOW_H */
