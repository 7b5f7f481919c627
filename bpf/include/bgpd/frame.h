/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames at an interface that several pods share, the parent of their macvlans or ipvlans: what programs there read
 * of them besides the packet, and which may come from whom has no address yet. Decides nothing.
 */
#ifndef BGPD_FRAME_H
#define BGPD_FRAME_H

#include <linux/pkt_cls.h>

#include "bgpd/layout.h"
#include "bgpd/parse.h"

/* Goes on with the next program of the hook, if there is one: TCX_NEXT, and of clsact TC_ACT_UNSPEC. */
#define NEXT TC_ACT_UNSPEC

/* Not a verdict: go on. */
#define UNDECIDED POLICY_VERDICTS

/* RFC 826, of Ethernet and IPv4; linux/if_arp.h wants a C library. */
struct arp {
	__be16 hardware_type;
	__be16 protocol_type;
	__u8 hardware_length;
	__u8 protocol_length;
	__be16 operation;
	__u8 sender_mac[ETH_ALEN];
	__u8 sender[4];
} __attribute__((packed));

enum icmpv6_type {
	ICMPV6_LISTENER_QUERY = 130, /* RFC 2710 */
	ICMPV6_LISTENER_DONE = 132,
	ICMPV6_ROUTER_ADVERTISEMENT = 134, /* RFC 4861 */
	ICMPV6_NEIGHBOR_ADVERTISEMENT = 136,
	ICMPV6_REDIRECT = 137,
	ICMPV6_LISTENER_REPORT = 143, /* RFC 3810 */
};
#define ADVERTISED_AT 8 /* RFC 4861 section 4.4: the target address */

#define DHCP_SERVER_PORT 67
#define DHCP_CLIENT_PORT 68

struct frame {
	struct packet packet;
	struct ethhdr eth;
	__u32 parent;
	enum packet_state state;
};

static __always_inline int same_mac(const __u8 *one, const __u8 *other)
{
	const __u16 *a = (const void *)one, *b = (const void *)other; /* as they are aligned in an Ethernet header */

	return !((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]));
}

static __always_inline int is_group(const __u8 *mac)
{
	return mac[0] & 1;
}

static __always_inline int is_link_local(const struct policy_address *address)
{
	return address->bytes[0] == 0xfe && (address->bytes[1] & 0xc0) == 0x80;
}

static __always_inline int is_zero(const struct policy_address *address)
{
	const __u64 *words = (const void *)address->bytes;

	return words[0] == 0 && words[1] == 0;
}

/* What may be sent from a link-local address, or from none: as the bridge's table has it. */
static __always_inline int is_on_link(const struct packet *packet)
{
	return packet->protocol == IPPROTO_ICMPV6 &&
	       ((packet->icmp_type >= ICMPV6_LISTENER_QUERY && packet->icmp_type <= ICMPV6_NEIGHBOR_ADVERTISEMENT) ||
		packet->icmp_type == ICMPV6_LISTENER_REPORT);
}

/* Of whom has no address yet. A server's answer goes where the rules let it. */
static __always_inline int is_dhcp_request(const struct frame *frame)
{
	const struct packet *packet = &frame->packet;
	const __u32 *source = (const void *)packet->source.bytes,
		    *destination = (const void *)packet->destination.bytes;

	return frame->state == PACKET_WHOLE && packet->protocol == IPPROTO_UDP && is_v4(&packet->source) &&
	       source[3] == 0 && destination[3] == 0xffffffff && packet->source_port == bpf_htons(DHCP_CLIENT_PORT) &&
	       packet->destination_port == bpf_htons(DHCP_SERVER_PORT);
}

/* NULL: the frame is in no VLAN that the node has there. */
static __always_inline const struct vlan *vlan_of(void *vlans, struct __sk_buff *skb)
{
	const struct vlan_key key = {
		.below = skb->ifindex,
		.id = skb->vlan_tci & VLAN_ID,
		.protocol = skb->vlan_proto,
	};

	return skb->vlan_present && key.id ? bpf_map_lookup_elem(vlans, &key) : NULL;
}

/*
 * Whether it goes to one of these UDP ports, __be16. A tunnel of the node's hands on the socket of the pod that has
 * sent what is inside: such a packet is not from the node's network namespace, and yet the node's.
 */
static __always_inline int is_tunnel(void *tunnels, const struct frame *frame)
{
	const __be16 port = frame->packet.destination_port;

	return frame->state == PACKET_WHOLE && frame->packet.protocol == IPPROTO_UDP &&
	       bpf_map_lookup_elem(tunnels, &port);
}

/* False if the Ethernet header cannot be read. */
static __always_inline int read_frame(struct __sk_buff *skb, struct frame *frame)
{
	frame->parent = skb->ifindex;
	if (bpf_skb_load_bytes(skb, 0, &frame->eth, sizeof(frame->eth)))
		return 0;
	frame->state = parse(skb, frame->eth.h_proto, 0, &frame->packet);
	return 1;
}

#endif /* BGPD_FRAME_H */
