// SPDX-License-Identifier: Apache-2.0
/*
 * Whether a flow that leaves the node keeps the pod's address or is masqueraded: it keeps it if an entry of the list
 * covers its destination. Asked once per flow by a rule of the nat table; conntrack does the translation and
 * remembers the answer, so that editing the list never changes an open flow.
 *
 * Data in: the list, ipmasq_v4 and ipmasq_v6, written by bgpd/masq/map.py. Data out: hits per entry, in maps with the
 * keys of the list, and a counter per verdict.
 *
 * Whatever has no destination that can be trusted is masqueraded. The node's address is what everything outside the
 * list sees anyway and what replies find their way back to, while a pod's address must not get to where the operator
 * has not allowed it.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "bgpd/layout.h"

/* Read by the daemon before it loads anything; as a type it lands in BTF. */
const enum bgpd_abi layout SEC("bgpd_abi") = BGPD_ABI;

#define IPMASQ_MAP(name, key_type, value_type)                                                                       \
	struct {                                                                                                     \
		__uint(type, BPF_MAP_TYPE_LPM_TRIE);                                                                 \
		__type(key, key_type);                                                                               \
		__type(value, value_type);                                                                           \
		__uint(max_entries, IPMASQ_ENTRIES);                                                                 \
		__uint(map_flags, BPF_F_NO_PREALLOC);                                                                \
	} name SEC(".maps")

IPMASQ_MAP(ipmasq_v4, struct lpm_key_v4, __u8); /* the value says nothing: to be there is all */
IPMASQ_MAP(ipmasq_v6, struct lpm_key_v6, __u8);
IPMASQ_MAP(ipmasq_hits_v4, struct lpm_key_v4, __u64); /* flows that an entry has covered */
IPMASQ_MAP(ipmasq_hits_v6, struct lpm_key_v6, __u64);

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32); /* enum masq_verdict */
	__type(value, __u64);
	__uint(max_entries, MASQ_VERDICTS);
} masq_verdicts SEC(".maps");

/* Shared between CPUs: at one addition per flow there is nothing to win by counting on each. */
static __always_inline void count(void *map, const void *key)
{
	__u64 *counter = bpf_map_lookup_elem(map, key);

	if (counter)
		__sync_fetch_and_add(counter, 1);
}

static __always_inline enum masq_verdict masq_lookup(void *list, void *hits, const void *addr, __u32 size)
{
	struct lpm_key_v6 key = {.prefixlen = size * 8};

	__builtin_memcpy(key.addr, addr, size);
	if (!bpf_map_lookup_elem(list, &key))
		return MASQ_NOT_LISTED;
	count(hits, &key);
	return MASQ_LISTED;
}

/*
 * The destination is taken from the fixed header. So a fragment is judged as its first one is, extension headers are
 * of no concern, and a packet with a routing header goes by the hop that it is sent to, which is what routing and
 * conntrack go by.
 */
static __always_inline enum masq_verdict masq_decide(struct __sk_buff *skb)
{
	union {
		struct iphdr v4;
		struct ipv6hdr v6;
	} ip;

	switch (skb->protocol) {
	case bpf_htons(ETH_P_IP):
		if (bpf_skb_load_bytes_relative(skb, 0, &ip.v4, sizeof(ip.v4), BPF_HDR_START_NET))
			return MASQ_TRUNCATED;
		if (ip.v4.version != 4 || ip.v4.ihl < sizeof(ip.v4) / 4)
			return MASQ_BAD_HEADER;
		return masq_lookup(&ipmasq_v4, &ipmasq_hits_v4, &ip.v4.daddr, sizeof(ip.v4.daddr));
	case bpf_htons(ETH_P_IPV6):
		if (bpf_skb_load_bytes_relative(skb, 0, &ip.v6, sizeof(ip.v6), BPF_HDR_START_NET))
			return MASQ_TRUNCATED;
		if (ip.v6.version != 6)
			return MASQ_BAD_HEADER;
		return masq_lookup(&ipmasq_v6, &ipmasq_hits_v6, &ip.v6.daddr, sizeof(ip.v6.daddr));
	default:
		return MASQ_NOT_IP;
	}
}

/* For xt_bpf: `-m bpf --object-pinned ... -j MASQUERADE` matches what does not return 0. */
SEC("socket")
int masquerade(struct __sk_buff *skb)
{
	__u32 verdict = masq_decide(skb);

	count(&masq_verdicts, &verdict);
	return verdict != MASQ_LISTED;
}

/* No helper used here is restricted to GPL-compatible programs. */
char LICENSE[] SEC("license") = "Apache-2.0";
