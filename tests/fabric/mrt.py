"""A routing table as an MRT dump (RFC 6396, TABLE_DUMP_V2): the quickest way to give GoBGP very many routes.

This decides the bytes: one peer, one entry a prefix, origin IGP, an empty AS path, an unspecified next hop
(which a speaker replaces by its own address). Pure.
"""

from __future__ import annotations

import ipaddress
import select
import struct
from collections.abc import Iterable, Iterator

_TABLE_DUMP_V2 = 13
_PEER_INDEX_TABLE, _RIB_IPV4_UNICAST, _RIB_IPV6_UNICAST = 1, 2, 4

_ORIGIN_IGP = b"\x40\x01\x01\x00"
_AS_PATH_EMPTY = b"\x40\x02\x00"
_NEXT_HOP = b"\x40\x03\x04" + bytes(4)
_MP_REACH = b"\x80\x0e\x11\x10" + bytes(
    16
)  # abbreviated as RFC 6396 section 4.3.4 has it: length and next hop only


def table_dump(prefixes: Iterable[str], *, asn: int, router_id: str) -> Iterator[bytes]:
    """The file in the order of the prefixes, in pieces of whole records of at most `PIPE_BUF` bytes.

    Written one by one to a pipe, such a piece is there whole or not at all: the reader never meets half a
    record.
    """
    piece = b""
    for record in _records(prefixes, asn, router_id):
        if len(piece) + len(record) > select.PIPE_BUF:
            yield piece
            piece = b""
        piece += record
    yield piece


def _records(prefixes: Iterable[str], asn: int, router_id: str) -> Iterator[bytes]:
    identifier = ipaddress.IPv4Address(router_id).packed
    peer = struct.pack("!HHB", 0, 1, 2) + identifier + identifier + struct.pack("!I", asn)
    yield _record(_PEER_INDEX_TABLE, identifier + peer)
    for sequence, prefix in enumerate(prefixes):
        network = ipaddress.ip_network(prefix)
        attributes = _ORIGIN_IGP + _AS_PATH_EMPTY + (_NEXT_HOP if network.version == 4 else _MP_REACH)
        significant = network.network_address.packed[: (network.prefixlen + 7) // 8]
        entry = struct.pack("!HHIH", 1, 0, 0, len(attributes)) + attributes
        body = struct.pack("!IB", sequence, network.prefixlen) + significant + entry
        yield _record(_RIB_IPV4_UNICAST if network.version == 4 else _RIB_IPV6_UNICAST, body)


def _record(subtype: int, body: bytes) -> bytes:
    return struct.pack("!IHHI", 0, _TABLE_DUMP_V2, subtype, len(body)) + body
