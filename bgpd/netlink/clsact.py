"""Programs at an interface by clsact, for kernels without tcx: finds ours, puts and removes them, and hears
when somebody else does. A shell.

A filter of class bpf (linux/pkt_sched.h, pkt_cls.h), with its verdict from the program (direct action). It is asked
before the filters that are there, and stays until somebody removes it or puts one before it: whoever may change the
interface can. It goes with its interface. To change its program takes one message, and no packet misses both.

Ours are known by their handle and by the name they are given. The qdisc stays when they go: it may be anybody's.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Collection, Iterator
from enum import IntEnum

from bgpd.netlink.nftmessage import Attributes, attribute, attributes, nest, text
from bgpd.netlink.rtsocket import CREATE, EXCLUSIVE, GROUP_TC, REPLACE, Request, RtSocket, RtWatch

_NEWQDISC, _DELQDISC, _GETQDISC, _NEWTFILTER, _DELTFILTER, _GETTFILTER = 36, 37, 38, 44, 45, 46  # RTM_*
_QDISC = 0xFFFF0000  # the handle that clsact has
_CLSACT = 0xFFFFFFF1  # TC_H_CLSACT
_KIND, _OPTIONS, _CHAIN = 1, 2, 11  # TCA_*
_FD, _NAME, _FLAGS, _ID = 6, 7, 8, 11  # TCA_BPF_*
_DIRECT_ACTION = 1  # TCA_BPF_FLAG_ACT_DIRECT
_FIRST = 1  # the preference that comes before all others; the filter added last is the first of these
_HANDLE = 0xB69D
_IN_THE_WAY = (errno.EINVAL, errno.EOPNOTSUPP)  # another qdisc, or a filter of another kind; a block that is shared
_TCMSG = struct.Struct("=BxxxiIII")  # family, ifindex, handle, parent, info
_INFO = _FIRST << 16 | socket.htons(0x0003)  # ETH_P_ALL


class Side(IntEnum):
    """The parent of a filter: TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_*). What comes in by the interface, what goes out."""

    INGRESS = 0xFFFFFFF2
    EGRESS = 0xFFFFFFF3


class Filters:
    """Of the network namespace of the thread that makes it. OSError from any method: the kernel refuses."""

    def __init__(self, rtnetlink: RtSocket) -> None:
        self._socket = rtnetlink

    def interfaces(self) -> list[int]:
        """Those that have clsact, ours or anybody's."""
        found = ((body, attributes(body[_TCMSG.size :])) for body in self._socket.dump(_GETQDISC, _message(0)))
        return [_TCMSG.unpack_from(body)[1] for body, each in found if text(each, _KIND) == "clsact"]

    def program(self, ifindex: int, side: Side, name: str) -> int | None:
        """The id of the program that our filter of this name asks; None: there is none, or it does not decide."""
        return next((number for known, number in self._ours(ifindex, side) if known == name), None)

    def first(self, ifindex: int, side: Side, name: str) -> int | None:
        """As `program`; None too where another filter is asked before it, and may let pass what it would not."""
        for found, handle in self._dump(ifindex, side):
            if handle and not _number(found, _CHAIN):
                return dict(_deciding(found)).get(name) if handle == _HANDLE else None
        return None

    def put(self, ifindex: int, side: Side, name: str, program: int) -> None:
        """The program of this descriptor, in place of the one that our filter had."""
        options = nest(
            _OPTIONS,
            attribute(_FD, struct.pack("=I", program)),
            attribute(_NAME, name),
            attribute(_FLAGS, struct.pack("=I", _DIRECT_ACTION)),
        )
        ours = _message(ifindex, side, _HANDLE, _INFO) + attribute(_KIND, "bpf") + options
        self._prepare(ifindex)
        self._change(Request(_NEWTFILTER, CREATE | REPLACE, ours))

    def put_first(self, ifindex: int, side: Side, name: str, program: int) -> None:
        """As `put`, before whatever there is, if need be in its place: the qdisc goes, and its filters with it."""
        try:
            self.put(ifindex, side, name, program)
        except OSError as error:
            if error.errno not in _IN_THE_WAY:
                raise
        if self.first(ifindex, side, name) is None:
            gone = Request(_DELQDISC, 0, _message(ifindex, _CLSACT, _QDISC))
            self._change(gone, but=(errno.ENOENT, errno.EINVAL))  # there is none; between two looks at it
            self.put(ifindex, side, name, program)

    def remove(self, ifindex: int, side: Side, name: str) -> None:
        """Nothing where there is none of ours."""
        if self.program(ifindex, side, name) is None:
            return
        body = _message(ifindex, side, _HANDLE, _INFO) + attribute(_KIND, "bpf")
        self._change(Request(_DELTFILTER, 0, body), but=(errno.ENOENT, errno.ENODEV))

    def _prepare(self, ifindex: int) -> None:
        """An `ingress` in place of clsact has one list for both sides: it would take all as coming in."""
        qdisc = _message(ifindex, _CLSACT, _QDISC) + attribute(_KIND, "clsact")
        self._change(Request(_NEWQDISC, CREATE | EXCLUSIVE, qdisc), but=(errno.EEXIST,))
        if ifindex not in self.interfaces():
            raise OSError(errno.EINVAL, "it has another qdisc where clsact would be")

    def _change(self, request: Request, but: Collection[int] = ()) -> None:
        (refused,) = self._socket.change([request])
        if refused is not None and refused.errno not in but:
            raise OSError(refused.errno, str(refused))

    def _ours(self, ifindex: int, side: Side) -> Iterator[tuple[str, int]]:
        for found, handle in self._dump(ifindex, side):
            if handle == _HANDLE:
                yield from _deciding(found)

    def _dump(self, ifindex: int, side: Side) -> Iterator[tuple[Attributes, int]]:
        """What there is of filters, in the order of each chain, with their handles; 0: it stands for several."""
        for body in self._socket.dump(_GETTFILTER, _message(ifindex, side)):
            yield attributes(body[_TCMSG.size :]), _TCMSG.unpack_from(body)[2]


class Watch:
    """Hears of every qdisc and filter that is made, changed or removed, by whomever, from when it is made on."""

    def __init__(self) -> None:
        self._watch = RtWatch((GROUP_TC,))

    def close(self) -> None:
        self._watch.close()

    async def news(self) -> frozenset[int] | None:
        """Waits for some; the interfaces. None: some were lost, and nobody can say of which."""
        received = await self._watch.news()
        return None if received is None else frozenset(_TCMSG.unpack_from(each.body)[1] for each in received)


def _message(ifindex: int, parent: int = 0, handle: int = 0, info: int = 0) -> bytes:
    return _TCMSG.pack(socket.AF_UNSPEC, ifindex, handle, parent, info)


def _deciding(found: Attributes) -> Iterator[tuple[str, int]]:
    """Of a filter of class bpf that decides: its name, and the id of its program."""
    if text(found, _KIND) == "bpf" and _OPTIONS in found:
        options = attributes(found[_OPTIONS][0])
        if _number(options, _FLAGS) & _DIRECT_ACTION:
            yield text(options, _NAME), _number(options, _ID)


def _number(found: Attributes, which: int) -> int:
    return int.from_bytes(found[which][0], sys.byteorder) if which in found else 0
