"""BGP as it is on the wire: from captured frames to messages.

This decides how frames become TCP streams (by sequence number, so that segments that come twice or out of
order do no harm) and how a stream becomes messages (RFC 4271 section 4: 16 marker bytes, a length, a type),
however they are cut into segments. Pure: bytes in, values out. It does not capture (`observe`). A stream
whose beginning was missed is picked up at the next marker.
"""

from __future__ import annotations

import enum
import ipaddress
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

MARKER = b"\xff" * 16
_HEADER = len(MARKER) + 3
_LONGEST = 65535  # with extended messages, RFC 8654
_TCP = 6
_FIN, _SYN, _RST = 1, 2, 4


class BgpType(enum.IntEnum):
    """The type byte of a message, RFC 4271 section 4.1 and RFC 2918."""

    OPEN = 1
    UPDATE = 2
    NOTIFICATION = 3
    KEEPALIVE = 4
    ROUTE_REFRESH = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class BgpMessage:
    """One message. `time` is when the segment with its last byte was seen, in seconds since the epoch."""

    time: float
    src: str
    dst: str
    type: BgpType
    body: bytes

    @property
    def notification(self) -> tuple[int, int] | None:
        """Code and subcode of a NOTIFICATION; None for any other type."""
        return (
            (self.body[0], self.body[1])
            if self.type is BgpType.NOTIFICATION and len(self.body) >= 2
            else None
        )

    @property
    def end_of_rib(self) -> bool:
        """Whether this is an End-of-RIB (RFC 4724 section 2): empty, or an empty MP_UNREACH_NLRI alone."""
        if self.type is not BgpType.UPDATE:
            return False
        return self.body == bytes(4) or (
            len(self.body) in (10, 11) and self.body[:2] == b"\0\0" and self.body[5] == 15
        )

    def __str__(self) -> str:
        detail = f" {self.notification[0]}/{self.notification[1]}" if self.notification else ""
        return f"{self.time:.6f} {self.src} > {self.dst} {self.type.name}{detail}"


@dataclass(frozen=True, slots=True)
class Segment:
    """One TCP segment, addresses with ports as a key of its direction."""

    src: str
    sport: int
    dst: str
    dport: int
    sequence: int
    flags: int
    payload: bytes


@dataclass(slots=True)
class _Stream:
    """One direction of one connection. `expected` None: nothing seen yet."""

    expected: int | None = None
    buffer: bytearray = field(default_factory=bytearray)
    early: dict[int, bytes] = field(default_factory=dict)


class Reassembly:
    """Feed it every frame in the order of capture; it yields the messages that each one completes."""

    def __init__(self, port: int = 179) -> None:
        self._port = port
        self._streams: dict[tuple[str, int, str, int], _Stream] = {}

    def feed(self, time: float, packet: bytes) -> Iterator[BgpMessage]:
        """`packet` begins with the IP header."""
        segment = parse_ip(packet)
        if segment is None or self._port not in (segment.sport, segment.dport):
            return
        key = (segment.src, segment.sport, segment.dst, segment.dport)
        if segment.flags & _SYN:
            self._streams[key] = _Stream(expected=(segment.sequence + 1) & 0xFFFFFFFF)
        stream = self._streams.setdefault(key, _Stream())
        _add(stream, segment)
        for kind, body in _messages(stream.buffer):
            yield BgpMessage(time=time, src=segment.src, dst=segment.dst, type=kind, body=body)
        if segment.flags & _RST:
            self._streams.pop(key, None)


def parse_ip(packet: bytes) -> Segment | None:
    """The TCP segment in an IP packet; None for anything else, fragments and v6 extensions too."""
    if not packet:
        return None
    if packet[0] >> 4 == 4 and len(packet) >= 20:
        header, total = (packet[0] & 15) * 4, struct.unpack_from("!H", packet, 2)[0]
        fragment = struct.unpack_from("!H", packet, 6)[0] & 0x3FFF
        protocol, addresses = packet[9] if not fragment else 0, (packet[12:16], packet[16:20])
    elif packet[0] >> 4 == 6 and len(packet) >= 40:
        header, total = 40, 40 + struct.unpack_from("!H", packet, 4)[0]
        protocol, addresses = packet[6], (packet[8:24], packet[24:40])
    else:
        return None
    # A total of 0 is a segment that the sender left the network card to cut (TSO): all of it is there.
    tcp = packet[header : total or len(packet)]
    if protocol != _TCP or len(tcp) < 20:
        return None
    sport, dport, sequence = struct.unpack_from("!HHI", tcp)
    src, dst = (str(ipaddress.ip_address(it)) for it in addresses)
    return Segment(src, sport, dst, dport, sequence, tcp[13], tcp[(tcp[12] >> 4) * 4 :])


def _add(stream: _Stream, segment: Segment) -> None:
    """Append what is next in the stream, keep what came early, drop what came twice."""
    if not segment.payload:
        return
    if stream.expected is None:
        stream.expected = segment.sequence
    stream.early[segment.sequence] = segment.payload
    moved = True
    while moved:
        moved = False
        for sequence in sorted(stream.early, key=lambda it: _ahead(it, stream.expected or 0)):
            behind = -_ahead(sequence, stream.expected)
            if behind < 0:
                continue
            payload = stream.early.pop(sequence)[behind:]
            stream.buffer += payload
            stream.expected = (stream.expected + len(payload)) & 0xFFFFFFFF
            moved = moved or bool(payload)


def _ahead(sequence: int, expected: int) -> int:
    """How far `sequence` is ahead of `expected` (negative: behind), across the wrap at 2^32."""
    return ((sequence - expected + 0x80000000) & 0xFFFFFFFF) - 0x80000000


def _messages(buffer: bytearray) -> Iterator[tuple[BgpType, bytes]]:
    """Take the complete messages off the front of `buffer`, and whatever is before a marker."""
    while len(buffer) >= _HEADER:
        if not buffer.startswith(MARKER):
            at = buffer.find(MARKER)
            del buffer[: at if at >= 0 else len(buffer) - len(MARKER) + 1]
            if at < 0:
                return
            continue
        length, kind = struct.unpack_from("!HB", buffer, len(MARKER))
        if not _HEADER <= length <= _LONGEST or kind not in BgpType.__members__.values():
            del buffer[:1]
            continue
        if len(buffer) < length:
            return
        body = bytes(buffer[_HEADER:length])
        del buffer[:length]
        yield BgpType(kind), body
