"""What rtnetlink's messages say of uplinks: link-local addresses, routers among the neighbors, default routes. Pure.

Numbers as in linux/rtnetlink.h, neighbour.h and if_addr.h. `concerns` says which of the kernel's news are about that:
pods come and go on a node, and each brings routes, addresses and neighbors.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from ipaddress import IPv4Address, IPv6Address

from bgpd.model.prefix import Address
from bgpd.netlink.link import DELLINK, HEAD, NEWLINK
from bgpd.netlink.message import Received
from bgpd.netlink.nftmessage import Attributes, attribute, attributes
from bgpd.netlink.route import DELADDR, DELNEIGH, DELROUTE, FAMILY, MAIN, NEWADDR, NEWNEIGH, NEWROUTE

_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg: family, both lengths, tos, table, protocol, scope, type, flags
_HOP = struct.Struct("=HBBi")  # struct rtnexthop: length, flags, hops, interface
_NEIGHBOR = struct.Struct("=BxxxiHBB")  # struct ndmsg: family, interface, state, flags, type
_ADDRESS = struct.Struct("=BBBBi")  # struct ifaddrmsg: family, length, flags, scope, interface

_OIF, _GATEWAY, _MULTIPATH, _TABLE, _VIA = 4, 5, 9, 15, 18  # RTA_*
_UNICAST = 1  # RTN_UNICAST
_NDA_DST = 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_LINK_SCOPE = 253  # RT_SCOPE_LINK
_UNUSABLE = 0x40 | 0x08  # IFA_F_TENTATIVE, IFA_F_DADFAILED
_PASSING = 0x01 | 0x20  # IFA_F_TEMPORARY (of IPv4: IFA_F_SECONDARY), IFA_F_DEPRECATED
_IS_ROUTER = 0x80  # NTF_ROUTER: by its advertisements (RFC 4861 sections 6.3.4 and 7.2.5)
_RUNNING = 0x1 | 0x10000  # IFF_UP, IFF_LOWER_UP
_NOT_THERE = 0x01 | 0x20  # NUD_INCOMPLETE, NUD_FAILED
_TRUSTED = 0x02 | 0x04  # NUD_REACHABLE, NUD_STALE
_PROBE = 0x10  # NUD_PROBE


def router(body: bytes) -> tuple[int, IPv6Address] | None:
    """The interface, and the link-local address of a router there; None: this neighbor is something else."""
    family, index, state, flags, _ = _NEIGHBOR.unpack_from(body)
    if family != FAMILY[6] or not flags & _IS_ROUTER or not state or state & _NOT_THERE:
        return None
    address = IPv6Address(attributes(body[_NEIGHBOR.size :])[_NDA_DST][0])
    return (index, address) if address.is_link_local else None


def is_trusted(body: bytes) -> bool:
    """Whether the kernel takes this neighbor to be there without asking it, for up to 45 s or for good."""
    return bool(_NEIGHBOR.unpack_from(body)[2] & _TRUSTED)


def verification(address: IPv6Address, index: int) -> bytes:
    """The body that has the kernel ask such a neighbor now; it is gone 3 s later if it is (RFC 4861 section 7.3).

    Of any other it would change the state for good: a permanent one is no longer permanent then.
    """
    return _NEIGHBOR.pack(FAMILY[6], index, _PROBE, 0, 0) + attribute(_NDA_DST, address.packed)


def carries(body: bytes) -> bool:
    """Of a NEWLINK: whether the interface is up, and has a carrier."""
    flags: int = HEAD.unpack_from(body)[3]
    return flags & _RUNNING == _RUNNING


def link_local(body: bytes) -> tuple[int, IPv6Address] | None:
    """The interface and its link-local IPv6 address; None: it is another one, or not to be used (yet)."""
    family, _, flags, scope, index = _ADDRESS.unpack_from(body)
    if family != FAMILY[6] or scope != _LINK_SCOPE or flags & _UNUSABLE:
        return None
    found = attributes(body[_ADDRESS.size :])
    return index, IPv6Address(found.get(_IFA_LOCAL, found[_IFA_ADDRESS])[0])  # with both the other is a far end's


def is_usable(body: bytes) -> bool:
    """Whether a socket may be bound to this address (already)."""
    return not _ADDRESS.unpack_from(body)[2] & _UNUSABLE


def is_passing(body: bytes) -> bool:
    """Whether others are better to begin a session from: it is a further one, or about to go."""
    return bool(_ADDRESS.unpack_from(body)[2] & _PASSING)


def gateways(body: bytes) -> Iterator[tuple[Address, int]]:
    """Of a default route of the main table: all its next hops that have an address, and their interfaces."""
    _, length, _, _, table, _, _, kind, _ = _ROUTE.unpack_from(body)
    found = attributes(body[_ROUTE.size :])
    in_table = _number(found, _TABLE) or table
    if length or kind != _UNICAST or in_table != MAIN:
        return
    if _MULTIPATH in found:
        yield from _several(found[_MULTIPATH][0])
    else:
        yield from _one(found, _number(found, _OIF))


def concerns(news: Received, interfaces: Collection[int]) -> bool:
    """Whether another look is worth its while. `interfaces`: where peers are expected.

    Of the neighbors only routers there count: those of pods change their state all the time.
    """
    if news.kind in (NEWROUTE, DELROUTE):
        return news.body[1] == 0  # the destination's length
    if news.kind in (NEWNEIGH, DELNEIGH):
        family, index, _, flags, _ = _NEIGHBOR.unpack_from(news.body)
        return family == FAMILY[6] and index in interfaces and bool(flags & _IS_ROUTER)
    return news.kind in (NEWADDR, DELADDR, NEWLINK, DELLINK)


def _several(packed: bytes) -> Iterator[tuple[Address, int]]:
    while len(packed) >= _HOP.size:
        length, _, _, index = _HOP.unpack_from(packed)
        yield from _one(attributes(packed[_HOP.size : length]), index)
        packed = packed[length + -length % 4 :]


def _one(found: Attributes, index: int) -> Iterator[tuple[Address, int]]:
    if _VIA in found:  # struct rtvia: a next hop of the other family (RFC 5549, RFC 8950)
        packed = found[_VIA][0][2:]
    elif _GATEWAY in found:
        packed = found[_GATEWAY][0]
    else:
        return
    yield IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed), index


def _number(found: Attributes, which: int) -> int:
    return int(struct.unpack("=I", found[which][0])[0]) if which in found else 0
