"""What is said to nf_tables, and read from it: attributes, expressions, rules, sets, chains. Pure.

Only what is used here, with everything a rule computes in the one register that all of it fits in. Numbers as in
linux/netfilter/nf_tables.h; what nft(8) would write stands with each function. What a rule is for: its caller's
business. How messages reach the kernel: `netlink.nftables`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, collapse_addresses, summarize_address_range
from itertools import islice
from typing import TypeAlias

from bgpd.model.prefix import Prefix

NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6 = 1, 2, 10
OWNER, PERSIST = 2, 4  # NFT_TABLE_F_*: only its owner may change it (5.12); it outlives the owner's socket (6.9)
MESSAGE_ROOM = 48_000  # an attribute holds 64 KiB at most; elements are spread over messages of this size
IPPROTO_TCP = 6
FULLY_RANDOM = 1 << 4  # NF_NAT_RANGE_PROTO_RANDOM_FULLY
PATH_ROOM = 512  # XT_BPF_PATH_MAX, with the closing zero

_REGISTER = 1  # NFT_REG_1, 16 bytes
_VERDICT = 0  # NFT_REG_VERDICT
_LIST_ELEMENT = 1
_KEY_TYPES = {4: 7, 6: 8}  # nft's own numbers for ipv4_addr and ipv6_addr
_INTERVAL, _INTERVAL_END = 4, 1  # NFT_SET_INTERVAL, NFT_SET_ELEM_INTERVAL_END
_XT_BPF_INFO = struct.Struct(f"=HHi{PATH_ROOM}sQ")  # struct xt_bpf_info_v1; the pointer is the kernel's own
_XT_BPF_BY_PATH = 1  # XT_BPF_MODE_PATH_PINNED
_ELEMENT_ROOM = 64  # upper bound of one packed element
_NESTED, _TYPE_MASK = 0x8000, 0x3FFF  # NLA_F_NESTED
_ATTRIBUTE = struct.Struct("=HH")


class Kind(IntEnum):
    """NFT_MSG_*"""

    NEWTABLE, GETTABLE, DELTABLE = 0, 1, 2
    NEWCHAIN, GETCHAIN, DELCHAIN = 3, 4, 5
    NEWRULE, GETRULE, DELRULE = 6, 7, 8
    NEWSET, GETSET, DELSET = 9, 10, 11
    NEWSETELEM, GETSETELEM, DELSETELEM = 12, 13, 14
    NEWGEN = 15


class Flag(IntEnum):
    """NLM_F_* of a message that makes something."""

    NONE = 0
    CREATE = 0x400
    CREATE_NEW = 0x400 | 0x200
    APPEND = 0x400 | 0x800


@dataclass(frozen=True, slots=True)
class Message:
    """One step of a transaction. `what` names it in an error."""

    kind: Kind
    flags: Flag
    body: bytes
    what: str
    family: int = NFPROTO_INET


Attributes: TypeAlias = dict[int, list[bytes]]


def attribute(number: int, data: bytes | str | int) -> bytes:
    """One attribute; a number goes as 32 bits in network order, a text with its closing zero."""
    if isinstance(data, str):
        data = data.encode() + b"\0"
    elif isinstance(data, int):
        data = struct.pack(">I", data)
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(data), number) + data + bytes(-len(data) % 4)


def nest(number: int, *attributes: bytes) -> bytes:
    return attribute(number | _NESTED, b"".join(attributes))


def attributes(data: bytes) -> Attributes:
    """By number; a list has the same number many times. Nested ones are still packed."""
    found: Attributes = {}
    for number, value in _attributes(data):
        found.setdefault(number & _TYPE_MASK, []).append(value)
    return found


def covers(there: Attributes, wanted: bytes) -> bool:
    """Whether what the kernel shows has all that was wanted of it; counters, handles and defaults it adds itself.

    The kernel does not mark nested attributes in its dumps, so `wanted` says
    which ones are.
    """
    want: dict[int, list[tuple[bool, bytes]]] = {}
    for number, value in _attributes(wanted):
        want.setdefault(number & _TYPE_MASK, []).append((bool(number & _NESTED), value))
    return all(
        len(there.get(number, ())) == len(values)
        and all(
            covers(attributes(have), value) if nested else have == value
            for have, (nested, value) in zip(there[number], values, strict=True)
        )
        for number, values in want.items()
    )


def text(found: Attributes, number: int) -> str:
    """The text of an attribute, empty when it is not there."""
    return found[number][0].rstrip(b"\0").decode(errors="replace") if number in found else ""


def number_in(found: Attributes, number: int) -> int:
    """The number in an attribute, 0 when it is not there."""
    return int.from_bytes(found[number][0], "big") if number in found else 0


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset < len(data):
        length, number = _ATTRIBUTE.unpack_from(data, offset)
        yield number, data[offset + _ATTRIBUTE.size : offset + length]
        offset += length + -length % 4


# --- expressions ----------------------------------------------------------------------------------------------------


class Meta(IntEnum):
    PROTOCOL, PRIORITY, MARK, IIF, OIF, NFPROTO, L4PROTO = 1, 2, 3, 4, 5, 15, 16


class Header(IntEnum):
    """Where an offset counts from."""

    LINK, NETWORK, TRANSPORT = 0, 1, 2


class Compare(IntEnum):
    EQUAL, NOT_EQUAL = 0, 1


class Verdict(IntEnum):
    RETURN, GOTO, JUMP, DROP = -5, -4, -3, 0


def expression(name: str, *parts: bytes) -> bytes:
    return nest(_LIST_ELEMENT, attribute(1, name), nest(2, *parts))


def meta(key: Meta, register: int = _REGISTER) -> bytes:
    return expression("meta", attribute(2, key), attribute(1, register))


def set_meta(key: Meta, data: bytes) -> tuple[bytes, bytes]:
    """Says so of the packet."""
    return value(data), expression("meta", attribute(2, key), attribute(3, _REGISTER))


def payload(base: Header, offset: int, length: int, register: int = _REGISTER) -> bytes:
    """The bytes of a header, such as `ip saddr`."""
    where = (attribute(2, base), attribute(3, offset), attribute(4, length))
    return expression("payload", attribute(1, register), *where)


def compare(operation: Compare, value: bytes) -> bytes:
    """Ends the rule unless the register compares so."""
    return expression("cmp", attribute(1, _REGISTER), attribute(2, operation), nest(3, attribute(1, value)))


def masked(mask: bytes) -> bytes:
    """`& mask`"""
    registers = (attribute(1, _REGISTER), attribute(2, _REGISTER), attribute(3, len(mask)))
    return expression("bitwise", *registers, nest(4, attribute(1, mask)), nest(5, attribute(1, bytes(len(mask)))))


def in_set(name: str) -> bytes:
    """`@name`"""
    return expression("lookup", attribute(1, name), attribute(2, _REGISTER))


def value(data: bytes) -> bytes:
    """Puts a constant where `snat` takes the address from, and `set_meta` what it says."""
    return expression("immediate", attribute(1, _REGISTER), nest(2, attribute(1, data)))


def verdict(what: Verdict, chain: str = "") -> bytes:
    """`return`, `goto chain`"""
    parts = (attribute(1, struct.pack(">i", what)), *((attribute(2, chain),) if chain else ()))
    return expression("immediate", attribute(1, _VERDICT), nest(2, nest(2, *parts)))


def masquerade(flags: int) -> bytes:
    """To the address of the interface that the packet leaves by."""
    return expression("masq", attribute(1, flags))


def snat(nfproto: int, flags: int = 0) -> bytes:
    """To the address in the register."""
    what = (attribute(1, 0), attribute(2, nfproto), attribute(3, _REGISTER))
    maps_address = 1  # NF_NAT_RANGE_MAP_IPS, which the kernel adds by itself and then shows
    return expression("nat", *what, attribute(7, flags | maps_address))


def asks_program(pin: str) -> bytes:
    """Matches when the eBPF program pinned there returns anything but 0; `-m bpf --object-pinned` of iptables.

    The kernel opens the path when the rule is made, and from then on holds the program itself. ValueError: it has
    no room for the path.
    """
    path = pin.encode()
    if len(path) >= PATH_ROOM:
        raise ValueError(f"{pin} has {len(path)} bytes; a rule has room for {PATH_ROOM}, one of them for the end")
    information = _XT_BPF_INFO.pack(_XT_BPF_BY_PATH, 0, -1, path, 0)
    return expression("match", attribute(1, "bpf"), attribute(2, 1), attribute(3, information))


def program_asked(packed: Attributes) -> str | None:
    """The path of `asks_program` in an expression that the kernel shows; None: it is another one."""
    if text(packed, 1) != "match":
        return None
    information = attributes(packed[2][0])[3][0]
    if text(attributes(packed[2][0]), 1) != "bpf" or len(information) != _XT_BPF_INFO.size:
        return None
    path: bytes = _XT_BPF_INFO.unpack(information)[3]
    return path.rstrip(b"\0").decode(errors="replace")


def constant(packed: Attributes) -> bytes | None:
    """The constant of `value` in an expression that the kernel shows; None: it is another one."""
    parts = attributes(packed[2][0]) if 2 in packed else {}
    if text(packed, 1) != "immediate" or parts[1][0] == struct.pack(">I", _VERDICT):
        return None
    return attributes(parts[2][0])[1][0]


# --- tables, chains, rules ------------------------------------------------------------------------------------------


def table(name: str, flags: int) -> Message:
    return Message(Kind.NEWTABLE, Flag.CREATE_NEW, attribute(1, name) + attribute(2, flags), f"table {name}")


def renamed(message: Message, old: str, new: str) -> Message:
    """The same step of a table of another name."""
    own = attribute(1, old)
    assert message.body.startswith(own), f"{message.what} is of another table"
    return replace(message, body=attribute(1, new) + message.body.removeprefix(own))


def adopted(name: str, flags: int) -> Message:
    """Takes over a table that its owner has left behind."""
    return Message(Kind.NEWTABLE, Flag.NONE, attribute(1, name) + attribute(2, flags), f"adopting table {name}")


def no_table(name: str) -> Message:
    return Message(Kind.DELTABLE, Flag.NONE, attribute(1, name), f"deleting table {name}")


def no_rules(table_name: str) -> Message:
    return Message(Kind.DELRULE, Flag.NONE, attribute(1, table_name), f"deleting the rules of {table_name}")


def no_rules_of(table_name: str, chain_name: str) -> Message:
    body = attribute(1, table_name) + attribute(2, chain_name)
    return Message(Kind.DELRULE, Flag.NONE, body, f"deleting the rules of {chain_name}")


def no_chain(table_name: str, name: str) -> Message:
    return Message(Kind.DELCHAIN, Flag.NONE, attribute(1, table_name) + attribute(3, name), f"deleting chain {name}")


def no_set(table_name: str, name: str) -> Message:
    return Message(Kind.DELSET, Flag.NONE, attribute(1, table_name) + attribute(2, name), f"deleting set {name}")


def chain(table_name: str, name: str, *, hook: int | None = None, priority: int = 0, kind: str = "nat") -> Message:
    """One that others go to or, with a `hook`, a base chain of type `kind`."""
    body = attribute(1, table_name) + attribute(3, name)
    if hook is not None:
        body += nest(4, attribute(1, hook), attribute(2, struct.pack(">i", priority))) + attribute(7, kind)
    return Message(Kind.NEWCHAIN, Flag.CREATE, body, f"chain {name}")


def rule(table_name: str, chain_name: str, expressions: Sequence[bytes], comment: str = "") -> Message:
    """Goes behind those that the chain has. A comment has at most 128 bytes, by convention of nft."""
    note = comment.encode()
    data = attribute(7, bytes((0, len(note) + 1)) + note + b"\0") if comment else b""
    body = attribute(1, table_name) + attribute(2, chain_name) + nest(4, *expressions) + data
    return Message(Kind.NEWRULE, Flag.APPEND, body, f"rule in {chain_name}{f' ({comment})' if comment else ''}")


def expressions_of(shown: Attributes) -> Iterator[Attributes]:
    """The expressions of a rule that the kernel shows."""
    for packed in attributes(shown[4][0]).get(_LIST_ELEMENT, ()) if 4 in shown else ():
        yield attributes(packed)


def comment_of(shown: Attributes) -> str:
    """The comment of a rule that the kernel shows."""
    data = shown.get(7, [b""])[0]
    return data[2 : 2 + data[1]].rstrip(b"\0").decode(errors="replace") if len(data) > 2 and data[0] == 0 else ""


# --- sets of prefixes -----------------------------------------------------------------------------------------------


def prefix_set(table_name: str, name: str, version: int, number: int) -> Message:
    """`number` tells sets that one transaction makes apart."""
    width = 4 if version == 4 else 16
    key = attribute(4, _KEY_TYPES[version]) + attribute(5, width)
    body = attribute(1, table_name) + attribute(2, name) + attribute(3, _INTERVAL) + key + attribute(10, number)
    return Message(Kind.NEWSET, Flag.CREATE, body, f"set {name}")


def set_contents(table_name: str, name: str, have: Iterable[Prefix], want: Iterable[Prefix]) -> Iterator[Message]:
    """What makes a set that holds the addresses of `have` hold those of `want`; the common part is not touched."""
    old, new = _intervals(have), _intervals(want)
    for kind, intervals in ((Kind.DELSETELEM, old - new), (Kind.NEWSETELEM, new - old)):
        packed = iter([element for each in sorted(intervals) for element in _elements(*each)])
        while part := tuple(islice(packed, MESSAGE_ROOM // _ELEMENT_ROOM)):
            body = attribute(1, table_name) + attribute(2, name) + nest(3, *part)
            flag = Flag.CREATE if kind is Kind.NEWSETELEM else Flag.NONE
            yield Message(kind, flag, body, f"elements of {name}")


def prefixes_in(shown: Iterable[Attributes], version: int) -> tuple[Prefix, ...]:
    """What a set holds, as the kernel shows its elements: `fewest` of what was put there."""
    address: type[IPv4Address] | type[IPv6Address] = IPv4Address if version == 4 else IPv6Address
    bounds = []
    for part in shown:
        for packed in attributes(part[3][0]).get(_LIST_ELEMENT, ()) if 3 in part else ():
            element = attributes(packed)
            ends = 3 in element and bool(element[3][0][-1] & _INTERVAL_END)
            bounds.append((int.from_bytes(attributes(element[1][0])[1][0], "big"), ends))
    bounds.sort()
    limits = [start for start, _ in bounds[1:]] + [1 << address(0).max_prefixlen]
    ranges = ((start, limit) for (start, ends), limit in zip(bounds, limits, strict=False) if not ends)
    found = [
        each
        for start, limit in ranges
        if start < limit
        for each in summarize_address_range(address(start), address(limit - 1))
    ]
    return fewest(found)


def fewest(prefixes: Iterable[Prefix]) -> tuple[Prefix, ...]:
    """The fewest prefixes of one family with the same addresses, in order."""
    return tuple(collapse_addresses(prefixes))  # type: ignore[type-var]


def _intervals(prefixes: Iterable[Prefix]) -> set[tuple[bytes, bytes]]:
    """Where each begins and where it is over; no bytes: it goes on to the last address there is.

    Prefixes that touch become one interval: two bounds in one place are not for every kernel.
    """
    found: list[tuple[bytes, bytes]] = []
    for prefix in fewest(prefixes):
        start, last = prefix.network_address.packed, int(prefix.broadcast_address)
        end = (last + 1).to_bytes(len(start), "big") if last + 1 < 1 << prefix.max_prefixlen else b""
        if found and found[-1][1] == start:
            start = found.pop()[0]
        found.append((start, end))
    return set(found)


def _elements(start: bytes, end: bytes) -> Iterator[bytes]:
    yield nest(_LIST_ELEMENT, nest(1, attribute(1, start)))
    if end:
        yield nest(_LIST_ELEMENT, nest(1, attribute(1, end)), attribute(3, _INTERVAL_END))
