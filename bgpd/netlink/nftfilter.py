"""What filter tables say to nf_tables besides what `nftmessage` has: connection tracking, sets of joined keys. Pure.

A joined key, `iif . ether saddr . ip saddr` in nft's words, is bytes as the kernel compares them: each part on its
own 32-bit boundary. Families other than inet are a matter of the message: see `in_family`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import replace
from enum import IntEnum
from itertools import islice

from bgpd.netlink.nftmessage import (
    MESSAGE_ROOM,
    Attributes,
    Flag,
    Header,
    Kind,
    Message,
    Meta,
    attribute,
    attributes,
    expression,
    meta,
    nest,
    payload,
)

NFPROTO_BRIDGE = 7
ACCEPT = 1  # NF_ACCEPT
# NFT_REG_1, then its second to fourth word, NFT_REG32_01 to _03; the same for NFT_REG_2, as the kernel shows them
_REGISTERS = (1, 9, 10, 11, 2, 13, 14, 15)
_LIST_ELEMENT = 1
_ELEMENT_OVERHEAD = 16  # of a packed key, at most
_HOST_ORDER = struct.pack("=BBI", 0, 4, 1)  # NFTNL_UDATA_SET_KEYBYTEORDER: lets nft show the name of an interface
_TYPE_BITS = 6  # nft's own numbers of types, joined


class KeyType(IntEnum):
    """nft's numbers of what a key is made of: for whoever lists the set."""

    IPV4_ADDR, IPV6_ADDR, ETHER_ADDR, INET_PROTO, INET_SERVICE, IFINDEX = 7, 8, 9, 12, 13, 20


class ConntrackState(IntEnum):
    """NF_CT_STATE_BIT"""

    INVALID = 1 << 0
    RELATED = 1 << 2


REPLY = 1  # IP_CT_DIR_REPLY


def conntrack_state() -> bytes:
    """`ct state`, a number of 32 bits in host order. What has no entry is invalid, or untracked."""
    return expression("ct", attribute(2, 0), attribute(1, _REGISTERS[0]))


def conntrack_direction() -> bytes:
    """`ct direction`, one byte. Ends the rule if the packet has no entry."""
    return expression("ct", attribute(2, 1), attribute(1, _REGISTERS[0]))


def counter() -> bytes:
    return expression("counter")


def joined(*parts: tuple[Header, int, int] | Meta) -> tuple[bytes, ...]:
    """Loads parts one behind the other, a header's by base, offset and length. Only the last goes beyond 16 bytes."""
    loads = []
    word = 0
    for part in parts:
        if isinstance(part, Meta):
            loads.append(meta(part, _REGISTERS[word]))
            word += 1
        else:
            base, offset, length = part
            loads.append(payload(base, offset, length, _REGISTERS[word]))
            word += -(-length // 4)
    return tuple(loads)


def key(*parts: bytes) -> bytes:
    """An element's bytes as `joined` would load them."""
    return b"".join(part + bytes(-len(part) % 4) for part in parts)


def register_at(offset: int) -> int:
    """Where what was loaded jointly is, that many bytes from its beginning."""
    return _REGISTERS[offset // 4]


def ifindex(number: int) -> bytes:
    return struct.pack("=I", number)


def in_family(messages: Iterable[Message], family: int) -> Iterator[Message]:
    return (replace(each, family=family) for each in messages)


def type_of(types: Iterable[KeyType]) -> int:
    """nft's number of a joined type."""
    joined_type = 0
    for each in types:
        joined_type = joined_type << _TYPE_BITS | each
    return joined_type


def key_set(table_name: str, name: str, types: Iterable[KeyType], width: int, number: int) -> Message:
    """`number` tells sets that one transaction makes apart; `width` is that of a key."""
    joined_type = type_of(types)
    what = attribute(3, 0) + attribute(4, joined_type) + attribute(5, width) + attribute(10, number)
    if joined_type == KeyType.IFINDEX:
        what += attribute(13, _HOST_ORDER)
    return Message(Kind.NEWSET, Flag.CREATE, attribute(1, table_name) + attribute(2, name) + what, f"set {name}")


def set_keys(table_name: str, name: str, have: frozenset[bytes], want: frozenset[bytes]) -> Iterator[Message]:
    """From one content to the other; what both have is not touched."""
    for kind, flag, keys in ((Kind.DELSETELEM, Flag.NONE, have - want), (Kind.NEWSETELEM, Flag.CREATE, want - have)):
        rest = iter(sorted(keys))
        while first := next(rest, None):
            count = MESSAGE_ROOM // (len(first) + _ELEMENT_OVERHEAD)
            packed = [nest(_LIST_ELEMENT, nest(1, attribute(1, each))) for each in (first, *islice(rest, count - 1))]
            body = attribute(1, table_name) + attribute(2, name) + nest(3, *packed)
            yield Message(kind, flag, body, f"elements of {name}")


def keys_in(shown: Iterable[Attributes]) -> frozenset[bytes]:
    """What a set holds, as the kernel shows its elements."""
    return frozenset(
        attributes(attributes(packed)[1][0])[1][0]
        for part in shown
        for packed in (attributes(part[3][0]).get(_LIST_ELEMENT, ()) if 3 in part else ())
    )
