/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What programs and daemon share in maps: keys, values and the numbers in them. This is the only definition;
 * bgpd/datapath/layout.py is its twin, held to it by tests/bpf/test_layout.py through BTF.
 *
 * Maps outlive both sides. A change of what a map's bytes mean renames the map, so that nobody reads old bytes with
 * new eyes, and BGPD_ABI goes up by one, so that the daemon refuses an object of another layout. Who writes the maps
 * of policies withdraws policy_revision first; a release that had another duty would rename one of them.
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

/*
 * NetworkPolicy. What a pod may send and receive is a number, its set in that direction; what an address is to the
 * rules is a number too, its class. A rule is what a set says of a class, of a protocol and port too where that
 * matters. bgpd/policy/compile.py gives the numbers and resolves precedence before anything comes here; 0 is no set
 * (the direction is not isolated), and the class of an address that no rule tells from the rest of the world.
 */
struct policy_address {
	__u8 bytes[16]; /* IPv4 as ::ffff:a.b.c.d, RFC 4291 section 2.5.5.2 */
};

struct policy_peer {
	__u32 class;
	__u32 egress_set; /* of a pod of this node */
	__u32 ingress_set;
	__u32 flags; /* enum policy_peer_flag */
};

enum policy_peer_flag {
	POLICY_EGRESS_CIDRS = 1 << 0,  /* its egress rules tell addresses apart that are no peers */
	POLICY_INGRESS_CIDRS = 1 << 1, /* its ingress rules do */
	POLICY_AUDIT = 1 << 2,	       /* what its sets deny is recorded and passes */
};

struct policy_rule_key {
	__u32 set;
	__u32 class;
};

struct policy_rule {
	__u32 portset;
	__u8 verdict;	  /* enum policy_action; with POLICY_HAS_PORTS, for what the portset does not name */
	__u8 flags;	  /* enum policy_rule_flag */
	__u16 proxy_port; /* reserved */
	__u32 cookie;	  /* tells the origin of the rule */
};

enum policy_rule_flag {
	POLICY_HAS_PORTS = 1 << 0,  /* the portset has single ports */
	POLICY_HAS_RANGES = 1 << 1, /* the portset has ranges of ports, asked for what is no single port */
};

enum policy_action {
	POLICY_DENY = 0,
	POLICY_ALLOW = 1,
};

/* Of a protocol without ports the port is 0. */
struct policy_port_key {
	__u32 portset;
	__u8 protocol;
	__u8 pad;
	__u16 port; /* network order */
};

/* A range is the fewest prefixes that have it. The length counts from the portset: 48 bits and those of the port. */
struct policy_range_key {
	__u32 prefixlen;
	__u32 portset;
	__u8 protocol;
	__u8 pad;
	__u16 port; /* network order */
};

struct policy_port {
	__u8 verdict; /* enum policy_action */
	__u8 flags;   /* reserved */
	__u16 proxy_port;
	__u32 cookie;
};

_Static_assert(sizeof(struct policy_peer) == 16, "four numbers");
_Static_assert(sizeof(struct policy_rule) == 12, "no padding");
_Static_assert(sizeof(struct policy_port_key) == 8, "no padding");
_Static_assert(sizeof(struct policy_range_key) == 12, "no padding");
_Static_assert(sizeof(struct policy_port) == 8, "no padding");

/* Room, not memory: but for the buckets of a hash, an entry is allocated when it is written. */
#define POLICY_PEERS 131072
#define POLICY_CIDRS 65536
#define POLICY_RULES 262144
#define POLICY_PORTS 65536
#define POLICY_RANGES 65536
#define POLICY_SEEN 1024  /* of each CPU; 40 KB */
#define POLICY_PASSED 512 /* of each CPU; 16 KB */

/* What became of a packet, and the index of its counter in policy_verdicts. Numbers are never reused. */
enum policy_verdict {
	POLICY_NOT_ISOLATED = 0,   /* passed: no end is a pod that is isolated in this direction */
	POLICY_ALLOWED = 1,	   /* passed: by a rule */
	POLICY_SELF = 2,	   /* passed: a pod to itself, through a service */
	POLICY_NEIGHBOR = 3,	   /* passed: neighbor discovery on the link, RFC 4861 */
	POLICY_AUDITED = 4,	   /* passed: a rule set would deny it, and its namespace is in audit mode */
	POLICY_RELATED = 5,	   /* passed: an ICMP error of a flow that is known here */
	POLICY_DENIED_EGRESS = 6,  /* dropped: no egress rule of the sender allows it */
	POLICY_DENIED_INGRESS = 7, /* dropped: no ingress rule of the receiver allows it */
	POLICY_LATE_FRAGMENT = 8,  /* dropped: the port decides, and the fragment that has it was not seen */
	POLICY_NO_TRANSPORT = 9, /* dropped: an end is isolated, and where ports should be cannot be found or read */
	POLICY_BAD_HEADER = 10,	 /* dropped: the IP header is cut off, or contradicts the protocol or itself */
	POLICY_NOT_IP = 11,	 /* dropped: neither IPv4 nor IPv6 */
	POLICY_SPOOFED = 12,	 /* dropped: not an address of whoever sends it */
	POLICY_STRANGER = 13,	 /* dropped: of a macvlan that nobody has told of, or of a pod that is closed */
	POLICY_VERDICTS,
};

/* A packet that a set denies, as it comes through the ring buffer. The flow as its client began it. */
struct policy_event {
	__u64 at_ns; /* CLOCK_MONOTONIC */
	struct policy_address client;
	struct policy_address server;
	__u32 class;	   /* of the end whose rules were not asked */
	__u32 cookie;	   /* of the rule or port that denies; 0: none speaks of it */
	__u32 lost;	   /* events of this pod since the one before, over its rate or for want of room */
	__u16 client_port; /* network order */
	__u16 server_port;
	__u8 protocol;
	__u8 verdict; /* enum policy_verdict */
	__u8 ingress; /* whether the server's ingress set decided, not the client's egress set */
	__u8 flags;   /* enum policy_event_flag */
	__u32 pad;
};

enum policy_event_flag {
	POLICY_EVENT_REPLY = 1 << 0,   /* the packet went from server to client */
	POLICY_EVENT_AUDITED = 1 << 1, /* it passed: audit mode */
};

_Static_assert(sizeof(struct policy_event) == 64, "one cache line");

/* How often one pod may be heard of: so many at once, then one each interval. */
#define POLICY_EVENT_BURST 64
#define POLICY_EVENT_INTERVAL_NS 10000000ULL
#define POLICY_EVENT_BYTES (1 << 18)
#define POLICY_PACES 4096 /* pods that are told apart in that; a node has some hundred */

/* The pod behind a port of a bridge, by the port's ifindex; of a family that it has no address of, zero. */
struct policy_link {
	struct policy_address v4;
	struct policy_address v6;
};

#define POLICY_LINKS 4096

/* Where flows are not tracked by the kernel: see flow.h. */
struct policy_flow_ports {
	__u16 client; /* network order */
	__u16 server;
};

/* Packets of both directions have the same key, so that one look finds a flow whoever sends. */
struct policy_flow_key {
	struct policy_address low; /* the lower one as two numbers, whatever the machine takes them for */
	struct policy_address high;
	__u16 low_port; /* network order */
	__u16 high_port;
	__u8 protocol;
	__u8 pad[3];
} __attribute__((aligned(8))); /* see copy_address */

/* Until which tick it is remembered that the lower end has begun a flow with these ports, and that the higher one
 * has. 0: it has not. */
struct policy_flow {
	__u32 until[2];
};

/* A tick is 2^30 ns of CLOCK_MONOTONIC, about a second. */
#define POLICY_TICK_SHIFT 30

struct policy_fragment_key {
	struct policy_address source;
	struct policy_address destination;
	__u32 id;
	__u8 protocol;
	__u8 pad[3];
};

_Static_assert(sizeof(struct policy_flow_key) == 40, "no padding");
_Static_assert(sizeof(struct policy_flow) == 8, "no padding");
_Static_assert(sizeof(struct policy_fragment_key) == 40, "no padding");

#define POLICY_FLOWS 65536
#define POLICY_FRAGMENTS 4096

/*
 * Who is behind an interface that macvlans are made on: see macvlan.bpf.c. The entry of MAC address 0 is of who gets
 * what is addressed to nobody else: the one pod of a parent in passthru mode.
 */
struct macvlan_station_key {
	__u32 parent; /* ifindex */
	__u8 mac[6];
	__u8 pad[2];
};

struct macvlan_station {
	struct policy_address v4; /* of a pod; of a family that it has no address of, zero */
	struct policy_address v6;
	__u64 netns; /* the cookie of the namespace that its frames come from; 0: not known */
	__u8 mac[6];
	__u16 flags; /* enum macvlan_station_flag */
};

enum macvlan_station_flag {
	MACVLAN_NODE = 1 << 0,	   /* no pod: the node itself, or whom the configuration names */
	MACVLAN_PASSTHRU = 1 << 1, /* gets whatever comes in */
	MACVLAN_BRIDGE = 1 << 2,   /* its mode: with others of this mode it exchanges frames inside the kernel */
	MACVLAN_VEPA = 1 << 3,	   /* its mode: all that it sends leaves, and we give it back to whom it is for */
};

/* Whose address it is. */
struct macvlan_address_key {
	__u32 parent; /* ifindex */
	struct policy_address address;
};

struct macvlan_owner {
	__u8 mac[6];
	__u8 pad[2];
};

_Static_assert(sizeof(struct macvlan_station_key) == 12, "no padding");
_Static_assert(sizeof(struct macvlan_station) == 48, "no padding");
_Static_assert(sizeof(struct macvlan_address_key) == 20, "no padding");

/* The node's interfaces in VLANs, by the one below and the tag of their frames there. */
struct vlan_key {
	__u32 below; /* ifindex */
	__u16 id;
	__be16 protocol;
};

struct vlan {
	__u32 above; /* ifindex of one that is a parent too, whose frames have been judged; 0: of any other */
};

_Static_assert(sizeof(struct vlan_key) == 8, "no padding");

#define VLANS 8192
#define TUNNELS 1024	      /* UDP ports */
#define MACVLAN_STATIONS 1024 /* gone through for every frame to a group: no more than needed */
#define MACVLAN_ADDRESSES 4096

/* Whose address it is, of those that may be behind an interface that ipvlans are made on: see ipvlan.bpf.c. */
struct ipvlan_address_key {
	__u32 parent; /* ifindex */
	struct policy_address address;
};

struct ipvlan_owner {
	__u64 pod;   /* as struct ipvlan_pod is found by; 0: the node */
	__u64 netns; /* the cookie of the namespace that its packets come from; 0: not known */
	__u32 flags; /* enum ipvlan_owner_flag */
	__u32 pad;
};

enum ipvlan_owner_flag {
	IPVLAN_BESIDE = 1 << 0, /* the node's, of an ipvlan of its own on this parent: it can send to pods here */
	IPVLAN_CLOSED = 1 << 1, /* a pod that has meddled: nothing from it, nothing to it */
	/* a pod whose packets from the wire come by the node's stack: mode L3S; of the address that stands for the
	 * node: what pods send leaves by its stack, mode L3 or L3S */
	IPVLAN_STACK = 1 << 2,
};

/* A pod's interface, by a number of which its own program knows. */
struct ipvlan_pod {
	struct policy_address v4; /* of a family that it has no address of, zero */
	struct policy_address v6;
	__u32 parent;
	__u32 pad;
};

/* A network namespace, as far as it sends by a parent. */
struct ipvlan_sender {
	__u64 netns; /* its cookie */
	__u32 parent;
	__u32 pad;
};

_Static_assert(sizeof(struct ipvlan_address_key) == 20, "no padding");
_Static_assert(sizeof(struct ipvlan_owner) == 24, "no padding");
_Static_assert(sizeof(struct ipvlan_pod) == 40, "no padding");
_Static_assert(sizeof(struct ipvlan_sender) == 16, "no padding");

#define IPVLAN_ADDRESSES 65536 /* the node's once for each parent, of IPVS every Service's */
#define IPVLAN_PODS 1024
#define IPVLAN_FOREIGN 1024 /* prefixes, IPv4 as policy_address has it */

#endif /* BGPD_LAYOUT_H */
