"""Whether `bgp.gtsm` tells from which distance somebody has dialled, on this machine's kernel."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from bgpd.bgp.gtsm import admit

LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
TTL = {
    socket.AF_INET: (socket.IPPROTO_IP, socket.IP_TTL),
    socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS),
}


@pytest.fixture(params=LOOPBACK, ids=lambda family: str(family.name))
def listening(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    with socket.socket(request.param) as made:
        made.bind((LOOPBACK[request.param], 0))
        made.listen()
        yield made


def dial(listening: socket.socket, ttl: int) -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection, the accepted one first; what the other says at once is in the queue."""
    made = socket.socket(listening.family)
    made.setsockopt(*TTL[listening.family], ttl)
    made.connect(listening.getsockname())
    made.sendall(b"OPEN")
    return listening.accept()[0], made


@pytest.mark.parametrize("minimum", [0, 254, 255])
@pytest.mark.parametrize("ttl", [1, 64, 253, 254, 255])
def test_only_the_ttl_that_was_demanded_is_admitted(listening: socket.socket, ttl: int, minimum: int) -> None:
    """Although the connection stands and its first octets have come."""
    accepted, dialling = dial(listening, ttl)
    with accepted, dialling:
        assert admit(accepted, minimum) is (ttl >= minimum)


def test_what_comes_later_is_held_to_the_same(listening: socket.socket) -> None:
    """A segment of a lower TTL does not arrive before it is sent again with the one that is demanded."""
    accepted, dialling = dial(listening, 255)
    with accepted, dialling:
        assert admit(accepted, 255)
        assert accepted.recv(4) == b"OPEN"
        dialling.setsockopt(*TTL[listening.family], 254)
        dialling.sendall(b"more")
        accepted.setblocking(False)
        with pytest.raises(BlockingIOError):
            accepted.recv(4)
        dialling.setsockopt(*TTL[listening.family], 255)
        accepted.settimeout(10)
        assert accepted.recv(4) == b"more"


def test_the_ttl_of_the_listening_socket_is_not_kept(listening: socket.socket) -> None:
    """An accepted connection sends as any other of this host does."""
    with socket.socket(listening.family) as plain:
        usual = plain.getsockopt(*TTL[listening.family])
    listening.setsockopt(*TTL[listening.family], 200)
    accepted, dialling = dial(listening, 255)
    with accepted, dialling:
        assert accepted.getsockopt(*TTL[listening.family]) == 200
        admit(accepted, 0)
        assert accepted.getsockopt(*TTL[listening.family]) == usual
