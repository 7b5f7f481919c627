/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What programs and daemon share in maps: keys, values and the numbers in them. This is the only definition;
 * bgpd/datapath/layout.py is its twin, held to it by tests/bpf/test_layout.py through BTF.
 *
 * Maps outlive both sides. A change of what a map's bytes mean renames the map, so that nobody reads old bytes with
 * new eyes, and BGPD_ABI goes up by one, so that the daemon refuses an object of another layout.
 */
#ifndef BGPD_LAYOUT_H
#define BGPD_LAYOUT_H

#include <linux/types.h>

enum bgpd_abi {
	BGPD_ABI = 1,
};

/*
 * A prefix, as every longest-prefix-match map has it: the length in host order, then the address as on the wire.
 * Cilium's ipmasq maps have the same bytes, which lets one side read the other's. The v4 key is the beginning of the
 * v6 key: a program may build either in the larger one.
 */
struct lpm_key_v4 {
	__u32 prefixlen;
	__u8 addr[4];
};

struct lpm_key_v6 {
	__u32 prefixlen;
	__u8 addr[16];
};

_Static_assert(sizeof(struct lpm_key_v4) == 8, "Cilium's ipmasq_v4 key has 8 bytes");
_Static_assert(sizeof(struct lpm_key_v6) == 20, "Cilium's ipmasq_v6 key has 20 bytes");
_Static_assert(__builtin_offsetof(struct lpm_key_v4, addr) == __builtin_offsetof(struct lpm_key_v6, addr),
	       "the v4 key is the beginning of the v6 key");

/* Entries per masquerade list: as many as Cilium's maps take. */
#define IPMASQ_ENTRIES 16384

/* Why a flow keeps its address or not, and the index of its counter in masq_verdicts. Numbers are never reused. */
enum masq_verdict {
	MASQ_LISTED = 0,     /* kept: an entry of the list covers the destination */
	MASQ_NOT_LISTED = 1, /* masqueraded: none does */
	MASQ_NOT_IP = 2,     /* masqueraded: neither IPv4 nor IPv6 */
	MASQ_TRUNCATED = 3,  /* masqueraded: shorter than the fixed IP header */
	MASQ_BAD_HEADER = 4, /* masqueraded: the IP header contradicts the protocol, or itself */
	MASQ_VERDICTS,
};

#endif /* BGPD_LAYOUT_H */
