"""TTL security (GTSM, RFC 5082) where ExaBGP 5.0 lacks it: at its listening sockets. `steady` puts it in.

ExaBGP answers a SYN with the host's own TTL, so a peer that checks it never gets the connection that it dials. And
it demands one minimum of all who dial a local address, that of any neighbor there: the others cannot dial in, and
the demand stays until ExaBGP is restarted.

Here a listening socket answers with 255, as BIRD's does, and demands what every neighbor demands that dials it; a
connection is held to its own neighbor's minimum. By the time ExaBGP accepts one, the peer's OPEN is in its queue,
unchecked, so the TTL that the handshake came with is looked at: nobody from further away can have had a higher one.
Goes once ExaBGP does it itself.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from exabgp.reactor import listener
from exabgp.reactor.network import tcp

SENT_TTL = 255  # RFC 5082 section 3
SYSTEM_TTL = -1  # ip(7), ipv6(7): the route's or the host's own
IP_RECVTTL, IP_PKTOPTIONS, IPV6_2292PKTOPTIONS = 12, 9, 6  # linux/in.h, linux/in6.h; not in Python's socket


class _Options(NamedTuple):
    """Socket options of one address family."""

    level: int
    sent: int
    """The TTL of what leaves."""
    minimum: int
    """The lowest TTL of what is taken."""
    receive: int
    """Whether `arrived` answers."""
    arrived: int
    """As ancillary data, the TTL of the segment that ended the handshake (Linux, tcp_v4_syn_recv_sock)."""


_OPTIONS = {
    socket.AF_INET: _Options(socket.IPPROTO_IP, socket.IP_TTL, tcp.ip_minttl(), IP_RECVTTL, IP_PKTOPTIONS),
    socket.AF_INET6: _Options(
        socket.IPPROTO_IPV6,
        socket.IPV6_UNICAST_HOPS,
        tcp.IPV6_MINHOPCOUNT,
        socket.IPV6_RECVHOPLIMIT,
        IPV6_2292PKTOPTIONS,
    ),
}
_ANCILLARY = struct.Struct("@Niii")  # cmsg(3): length, level, type; then the TTL


class Listener(listener.Listener):  # type: ignore[misc] # ExaBGP is not typed
    """ExaBGP's own, with TTLs set whenever it has bound what its configuration asks for, and when it accepts."""

    def close_unwanted(self, wanted: Collection[tuple[str, int]]) -> None:
        """The last thing that ExaBGP does to its sockets, at its start and in a reload."""
        super().close_unwanted(wanted)
        for listening, (address, port, *_) in self._sockets.items():
            options = _OPTIONS[listening.family]
            lowest = min(self._demands(address, port).values(), default=0)
            listening.setsockopt(options.level, options.sent, SENT_TTL)
            listening.setsockopt(options.level, options.minimum, lowest)

    def _connected(self) -> Iterator[Any]:
        """Those who dialled from near enough. ExaBGP calls the peer's end `local`."""
        for connection in super()._connected():
            address, port, *_ = connection.io.getsockname()
            if admit(connection.io, self._demands(address, port).get(connection.local, 0)):
                yield connection
            else:
                connection.close()

    def _demands(self, address: str, port: int) -> dict[str, int]:
        """The lowest TTL that is taken from each peer that may dial there, by its address; 0: any."""
        return {
            neighbor["peer-address"].top(): neighbor["incoming-ttl"] or 0
            for neighbor in self._reactor.configuration.neighbors.values()
            if (neighbor["md5-ip"].top(), neighbor["listen"]) == (address, port)
        }


def admit(connection: socket.socket, minimum: int) -> bool:
    """Takes nothing below `minimum` from here on; whether the handshake had it too.

    It sends with the system's TTL and no longer with the listening socket's; ExaBGP sets its neighbor's after this.
    """
    options = _OPTIONS[connection.family]
    connection.setsockopt(options.level, options.sent, SYSTEM_TTL)
    connection.setsockopt(options.level, options.minimum, minimum)
    connection.setsockopt(options.level, options.receive, 1)
    *_, arrived = _ANCILLARY.unpack_from(connection.getsockopt(options.level, options.arrived, 128))
    return bool(arrived >= minimum)
