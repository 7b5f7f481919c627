"""The two messages by which neighbors on a link find each other's link-local address: RFC 4861 sections 4.1, 4.2.

A switch that has a neighbor by interface (FRR's and others' "unnumbered") learns its address from a router
advertisement, and sends its own. The kernel hears those and notes the sender as a router, also where it is not to
accept what they say; it sends none. Ours say that we are nobody's default router. Pure but for `Sender`.
"""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv6Address

_SOLICITATION, _ADVERTISEMENT = 133, 134  # ICMPv6 types
_SOURCE_LINK_LAYER = 1  # option, RFC 4861 section 4.6.1
_ALL_NODES, _ALL_ROUTERS = "ff02::1", "ff02::2"
_HOP_LIMIT = 255  # any other is no neighbor's
_ICMP6_FILTER = 1  # linux/icmpv6.h
_NOTHING = bytes([255]) * 32  # every type is filtered out: what comes back the kernel reads


def solicitation(mac: str) -> bytes:
    return struct.pack(">BBHI", _SOLICITATION, 0, 0, 0) + _source(mac)


def advertisement(mac: str) -> bytes:
    """Router lifetime 0, and nothing said about the link; the kernel fills in the checksum."""
    return struct.pack(">BBHBBHII", _ADVERTISEMENT, 0, 0, 0, 0, 0, 0, 0) + _source(mac)


def _source(mac: str) -> bytes:
    octets = bytes.fromhex(mac.replace(":", ""))
    if len(octets) != 6:  # not Ethernet, as a tunnel
        return b""
    return bytes([_SOURCE_LINK_LAYER, 1]) + octets


class Sender:
    """Sends both, in the network namespace of the thread that makes it. OSError: the kernel refuses (CAP_NET_RAW)."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMPV6)
        self._socket.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, _NOTHING)
        self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, _HOP_LIMIT)
        self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)

    def close(self) -> None:
        self._socket.close()

    def solicit(self, index: int, source: IPv6Address, mac: str) -> None:
        self._send(_ALL_ROUTERS, index, source, solicitation(mac))

    def advertise(self, index: int, source: IPv6Address, mac: str) -> None:
        self._send(_ALL_NODES, index, source, advertisement(mac))

    def _send(self, group: str, index: int, source: IPv6Address, message: bytes) -> None:
        packet_info = source.packed + struct.pack("=I", index)  # struct in6_pktinfo
        ancillary = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, packet_info)]
        self._socket.sendmsg([message], ancillary, 0, (group, 0, 0, index))
