"""Ethernet frames as bytes, with every field as the caller wants it, and who gets them."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import time
from collections.abc import Iterator
from ipaddress import ip_address

from tests.fabric.netns import Namespace
from tests.fabric.reach import checksum

IPV4, ARP, VLAN, IPV6 = 0x0800, 0x0806, 0x8100, 0x86DD
UDP, ICMPV6 = 17, 58
EVERYBODY = b"\xff" * 6
MARK = b"bgpd-frame"  # what a listener looks for
_ALL = 0x0003  # ETH_P_ALL
PACKET_QDISC_BYPASS = 20  # linux/if_packet.h
SOL_PACKET = 263  # linux/socket.h; not in Python's


def ethernet(to: bytes, sender: bytes, kind: int, payload: bytes, *, vlan: int | None = None) -> bytes:
    frame = to + sender + struct.pack("!H", kind) + payload
    return frame if vlan is None else tagged(frame, vlan)


def tagged(frame: bytes, *vlans: int, kind: int = VLAN) -> bytes:
    """With a tag of each before what there was, the outermost first."""
    return frame[:12] + b"".join(struct.pack("!HH", kind, each) for each in vlans) + frame[12:]


def udp(to: bytes, sender: bytes, source: str, destination: str, port: int = 9, *, vlan: int | None = None) -> bytes:
    """A datagram with the mark, from port 4000."""
    one, other = ip_address(source), ip_address(destination)
    payload = struct.pack("!HHHH", 4000, port, 8 + len(MARK), 0) + MARK
    if one.version == 6:
        payload = _checked(one.packed + other.packed, payload, UDP, 6)
    return ethernet(to, sender, *_ip(source, destination, UDP, payload), vlan=vlan)


def _ip(source: str, destination: str, protocol: int, payload: bytes, hops: int = 64) -> tuple[int, bytes]:
    one, other = ip_address(source), ip_address(destination)
    if one.version == 6:
        return IPV6, struct.pack("!IHBB", 6 << 28, len(payload), protocol, hops) + one.packed + other.packed + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, hops, protocol, 0) + one.packed + other.packed
    return IPV4, head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def _checked(addresses: bytes, payload: bytes, protocol: int, at: int) -> bytes:
    total = checksum(addresses + struct.pack("!II", len(payload), protocol) + payload)
    return payload[:at] + struct.pack("!H", total) + payload[at + 2 :]


def arp(to: bytes, sender: bytes, hardware: bytes, address: str, target: str) -> bytes:
    """RFC 826: a request from `hardware` and `address`; the mark is beyond its end."""
    head = struct.pack("!HHBBH", 1, IPV4, 6, 4, 1)
    body = hardware + ip_address(address).packed + bytes(6) + ip_address(target).packed
    return ethernet(to, sender, ARP, head + body + MARK)


def advertisement(to: bytes, sender: bytes, source: str, destination: str, target: str) -> bytes:
    """RFC 4861 section 4.4: `target` is at `sender`; another type of message by its number."""
    return icmpv6(to, sender, source, destination, 136, ip_address(target).packed + b"\x02\x01" + sender)


def icmpv6(to: bytes, sender: bytes, source: str, destination: str, kind: int, body: bytes) -> bytes:
    """With the mark in an option that nobody knows."""
    payload = struct.pack("!BBHI", kind, 0, 0, 0) + body + struct.pack("!BB", 253, 2) + MARK + bytes(4)
    addresses = ip_address(source).packed + ip_address(destination).packed
    return ethernet(to, sender, *_ip(source, destination, ICMPV6, _checked(addresses, payload, ICMPV6, 2), 255))


def send(owner: Namespace, interface: str, frame: bytes, protocol: int = 0, *, bypass: bool = True) -> None:
    """Past everything that a pod has of its own: by a packet socket, without a queue if it is to `bypass` that.
    `protocol`: what the frame is said to be, 0: what it is."""
    with owner.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, bypass)
        wire.bind((interface, protocol))
        try:
            wire.send(frame)
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # what is dropped on the way out is told
                raise


@contextlib.contextmanager
def listener(namespace: Namespace, interface: str = "eth0") -> Iterator[socket.socket]:
    """Of every frame that the interface gets."""
    with contextlib.closing(namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))) as wire:
        wire.bind((interface, _ALL))
        yield wire


def marked(wire: socket.socket, timeout_s: float) -> bytes | None:
    """The first frame with the mark that comes in in time."""
    end = time.monotonic() + timeout_s
    while (left := end - time.monotonic()) > 0:
        wire.settimeout(left)
        with contextlib.suppress(TimeoutError):
            frame, (_, _, kind, _, _) = wire.recvfrom(4096)
            if MARK in frame and kind != socket.PACKET_OUTGOING:
                return frame
    return None
