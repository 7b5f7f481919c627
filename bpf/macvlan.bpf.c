// SPDX-License-Identifier: Apache-2.0
/*
 * NetworkPolicy and anti-spoofing of pods on macvlans, at the interface that these are made on, their parent. Their
 * frames never meet netfilter of the node. Which hook sees what:
 *
 *   egress    what leaves: of a pod in mode vepa all that it sends, whomever to; the node's own
 *   ingress   frames from the wire, and what egress gives back to another of the node; in bridge mode those from pod
 *             to pod too, which look like any other but for the sender's MAC address
 *
 * Who is in mode vepa reaches the others of the node through us: egress has seen who sends, marks the frame and hands
 * it to ingress, which judges it; of a frame to a group each gets a copy, and the frame itself goes to the wire. A
 * frame from such a pod that comes in without the mark was sent by somebody else.
 *
 * What macvlans in bridge mode send to a group reaches each other without passing here: the kernel hands it over
 * inside the sender's interface, and the egress hook sees but the copy that goes to the wire.
 *
 * Data in: who is behind a parent, written by bgpd/policy/parents.py, and the maps of verdict.h and flow.h. Data out:
 * a counter per verdict, and an event for what a rule set denies.
 */
#include "bgpd/flow.h"
#include "bgpd/frame.h"
#include "bgpd/layout.h"
#include "bgpd/parse.h"
#include "bgpd/verdict.h"

/* Read by the daemon before it loads anything; as a type it lands in BTF. */
const enum bgpd_abi layout SEC("bgpd_abi") = BGPD_ABI;

POLICY_HASH(macvlan_stations, struct macvlan_station_key, struct macvlan_station, MACVLAN_STATIONS);
POLICY_HASH(macvlan_vlans, struct vlan_key, struct vlan, VLANS);
POLICY_HASH(macvlan_tunnels, __be16, __u8, TUNNELS); /* to be there is all */
POLICY_HASH(macvlan_addresses, struct macvlan_address_key, struct macvlan_owner, MACVLAN_ADDRESSES);

/* The mark of what egress gives back. No other frame from a pod has it: the kernel takes a pod's own marks away where
 * frames go from one namespace to another, and the wire knows none. */
#define RELAYED 0x62677064

static __always_inline const struct macvlan_station *station_of(__u32 parent, const __u8 *mac)
{
	struct macvlan_station_key key = {.parent = parent};

	if (mac)
		__builtin_memcpy(key.mac, mac, ETH_ALEN);
	return bpf_map_lookup_elem(&macvlan_stations, &key);
}

static __always_inline const struct macvlan_owner *owner_of(__u32 parent, const struct policy_address *address)
{
	struct macvlan_address_key key = {.parent = parent, .address = *address};

	return bpf_map_lookup_elem(&macvlan_addresses, &key);
}

/* Whether the sender may use this address: UNDECIDED, or POLICY_SPOOFED. A pod's is its own, nobody else's is a
 * pod's. */
static __always_inline enum policy_verdict check_owner(const struct frame *frame,
						       const struct policy_address *address, int pod)
{
	const struct macvlan_owner *owner = owner_of(frame->parent, address);

	if (!owner)
		return pod ? POLICY_SPOOFED : UNDECIDED;
	return same_mac(owner->mac, frame->eth.h_source) ? UNDECIDED : POLICY_SPOOFED;
}

static __always_inline enum policy_verdict check_arp(struct __sk_buff *skb, const struct frame *frame, int pod)
{
	struct policy_address sender;
	struct arp arp;
	__be32 address;

	if (load(skb, 0, &arp, sizeof(arp)))
		return POLICY_BAD_HEADER;
	if (pod && !same_mac(arp.sender_mac, frame->eth.h_source))
		return POLICY_SPOOFED;
	__builtin_memcpy(&address, arp.sender, sizeof(address));
	if (!address)
		return POLICY_NEIGHBOR; /* probes, RFC 5227 */
	map_v4(&sender, &address);
	return check_owner(frame, &sender, pod) == UNDECIDED ? POLICY_NEIGHBOR : POLICY_SPOOFED;
}

static __always_inline enum policy_verdict check_advertised(struct __sk_buff *skb, const struct frame *frame, int pod)
{
	struct policy_address target;

	if (load(skb, frame->packet.transport + ADVERTISED_AT, &target, sizeof(target)))
		return POLICY_BAD_HEADER;
	return is_link_local(&target) ? UNDECIDED : check_owner(frame, &target, pod);
}

/* As `parse_v6` not static. Whether a frame says truly who sent it. `pod`: the MAC address is one's. */
__noinline int check_source(struct __sk_buff *skb, const struct frame *frame, int pod)
{
	const struct packet *packet = (const void *)frame;
	enum policy_verdict verdict;

	if (!frame)
		return POLICY_BAD_HEADER;
	if (pod && skb->vlan_present)
		return POLICY_NOT_IP; /* a pod is in no VLAN */
	if (frame->eth.h_proto == bpf_htons(ETH_P_ARP))
		return check_arp(skb, frame, pod);
	if (frame->state == PACKET_NOT_IP)
		return pod ? POLICY_NOT_IP : UNDECIDED;
	if (frame->state == PACKET_BAD_HEADER)
		return pod ? POLICY_BAD_HEADER : UNDECIDED;
	if (packet->protocol == IPPROTO_ICMPV6 && packet->icmp_type == ICMPV6_NEIGHBOR_ADVERTISEMENT) {
		verdict = check_advertised(skb, frame, pod);
		if (verdict != UNDECIDED)
			return verdict;
	}
	if (!pod)
		return check_owner(frame, &packet->source, 0);
	if (packet->protocol == IPPROTO_ICMPV6 &&
	    (packet->icmp_type == ICMPV6_ROUTER_ADVERTISEMENT || packet->icmp_type == ICMPV6_REDIRECT))
		return POLICY_SPOOFED; /* pods are no routers */
	if (is_link_local(&packet->source) || is_zero(&packet->source))
		return is_on_link(packet) ? POLICY_NEIGHBOR : POLICY_SPOOFED;
	if (is_dhcp_request(frame))
		return POLICY_NEIGHBOR;
	return check_owner(frame, &packet->source, 1);
}

/* --- from pods and the node to the wire ------------------------------------------------------------------------- */

/* The cookie of the first network namespace. The sockets by which a pod's kernel resets connections and answers
 * echoes are in it again when such a frame had to wait for ARP. */
#define INIT_NETNS 1

/* Whether it was sent in another namespace than its sender's. */
static __always_inline int is_elsewhere(const struct frame *frame, const struct macvlan_station *sender, __u64 netns)
{
	if (!netns || netns == INIT_NETNS || !sender->netns || netns == sender->netns)
		return 0;
	return !(sender->flags & MACVLAN_NODE && is_tunnel(&macvlan_tunnels, frame));
}

/* What comes by an interface of the node's in a VLAN. No pod of this parent does. */
static __always_inline enum policy_verdict check_vlan(const struct frame *frame, const struct macvlan_station *sender,
						      __u64 netns, const struct vlan *vlan)
{
	if (vlan->above) {
		sender = station_of(vlan->above, frame->eth.h_source);
		if (!sender)
			return POLICY_STRANGER;
		return is_elsewhere(frame, sender, netns) ? POLICY_SPOOFED : POLICY_NOT_ISOLATED;
	}
	return sender && !(sender->flags & MACVLAN_NODE) ? POLICY_NOT_IP : POLICY_NOT_ISOLATED;
}

/*
 * Whether the sender is who it says: UNDECIDED if rules are to be asked. A packet socket of a pod can send with
 * whatever MAC address, the node's too, and can say of a frame that it is of another protocol than it is, by which
 * others find its headers elsewhere.
 */
static __always_inline enum policy_verdict check_sender(struct __sk_buff *skb, const struct frame *frame,
							const struct macvlan_station *sender, __u64 netns)
{
	const struct vlan *vlan = vlan_of(&macvlan_vlans, skb);
	enum policy_verdict verdict;

	if (vlan)
		return check_vlan(frame, sender, netns, vlan);
	if (sender && is_elsewhere(frame, sender, netns))
		return POLICY_SPOOFED;
	if (sender && sender->flags & MACVLAN_NODE) {
		verdict = check_source(skb, frame, 0);
		return verdict == UNDECIDED || verdict == POLICY_NEIGHBOR ? POLICY_NOT_ISOLATED : verdict;
	}
	if (skb->protocol != frame->eth.h_proto)
		return POLICY_NOT_IP;
	if (!sender)
		return is_dhcp_request(frame) && !skb->vlan_present ? POLICY_NEIGHBOR : POLICY_STRANGER;
	return check_source(skb, frame, 1);
}

#define EXCHANGES (MACVLAN_BRIDGE | MACVLAN_VEPA)

/* Whether frames from one to the other are for us to hand over, by the flags of both. */
static __always_inline int relays(__u16 one, __u16 other)
{
	return one & EXCHANGES && other & EXCHANGES && (one | other) & MACVLAN_VEPA;
}

/* Of another system, which may be on this parent or behind the wire. */
static __always_inline int is_foreign(const struct macvlan_station *station)
{
	return station->flags & MACVLAN_NODE && !station->netns;
}

static __always_inline void copy_to(struct __sk_buff *skb, __u32 parent, const __u8 *mac)
{
	if (!bpf_skb_store_bytes(skb, 0, mac, ETH_ALEN, 0))
		bpf_clone_redirect(skb, parent, BPF_F_INGRESS);
}

struct relay {
	struct __sk_buff *skb;
	const struct frame *frame;
	__u32 sender; /* its flags */
};

static long relay_copy(void *map, const struct macvlan_station_key *key, const struct macvlan_station *receiver,
		       struct relay *relay)
{
	const struct frame *frame = relay->frame;

	(void)map;
	if (key->parent == frame->parent && relays(relay->sender, receiver->flags) &&
	    !same_mac(key->mac, frame->eth.h_source) && same_mac(key->mac, receiver->mac))
		copy_to(relay->skb, frame->parent, receiver->mac);
	return 0;
}

/* A copy to each of the group's that we hand frames over to. As `parse_v6` not static: whether the frame is as it
 * was. */
__noinline int relay_group(struct __sk_buff *skb, const struct frame *frame, __u32 sender)
{
	struct relay relay = {.skb = skb, .frame = frame, .sender = sender};
	const __u32 mark = skb->mark;

	if (!frame)
		return 0;
	skb->mark = RELAYED;
	bpf_for_each_map_elem(&macvlan_stations, relay_copy, &relay, 0);
	skb->mark = mark;
	return !bpf_skb_store_bytes(skb, 0, frame->eth.h_dest, ETH_ALEN, 0);
}

static __always_inline int leave(struct __sk_buff *skb, __u64 netns)
{
	const struct macvlan_station *sender, *receiver;
	enum policy_verdict verdict;
	struct frame frame = {};

	if (!read_frame(skb, &frame)) {
		counted(POLICY_BAD_HEADER);
		return TC_ACT_SHOT;
	}
	sender = station_of(frame.parent, frame.eth.h_source);
	verdict = check_sender(skb, &frame, sender, netns);
	receiver = station_of(frame.parent, frame.eth.h_dest);
	if (sender && receiver && relays(sender->flags, receiver->flags) &&
	    (verdict == UNDECIDED || passes(verdict))) {
		const __u32 mark = skb->mark;

		skb->mark = RELAYED;
		if (!is_foreign(receiver))
			return bpf_redirect(frame.parent, BPF_F_INGRESS);
		bpf_clone_redirect(skb, frame.parent, BPF_F_INGRESS);
		skb->mark = mark;
	}
	if (verdict == UNDECIDED)
		verdict = track(skb, &frame.packet, frame.state, judge);
	if (!passes(counted(verdict)))
		return TC_ACT_SHOT;
	if (sender && is_group(frame.eth.h_dest) && sender->flags & EXCHANGES &&
	    !relay_group(skb, &frame, sender->flags))
		return TC_ACT_SHOT;
	return NEXT;
}

SEC("tc")
int macvlan_egress(struct __sk_buff *skb)
{
	return leave(skb, skb->sk ? bpf_get_netns_cookie(skb) : 0);
}

/* Before Linux 6.15, where nobody says which namespace a frame comes from. */
SEC("tc")
int macvlan_egress_v6_6(struct __sk_buff *skb)
{
	return leave(skb, 0);
}

/* --- from the wire, and from pod to pod ------------------------------------------------------------------------- */

/* As `parse_v6` not static. What the rules of `pod` say of what comes to it astray. `silent`: it will be asked again.
 */
__noinline int judge_astray(const struct packet *packet, __u32 state, const struct policy_address *pod, int silent)
{
	struct policy_address source, own; /* before Linux 6.2 a key may not be what a function was given */
	const struct policy_peer *server;
	struct side side;
	int audited;

	if (!packet || !pod)
		return POLICY_BAD_HEADER;
	source = packet->source;
	own = *pod;
	server = astray(&source, &own, &side);
	if (!server)
		return POLICY_NOT_ISOLATED;
	audited = !!(server->flags & POLICY_AUDIT);
	if (silent)
		return audited ? POLICY_AUDITED : ask(&side, packet, state).verdict;
	return judge_side(&side, packet, state, 0, audited);
}

static __always_inline const struct policy_address *address_of(const struct macvlan_station *pod,
							       const struct packet *packet)
{
	return is_v4(&packet->source) ? &pod->v4 : &pod->v6;
}

/* To one pod. UNDECIDED: it may, as far as it is for the receiver alone to say. */
static __always_inline enum policy_verdict check_delivery(struct __sk_buff *skb, const struct frame *frame,
							  const struct macvlan_station *receiver)
{
	const struct macvlan_owner *owner;
	enum policy_verdict verdict;

	if (skb->vlan_present && skb->vlan_tci & VLAN_ID)
		return POLICY_NOT_IP; /* a pod is in no VLAN */
	if (frame->state == PACKET_NOT_IP)
		return POLICY_NOT_IP;
	if (frame->state == PACKET_BAD_HEADER)
		return POLICY_BAD_HEADER;
	if (is_neighbor_discovery(&frame->packet))
		return POLICY_NEIGHBOR;
	owner = owner_of(frame->parent, &frame->packet.destination);
	if (owner && same_mac(owner->mac, receiver->mac))
		return UNDECIDED;
	verdict = judge_astray(&frame->packet, frame->state, address_of(receiver, &frame->packet), 0);
	return passes(verdict) ? UNDECIDED : verdict;
}

/* A frame to a group, and what becomes of it at each pod. */
struct group {
	struct __sk_buff *skb;
	const struct frame *frame;
	int deaf;   /* a pod must not get it */
	int spread; /* give it to the others, each by itself */
};

static long hand_over(void *map, const struct macvlan_station_key *key, const struct macvlan_station *receiver,
		      struct group *group)
{
	const struct frame *frame = group->frame;

	(void)map;
	if (key->parent != frame->parent || same_mac(key->mac, frame->eth.h_source) ||
	    !same_mac(key->mac, receiver->mac))
		return 0;
	if (receiver->flags & MACVLAN_NODE) {
		if (!(receiver->flags & EXCHANGES))
			return 0;
	} else if (!passes(judge_astray(&frame->packet, frame->state, address_of(receiver, &frame->packet), 1))) {
		group->deaf = 1;
		return !group->spread;
	}
	if (group->spread)
		copy_to(group->skb, frame->parent, receiver->mac);
	return 0;
}

/*
 * To the node and every pod: the kernel asks nobody which of them. If there is one that must not get it, each of the
 * others is given a copy, addressed to it, and the frame itself goes to the node only: no macvlan has MAC address 0.
 * As `parse_v6` not static.
 */
__noinline int broadcast(struct __sk_buff *skb, const struct frame *frame)
{
	const __u8 nobody[ETH_ALEN] = {};
	struct group group = {.skb = skb, .frame = frame};

	if (!frame)
		return POLICY_BAD_HEADER;
	if (frame->state == PACKET_NOT_IP)
		return POLICY_NOT_ISOLATED;
	if (frame->packet.protocol == IPPROTO_ICMPV6 && is_on_link(&frame->packet))
		return POLICY_NEIGHBOR;
	bpf_for_each_map_elem(&macvlan_stations, hand_over, &group, 0);
	if (!group.deaf)
		return POLICY_NOT_ISOLATED;
	if (station_of(frame->parent, NULL))
		return POLICY_DENIED_INGRESS; /* the one pod of this parent would get it whatever the MAC address */
	group.spread = 1;
	bpf_for_each_map_elem(&macvlan_stations, hand_over, &group, 0);
	return bpf_skb_store_bytes(skb, 0, nobody, ETH_ALEN, 0) ? POLICY_DENIED_INGRESS : POLICY_NOT_ISOLATED;
}

static __always_inline enum policy_verdict arrive(struct __sk_buff *skb)
{
	const struct macvlan_station *sender, *receiver;
	enum policy_verdict verdict;
	struct frame frame = {};
	int pod, relayed = skb->mark == RELAYED;

	if (relayed)
		skb->mark = 0;
	if (!read_frame(skb, &frame))
		return POLICY_BAD_HEADER;
	sender = station_of(frame.parent, frame.eth.h_source);
	pod = sender && !(sender->flags & MACVLAN_NODE);
	if (pod && !relayed && !(sender->flags & MACVLAN_BRIDGE))
		return POLICY_SPOOFED; /* or a switch has given back what it was sent */
	verdict = check_source(skb, &frame, pod);
	if (verdict != UNDECIDED)
		return verdict;
	if (is_group(frame.eth.h_dest))
		return broadcast(skb, &frame);
	receiver = station_of(frame.parent, frame.eth.h_dest);
	if (!receiver)
		receiver = station_of(frame.parent, NULL);
	if (receiver && !(receiver->flags & MACVLAN_NODE))
		verdict = check_delivery(skb, &frame, receiver);
	else if (!pod)
		verdict = POLICY_NOT_ISOLATED;
	return verdict == UNDECIDED ? track(skb, &frame.packet, frame.state, judge) : verdict;
}

SEC("tc")
int macvlan_ingress(struct __sk_buff *skb)
{
	return passes(counted(arrive(skb))) ? NEXT : TC_ACT_SHOT;
}

/* No helper used here is restricted to GPL-compatible programs. */
char LICENSE[] SEC("license") = "Apache-2.0";
