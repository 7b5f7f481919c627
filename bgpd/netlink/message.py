"""The frame that every netlink message has (linux/netlink.h). Pure; what is in it differs by subsystem."""

from __future__ import annotations

import contextlib
import errno
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

REQUEST, ACK, DUMP, DUMP_INTERRUPTED = 0x1, 0x4, 0x300, 0x10  # NLM_F_*
ERROR, DONE = 2, 3  # NLMSG_*

LOOKS = 20  # at a list that is changed all the while; each takes some milliseconds

T = TypeVar("T")

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


def of_one_moment(dump: Callable[[], T]) -> T:
    """What `dump` returns once no change has overtaken it: its InterruptedError. Ours: it never stood still."""
    for _ in range(LOOKS):
        with contextlib.suppress(InterruptedError):
            return dump()
    raise InterruptedError(errno.EINTR, f"the kernel's list was changed during each of {LOOKS} looks at it")
