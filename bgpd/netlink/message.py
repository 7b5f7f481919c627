"""The frame that every netlink message has (linux/netlink.h). Pure; what is in it differs by subsystem."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

REQUEST, ACK, DUMP, DUMP_INTERRUPTED = 0x1, 0x4, 0x300, 0x10  # NLM_F_*
ERROR, DONE = 2, 3  # NLMSG_*

_HEADER = struct.Struct("=IHHII")  # length, kind, flags, sequence, port


class Received(NamedTuple):
    """A message of a datagram."""

    kind: int
    flags: int
    sequence: int
    port: int
    body: bytes


def pack(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def messages(data: bytes) -> Iterator[Received]:
    """Those of one datagram."""
    offset = 0
    while offset < len(data):
        length, kind, flags, sequence, port = _HEADER.unpack_from(data, offset)
        yield Received(kind, flags, sequence, port, data[offset + _HEADER.size : offset + length])
        offset += length + -length % 4
