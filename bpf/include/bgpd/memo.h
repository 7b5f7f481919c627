/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is remembered, so that of most packets no hash table is asked: what the maps say of an address, and which
 * packets rules let pass. Arrays that belong to the CPU, a slot of which is one look. Nothing is kept of flows: a new
 * one finds what others have left.
 *
 * Contract: `recall` says what `judge` would, of every packet. What is remembered counts under the number in
 * policy_revision that was there when it was being looked up, and under no other. bgpd/policy/map.py takes the number
 * away, which is 0, before it writes what `judge` reads, and gives another, which has never been there, when every
 * program has ended that may have read what was before. Of what rules do not let pass nothing is remembered: each
 * packet is told. A release that finds something else in the same maps renames these two, so that nobody believes
 * what another's has left.
 *
 * Nobody else writes to a CPU's slots, unless outside of softirq (of what NFQUEUE gives back, or local processes
 * send) one packet comes in the middle of another, or its program is moved to another CPU. The seal is a hash of all
 * that is in a slot that begins with the revision, which nobody outside knows: it is right for no slot in which two
 * are mixed.
 */
#ifndef BGPD_MEMO_H
#define BGPD_MEMO_H

#include "bgpd/layout.h"
#include "bgpd/parse.h"
#include "bgpd/verdict.h"

struct seen {
	__u64 seal; /* of the revision, and of all that is below */
	struct policy_address address;
	struct policy_peer peer; /* of one that is none: no sets, NO_PEER, and its class by address blocks */
};

#define NO_PEER (1U << 31) /* in flags, and in no map but this */

/* Packets as rules tell them apart; all of them pass. */
struct passed {
	__u64 seal;    /* of the revision, and of all that is below */
	__u64 egress;  /* the client's set, and what class the server is in there; 0: it has none */
	__u64 ingress; /* so of the server */
	__u64 service; /* its protocol and port */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct seen);
	__uint(max_entries, POLICY_SEEN);
} policy_seen SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct passed);
	__uint(max_entries, POLICY_PASSED);
} policy_passed SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 1);
} policy_revision SEC(".maps");

/* 0: nothing may be remembered, nor counts what is. */
static __always_inline __u64 revision(void)
{
	const __u32 only = 0;
	const __u64 *now = bpf_map_lookup_elem(&policy_revision, &only);

	return now ? *(const volatile __u64 *)now : 0;
}

/* What can be told apart by addresses, protocol and ports alone. */
static __always_inline int is_plain(const struct packet *packet, enum packet_state state)
{
	return state == PACKET_WHOLE && (packet->protocol == IPPROTO_TCP || packet->protocol == IPPROTO_UDP ||
					 packet->protocol == IPPROTO_SCTP);
}

/* The second shift is another one: the first shift of the next word would undo the same. */
static __always_inline __u64 mixed(__u64 so_far, __u64 word)
{
	so_far ^= word;
	so_far ^= so_far >> 32;		 /* before it, too: the highest bit is multiplied to itself */
	so_far *= 0x9e3779b97f4a7c15ULL; /* 2^64 by the golden ratio, Knuth 6.4 */
	return so_far ^ so_far >> 29;
}

static __always_inline __u64 pair(__u32 high, __u32 low)
{
	return (__u64)high << 32 | low;
}

static __always_inline __u64 with_peer(__u64 so_far, const struct policy_peer *peer)
{
	return mixed(mixed(so_far, pair(peer->class, peer->flags)), pair(peer->egress_set, peer->ingress_set));
}

/* The two of a flow as they have been seen, and as what the other's rules know each; 0 where none is asked. */
struct met {
	struct policy_peer client, server;
	__u32 client_class, server_class;
};

/* All that there is to say of it, asked or not: tries as well. */
static __always_inline void look_up(const struct policy_address *address, struct policy_peer *peer)
{
	const struct policy_peer *found = bpf_map_lookup_elem(&policy_peers, address);

	if (found)
		*peer = *found;
	else
		*peer = (struct policy_peer){.class = class_of(address, NULL, 1), .flags = NO_PEER};
}

static __always_inline void see(const struct policy_address *address, __u64 revision, struct policy_peer *peer)
{
	const __u64 *words = (const void *)address->bytes;
	/* what goes in last moves a slot as far under every revision: not where neighbors differ */
	const __u64 place = mixed(mixed(revision, words[1]), words[0]);
	__u32 slot = place % POLICY_SEEN;
	struct seen *seen = bpf_map_lookup_elem(&policy_seen, &slot);

	if (!seen) {
		look_up(address, peer);
		return;
	}
	if (same_address(&seen->address, address)) {
		*peer = seen->peer;
		barrier(); /* what the seal is asked of is what is taken, whatever comes into the slot meanwhile */
		if (seen->seal == with_peer(place, peer))
			return;
	}
	look_up(address, peer);
	seen->address = *address;
	seen->peer = *peer;
	seen->seal = with_peer(place, peer);
}

/* As `class_of`, of what has been seen. */
static __always_inline __u32 class_seen(const struct policy_peer *peer, int cidrs)
{
	return peer->flags & NO_PEER && !cidrs ? 0 : peer->class;
}

/*
 * Both off the way of most packets, and not static: verified once, and not again with every state in which there may
 * be a call. What is asked of a map must lie in the frame of the function on kernels before 6.8, so they copy.
 */
__noinline int judge_anew(const struct packet *packet, __u32 state, int reply)
{
	struct packet own;

	if (!packet)
		return POLICY_BAD_HEADER;
	own = *packet;
	return judge(&own, state, reply);
}

__noinline int judge_met(const struct met *met, const struct packet *packet, int reply)
{
	struct ends ends;
	struct packet own;

	if (!met || !packet)
		return POLICY_BAD_HEADER;
	ends = (struct ends){&met->client, &met->server, met->client_class, met->server_class};
	own = *packet;
	return judge_ends(&ends, &own, PACKET_WHOLE, reply);
}

/* As `judge_met`, of what may have passed before. */
static __always_inline enum policy_verdict pass(const struct met *met, const struct packet *packet, int reply,
						__u64 revision)
{
	const __u64 egress = pair(met->client.egress_set, met->server_class),
		    ingress = pair(met->server.ingress_set, met->client_class),
		    service = pair(packet->protocol, packet->destination_port),
		    seal = mixed(mixed(mixed(revision, egress), ingress), service);
	__u32 slot = seal % POLICY_PASSED;
	struct passed *passed = bpf_map_lookup_elem(&policy_passed, &slot);
	enum policy_verdict verdict;

	if (passed && passed->seal == seal && passed->egress == egress && passed->ingress == ingress &&
	    passed->service == service)
		return POLICY_ALLOWED;
	verdict = judge_met(met, packet, reply);
	if (passed && verdict == POLICY_ALLOWED) {
		passed->egress = egress;
		passed->ingress = ingress;
		passed->service = service;
		passed->seal = seal;
	}
	return verdict;
}

static __always_inline enum policy_verdict recall(const struct packet *packet, enum packet_state state, int reply)
{
	const __u64 now = revision();
	struct met met = {};

	if (!now || !is_plain(packet, state))
		return judge_anew(packet, state, reply);
	if (same_address(&packet->source, &packet->destination))
		return POLICY_SELF;
	see(&packet->source, now, &met.client);
	see(&packet->destination, now, &met.server);
	if (!met.client.egress_set && !met.server.ingress_set)
		return POLICY_NOT_ISOLATED;
	if (met.client.egress_set)
		met.server_class = class_seen(&met.server, met.client.flags & POLICY_EGRESS_CIDRS);
	if (met.server.ingress_set)
		met.client_class = class_seen(&met.client, met.server.flags & POLICY_INGRESS_CIDRS);
	return pass(&met, packet, reply, now);
}

#endif /* BGPD_MEMO_H */
