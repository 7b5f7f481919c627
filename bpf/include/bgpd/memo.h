/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Verdicts that are remembered: to judge a packet takes four hash tables, to find what was said of the one before it
 * one slot of an array, which belongs to the CPU.
 *
 * Contract: `recall` says what `judge` would, of every packet. A verdict counts under the number in policy_revision
 * that was there when it was being formed, and under no other. bgpd/policy/map.py takes the number away, which is 0,
 * before it writes what `judge` reads, and gives another, which has never been there, when every program has ended
 * that may have read what was before. Only what passes is remembered: of what does not, each packet is told. A
 * release whose `judge` says otherwise renames policy_memo, so that nobody finds what another's has said.
 *
 * Nobody else writes to a CPU's slots, unless one packet comes in the middle of another (outside of softirq: as those
 * do that NFQUEUE gives back, or that local processes send). The seal is a hash of the whole key that begins with the
 * revision, which nobody outside knows: it is right for no slot in which two keys are mixed.
 */
#ifndef BGPD_MEMO_H
#define BGPD_MEMO_H

#include "bgpd/layout.h"
#include "bgpd/parse.h"
#include "bgpd/verdict.h"

struct memo {
	__u64 seal; /* of the revision, and of all that is below but the verdict */
	struct policy_address source;
	struct policy_address destination;
	__be16 source_port;
	__be16 destination_port;
	__u8 protocol;
	__u8 verdict;
	__u8 pad[2];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct memo);
	__uint(max_entries, POLICY_MEMOS);
} policy_memo SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 1);
} policy_revision SEC(".maps");

/* What can be told apart by addresses, protocol and ports alone. */
static __always_inline int is_plain(const struct packet *packet, enum packet_state state)
{
	return state == PACKET_WHOLE && (packet->protocol == IPPROTO_TCP || packet->protocol == IPPROTO_UDP ||
					 packet->protocol == IPPROTO_SCTP);
}

static __always_inline __u64 mixed(__u64 so_far, __u64 word)
{
	so_far ^= word;
	so_far ^= so_far >> 32;		 /* before it, too: the highest bit is multiplied to itself */
	so_far *= 0x9e3779b97f4a7c15ULL; /* 2^64 by the golden ratio, Knuth 6.4 */
	return so_far ^ so_far >> 32;
}

static __always_inline __u64 seal_of(const struct packet *packet, __u64 revision)
{
	const __u64 *source = (const void *)packet->source.bytes,
		    *destination = (const void *)packet->destination.bytes;
	__u64 ports = (__u64)packet->source_port << 16 | packet->destination_port;

	return mixed(mixed(mixed(mixed(mixed(revision, source[0]), source[1]), destination[0]), destination[1]),
		     ports << 8 | packet->protocol);
}

/* Where this packet's verdict is, or is to be; NULL: nothing is remembered of it. */
static __always_inline struct memo *slot_of(const struct packet *packet, enum packet_state state, __u64 *seal)
{
	const __u32 only = 0;
	const __u64 *revision = bpf_map_lookup_elem(&policy_revision, &only);
	__u64 now = revision ? *(const volatile __u64 *)revision : 0;
	__u32 slot;

	if (!now || !is_plain(packet, state))
		return NULL;
	*seal = seal_of(packet, now);
	slot = *seal % POLICY_MEMOS;
	return bpf_map_lookup_elem(&policy_memo, &slot);
}

static __always_inline int is_of(const struct memo *memo, const struct packet *packet, __u64 seal)
{
	return memo->seal == seal && same_address(&memo->source, &packet->source) &&
	       same_address(&memo->destination, &packet->destination) && memo->source_port == packet->source_port &&
	       memo->destination_port == packet->destination_port && memo->protocol == packet->protocol;
}

static __always_inline enum policy_verdict recall(const struct packet *packet, enum packet_state state, int reply)
{
	__u64 seal = 0;
	struct memo *memo = slot_of(packet, state, &seal);
	enum policy_verdict verdict;

	if (memo && is_of(memo, packet, seal))
		return memo->verdict;
	verdict = judge(packet, state, reply);
	if (memo && (verdict == POLICY_ALLOWED || verdict == POLICY_NOT_ISOLATED)) {
		memo->source = packet->source;
		memo->destination = packet->destination;
		memo->source_port = packet->source_port;
		memo->destination_port = packet->destination_port;
		memo->protocol = packet->protocol;
		memo->verdict = verdict;
		memo->seal = seal;
	}
	return verdict;
}

#endif /* BGPD_MEMO_H */
