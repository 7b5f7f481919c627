// SPDX-License-Identifier: Apache-2.0
/*
 * NetworkPolicy and anti-spoofing of pods on ipvlans. All of a parent have its MAC address; the kernel gives a packet
 * to whom its destination address is of. Which hook sees what:
 *
 *   parent, egress    what leaves: of pods, of the node
 *   parent, ingress   what comes from the wire; what a pod sends to the node
 *   pod, ingress      all that a pod gets: of other pods of the parent, which neither end's rules have seen; from the
 *                     wire, which the parent's ingress has told us of in skb->priority
 *
 * So both ends' rules are asked at the receiver, where the sender cannot bypass them, and the outside's at the
 * parent. skb->priority is what tells them apart: the kernel sets it to 0 where one pod's packet is handed to
 * another, and to nothing where it comes from the wire. What came from a pod has no trace of it but the socket that
 * sent it, if any: from Linux 6.15 on we are told in which network namespace that is.
 *
 * A pod's interface has a program of a few instructions for itself, which says which pod it is in skb->cb and goes on
 * with the one that ipvlan_jump has.
 *
 * Data in: who is behind a parent, written by bgpd/policy/ipvlans.py, and the maps of verdict.h and flow.h. Data out:
 * a counter per verdict, and an event for what a rule set denies.
 */
#include "bgpd/flow.h"
#include "bgpd/frame.h"
#include "bgpd/layout.h"
#include "bgpd/parse.h"
#include "bgpd/verdict.h"

/* Read by the daemon before it loads anything; as a type it lands in BTF. */
const enum bgpd_abi layout SEC("bgpd_abi") = BGPD_ABI;

POLICY_HASH(ipvlan_addresses, struct ipvlan_address_key, struct ipvlan_owner, IPVLAN_ADDRESSES);
POLICY_HASH(ipvlan_pods, __u64, struct ipvlan_pod, IPVLAN_PODS);
POLICY_HASH(ipvlan_vlans, struct vlan_key, struct vlan, VLANS);
POLICY_HASH(ipvlan_tunnels, __be16, __u8, TUNNELS);		      /* to be there is all */
POLICY_TRIE(ipvlan_foreign, struct lpm_key_v6, __u8, IPVLAN_FOREIGN); /* to be there is all */

/*
 * The namespaces of pods that a parent has let send as the node, masqueraded. Where the parent is in a VLAN, the same
 * packets pass the one below, which sees the node's address and the pod's namespace, and no mark: there that proves
 * nothing, for a pod in mode L2 can set it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct ipvlan_sender);
	__type(value, __u8); /* to be there is all */
	__uint(max_entries, IPVLAN_PODS);
} ipvlan_masqueraded SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
} ipvlan_jump SEC(".maps");

/* What the parent's ingress says of a packet in skb->priority; no class of a qdisc. */
enum ipvlan_origin {
	ORIGIN_WIRE = 0x62670001,   /* its source is no pod's; whether the pod may get it has not been asked */
	ORIGIN_JUDGED = 0x62670002, /* it may */
	ORIGIN_STACK = 0x62670003, /* said by bgpd/policy/chains.py of what a pod sends by the node's stack: it may */
};

/* The cookie of the first network namespace; see macvlan.bpf.c on what else is sent in it. */
#define INIT_NETNS 1

static __always_inline const struct ipvlan_owner *owner_of(__u32 parent, const struct policy_address *address)
{
	struct ipvlan_address_key key = {.parent = parent, .address = *address};

	return bpf_map_lookup_elem(&ipvlan_addresses, &key);
}

static __always_inline int is_pod(const struct ipvlan_owner *owner)
{
	return owner && owner->pod;
}

/* UNDECIDED: as far as is known, the address is of whoever has sent it. `netns`: where that was; 0: nobody says. */
static __always_inline enum policy_verdict check_owner(const struct ipvlan_owner *owner, __u64 netns)
{
	if (owner->flags & IPVLAN_CLOSED)
		return POLICY_STRANGER;
	if (netns && netns != INIT_NETNS && owner->netns && netns != owner->netns)
		return POLICY_SPOOFED;
	return UNDECIDED;
}

/* The address that a frame says its sender has: of ARP and neighbor advertisements the one that they are about. */
static __always_inline int read_claim(struct __sk_buff *skb, const struct frame *frame, struct policy_address *claim)
{
	struct arp arp;
	__be32 address;

	if (frame->eth.h_proto == bpf_htons(ETH_P_ARP)) {
		if (load(skb, 0, &arp, sizeof(arp)))
			return 0;
		__builtin_memcpy(&address, arp.sender, sizeof(address));
		map_v4(claim, &address);
		return 1;
	}
	if (frame->packet.protocol == IPPROTO_ICMPV6 && frame->packet.icmp_type == ICMPV6_NEIGHBOR_ADVERTISEMENT)
		return !load(skb, frame->packet.transport + ADVERTISED_AT, claim, sizeof(*claim));
	*claim = frame->packet.source;
	return 1;
}

static __always_inline int is_v4_zero(const struct policy_address *address)
{
	const __u32 *words = (const void *)address->bytes;

	return is_v4(address) && !words[3];
}

/* ARP and neighbor discovery, which no rule speaks of. */
static __always_inline int is_neighbors(const struct frame *frame)
{
	return frame->eth.h_proto == bpf_htons(ETH_P_ARP) ||
	       (frame->state == PACKET_WHOLE && is_on_link(&frame->packet));
}

/* False: neither ARP nor a packet whose addresses are known. */
static __always_inline int is_readable(const struct frame *frame)
{
	return frame->eth.h_proto == bpf_htons(ETH_P_ARP) ||
	       (frame->state != PACKET_NOT_IP && frame->state != PACKET_BAD_HEADER);
}

/* A tag that is in the frame itself. The kernel keeps those of the node's interfaces in VLANs beside it. */
static __always_inline int has_inner_tag(struct __sk_buff *skb, const struct frame *frame)
{
	return !skb->vlan_present &&
	       (frame->eth.h_proto == bpf_htons(ETH_P_8021Q) || frame->eth.h_proto == bpf_htons(ETH_P_8021AD));
}

/* What no pod may send. */
static __always_inline int is_routers(const struct packet *packet)
{
	return packet->protocol == IPPROTO_ICMPV6 &&
	       (packet->icmp_type == ICMPV6_ROUTER_ADVERTISEMENT || packet->icmp_type == ICMPV6_REDIRECT);
}

/* From an address that nobody here has: what whoever has none yet may send, and no more. */
static __always_inline enum policy_verdict check_nobody(const struct frame *frame, const struct policy_address *claim)
{
	if (frame->eth.h_proto == bpf_htons(ETH_P_ARP))
		return is_v4_zero(claim) ? POLICY_NEIGHBOR : POLICY_SPOOFED; /* probes, RFC 5227 */
	if (is_link_local(claim) || is_zero(claim))
		return is_neighbors(frame) && !is_routers(&frame->packet) ? POLICY_NEIGHBOR : POLICY_SPOOFED;
	return POLICY_SPOOFED;
}

/* What the functions below say: UNDECIDED if rules are to be asked. As `parse_v6` they are not static. */

/* --- from pods and the node to the wire ------------------------------------------------------------------------- */

/* An address that the node sends from without having it. */
static __always_inline int is_foreign(const struct policy_address *address)
{
	struct lpm_key_v6 key = {.prefixlen = sizeof(key.addr) * 8};

	__builtin_memcpy(key.addr, address, sizeof(key.addr));
	return !!bpf_map_lookup_elem(&ipvlan_foreign, &key);
}

/* What is from an address that neither a pod nor the node has. */
static __always_inline enum policy_verdict check_unknown(struct __sk_buff *skb, const struct frame *frame,
							 const struct policy_address *claim, __u64 netns, __u64 node)
{
	if (netns && netns == node)
		return POLICY_NOT_ISOLATED;
	if (skb->ingress_ifindex && !netns)
		return POLICY_NOT_ISOLATED; /* the node forwards it: judged there */
	if (is_foreign(claim) && !netns)
		return POLICY_NOT_ISOLATED;
	return is_dhcp_request(frame) ? POLICY_NEIGHBOR : check_nobody(frame, claim);
}

static __always_inline int is_nodes_tunnel(const struct ipvlan_owner *owner, const struct frame *frame)
{
	return !is_pod(owner) && is_tunnel(&ipvlan_tunnels, frame);
}

/* What comes by an interface of the node's in a VLAN. A pod of this parent, which could tag its frames, does not. */
static __always_inline enum policy_verdict check_vlan(struct __sk_buff *skb, const struct frame *frame,
						      const struct policy_address *claim, __u64 netns,
						      const struct vlan *vlan)
{
	const struct policy_address none = {};
	const struct ipvlan_owner *node = vlan->above ? owner_of(vlan->above, &none) : NULL, *owner;
	const struct ipvlan_sender sender = {.netns = netns, .parent = vlan->above};
	enum policy_verdict verdict;

	if (!node)
		return is_pod(owner_of(frame->parent, claim)) ? POLICY_NOT_IP : POLICY_NOT_ISOLATED;
	owner = is_zero(claim) ? NULL : owner_of(vlan->above, claim);
	if (!is_pod(owner) && bpf_map_lookup_elem(&ipvlan_masqueraded, &sender))
		return POLICY_NOT_ISOLATED;
	if (!owner)
		return check_unknown(skb, frame, claim, netns, node->netns);
	if (is_nodes_tunnel(owner, frame))
		return POLICY_NOT_ISOLATED;
	verdict = check_owner(owner, netns);
	return verdict == UNDECIDED ? POLICY_NOT_ISOLATED : verdict;
}

/* The node's own namespace, as the entry of no address has it; 0: not known. */
static __always_inline __u64 node_netns(__u32 parent)
{
	const struct policy_address none = {};
	const struct ipvlan_owner *node = owner_of(parent, &none);

	return node ? node->netns : 0;
}

/* Whether the table of the node has let it pass: in modes L3 and L3S a pod cannot say so itself. */
static __always_inline int is_from_stack(struct __sk_buff *skb, __u32 parent)
{
	const struct policy_address none = {};
	const struct ipvlan_owner *node;

	if (skb->priority != ORIGIN_STACK)
		return 0;
	skb->priority = 0;
	node = owner_of(parent, &none);
	return node && node->flags & IPVLAN_STACK;
}

/* Told to the parent below, if there is one. */
static __always_inline enum policy_verdict note_masqueraded(__u32 parent, __u64 netns)
{
	const struct ipvlan_sender sender = {.netns = netns, .parent = parent};
	const __u8 present = 0;

	if (netns && !bpf_map_lookup_elem(&ipvlan_masqueraded, &sender))
		bpf_map_update_elem(&ipvlan_masqueraded, &sender, &present, BPF_ANY);
	return POLICY_NOT_ISOLATED;
}

__noinline int check_leaving(struct __sk_buff *skb, const struct frame *frame, __u64 netns)
{
	const struct ipvlan_owner *owner;
	struct policy_address claim;
	enum policy_verdict verdict;
	const struct vlan *vlan;
	int from_stack;
	__u64 node;

	if (!frame)
		return POLICY_BAD_HEADER;
	from_stack = is_from_stack(skb, frame->parent);
	node = node_netns(frame->parent);
	if (!is_readable(frame)) {
		if (netns && node && netns != INIT_NETNS && netns != node)
			return POLICY_NOT_IP;
		if (has_inner_tag(skb, frame) && !(netns && netns == node))
			return POLICY_NOT_IP;
		return skb->vlan_present || skb->protocol == frame->eth.h_proto ? POLICY_NOT_ISOLATED : POLICY_NOT_IP;
	}
	if (!read_claim(skb, frame, &claim))
		return POLICY_BAD_HEADER;
	vlan = vlan_of(&ipvlan_vlans, skb);
	if (vlan)
		return check_vlan(skb, frame, &claim, netns, vlan);
	owner = is_zero(&claim) ? NULL : owner_of(frame->parent, &claim);
	if (from_stack && !is_pod(owner))
		return note_masqueraded(frame->parent, netns);
	if (!owner)
		return check_unknown(skb, frame, &claim, netns, node);
	if (is_nodes_tunnel(owner, frame))
		return POLICY_NOT_ISOLATED;
	verdict = check_owner(owner, netns);
	if (verdict != UNDECIDED)
		return verdict;
	if (!is_pod(owner))
		return POLICY_NOT_ISOLATED;
	if (skb->vlan_present && skb->vlan_tci & VLAN_ID)
		return POLICY_NOT_IP; /* a pod is in no VLAN */
	/* 0: a packet socket has not said, and older kernels do not look at the frame then */
	if (skb->protocol && skb->protocol != frame->eth.h_proto && !skb->vlan_present)
		return POLICY_NOT_IP;
	if (is_routers(&frame->packet))
		return POLICY_SPOOFED;
	return is_neighbors(frame) ? POLICY_NEIGHBOR : UNDECIDED;
}

static __always_inline int leave(struct __sk_buff *skb, __u64 netns)
{
	enum policy_verdict verdict = POLICY_BAD_HEADER;
	struct frame frame = {};

	if (read_frame(skb, &frame))
		verdict = check_leaving(skb, &frame, netns);
	if (verdict == UNDECIDED)
		verdict = track(skb, &frame.packet, frame.state, judge);
	return passes(counted(verdict)) ? NEXT : TC_ACT_SHOT;
}

SEC("tc")
int ipvlan_egress(struct __sk_buff *skb)
{
	return leave(skb, skb->sk ? bpf_get_netns_cookie(skb) : 0);
}

/* Before Linux 6.15, where nobody says which namespace a packet comes from. */
SEC("tc")
int ipvlan_egress_v6_6(struct __sk_buff *skb)
{
	return leave(skb, 0);
}

/* --- from the wire ---------------------------------------------------------------------------------------------- */

__noinline int check_arriving(struct __sk_buff *skb, const struct frame *frame)
{
	const struct ipvlan_owner *sender, *receiver;
	struct policy_address claim;
	int inside;

	if (!frame)
		return POLICY_BAD_HEADER;
	if (is_group(frame->eth.h_source))
		return POLICY_SPOOFED;
	/* the kernel hands to the node what a pod sends to the MAC address that they share */
	inside = same_mac(frame->eth.h_source, frame->eth.h_dest);
	if (!is_readable(frame))
		return inside ? POLICY_NOT_IP : POLICY_NOT_ISOLATED; /* no pod takes it */
	if (!read_claim(skb, frame, &claim))
		return POLICY_BAD_HEADER;
	sender = owner_of(frame->parent, &claim);
	receiver = owner_of(frame->parent, &frame->packet.destination);
	if (inside && is_pod(sender) && !(sender->flags & IPVLAN_CLOSED) && !is_pod(receiver))
		return POLICY_NOT_ISOLATED;
	if (inside || is_pod(sender))
		return POLICY_SPOOFED;
	if (skb->vlan_present && skb->vlan_tci & VLAN_ID)
		return POLICY_NOT_ISOLATED; /* of an interface of the node's; no pod takes it */
	if (!is_pod(receiver) || is_neighbors(frame)) {
		skb->priority = ORIGIN_WIRE;
		return POLICY_NOT_ISOLATED;
	}
	if (receiver->flags & IPVLAN_CLOSED)
		return POLICY_STRANGER;
	if (!(receiver->flags & IPVLAN_STACK))
		skb->priority = ORIGIN_JUDGED;
	return UNDECIDED;
}

SEC("tc")
int ipvlan_ingress(struct __sk_buff *skb)
{
	enum policy_verdict verdict = POLICY_BAD_HEADER;
	struct frame frame = {};

	skb->priority = 0;
	if (read_frame(skb, &frame))
		verdict = check_arriving(skb, &frame);
	if (verdict == UNDECIDED)
		verdict = track(skb, &frame.packet, frame.state, judge);
	return passes(counted(verdict)) ? NEXT : TC_ACT_SHOT;
}

/* --- to a pod --------------------------------------------------------------------------------------------------- */

/* Whether a pod, or the node by an ipvlan of its own, says truly who it is. */
static __always_inline enum policy_verdict check_neighbor(struct __sk_buff *skb, const struct frame *frame,
							  __u32 parent, __u64 netns)
{
	const struct ipvlan_owner *owner;
	struct policy_address claim;
	enum policy_verdict verdict;

	if (!read_claim(skb, frame, &claim))
		return POLICY_BAD_HEADER;
	owner = is_zero(&claim) ? NULL : owner_of(parent, &claim);
	if (!owner)
		return check_nobody(frame, &claim);
	verdict = check_owner(owner, netns);
	if (verdict != UNDECIDED)
		return verdict;
	if (!is_pod(owner))
		return owner->flags & IPVLAN_BESIDE ? POLICY_NOT_ISOLATED : POLICY_SPOOFED;
	if (is_routers(&frame->packet))
		return POLICY_SPOOFED;
	return is_neighbors(frame) ? POLICY_NEIGHBOR : UNDECIDED;
}

/* What is for a group, or an address that no rule knows, is then for the pod's own. */
__noinline int check_delivery(struct __sk_buff *skb, struct frame *frame, __u64 netns)
{
	const __u64 number = (__u64)skb->cb[1] << 32 | skb->cb[0];
	const struct ipvlan_pod *pod = bpf_map_lookup_elem(&ipvlan_pods, &number);
	const struct ipvlan_owner *owner;
	enum policy_verdict verdict;

	if (!frame || !pod)
		return POLICY_STRANGER;
	if (!is_readable(frame))
		return frame->state == PACKET_NOT_IP ? POLICY_NOT_IP : POLICY_BAD_HEADER;
	if (skb->priority == ORIGIN_WIRE) {
		skb->priority = 0;
		verdict = is_neighbors(frame) ? POLICY_NEIGHBOR : UNDECIDED;
	} else {
		verdict = check_neighbor(skb, frame, pod->parent, netns);
	}
	if (verdict != UNDECIDED)
		return verdict;
	owner = owner_of(pod->parent, &frame->packet.destination);
	if (!owner || owner->pod != number)
		frame->packet.destination = is_v4(&frame->packet.source) ? pod->v4 : pod->v6;
	return UNDECIDED;
}

static __always_inline int deliver(struct __sk_buff *skb, __u64 netns)
{
	enum policy_verdict verdict = POLICY_BAD_HEADER;
	struct frame frame = {};

	if (skb->priority == ORIGIN_JUDGED) {
		skb->priority = 0;
		return NEXT;
	}
	if (read_frame(skb, &frame))
		verdict = check_delivery(skb, &frame, netns);
	if (verdict == UNDECIDED)
		verdict = track(skb, &frame.packet, frame.state, judge);
	return passes(counted(verdict)) ? NEXT : TC_ACT_SHOT;
}

SEC("tc")
int ipvlan_pod(struct __sk_buff *skb)
{
	return deliver(skb, skb->sk ? bpf_get_netns_cookie(skb) : 0);
}

/* Before Linux 6.15. */
SEC("tc")
int ipvlan_pod_v6_6(struct __sk_buff *skb)
{
	return deliver(skb, 0);
}

/* No helper used here is restricted to GPL-compatible programs. */
char LICENSE[] SEC("license") = "Apache-2.0";
