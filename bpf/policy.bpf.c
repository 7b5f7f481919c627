// SPDX-License-Identifier: Apache-2.0
/*
 * NetworkPolicy where packets are forwarded: asked by the rules of bgpd/policy/table.py, for every packet, after
 * services have been translated to their endpoints and before anybody masquerades, so that both true ends are seen.
 *
 * The programs differ in who is taken for the client of a flow. `policy` and `policy_reply` leave that to the
 * kernel's connection tracking. Data in: the maps of verdict.h, written by bgpd/policy/map.py. Data out: a counter
 * per verdict, and an event for what a rule set denies.
 */
#include "bgpd/flow.h"
#include "bgpd/layout.h"
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
	return judge(&packet, state, reply);
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

/* Of a bridge's own forwarding, where the kernel tracks nothing. */
SEC("socket")
int policy_bridge(struct __sk_buff *skb)
{
	struct packet packet = {};
	enum packet_state state = parse(skb, skb->protocol, 0, &packet);

	if (state == PACKET_NOT_IP)
		return !passes(counted(POLICY_NOT_IP));
	if (state == PACKET_BAD_HEADER)
		return !passes(counted(POLICY_BAD_HEADER));
	return !passes(counted(track(skb, &packet, state)));
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
