"""Asks rtnetlink, changes what it keeps, many things at a time, and hears when somebody else does. A shell.

What the messages say is the business of `netlink.link` and `netlink.route`. Writing goes in batches: one datagram has
many messages, the kernel takes them one after the other and answers each, whatever became of the one before.

It speaks netlink itself: pyroute2 takes 4 ms for what an ADD has to look at and 40 times as long to pack a route, and
costs the daemon 15 MB.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from bgpd.netlink.message import (
    ACK,
    DONE,
    DUMP,
    DUMP_INTERRUPTED,
    ERROR,
    REQUEST,
    Received,
    messages,
    of_one_moment,
    pack,
)
from bgpd.netlink.nftmessage import attributes, text

APPEND, CREATE, EXCLUSIVE, REPLACE = 0x800, 0x400, 0x200, 0x100  # NLM_F_*
GROUP_LINK, GROUP_NEIGH, GROUP_TC, GROUP_NSID = 1, 3, 4, 28  # RTNLGRP_*
GROUP_IPV4_ADDRESS, GROUP_IPV4_ROUTE, GROUP_IPV6_ADDRESS, GROUP_IPV6_ROUTE = 5, 7, 9, 11
NEWS_ROOM = 1 << 22  # some thousand changes, while the daemon is busy
EXT_ACK, STRICT = 11, 12  # NETLINK_*: the kernel says in words what it refuses; it minds all that a request says

_SOL_NETLINK, _ADD_MEMBERSHIP, _LISTEN_ALL_NSID, _CAP_ACK = 270, 1, 8, 10
_RECEIVE_BUFFER = 33  # SO_RCVBUFFORCE: beyond what unprivileged ones may have
_CAPPED, _TEXT = 0x100, 1  # NLM_F_CAPPED, NLMSGERR_ATTR_MSG
_ERROR_SIZE = 4 + 16  # struct nlmsgerr: the code, and the head of what was refused
_TIMEOUT_S = 10.0
_ROOM = 1 << 18
_AT_A_TIME = 200  # messages in a datagram: their answers fit into the buffer, also if all are refused


class Request(NamedTuple):
    """A message that changes something."""

    kind: int
    flags: int
    body: bytes


class Refusal(NamedTuple):
    """Why the kernel did not do it. `words` are its own, where it has any."""

    errno: int
    words: str

    def __str__(self) -> str:
        return f"{os.strerror(self.errno)}" + (f" ({self.words})" if self.words else "")


class RtSocket:
    """In the network namespace of the thread that opens it. Synchronous: use it in a thread.

    OSError from any method: the kernel refuses, or cannot be asked. `port` is what the kernel calls it in its news.
    """

    def __init__(self, options: Collection[int] = ()) -> None:
        self._socket = _open()
        self._socket.settimeout(_TIMEOUT_S)
        for option in (_CAP_ACK, *options):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        self._socket.bind((0, 0))
        self.port = int(self._socket.getsockname()[0])
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def ask(self, kind: int, body: bytes) -> list[bytes]:
        """The bodies of all answers."""
        return self._ask(kind, REQUEST | ACK, body)

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """The bodies of everything that is asked for, of one moment. InterruptedError: it never stood still."""
        return of_one_moment(lambda: self._ask(kind, REQUEST | DUMP, body))

    def change(self, requests: Sequence[Request]) -> list[Refusal | None]:
        """What became of each, in their order; None: done."""
        found: list[Refusal | None] = []
        for start in range(0, len(requests), _AT_A_TIME):
            found += self._change(requests[start : start + _AT_A_TIME])
        return found

    def _change(self, requests: Sequence[Request]) -> list[Refusal | None]:
        first = self._sequence + 1
        self._sequence += len(requests)
        packed = (
            pack(kind, REQUEST | ACK | flags, first + offset, body)
            for offset, (kind, flags, body) in enumerate(requests)
        )
        self._socket.send(b"".join(packed))
        found: list[Refusal | None] = [None] * len(requests)
        missing = len(requests)
        while missing:
            for answer in messages(self._socket.recv(_ROOM)):
                if answer.kind == ERROR and 0 <= answer.sequence - first < len(requests):
                    found[answer.sequence - first] = _refusal(answer)
                    missing -= 1
        return found

    def _ask(self, kind: int, flags: int, body: bytes) -> list[bytes]:
        self._sequence += 1
        self._socket.send(pack(kind, flags, self._sequence, body))
        answers: list[bytes] = []
        interrupted = False
        while True:
            for answer in messages(self._socket.recv(_ROOM)):
                if answer.sequence != self._sequence:
                    continue  # of one that was given up
                interrupted = interrupted or bool(answer.flags & DUMP_INTERRUPTED)
                if answer.kind in (ERROR, DONE):
                    refusal = _refusal(answer)
                    if refusal is not None:
                        raise OSError(refusal.errno, str(refusal))
                    if interrupted:
                        raise InterruptedError
                    return answers
                answers.append(answer.body)


class RtWatch:
    """Hears of every change of the groups from when it is made on. `room`: bytes of news that wait, before some are
    lost. `everywhere`: also in the namespaces that have a number here, which takes CAP_NET_BROADCAST.
    """

    def __init__(self, groups: Collection[int], room: int = NEWS_ROOM, *, everywhere: bool = False) -> None:
        self._socket = _open()
        self._socket.setblocking(False)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _RECEIVE_BUFFER, room)
        except PermissionError:  # less room, and more news lost: whoever only listens needs no CAP_NET_ADMIN
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        if everywhere:
            self._socket.setsockopt(_SOL_NETLINK, _LISTEN_ALL_NSID, 1)
        self._socket.bind((0, 0))
        for group in groups:
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)

    def close(self) -> None:
        self._socket.close()

    async def news(self) -> list[Received] | None:
        """Waits for some, and takes what has come with it. None: some were lost, and nobody can say which."""
        loop = asyncio.get_running_loop()
        try:
            received = list(messages(await loop.sock_recv(self._socket, _ROOM)))
            while True:
                received += messages(self._socket.recv(_ROOM))
        except BlockingIOError:
            return received
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            return None


def _open() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)


def _refusal(answer: Received) -> Refusal | None:
    (code,) = struct.unpack_from("=i", answer.body)
    if not code:
        return None
    words = text(attributes(answer.body[_ERROR_SIZE:]), _TEXT) if answer.flags & _CAPPED else ""
    return Refusal(-code, words)
