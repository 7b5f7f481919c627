"""What maps hold, as Python reads and writes it: the twin of bpf/include/bgpd/layout.h.

The header is the definition. A test holds this file to it through the objects' BTF, and the loader refuses an object
of another ABI. Values only, no I/O.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from bgpd.model.prefix import Address, Prefix

ABI = 1

STRUCTS: Mapping[str, Mapping[str, str]] = {
    "lpm_key_v4": {"prefixlen": "I", "addr": "4s"},
    "lpm_key_v6": {"prefixlen": "I", "addr": "16s"},
    "policy_peer": {"class": "I", "egress_set": "I", "ingress_set": "I", "flags": "I"},
    "policy_rule_key": {"set": "I", "class": "I"},
    "policy_rule": {"portset": "I", "verdict": "B", "flags": "B", "proxy_port": "H", "cookie": "I"},
    "policy_port_key": {"portset": "I", "protocol": "B", "pad": "B", "port": "2s"},
    "policy_range_key": {"prefixlen": "I", "portset": "I", "protocol": "B", "pad": "B", "port": "2s"},
    "policy_port": {"verdict": "B", "flags": "B", "proxy_port": "H", "cookie": "I"},
    "policy_link": {"v4": "16s", "v6": "16s"},
    "policy_flow_key": {
        "low": "16s",
        "high": "16s",
        "low_port": "2s",
        "high_port": "2s",
        "protocol": "B",
        "pad": "3s",
    },
    "policy_flow": {"until": "8s"},
    "policy_fragment_key": {"source": "16s", "destination": "16s", "id": "I", "protocol": "B", "pad": "3s"},
    "macvlan_station_key": {"parent": "I", "mac": "6s", "pad": "2s"},
    "macvlan_station": {"v4": "16s", "v6": "16s", "netns": "Q", "mac": "6s", "flags": "H"},
    "macvlan_address_key": {"parent": "I", "address": "16s"},
    "macvlan_owner": {"mac": "6s", "pad": "2s"},
    "vlan_key": {"below": "I", "id": "H", "protocol": "2s"},
    "vlan": {"above": "I"},
    "ipvlan_address_key": {"parent": "I", "address": "16s"},
    "ipvlan_owner": {"pod": "Q", "netns": "Q", "flags": "I", "pad": "I"},
    "ipvlan_pod": {"v4": "16s", "v6": "16s", "parent": "I", "pad": "I"},
    "ipvlan_sender": {"netns": "Q", "parent": "I", "pad": "I"},
    "policy_event": {
        "at_ns": "Q",
        "client": "16s",
        "server": "16s",
        "class": "I",
        "cookie": "I",
        "lost": "I",
        "client_port": "2s",
        "server_port": "2s",
        "protocol": "B",
        "verdict": "B",
        "ingress": "B",
        "flags": "B",
        "pad": "I",
    },
}
"""The C structs: fields in their order, as the `struct` module names their types."""

_KEY_V4 = struct.Struct("".join(STRUCTS["lpm_key_v4"].values()))
_KEY_V6 = struct.Struct("".join(STRUCTS["lpm_key_v6"].values()))

FLOW_KEY, FLOW = (struct.Struct("".join(STRUCTS[name].values())) for name in ("policy_flow_key", "policy_flow"))
_FRAGMENT_KEY_BYTES = struct.calcsize("".join(STRUCTS["policy_fragment_key"].values()))
PEER, RULE, PORT, RULE_KEY, PORT_KEY, RANGE_KEY, EVENT = (
    struct.Struct("".join(STRUCTS[f"policy_{name}"].values()))
    for name in ("peer", "rule", "port", "rule_key", "port_key", "range_key", "event")
)
STATION_KEY, STATION, ADDRESS_KEY, OWNER = (
    struct.Struct("".join(STRUCTS[f"macvlan_{name}"].values()))
    for name in ("station_key", "station", "address_key", "owner")
)
IPVLAN_ADDRESS_KEY, IPVLAN_OWNER, IPVLAN_POD, IPVLAN_SENDER = (
    struct.Struct("".join(STRUCTS[f"ipvlan_{name}"].values()))
    for name in ("address_key", "owner", "pod", "sender")
)
VLAN_KEY, VLAN = (struct.Struct("".join(STRUCTS[name].values())) for name in ("vlan_key", "vlan"))
POD_NUMBER = struct.Struct("Q")  # by which its program finds a pod on an ipvlan
LINK = struct.Struct("".join(STRUCTS["policy_link"].values()))
CLASS = IFINDEX = struct.Struct("I")
_MAPPED = bytes(10) + b"\xff\xff"  # RFC 4291 section 2.5.5.2
_ADDRESS_BYTES = 16
_RANGE_BITS = 48  # portset, protocol and pad

PRESENT = b"\0"  # the value of a list entry: to be there is all
COUNTER = struct.Struct("Q")
REVISION = struct.Struct("Q")


class Verdict(IntEnum):
    """enum masq_verdict: why a flow keeps its address or not, and the index of its counter."""

    LISTED = 0
    NOT_LISTED = 1
    NOT_IP = 2
    TRUNCATED = 3
    BAD_HEADER = 4


class PolicyVerdict(IntEnum):
    """enum policy_verdict: what became of a packet, and the index of its counter."""

    NOT_ISOLATED = 0
    ALLOWED = 1
    SELF = 2
    NEIGHBOR = 3
    AUDITED = 4
    RELATED = 5
    DENIED_EGRESS = 6
    DENIED_INGRESS = 7
    LATE_FRAGMENT = 8
    NO_TRANSPORT = 9
    BAD_HEADER = 10
    NOT_IP = 11
    SPOOFED = 12
    STRANGER = 13


class MapType(IntEnum):
    """enum bpf_map_type, as far as used."""

    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12
    RINGBUF = 27


NO_PREALLOC = 1  # BPF_F_NO_PREALLOC, which a trie must have


@dataclass(frozen=True, slots=True)
class MapSpec:
    """All that decides whether two programs can share a map. `type` may be one that `MapType` does not know."""

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0


IPMASQ_ENTRIES = 16384
MAPS = {
    spec.name: spec
    for spec in (
        MapSpec("ipmasq_v4", MapType.LPM_TRIE, _KEY_V4.size, len(PRESENT), IPMASQ_ENTRIES, NO_PREALLOC),
        MapSpec("ipmasq_v6", MapType.LPM_TRIE, _KEY_V6.size, len(PRESENT), IPMASQ_ENTRIES, NO_PREALLOC),
        MapSpec("ipmasq_hits_v4", MapType.LPM_TRIE, _KEY_V4.size, COUNTER.size, IPMASQ_ENTRIES, NO_PREALLOC),
        MapSpec("ipmasq_hits_v6", MapType.LPM_TRIE, _KEY_V6.size, COUNTER.size, IPMASQ_ENTRIES, NO_PREALLOC),
        MapSpec("masq_verdicts", MapType.ARRAY, struct.calcsize("I"), COUNTER.size, len(Verdict)),
        MapSpec("policy_peers", MapType.HASH, _ADDRESS_BYTES, PEER.size, 131072, NO_PREALLOC),
        MapSpec("policy_cidrs_v4", MapType.LPM_TRIE, _KEY_V4.size, CLASS.size, 65536, NO_PREALLOC),
        MapSpec("policy_cidrs_v6", MapType.LPM_TRIE, _KEY_V6.size, CLASS.size, 65536, NO_PREALLOC),
        MapSpec("policy_rules", MapType.HASH, RULE_KEY.size, RULE.size, 262144, NO_PREALLOC),
        MapSpec("policy_ports", MapType.HASH, PORT_KEY.size, PORT.size, 65536, NO_PREALLOC),
        MapSpec("policy_ranges", MapType.LPM_TRIE, RANGE_KEY.size, PORT.size, 65536, NO_PREALLOC),
        MapSpec("policy_verdicts", MapType.PERCPU_ARRAY, struct.calcsize("I"), COUNTER.size, len(PolicyVerdict)),
        MapSpec("policy_paces", MapType.LRU_HASH, _ADDRESS_BYTES, struct.calcsize("QQ"), 4096),
        MapSpec("policy_seen", MapType.PERCPU_ARRAY, struct.calcsize("I"), struct.calcsize("Q16s4I"), 1024),
        MapSpec("policy_passed", MapType.PERCPU_ARRAY, struct.calcsize("I"), struct.calcsize("4Q"), 512),
        MapSpec("policy_revision", MapType.ARRAY, struct.calcsize("I"), REVISION.size, 1),
        MapSpec("policy_links", MapType.HASH, IFINDEX.size, LINK.size, 4096, NO_PREALLOC),
        MapSpec("policy_tracked", MapType.LRU_HASH, FLOW_KEY.size, FLOW.size, 65536),
        MapSpec("policy_seeding", MapType.ARRAY, struct.calcsize("I"), struct.calcsize("I"), 1),
        MapSpec("policy_fragments", MapType.LRU_HASH, _FRAGMENT_KEY_BYTES, struct.calcsize("HH"), 4096),
        MapSpec("macvlan_stations", MapType.HASH, STATION_KEY.size, STATION.size, 1024, NO_PREALLOC),
        MapSpec("macvlan_tunnels", MapType.HASH, struct.calcsize("H"), len(PRESENT), 1024, NO_PREALLOC),
        MapSpec("ipvlan_tunnels", MapType.HASH, struct.calcsize("H"), len(PRESENT), 1024, NO_PREALLOC),
        MapSpec("macvlan_vlans", MapType.HASH, VLAN_KEY.size, VLAN.size, 8192, NO_PREALLOC),
        MapSpec("ipvlan_vlans", MapType.HASH, VLAN_KEY.size, VLAN.size, 8192, NO_PREALLOC),
        MapSpec("macvlan_addresses", MapType.HASH, ADDRESS_KEY.size, OWNER.size, 4096, NO_PREALLOC),
        MapSpec("ipvlan_addresses", MapType.HASH, IPVLAN_ADDRESS_KEY.size, IPVLAN_OWNER.size, 65536, NO_PREALLOC),
        MapSpec("ipvlan_pods", MapType.HASH, POD_NUMBER.size, IPVLAN_POD.size, 1024, NO_PREALLOC),
        MapSpec("ipvlan_foreign", MapType.LPM_TRIE, _KEY_V6.size, len(PRESENT), 1024, NO_PREALLOC),
        MapSpec("ipvlan_masqueraded", MapType.LRU_HASH, IPVLAN_SENDER.size, len(PRESENT), 1024),
        MapSpec("ipvlan_jump", MapType.PROG_ARRAY, struct.calcsize("I"), struct.calcsize("I"), 1),
        MapSpec("policy_events", MapType.RINGBUF, 0, 0, 1 << 18),
    )
}

TOGETHER = (
    frozenset(
        (
            *("policy_peers", "policy_cidrs_v4", "policy_cidrs_v6", "policy_rules", "policy_ports", "policy_ranges"),
            *("policy_seen", "policy_passed", "policy_revision"),
        )
    ),
    frozenset(("policy_tracked", "policy_seeding")),
)
"""Maps of which one is of no use without its others: numbers in one are keys of the next, and what programs remember
is what the others said; for connections that a new table does not know, ports tell for a while.
"""


def transport_port(number: int) -> bytes:
    """__be16"""
    return number.to_bytes(2, "big")


def policy_address(address: Address) -> bytes:
    """struct policy_address: IPv4 as ::ffff:a.b.c.d."""
    return _MAPPED + address.packed if address.version == 4 else address.packed


def policy_prefix(prefix: Prefix) -> bytes:
    """struct lpm_key_v6 of a trie that has both families, addresses as `policy_address` has them."""
    address = policy_address(prefix.network_address)
    return _KEY_V6.pack(prefix.prefixlen + (8 * len(_MAPPED) if prefix.version == 4 else 0), address)


def read_address(key: bytes) -> Address:
    """The address of a struct policy_address."""
    return IPv4Address(key[len(_MAPPED) :]) if key.startswith(_MAPPED) else IPv6Address(key)


class PeerFlag(IntFlag):
    """enum policy_peer_flag: its rules tell apart what is no peer; what they deny is recorded and passes."""

    EGRESS_CIDRS = 1
    INGRESS_CIDRS = 2
    AUDIT = 4


class RuleFlag(IntFlag):
    """enum policy_rule_flag: the portset has single ports; it has ranges."""

    HAS_PORTS = 1
    HAS_RANGES = 2


class EventFlag(IntFlag):
    """enum policy_event_flag: the packet went from server to client; it passed, in audit mode."""

    EVENT_REPLY = 1
    EVENT_AUDITED = 2


class StationFlag(IntFlag):
    """enum macvlan_station_flag: no pod, but the node or whom the configuration names; gets whatever comes in; and
    the modes whose stations reach each other on the node."""

    NODE = 1
    PASSTHRU = 2
    BRIDGE = 4
    VEPA = 8


class OwnerFlag(IntFlag):
    """enum ipvlan_owner_flag: the node's, on an ipvlan beside the pods'; a pod that is closed; one of mode L3S; of
    the address that stands for the node: a parent of pods in mode L3 or L3S."""

    BESIDE = 1
    CLOSED = 2
    STACK = 4


ORIGIN_STACK = 0x62670003
"""Of enum ipvlan_origin: what skb->priority says of a pod's packet that the inet table has let pass."""


class Action(IntEnum):
    """enum policy_action."""

    DENY = 0
    ALLOW = 1


class Peer(NamedTuple):
    """struct policy_peer. Set 0: that direction is not isolated, or the pod is not on this node."""

    number: int  # its class
    egress_set: int = 0
    ingress_set: int = 0
    flags: int = 0


class Rule(NamedTuple):
    """struct policy_rule: what a set says of a class. `verdict` is for what the portset does not name."""

    portset: int
    verdict: int
    flags: int
    proxy_port: int
    cookie: int


class Port(NamedTuple):
    """struct policy_port: what a portset says of a protocol and port."""

    verdict: int
    flags: int
    proxy_port: int
    cookie: int


def rule_key(number: int, peer_class: int) -> bytes:
    """struct policy_rule_key, of a set and a class."""
    return RULE_KEY.pack(number, peer_class)


def port_key(portset: int, protocol: int, port: int) -> bytes:
    """struct policy_port_key; `port` 0 where the protocol has none."""
    return PORT_KEY.pack(portset, protocol, 0, port.to_bytes(2, "big"))


def range_key(portset: int, protocol: int, port: int, length: int) -> bytes:
    """struct policy_range_key: all ports whose first `length` bits are those of `port`."""
    return RANGE_KEY.pack(_RANGE_BITS + length, portset, protocol, 0, port.to_bytes(2, "big"))


def read_port_key(key: bytes) -> tuple[int, int, int]:
    """Portset, protocol, port."""
    portset, protocol, _, port = PORT_KEY.unpack(key)
    return portset, protocol, int.from_bytes(port, "big")


def read_range_key(key: bytes) -> tuple[int, int, int, int]:
    """Portset, protocol, the first port and the length; without bits that the length does not count."""
    bits, portset, protocol, _, port = RANGE_KEY.unpack(key)
    free = 16 - max(0, bits - _RANGE_BITS)
    return portset, protocol, int.from_bytes(port, "big") >> free << free, bits - _RANGE_BITS
