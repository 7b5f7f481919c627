/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a packet says of itself: addresses, protocol, ports, and how far it can be believed. Used by every program
 * that judges packets; decides nothing.
 *
 * Contract: `parse` reads from the network header on, of a packet whose ethertype is in skb->protocol with VLAN tags
 * taken off, as the stack has it. Addresses are set unless it returns PACKET_NOT_IP or PACKET_BAD_HEADER; ports,
 * flags and type are 0 unless it returns PACKET_WHOLE.
 */
#ifndef BGPD_PARSE_H
#define BGPD_PARSE_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "bgpd/layout.h"

/* RFC 791 section 3.1, RFC 8200 section 4.5 */
#define IP_MORE_FRAGMENTS 0x2000
#define IP_OFFSET 0x1fff
#define IPV6_OFFSET 0xfff8
#define IPV6_MORE_FRAGMENTS 1

#define VLAN_ID 0xfff /* IEEE 802.1Q section 9.6; 0 is no VLAN */

/* Longer chains are for routers to complain about; RFC 8200 knows seven kinds, each of them once but one. */
#define IPV6_EXTENSIONS 8

enum packet_state {
	PACKET_WHOLE,	      /* all there, or a first fragment with its ports */
	PACKET_LATE_FRAGMENT, /* a fragment but the first: protocol, no ports */
	PACKET_NO_TRANSPORT,  /* the headers after the fixed one do not lead to a transport header */
	PACKET_BAD_HEADER,
	PACKET_NOT_IP,
};

/* Begins as the fixed header of IPv6 does, so that one load puts that where it belongs: see `parse_v6`. */
struct packet {
	__be16 source_port; /* 0 where the protocol has none */
	__be16 destination_port;
	union {
		__u8 icmp_type; /* where `protocol` is one of the two ICMPs */
		__u8 tcp_flags; /* where it is TCP; 0 as well where they are cut off */
	};
	__u8 fragmented;
	__u8 protocol;
	__u8 hop_limit;
	struct policy_address source;
	struct policy_address destination;
	__u32 fragment_id; /* as on the wire; of a packet that is `fragmented` */
	__u32 transport;   /* where its header begins, as `load` has it */
};

#define SAME_PLACE(member, v6)                                                                                       \
	_Static_assert(__builtin_offsetof(struct packet, member) == __builtin_offsetof(struct ipv6hdr, v6), #member)
SAME_PLACE(protocol, nexthdr);
SAME_PLACE(hop_limit, hop_limit);
SAME_PLACE(source, saddr);
SAME_PLACE(destination, daddr);
#undef SAME_PLACE

/*
 * A bit of `at`, for a program that needs it to define before this is included: macvlan's have no byte of stack left
 * for it in Linux 6.1.
 */
#ifndef FROM_MAC
#define FROM_MAC 0u
#endif

/* `at` is from the network header on, or with FROM_MAC from the Ethernet header on. */
static __always_inline int load(struct __sk_buff *skb, __u32 at, void *to, __u32 size)
{
	return bpf_skb_load_bytes_relative(skb, at & ~FROM_MAC, to, size,
					   at & FROM_MAC ? BPF_HDR_START_MAC : BPF_HDR_START_NET);
}

/* IPv4 and ports in ::ffff:0:0/96, so that one map has both families. */
static __always_inline void map_v4(struct policy_address *to, const __be32 *from)
{
	__builtin_memset(to->bytes, 0, 10);
	to->bytes[10] = to->bytes[11] = 0xff;
	__builtin_memcpy(to->bytes + 12, from, 4);
}

static __always_inline int is_v4(const struct policy_address *address)
{
	const __u32 *words = (const void *)address->bytes;

	return words[0] == 0 && words[1] == 0 && words[2] == bpf_htonl(0xffff);
}

static __always_inline int same_address(const struct policy_address *one, const struct policy_address *other)
{
	const __u64 *a = (const void *)one->bytes, *b = (const void *)other->bytes;

	return a[0] == b[0] && a[1] == b[1];
}

/* What a transport header begins with. SCTP, DCCP and UDP-Lite begin with ports as TCP and UDP do. */
struct transport {
	union {
		__be16 ports[2];
		__u8 icmp_type;
	};
	__u8 more[9];	/* of TCP; others may end before */
	__u8 tcp_flags; /* RFC 9293 section 3.1 */
};

#define TRANSPORT_LEAST 4

static __always_inline int has_transport(__u8 protocol)
{
	switch (protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
	case IPPROTO_DCCP:
	case IPPROTO_UDPLITE:
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return 1;
	default:
		return 0;
	}
}

static __always_inline void take(struct packet *packet, const struct transport *begin)
{
	if (packet->protocol == IPPROTO_ICMP || packet->protocol == IPPROTO_ICMPV6) {
		packet->icmp_type = begin->icmp_type;
		return;
	}
	packet->source_port = begin->ports[0];
	packet->destination_port = begin->ports[1];
	if (packet->protocol == IPPROTO_TCP)
		packet->tcp_flags = begin->tcp_flags;
}

static __always_inline enum packet_state parse_transport(struct __sk_buff *skb, struct packet *packet)
{
	struct transport begin;

	if (!has_transport(packet->protocol))
		return PACKET_WHOLE;
	if (load(skb, packet->transport, &begin, sizeof(begin))) {
		begin.tcp_flags = 0;
		if (load(skb, packet->transport, &begin, TRANSPORT_LEAST))
			return PACKET_NO_TRANSPORT;
	}
	take(packet, &begin);
	return PACKET_WHOLE;
}

/* Almost every packet has no options and is whole: one load for all that is wanted of it. */
static __always_inline enum packet_state parse_v4(struct __sk_buff *skb, __u32 at, struct packet *packet)
{
	struct {
		struct iphdr ip;
		struct transport begin;
	} head;
	int whole = !load(skb, at, &head, sizeof(head.ip) + sizeof(head.begin));

	if (!whole && load(skb, at, &head.ip, sizeof(head.ip)))
		return PACKET_BAD_HEADER;
	if (head.ip.version != 4 || head.ip.ihl < sizeof(head.ip) / 4)
		return PACKET_BAD_HEADER;
	map_v4(&packet->source, &head.ip.saddr);
	map_v4(&packet->destination, &head.ip.daddr);
	packet->protocol = head.ip.protocol;
	packet->hop_limit = head.ip.ttl;
	packet->transport = at + head.ip.ihl * 4;
	packet->fragmented = !!(head.ip.frag_off & bpf_htons(IP_MORE_FRAGMENTS | IP_OFFSET));
	packet->fragment_id = head.ip.id;
	if (head.ip.frag_off & bpf_htons(IP_OFFSET))
		return PACKET_LATE_FRAGMENT;
	if (!whole || head.ip.ihl != sizeof(head.ip) / 4)
		return parse_transport(skb, packet);
	if (has_transport(packet->protocol))
		take(packet, &head.begin);
	return PACKET_WHOLE;
}

/* A header that leads to another one, each kind with a length of its own. */
static __always_inline enum packet_state parse_extensions(struct __sk_buff *skb, __u8 next, struct packet *packet)
{
	struct {
		__u8 next;
		__u8 length;
		__be16 offset;
		__be32 id;
	} header;

	for (int each = 0; each <= IPV6_EXTENSIONS; each++) {
		packet->protocol = next;
		switch (next) {
		case IPPROTO_HOPOPTS:
		case IPPROTO_ROUTING:
		case IPPROTO_DSTOPTS:
		case IPPROTO_MH:
		case IPPROTO_AH:
		case IPPROTO_FRAGMENT:
			break;
		default:
			return parse_transport(skb, packet);
		}
		if (load(skb, packet->transport, &header, sizeof(header)))
			return PACKET_NO_TRANSPORT;
		if (next == IPPROTO_FRAGMENT) {
			packet->transport += sizeof(header);
			packet->fragmented = !!(header.offset & bpf_htons(IPV6_OFFSET | IPV6_MORE_FRAGMENTS));
			packet->fragment_id = header.id;
			if (header.offset & bpf_htons(IPV6_OFFSET)) {
				packet->protocol = header.next;
				return PACKET_LATE_FRAGMENT;
			}
		} else if (next == IPPROTO_AH) {
			packet->transport += (header.length + 2) * 4;
		} else {
			packet->transport += (header.length + 1) * 8;
		}
		next = header.next;
	}
	return PACKET_NO_TRANSPORT;
}

/*
 * Not static: the verifier then looks at it once, on its own, and not again for each way that leads here and from
 * here, which takes it a hundred times as long.
 */
__noinline int parse_v6(struct __sk_buff *skb, __u32 at, struct packet *packet)
{
	if (!packet || load(skb, at, packet, sizeof(struct ipv6hdr)) || *(const __u8 *)packet >> 4 != 6)
		return PACKET_BAD_HEADER;
	packet->source_port = packet->destination_port = 0;
	packet->icmp_type = packet->fragmented = 0;
	if (is_v4(&packet->source) || is_v4(&packet->destination))
		return PACKET_BAD_HEADER; /* would be taken for the IPv4 address that it names */
	packet->transport = at + sizeof(struct ipv6hdr);
	return parse_extensions(skb, packet->protocol, packet);
}

/* Of a packet whose network header begins at `at`, as `load` has it. */
static __always_inline enum packet_state parse(struct __sk_buff *skb, __u32 ethertype, __u32 at,
					       struct packet *packet)
{
	switch (ethertype) {
	case bpf_htons(ETH_P_IP):
		return parse_v4(skb, at, packet);
	case bpf_htons(ETH_P_IPV6):
		return parse_v6(skb, at, packet);
	default:
		return PACKET_NOT_IP;
	}
}

#endif /* BGPD_PARSE_H */
