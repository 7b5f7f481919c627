"""Packets as bytes, Ethernet header first. Checksums are left out: nothing that these meet looks at them."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

from bgpd.model.prefix import Address

ETH_IP, ETH_IPV6, ETH_ARP = 0x0800, 0x86DD, 0x0806
HOP_BY_HOP, TCP, UDP, ROUTING, FRAGMENT, ICMPV6, NO_NEXT = 0, 6, 17, 43, 44, 58, 59
SOURCE_V4, SOURCE_V6 = IPv4Address("10.244.1.2"), IPv6Address("2001:db8:244::2")


def ethernet(protocol: int, payload: bytes) -> bytes:
    return struct.pack("!6s6sH", b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02", protocol) + payload


def ipv4(
    to: IPv4Address,
    payload: bytes = bytes(8),
    *,
    protocol: int = UDP,
    options: bytes = b"",
    more_fragments: bool = False,
    offset: int = 0,
    version: int = 4,
    header_words: int | None = None,
    source: IPv4Address = SOURCE_V4,
) -> bytes:
    """RFC 791 section 3.1; `offset` in units of 8 bytes, `header_words` None: as many as there are."""
    words = 5 + len(options) // 4 if header_words is None else header_words
    fragment = more_fragments << 13 | offset
    length = 20 + len(options) + len(payload)
    header = struct.pack("!BBHHHBBH", version << 4 | words, 0, length, 7, fragment, 64, protocol, 0)
    return ethernet(ETH_IP, header + source.packed + to.packed + options + payload)


def ipv6(to: IPv6Address, payload: bytes = bytes(8), *, next_header: int = UDP, version: int = 6) -> bytes:
    """RFC 8200 section 3; `payload` with the extension headers."""
    header = struct.pack("!IHBB", version << 28, len(payload), next_header, 64)
    return ethernet(ETH_IPV6, header + SOURCE_V6.packed + to.packed + payload)


def packet(to: Address) -> bytes:
    return ipv4(to) if isinstance(to, IPv4Address) else ipv6(to)


def fragment_header(next_header: int, offset: int, more: bool) -> bytes:
    """RFC 8200 section 4.5."""
    return struct.pack("!BBHI", next_header, 0, offset << 3 | more, 7)


def routing_header(next_header: int, segments: list[IPv6Address]) -> bytes:
    """RFC 8754 section 2, all segments left."""
    count = len(segments)
    fixed = struct.pack("!BBBBBBH", next_header, 2 * count, 4, count, count - 1, 0, 0)
    return fixed + b"".join(segment.packed for segment in segments)


def padded_options(next_header: int) -> bytes:
    """RFC 8200 section 4.2: an options header with nothing but padding."""
    return struct.pack("!BBBB4s", next_header, 0, 1, 4, bytes(4))
