"""Who reaches whom, and with which source address: real packets between namespaces of a lab.

This decides whether an address answers and what address the far end saw. It does not make networks
(`netns`) and starts no program: every socket is opened by the test process inside the namespace it belongs
to.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from contextlib import closing

from tests.fabric.netns import Namespace

_ECHO = {socket.AF_INET: (8, 0), socket.AF_INET6: (128, 129)}  # ICMP types of request and reply


def ping(namespace: Namespace, address: str, *, source: str | None = None, timeout_s: float = 1.0) -> bool:
    """Whether one ICMP echo request from `namespace` is answered within `timeout_s`."""
    family = _family(address)
    protocol = socket.IPPROTO_ICMP if family == socket.AF_INET else socket.IPPROTO_ICMPV6
    request_type, reply_type = _ECHO[family]
    token = struct.pack("!HH", os.getpid() & 0xFFFF, int(time.monotonic() * 1000) & 0xFFFF)
    request = struct.pack("!BBH", request_type, 0, 0) + token
    request = struct.pack("!BBH", request_type, 0, checksum(request)) + token
    deadline = time.monotonic() + timeout_s
    with closing(namespace.socket(family, socket.SOCK_RAW, protocol)) as raw:
        if source is not None:
            raw.bind((source, 0))
        try:
            raw.sendto(request, (address, 0))
        except OSError:  # no route: as good as no answer
            return False
        while (left := deadline - time.monotonic()) > 0 and select.select([raw], [], [], left)[0]:
            packet, sender = raw.recvfrom(2048)
            reply = packet[(packet[0] & 15) * 4 :] if family == socket.AF_INET else packet
            if sender[0] == address and reply[0] == reply_type and reply[4:8] == token:
                return True
    return False


def source_seen(
    client: Namespace, server: Namespace, address: str, *, port: int = 8080, source: str | None = None,
    timeout_s: float = 2.0, protocol: int = socket.IPPROTO_TCP,
) -> str | None:  # fmt: skip
    """Dial `protocol`, which has streams, from `client` to `address` (which `server` owns); the source it saw.

    None when the connection did not come about within `timeout_s` (no route, dropped or refused).
    """
    family = _family(address)
    with (
        closing(server.socket(family, socket.SOCK_STREAM, protocol)) as listener,
        closing(client.socket(family, socket.SOCK_STREAM, protocol)) as dialer,
    ):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(1)
        listener.settimeout(timeout_s)
        if source is not None:
            dialer.bind((source, 0))
        dialer.settimeout(timeout_s)
        try:
            dialer.connect((address, port))
            accepted, seen = listener.accept()
        except OSError:
            return None
        accepted.close()
        return str(seen[0])


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def checksum(data: bytes) -> int:
    """The internet checksum of RFC 1071; `data` has an even length here."""
    total = sum(int.from_bytes(data[at : at + 2]) for at in range(0, len(data), 2))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
