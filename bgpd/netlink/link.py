"""Interfaces as rtnetlink tells of them, a pod's and the node's, and how one is asked for. Pure.

Numbers as in linux/if_link.h, rtnetlink.h and net_namespace.h. What an interface of some kind means for a pod is for
the caller to decide; how messages reach the kernel, for `netlink.links`.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass

from bgpd.netlink.nftmessage import Attributes, attribute, attributes, text

NEWLINK, DELLINK, GETLINK = 16, 17, 18  # RTM_*
NEWNSID, DELNSID, GETNSID = 88, 89, 90

_ADDRESS, _IFNAME, _LINK, _MASTER, _LINKINFO = 1, 3, 5, 10, 18  # IFLA_*
_EXT_MASK, _LINK_NETNSID, _TARGET_NETNSID = 29, 37, 46
_INFO_KIND, _INFO_DATA = 1, 2  # IFLA_INFO_*
_MACVLAN_MODE = 1  # IFLA_MACVLAN_MODE
_IPVLAN_MODE, _IPVLAN_FLAGS = 1, 2  # IFLA_IPVLAN_*, of 16 bits
_VLAN_ID, _VLAN_PROTOCOL = 1, 5  # IFLA_VLAN_*
_VLAN_FILTERING = 7  # IFLA_BR_VLAN_FILTERING, of 8 bits
_8021Q = b"\x81\x00"  # IEEE 802.1Q table 9-1
_SKIP_STATISTICS = 1 << 3  # RTEXT_FILTER_SKIP_STATS
_NSID, _FD = 1, 3  # NETNSA_*
_NO_NUMBER = -1  # NETNSA_NSID_NOT_ASSIGNED
HEAD = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
_NSID_HEAD = bytes(4)  # struct rtgenmsg


@dataclass(frozen=True, slots=True)
class Link:
    """An interface. `kind` as the kernel names it ("veth", "macvlan", "bridge"), "" for hardware.

    `other`: the index of a veth's other end, or of the parent of a macvlan or ipvlan. `other_netns`: the number of
    the network namespace in which that index counts; None: in the interface's own. `master`: the index of the bridge,
    or whatever else, that it is a port of. `mode`: MACVLAN_MODE_* of a macvlan, IPVLAN_MODE_* of an ipvlan, else 0.
    `flags`: IPVLAN_F_* of an ipvlan. `vlan`: the number, and the tag's Ethernet type in network order, of one in a
    VLAN. `filters_vlans`: of a bridge.
    """

    index: int
    name: str
    kind: str = ""
    mac: str = ""
    other: int | None = None
    other_netns: int | None = None
    master: int | None = None
    mode: int = 0
    flags: int = 0
    vlan: tuple[int, bytes] | None = None
    filters_vlans: bool = False


@dataclass(frozen=True, slots=True)
class PodLink:
    """An interface of a pod, and what the node has of it.

    `netns`: the number of the pod's network namespace in the node's. `outside`: the other end or the parent, None
    when there is none or it is not on the node. `master`: what that one is a port of. `cookie`: what sockets and
    packets of that namespace are known by, SO_NETNS_COOKIE; 0: the kernel does not tell it, before Linux 6.18.
    """

    netns: int
    inside: Link
    outside: Link | None
    master: Link | None
    cookie: int = 0


def link_request(which: int | str | None, netns: int | None = None, kind: str = "") -> bytes:
    """The body that asks for the interface of this index or name, or for all, or all of a kind; in the namespace of
    this number.
    """
    head = HEAD.pack(0, 0, which if isinstance(which, int) else 0, 0, 0)
    name = attribute(_IFNAME, which) if isinstance(which, str) else b""
    where = attribute(_TARGET_NETNSID, struct.pack("=i", netns)) if netns is not None else b""
    of_kind = attribute(_LINKINFO, attribute(_INFO_KIND, kind)) if kind else b""
    return head + name + where + of_kind + attribute(_EXT_MASK, struct.pack("=I", _SKIP_STATISTICS))


def link(body: bytes) -> Link:
    """Of a NEWLINK."""
    found = attributes(body[HEAD.size :])
    info = attributes(found[_LINKINFO][0]) if _LINKINFO in found else {}
    data = attributes(info[_INFO_DATA][0]) if _INFO_DATA in info else {}
    kind = text(info, _INFO_KIND)
    index, other = link_index(body), _number(found, _LINK)
    return Link(
        index,
        text(found, _IFNAME),
        kind,
        found[_ADDRESS][0].hex(":") if _ADDRESS in found else "",
        # hardware names itself; a tunnel with no interface below it says 0
        other if other and (other != index or _LINK_NETNSID in found) else None,
        _number(found, _LINK_NETNSID),
        _number(found, _MASTER),
        *_mode(kind, data),
        _vlan(data) if kind == "vlan" and data else None,
        kind == "bridge" and data.get(_VLAN_FILTERING, [b"\0"])[0] != b"\0",
    )


def link_index(body: bytes) -> int:
    """Of a NEWLINK or DELLINK."""
    index: int = HEAD.unpack_from(body)[2]
    return index


def netns_request(*, fd: int | None = None, number: int | None = None) -> bytes:
    """The body that asks for the number of a namespace, or whether there is one with this number."""
    opened = attribute(_FD, struct.pack("=i", fd)) if fd is not None else b""
    return _NSID_HEAD + opened + (attribute(_NSID, struct.pack("=i", number)) if number is not None else b"")


def new_netns_request(fd: int) -> bytes:
    """The body that gives a namespace the next free number."""
    return netns_request(fd=fd, number=_NO_NUMBER)


def netns_number(body: bytes) -> int | None:
    """Of a NEWNSID or DELNSID. None: it has none."""
    number = _number(attributes(body[len(_NSID_HEAD) :]), _NSID)
    return None if number == _NO_NUMBER else number


def _mode(kind: str, data: Attributes) -> tuple[int, int]:
    """Mode and flags."""
    if kind == "ipvlan":
        return _short(data, _IPVLAN_MODE), _short(data, _IPVLAN_FLAGS)
    return (_number(data, _MACVLAN_MODE) or 0, 0) if kind == "macvlan" else (0, 0)


def _vlan(data: Attributes) -> tuple[int, bytes]:
    return _short(data, _VLAN_ID), data[_VLAN_PROTOCOL][0][:2] if _VLAN_PROTOCOL in data else _8021Q


def _short(found: Attributes, which: int) -> int:
    """Of 16 bits in the machine's order; 0 where it is missing."""
    return int.from_bytes(found[which][0], sys.byteorder) if which in found else 0


def _number(found: Attributes, which: int) -> int | None:
    """Of 32 bits in the machine's order."""
    if which not in found:
        return None
    number: int = struct.unpack("=i", found[which][0])[0]
    return number
