// SPDX-License-Identifier: Apache-2.0
/*
 * NetworkPolicy where packets are forwarded: asked by the rules of bgpd/policy/chains.py, for every packet, after
 * services have been translated to their endpoints and before anybody masquerades, so that both true ends are seen.
 *
 * The programs differ in who is taken for the client of a flow. `policy` and `policy_reply` leave that to the
 * kernel's connection tracking. Data in: the maps of verdict.h, written by bgpd/policy/map.py. Data out: a counter
 * per verdict, and an event for what a rule set denies.
 */

/* A bridge with `vlan_filtering` that puts a tag back leaves the network header behind it: see `load`. */
#define FROM_MAC 0x80000000

#include "bgpd/flow.h"
#include "bgpd/layout.h"
#include "bgpd/memo.h"
#include "bgpd/parse.h"
#include "bgpd/verdict.h"

/* Read by the daemon before it loads anything; as a type it lands in BTF. */
const enum bgpd_abi layout SEC("bgpd_abi") = BGPD_ABI;

POLICY_HASH(policy_links, __u32, struct policy_link, POLICY_LINKS); /* by ifindex */

static __always_inline enum policy_verdict decide(struct __sk_buff *skb, int reply)
{
	struct packet packet = {};
	enum packet_state state = parse(skb, skb->protocol, 0, &packet);

	if (state == PACKET_NOT_IP)
		return POLICY_NOT_IP;
	if (state == PACKET_BAD_HEADER)
		return POLICY_BAD_HEADER;
	if (reply)
		turn(&packet);
	return recall(&packet, state, reply);
}

/* For xt_bpf, as all of these: what does not return 0 matches, and is dropped. */
SEC("socket")
int policy(struct __sk_buff *skb)
{
	return !passes(counted(decide(skb, 0)));
}

SEC("socket")
int policy_reply(struct __sk_buff *skb)
{
	return !passes(counted(decide(skb, 1)));
}

/* More before the packet than any network gives; a receiver would take off as many as are of VLAN 0. */
#define VLAN_TAGS 8

/* linux/if_vlan.h has it for the kernel only. */
struct vlan_tag {
	__be16 tci;
	__be16 ethertype;
};

static __always_inline int is_vlan(__u32 ethertype)
{
	return ethertype == bpf_htons(ETH_P_8021Q) || ethertype == bpf_htons(ETH_P_8021AD);
}

/*
 * As `parse`, of what comes with tags in the frame; one more may be beside it. Whoever gets the frame takes tags of
 * VLAN 0 off as if there were none, and one more if it is in that VLAN. Two VLANs are a provider's, whose packets
 * are none of ours: PACKET_NOT_IP. Not static, so that other frames do not pay for it.
 */
__noinline int parse_below_tags(struct __sk_buff *skb, struct packet *packet)
{
	int vlans = skb->vlan_present && skb->vlan_tci & VLAN_ID;
	struct vlan_tag tag = {.ethertype = skb->protocol};
	__u32 at = FROM_MAC | ETH_HLEN;

	if (!packet)
		return PACKET_BAD_HEADER;
	for (int each = 0; each < VLAN_TAGS && is_vlan(tag.ethertype); each++) {
		if (load(skb, at, &tag, sizeof(tag)))
			return PACKET_BAD_HEADER;
		at += sizeof(tag);
		vlans += !!(tag.tci & bpf_htons(VLAN_ID));
		if (vlans > 1)
			return PACKET_NOT_IP;
	}
	return is_vlan(tag.ethertype) ? PACKET_BAD_HEADER : parse(skb, tag.ethertype, at, packet);
}

/* Of a bridge's own forwarding, where the kernel tracks nothing. */
SEC("socket")
int policy_bridge(struct __sk_buff *skb)
{
	struct packet packet = {};
	enum packet_state state = parse(skb, skb->protocol, 0, &packet);

	if (state == PACKET_NOT_IP && is_vlan(skb->protocol)) {
		state = parse_below_tags(skb, &packet);
		if (state == PACKET_NOT_IP)
			return !passes(counted(POLICY_NOT_ISOLATED));
	}
	if (state == PACKET_NOT_IP)
		return !passes(counted(POLICY_NOT_IP));
	if (state == PACKET_BAD_HEADER)
		return !passes(counted(POLICY_BAD_HEADER));
	return !passes(counted(track(skb, &packet, state, recall)));
}

/* Of what a bridge gives to a pod astray; skb->ifindex is the port that the frame leaves by. */
static __always_inline enum policy_verdict decide_astray(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	const struct policy_link *link = bpf_map_lookup_elem(&policy_links, &ifindex);
	const struct policy_peer *server;
	struct packet packet = {};
	struct side side;
	enum packet_state state = parse(skb, skb->protocol, 0, &packet);

	if (state == PACKET_NOT_IP || !link)
		return POLICY_NOT_IP;
	if (state == PACKET_BAD_HEADER)
		return POLICY_BAD_HEADER;
	if (is_neighbor_discovery(&packet))
		return POLICY_NEIGHBOR;
	server = astray(&packet.source, is_v4(&packet.source) ? &link->v4 : &link->v6, &side);
	if (!server)
		return POLICY_NOT_ISOLATED;
	return judge_side(&side, &packet, state, 0, !!(server->flags & POLICY_AUDIT));
}

SEC("socket")
int policy_astray(struct __sk_buff *skb)
{
	return !passes(counted(decide_astray(skb)));
}

/* No helper used here is restricted to GPL-compatible programs. */
char LICENSE[] SEC("license") = "Apache-2.0";
