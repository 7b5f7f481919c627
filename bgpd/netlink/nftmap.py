"""What tables that spread traffic say to nf_tables: maps, numbers counted up, destination NAT, refusals. Pure.

A map's keys and values are bytes as the kernel compares and loads them; `nftfilter.key` joins them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from bgpd.netlink.nftfilter import KeyType, register_at, type_of
from bgpd.netlink.nftmessage import (
    MESSAGE_ROOM,
    Attributes,
    Flag,
    Kind,
    Message,
    Verdict,
    attribute,
    attributes,
    expression,
    nest,
    text,
)

V = TypeVar("V", bytes, str)

_REGISTER, _VERDICT = 1, 0
_MAP = 8  # NFT_SET_MAP
_VERDICT_TYPE, _INTEGER_TYPE = 0xFFFFFF00, 4  # of nft
_HOST_ORDER = struct.pack("=BBI", 0, 4, 1)  # NFTNL_UDATA_SET_KEYBYTEORDER
_LIST_ELEMENT = 1
_ELEMENT_OVERHEAD = 64  # of a packed key and its value, at most, besides these themselves
_DNAT = 1
_ADDRESS_AND_PORT = 1 | 2  # NF_NAT_RANGE_MAP_IPS, _PROTO_SPECIFIED, which the kernel shows
_TCP_RESET, _ICMPX = 1, 2  # NFT_REJECT_*
_PORT_UNREACHABLE = 1  # NFT_REJECT_ICMPX_PORT_UNREACH


# --- expressions ----------------------------------------------------------------------------------------------------


def counted_up(modulus: int) -> bytes:
    """`numgen inc mod modulus`: 0, 1, ... for one packet after the other, in host order."""
    return expression("numgen", attribute(1, _REGISTER), attribute(2, modulus), attribute(3, 0), attribute(4, 0))


def mapped(name: str) -> bytes:
    """`map @name`: what stands there for the key in the register takes its place; the rule ends if nothing does."""
    return expression("lookup", attribute(1, name), attribute(2, _REGISTER), attribute(3, _REGISTER))


def verdict_mapped(name: str) -> bytes:
    """`vmap @name`"""
    return expression("lookup", attribute(1, name), attribute(2, _REGISTER), attribute(3, _VERDICT))


def dnat(nfproto: int, port_at: int) -> bytes:
    """To the address in the register, and the port that many bytes behind its beginning."""
    what = (attribute(1, _DNAT), attribute(2, nfproto), attribute(3, _REGISTER))
    return expression("nat", *what, attribute(5, register_at(port_at)), attribute(7, _ADDRESS_AND_PORT))


def tcp_reset() -> bytes:
    """`reject with tcp reset`"""
    return expression("reject", attribute(1, _TCP_RESET))


def port_unreachable() -> bytes:
    """`reject with icmpx port-unreachable`"""
    return expression("reject", attribute(1, _ICMPX), attribute(2, bytes([_PORT_UNREACHABLE])))


# --- maps -----------------------------------------------------------------------------------------------------------


def verdict_map(table_name: str, name: str, types: Iterable[KeyType], width: int, number: int) -> Message:
    """From a joined key to the chain that its packet goes to. `number` as in `nftfilter.key_set`."""
    what = attribute(3, _MAP) + attribute(4, type_of(types)) + attribute(5, width) + attribute(6, _VERDICT_TYPE)
    return _new_set(table_name, name, what + attribute(10, number))


def number_map(table_name: str, name: str, types: Iterable[KeyType], width: int, number: int) -> Message:
    """From a number in host order to a joined value of `width` bytes."""
    what = attribute(3, _MAP) + attribute(4, _INTEGER_TYPE) + attribute(5, 4) + attribute(6, type_of(types))
    return _new_set(table_name, name, what + attribute(7, width) + attribute(10, number) + attribute(13, _HOST_ORDER))


def index(number: int) -> bytes:
    """A key of a `number_map`."""
    return struct.pack("=I", number)


def map_contents(table_name: str, name: str, have: Mapping[bytes, V], want: Mapping[bytes, V]) -> Iterator[Message]:
    """From one content to the other; what both have is not touched. A value that is a text is a chain to go to."""
    gone = [key for key in sorted(have) if want.get(key) != have[key]]
    new = [key for key in sorted(want) if have.get(key) != want[key]]
    yield from _elements(table_name, name, Kind.DELSETELEM, Flag.NONE, (_element(key) for key in gone))
    yield from _elements(table_name, name, Kind.NEWSETELEM, Flag.CREATE, (_element(key, want[key]) for key in new))


def values_in(shown: Iterable[Attributes]) -> dict[bytes, bytes]:
    """What a map holds, as the kernel shows its elements."""
    return {key: attributes(data)[1][0] for key, data in _shown(shown) if 1 in attributes(data)}


def chains_in(shown: Iterable[Attributes]) -> dict[bytes, str]:
    """The chains that a verdict map leads to."""
    return {key: text(attributes(attributes(data)[2][0]), 2) for key, data in _shown(shown) if 2 in attributes(data)}


def _shown(shown: Iterable[Attributes]) -> Iterator[tuple[bytes, bytes]]:
    for part in shown:
        for packed in attributes(part[3][0]).get(_LIST_ELEMENT, ()) if 3 in part else ():
            element = attributes(packed)
            if 2 in element:
                yield attributes(element[1][0])[1][0], element[2][0]


def _new_set(table_name: str, name: str, what: bytes) -> Message:
    return Message(Kind.NEWSET, Flag.CREATE, attribute(1, table_name) + attribute(2, name) + what, f"map {name}")


def _element(key: bytes, value: bytes | str | None = None) -> bytes:
    parts = [nest(1, attribute(1, key))]
    if isinstance(value, str):
        verdict = attribute(1, struct.pack(">i", Verdict.GOTO)) + attribute(2, value)
        parts.append(nest(2, nest(2, verdict)))
    elif value is not None:
        parts.append(nest(2, attribute(1, value)))
    return nest(_LIST_ELEMENT, *parts)


def _elements(table_name: str, name: str, kind: Kind, flag: Flag, packed: Iterable[bytes]) -> Iterator[Message]:
    """Spread over messages: an attribute holds 64 KiB at most."""
    part: list[bytes] = []
    for each in packed:
        if sum(map(len, part)) + len(each) + _ELEMENT_OVERHEAD > MESSAGE_ROOM:
            yield _message(table_name, name, kind, flag, part)
            part = []
        part.append(each)
    if part:
        yield _message(table_name, name, kind, flag, part)


def _message(table_name: str, name: str, kind: Kind, flag: Flag, part: list[bytes]) -> Message:
    body = attribute(1, table_name) + attribute(2, name) + nest(3, *part)
    return Message(kind, flag, body, f"elements of {name}")
