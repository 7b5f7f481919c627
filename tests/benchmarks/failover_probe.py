"""Packets through the fabric, one each millisecond on each of a few flows: which of them arrived, and where.

This decides what a loss is: a packet of UDP that none of the receivers got, counted with the time until the next one
was sent, so that a sender who comes late does not make a loss smaller. It does not decide which way a flow takes
(`failover_site`) nor what happens meanwhile. Both ends are sockets of the measuring process.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tests.fabric.netns import Namespace

PORT = 7777
INTERVAL_S = 0.001
ON_THE_WAY_S = 0.05  # a packet that was sent so long ago has arrived, or will not
_SO_RCVBUFFORCE = 33  # no name in `socket`
_BUFFER = 64 << 20  # what comes while nobody reads is not lost
_NUMBER = struct.Struct("!I")


@dataclass(frozen=True, slots=True)
class Flow:
    """From here to there; `PORT` is the destination's."""

    source: str
    port: int
    destination: str


class Receiver:
    """Whoever has the addresses: while it is open it takes the packets of all flows."""

    def __init__(self, namespace: Namespace, addresses: Sequence[str]) -> None:
        self._namespace, self._addresses = namespace, addresses
        self._sockets: list[socket.socket] = []

    def open(self) -> None:
        self._sockets = [self._bound(address) for address in self._addresses]

    def close(self) -> None:
        for channel in self._sockets:
            channel.close()
        self._sockets = []

    def arrived(self) -> Iterator[tuple[int, int]]:
        """Source port and number of each packet that came since the last call."""
        for channel in self._sockets:
            with contextlib.suppress(BlockingIOError):
                while True:
                    data, sender = channel.recvfrom(64)
                    yield sender[1], *_NUMBER.unpack(data)

    def _bound(self, address: str) -> socket.socket:
        channel = self._namespace.socket(_family(address), socket.SOCK_DGRAM)
        channel.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        channel.setblocking(False)
        channel.bind((address, PORT))
        return channel


class Probe:
    """Sends from its start to `stop`."""

    def __init__(self, client: Namespace, flows: Sequence[Flow], receivers: Sequence[Receiver]) -> None:
        self._receivers = receivers
        self._channels = []
        for flow in flows:
            channel = client.socket(_family(flow.source), socket.SOCK_DGRAM)
            channel.bind((flow.source, flow.port))
            self._channels.append((channel, (flow.destination, PORT)))
        self._arrived: dict[int, set[int]] = {flow.port: set() for flow in flows}
        self._sent: list[float] = []
        self._over = threading.Event()
        for receiver in receivers:
            list(receiver.arrived())  # of the probe before
        self._thread = threading.Thread(target=self._send, name="probe")
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
        for channel, _ in self._channels:
            channel.close()

    def lost_ms(self, since: float) -> float:
        """Of all that was sent since then (monotonic) and should have arrived by now; the flow that lost most."""
        for receiver in self._receivers:
            for port, number in receiver.arrived():
                self._arrived[port].add(number)
        sent = self._sent[:]
        until = time.monotonic() - ON_THE_WAY_S
        gaps = [(number, after - at) for number, (at, after) in enumerate(pairwise(sent)) if since <= at < until]
        return max(1000 * sum(gap for number, gap in gaps if number not in got) for got in self._arrived.values())

    def _send(self) -> None:
        number = 0
        while not self._over.is_set():
            self._sent.append(time.monotonic())
            data = _NUMBER.pack(number)
            for channel, to in self._channels:
                with contextlib.suppress(OSError):  # nobody has a route: it is lost, as it would be in the fabric
                    channel.sendto(data, to)
            number += 1
            time.sleep(max(0.0, self._sent[0] + number * INTERVAL_S - time.monotonic()))


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
