"""Asks connection tracking which flows to an address and a port there are, and makes it forget some. A shell.

Only flows in one direction of translation are of interest here: what clients sent to, and what answers them. The
kernel leaves out the rest (from 5.8 on; before that it shows all, and what was not asked for is left out here).

Synchronous: use it in a thread. Sources: linux/netfilter/nfnetlink_conntrack.h, libnetfilter_conntrack.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address
from typing import NamedTuple

from bgpd.model.prefix import Address
from bgpd.netlink.message import ACK, DONE, DUMP, ERROR, REQUEST, messages, pack
from bgpd.netlink.nftables import open_socket
from bgpd.netlink.nftmessage import Attributes, attribute, attributes, nest

_SUBSYSTEM, _GET, _DELETE = 1, 1, 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_*
_ORIGINAL, _REPLY, _PROTOCOL_STATE, _ID, _FILTER = 1, 2, 4, 12, 25  # CTA_*
_IP, _PROTOCOL = 1, 2  # CTA_TUPLE_*
_ADDRESSES = {4: (1, 2), 6: (3, 4)}  # CTA_IP_*: source, destination
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3  # CTA_PROTO_*
_BY_DESTINATION = 1 << 1 | 1 << 3 | 1 << 5  # CTA_FILTER_FLAG of destination address, protocol, destination port
_TCP, _TCP_STATE = 1, 1  # CTA_PROTOINFO_TCP, CTA_PROTOINFO_TCP_STATE
_ENDING = 6  # TCP_CONNTRACK_LAST_ACK, and all states from there on
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_HEADER = struct.Struct(">BBH")
_TIMEOUT_S = 10.0
_ROOM = 1 << 18


class Flow(NamedTuple):
    """`answered_by` is who sends the answers, after translation. `ends`: a TCP connection on its way out.

    `handle` is what the kernel tells it by.
    """

    answered_by: tuple[Address, int]
    ends: bool
    handle: bytes


class Conntrack:
    """OSError from any method: the kernel has no ctnetlink, or refuses."""

    def __init__(self) -> None:
        self._socket = open_socket()
        self._socket.settimeout(_TIMEOUT_S)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def flows(self, address: Address, protocol: int, port: int) -> list[Flow]:
        """Those whose clients sent to this."""
        flags = attribute(1, struct.pack("=I", _BY_DESTINATION)) + attribute(2, bytes(4))
        body = _tuple(_ORIGINAL, address, protocol, port) + nest(_FILTER, flags)
        shown = self._ask(_GET, DUMP, address.version, body)
        return [_flow(each) for each in shown if _is_to(each, address, protocol, port)]

    def forget(self, version: int, flow: Flow) -> None:
        """Its next packet is looked at as if it were the first. One that is gone already is fine."""
        with contextlib.suppress(FileNotFoundError):
            self._ask(_DELETE, ACK, version, flow.handle)

    def _ask(self, kind: int, flags: int, version: int, body: bytes) -> list[Attributes]:
        self._sequence += 1
        header = _HEADER.pack(_FAMILIES[version], 0, 0)
        self._socket.send(pack(_SUBSYSTEM << 8 | kind, REQUEST | flags, self._sequence, header + body))
        return [attributes(data) for data in self._answers()]

    def _answers(self) -> Iterator[bytes]:
        while True:
            for each in messages(self._socket.recv(_ROOM)):
                if each.sequence != self._sequence:
                    continue
                if each.kind in (ERROR, DONE):
                    (code,) = struct.unpack_from("=i", each.body)
                    if code:
                        raise OSError(-code, f"conntrack: {os.strerror(-code)}")
                    return
                yield each.body[_HEADER.size :]


def _tuple(kind: int, address: Address, protocol: int, port: int) -> bytes:
    place = nest(_IP, attribute(_ADDRESSES[address.version][1], address.packed))
    number = attribute(_NUMBER, bytes([protocol])) + attribute(_DESTINATION_PORT, struct.pack(">H", port))
    return nest(kind, place, nest(_PROTOCOL, number))


def _is_to(shown: Attributes, address: Address, protocol: int, port: int) -> bool:
    original = attributes(shown[_ORIGINAL][0])
    place, what = attributes(original[_IP][0]), attributes(original[_PROTOCOL][0])
    wanted = [address.packed], [bytes([protocol])], [struct.pack(">H", port)]
    destination = place.get(_ADDRESSES[address.version][1])
    return (destination, what.get(_NUMBER), what.get(_DESTINATION_PORT)) == wanted


def _flow(shown: Attributes) -> Flow:
    reply = attributes(shown[_REPLY][0])
    place, what = attributes(reply[_IP][0]), attributes(reply[_PROTOCOL][0])
    source = next(place[number][0] for number, _ in _ADDRESSES.values() if number in place)
    (port,) = struct.unpack(">H", what[_SOURCE_PORT][0])
    handle = attribute(_ORIGINAL | 0x8000, shown[_ORIGINAL][0]) + attribute(_ID, shown[_ID][0])
    return Flow((ip_address(source), port), _tcp_state(shown) >= _ENDING, handle)


def _tcp_state(shown: Attributes) -> int:
    """0 for what is not TCP."""
    if _PROTOCOL_STATE not in shown:
        return 0
    protocols = attributes(shown[_PROTOCOL_STATE][0])
    return attributes(protocols[_TCP][0])[_TCP_STATE][0][0] if _TCP in protocols else 0
