/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who is the client of a flow, where the kernel does not track connections: frames that a bridge forwards by itself,
 * frames on the parent of macvlans. The client is who sent first.
 *
 * Contract: `track` turns a packet round if it is a reply, judges it, and remembers the flow of a packet that passes.
 * Remembered is who began, no verdict. A packet that can only be the first of its flow (SYN, echo request) is never
 * taken for a reply. An ICMP error passes if it is of a flow that is known. A later fragment has the ports of its
 * first one, if that came first; its flow ends as those of the kernel do by default.
 */
#ifndef BGPD_FLOW_H
#define BGPD_FLOW_H

#include "bgpd/layout.h"
#include "bgpd/parse.h"
#include "bgpd/verdict.h"

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct policy_flow_key);
	__type(value, __u64); /* when it is forgotten, CLOCK_MONOTONIC in ns */
	__uint(max_entries, POLICY_FLOWS);
} policy_flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct policy_fragment_key);
	__type(value, struct policy_flow_ports);
	__uint(max_entries, POLICY_FRAGMENTS);
} policy_fragments SEC(".maps");

#define SECOND_NS 1000000000ULL
/* The defaults of net.netfilter.nf_conntrack_*_timeout_*. */
#define FLOW_ESTABLISHED_NS (432000 * SECOND_NS)
#define FLOW_OPENING_NS (120 * SECOND_NS)
#define FLOW_CLOSING_NS (120 * SECOND_NS)
#define FLOW_STREAM_NS (120 * SECOND_NS)

/* RFC 9293 section 3.1 */
#define TCP_FLAGS_AT 13
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

/* What tells the flow from others. Echoes have an identifier for ports. */
static __always_inline void flow_of(struct __sk_buff *skb, const struct packet *packet, struct policy_flow_key *flow)
{
	__be16 id = 0;

	flow->client = packet->source;
	flow->server = packet->destination;
	flow->ports.client = packet->source_port;
	flow->ports.server = packet->destination_port;
	flow->protocol = packet->protocol;
	if (is_echo(packet, ICMP_ECHO, ICMPV6_ECHO) || is_echo(packet, ICMP_ECHO_REPLY, ICMPV6_ECHO_REPLY)) {
		load(skb, packet->transport + ICMP_ID_AT, &id, sizeof(id));
		flow->ports.client = flow->ports.server = id;
	}
}

static __always_inline void turn_flow(struct policy_flow_key *flow)
{
	struct policy_address address = flow->client;
	__be16 port = flow->ports.client;

	flow->client = flow->server;
	flow->server = address;
	flow->ports.client = flow->ports.server;
	flow->ports.server = port;
}

static __always_inline __u64 *known(const struct policy_flow_key *flow, __u64 now_ns)
{
	__u64 *until = bpf_map_lookup_elem(&policy_flows, flow);

	return until && *until > now_ns ? until : NULL;
}

/* As `parse_v6` not static. The packet in an ICMP error was sent by whom the error is for. */
__noinline int is_related(struct __sk_buff *skb, const struct packet *packet, __u64 now_ns)
{
	struct policy_flow_key flow = {};
	struct packet inner = {};
	enum packet_state state;
	__u32 ethertype;

	if (!packet)
		return 0;
	ethertype = packet->protocol == IPPROTO_ICMP ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);
	state = parse(skb, ethertype, packet->transport + ICMP_HEADER, &inner);
	if (state != PACKET_WHOLE || !same_address(&inner.source, &packet->destination))
		return 0;
	flow_of(skb, &inner, &flow);
	if (known(&flow, now_ns))
		return 1;
	turn_flow(&flow);
	return known(&flow, now_ns) != NULL;
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

static __always_inline __u8 tcp_flags(struct __sk_buff *skb, const struct packet *packet, enum packet_state state)
{
	__u8 flags = TCP_ACK; /* a later fragment is in the middle of something */

	if (packet->protocol == IPPROTO_TCP && state == PACKET_WHOLE)
		load(skb, packet->transport + TCP_FLAGS_AT, &flags, sizeof(flags));
	return flags;
}

/* For how long the flow of this packet is remembered. */
static __always_inline __u64 lifetime_ns(const struct packet *packet, __u8 flags)
{
	if (packet->protocol != IPPROTO_TCP)
		return FLOW_STREAM_NS;
	if (flags & (TCP_FIN | TCP_RST))
		return FLOW_CLOSING_NS;
	return flags & TCP_SYN ? FLOW_OPENING_NS : FLOW_ESTABLISHED_NS;
}

/* Isolated or not: its pod may become so, or be so for what it does not ask for. Written seldom, so that CPUs do not
 * take the entry from each other with every packet. */
static __always_inline void remember(const struct policy_flow_key *flow, __u64 *until, __u64 now_ns, __u64 span_ns)
{
	__u64 wanted = now_ns + span_ns;

	if (!until)
		bpf_map_update_elem(&policy_flows, flow, &wanted, BPF_ANY);
	else if (*until > wanted || wanted - *until > span_ns / 8)
		*until = wanted;
}

static __always_inline enum policy_verdict track(struct __sk_buff *skb, struct packet *packet,
						 enum packet_state state)
{
	const __u64 now_ns = bpf_ktime_get_ns();
	struct policy_flow_key flow = {};
	enum policy_verdict verdict;
	__u64 *until = NULL;
	int reply = 0;
	__u8 flags;

	if (state == PACKET_WHOLE && is_error(packet) && is_related(skb, packet, now_ns))
		return POLICY_RELATED;
	flags = tcp_flags(skb, packet, state);
	if (packet->fragmented)
		state = assemble(packet, state);
	flow_of(skb, packet, &flow);
	if ((flags & (TCP_SYN | TCP_ACK)) != TCP_SYN && !is_echo(packet, ICMP_ECHO, ICMPV6_ECHO)) {
		turn_flow(&flow);
		until = known(&flow, now_ns);
		if (until)
			reply = 1;
		else
			turn_flow(&flow);
	}
	if (reply)
		turn(packet);
	else
		until = known(&flow, now_ns);
	verdict = judge(packet, state, reply);
	if (passes(verdict) && verdict != POLICY_NEIGHBOR && state == PACKET_WHOLE)
		remember(&flow, until, now_ns, lifetime_ns(packet, flags));
	return verdict;
}

#endif /* BGPD_FLOW_H */
