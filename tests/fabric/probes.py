"""Who reaches whom by TCP, UDP, SCTP and ping: hundreds of probes at once, with real packets, in one loop.

This decides how a probe is sent, answered and told from the others. What should get through is for the tests to say.
Clients and servers are sockets of the test process, each opened in the namespace it belongs to, so nobody but the
kernel can be late: a round is over when nothing has come for `SILENCE_S`. TCP connections are new in every round;
what speaks UDP does so from one port for life, so a flow that the kernel has long known is judged anew.

SCTP is spoken by hand (RFC 9260 section 3.3: INIT, INIT ACK), because not every kernel has sockets for it.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import struct
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from itertools import product
from typing import Any, NamedTuple

from tests.fabric.netns import Namespace
from tests.fabric.reach import checksum

SILENCE_S = 0.25  # for so long nothing must come; what passes takes a millisecond
IPPROTO_SCTP = 132
_INIT, _INIT_ACK = 1, 2
_SCTP_PORTS = 20_000  # and 20,000 more: the client's port is another in every round
_ECHO = {4: (8, 0), 6: (128, 129)}  # ICMP types of request and reply


class How(StrEnum):
    """What a probe speaks; a ping has port 0."""

    TCP = "TCP"
    UDP = "UDP"
    SCTP = "SCTP"
    PING = "PING"


class Probe(NamedTuple):
    client: str
    server: str
    how: How
    port: int = 0
    version: int = 4


@dataclass(frozen=True, slots=True)
class End:
    """A namespace, and the address that it is reached by and speaks from, by IP version.

    None: it is somebody else's address, which is only asked.
    """

    namespace: Namespace | None
    addresses: Mapping[int, str]


class Prober:
    """Serves `ports` at every end as long as it lives; close it."""

    def __init__(self, ends: Mapping[str, End], ports: Collection[int], hows: Collection[How] = tuple(How)) -> None:
        self._ends = ends
        self._selector = selectors.DefaultSelector()
        self._round = 0
        self._asked: dict[int, Probe] = {}
        self._passed: set[Probe] = set()
        self._refused: dict[Probe, str] = {}
        self._clients: dict[tuple[str, int, How], socket.socket] = {}
        self._stack = contextlib.ExitStack()
        self._stack.callback(self._selector.close)
        self._heard = 0.0
        for name, end in ends.items():
            for version, how in product(end.addresses, hows):
                if end.namespace is not None:
                    self._open(name, end.namespace, version, how, ports)

    def close(self) -> None:
        self._stack.close()

    def passing(self, probes: Iterable[Probe], silence_s: float = SILENCE_S) -> set[Probe]:
        """Those that are answered. What is not must be dropped silently: AssertionError for a refusal."""
        self._round += 1
        wanted = list(probes)
        self._asked = {self._round << 16 | index: probe for index, probe in enumerate(wanted)}
        self._passed, self._refused = set(), {}
        with contextlib.ExitStack() as dialing:
            self._dial([(number, probe) for number, probe in self._asked.items() if probe.how is How.TCP], dialing)
            for number, probe in self._asked.items():
                if probe.how is not How.TCP:
                    self._send(number, probe)
            self._heard = time.monotonic()
            while len(self._passed) < len(wanted) and (left_s := self._heard + silence_s - time.monotonic()) > 0:
                self._serve(left_s)
        assert not self._refused, f"not dropped silently: {self._refused}"
        return self._passed

    # --- the loop -------------------------------------------------------------------------------------------------

    def _serve(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(timeout_s):
            key.data(key.fileobj)
            self._heard = time.monotonic()

    def _watch(self, channel: socket.socket, event: int, on_event: Callable[[Any], None]) -> socket.socket:
        channel.setblocking(False)
        self._selector.register(channel, event, on_event)
        return channel

    def _open(self, name: str, namespace: Namespace, version: int, how: How, ports: Collection[int]) -> None:
        """The servers of one end, and the socket that it asks from."""
        family, address = _family(version), self._address(name, version)

        def made(kind: socket.SocketKind, protocol: int, port: int) -> socket.socket:
            channel = self._stack.enter_context(contextlib.closing(socket.socket(family, kind, protocol)))
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            channel.bind((address, port))
            return channel

        def opened() -> None:
            if how is How.TCP:
                for port in ports:
                    listener = made(socket.SOCK_STREAM, 0, port)
                    listener.listen(512)
                    self._watch(listener, selectors.EVENT_READ, _accept)
            elif how is How.UDP:
                for port in ports:
                    self._watch(made(socket.SOCK_DGRAM, 0, port), selectors.EVENT_READ, _echo)
                self._client(name, version, how, made(socket.SOCK_DGRAM, 0, 0), self._hear_datagrams)
            elif how is How.SCTP:
                channel = made(socket.SOCK_RAW, IPPROTO_SCTP, 0)
                self._client(name, version, how, channel, lambda heard: self._hear_sctp(heard, version))
            else:
                channel = made(socket.SOCK_RAW, socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6, 0)
                self._client(name, version, how, channel, lambda heard: self._hear_ping(heard, version))

        namespace.call(opened)

    def _client(
        self, name: str, version: int, how: How, channel: socket.socket, hear: Callable[[socket.socket], None]
    ) -> None:
        self._clients[name, version, how] = self._watch(channel, selectors.EVENT_READ, hear)

    def _address(self, name: str, version: int) -> str:
        return self._ends[name].addresses[version]

    def _answered(self, number: int) -> None:
        """Late answers of earlier rounds have numbers that nobody waits for."""
        if number in self._asked:
            self._passed.add(self._asked[number])

    # --- asking and hearing ---------------------------------------------------------------------------------------

    def _dial(self, probes: Collection[tuple[int, Probe]], dialing: contextlib.ExitStack) -> None:
        by_client: dict[str, list[tuple[int, Probe]]] = {}
        for number, probe in probes:
            by_client.setdefault(probe.client, []).append((number, probe))
        for client, each in by_client.items():
            namespace = self._ends[client].namespace
            assert namespace is not None, f"nobody can ask from {client}"
            sockets = namespace.call(partial(_sockets, [probe.version for _, probe in each]))
            for dialer, (number, probe) in zip(sockets, each, strict=True):
                dialing.enter_context(contextlib.closing(dialer))
                dialer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                dialer.bind((self._address(probe.client, probe.version), 0))
                self._watch(dialer, selectors.EVENT_WRITE, partial(self._hear_connected, number))
                dialing.callback(self._forget, dialer)
                error = dialer.connect_ex((self._address(probe.server, probe.version), probe.port))
                assert error == errno.EINPROGRESS, f"{probe}: {errno.errorcode.get(error, error)}"

    def _send(self, number: int, probe: Probe) -> None:
        port, data = 0, b""  # a raw socket has no port
        if probe.how is How.UDP:
            port, data = probe.port, struct.pack("!I", number)
        elif probe.how is How.SCTP:
            chunk = struct.pack("!BBHIIHHI", _INIT, 0, 20, number, 65536, 1, 1, number)
            data = _sctp(_SCTP_PORTS + self._round % 20_000, probe.port, 0, chunk)
        elif probe.how is How.PING:
            data = _ping(probe.version, self._round & 0xFFFF, number)
        to = self._address(probe.server, probe.version)
        self._clients[probe.client, probe.version, probe.how].sendto(data, (to, port))

    def _hear_connected(self, number: int, dialer: socket.socket) -> None:
        self._selector.unregister(dialer)
        error = dialer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._refused[self._asked[number]] = errno.errorcode.get(error, str(error))
        else:
            self._answered(number)

    def _forget(self, dialer: socket.socket) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(dialer)

    def _hear_datagrams(self, channel: socket.socket) -> None:
        for data, _ in _received(channel):
            self._answered(*struct.unpack("!I", data))

    def _hear_sctp(self, channel: socket.socket, version: int) -> None:
        """Both ends of it: what asks is answered, an answer carries in its tag what was asked."""
        for packet, sender in _received(channel):
            source, destination, tag, _, kind = struct.unpack_from("!HHIIB", data := _payload(packet, version))
            if kind == _INIT:
                (theirs,) = struct.unpack_from("!I", data, 16)
                chunk = struct.pack("!BBHIIHHI", _INIT_ACK, 0, 20, theirs, 65536, 1, 1, theirs)
                channel.sendto(_sctp(destination, source, theirs, chunk), sender)
            elif kind == _INIT_ACK:
                self._answered(tag)

    def _hear_ping(self, channel: socket.socket, version: int) -> None:
        for packet, _ in _received(channel):
            data = _payload(packet, version)
            if data[0] == _ECHO[version][1]:
                self._answered(*struct.unpack_from("!I", data, 8))


def _family(version: int) -> socket.AddressFamily:
    return socket.AF_INET if version == 4 else socket.AF_INET6


def _sockets(versions: Iterable[int]) -> list[socket.socket]:
    return [socket.socket(_family(version), socket.SOCK_STREAM) for version in versions]


def _accept(listener: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()


def _echo(server: socket.socket) -> None:
    for data, sender in _received(server):
        server.sendto(data, sender)


def _received(channel: socket.socket) -> Iterator[tuple[bytes, Any]]:
    with contextlib.suppress(BlockingIOError):
        while True:
            data, sender = channel.recvfrom(2048)
            yield data, sender[:2]


def _payload(packet: bytes, version: int) -> bytes:
    """A raw socket of IPv4 shows the header too."""
    return packet[(packet[0] & 15) * 4 :] if version == 4 else packet


def _ping(version: int, identifier: int, number: int) -> bytes:
    """The kernel itself writes the checksum of ICMPv6."""
    kind = _ECHO[version][0]
    rest = struct.pack("!HHI", identifier, number & 0xFFFF, number)
    return struct.pack("!BBH", kind, 0, checksum(struct.pack("!BBH", kind, 0, 0) + rest)) + rest


def _sctp(source: int, destination: int, tag: int, chunk: bytes) -> bytes:
    """RFC 9260 section 3.1, with the checksum that connection tracking looks at (appendix A)."""
    blank = struct.pack("!HHII", source, destination, tag, 0) + chunk
    return struct.pack("!HHI", source, destination, tag) + struct.pack("<I", _crc32c(blank)) + chunk


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC32C[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _crc32c_of(byte: int) -> int:
    for _ in range(8):
        byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC32C = tuple(map(_crc32c_of, range(256)))
