"""A peer that misbehaves: a third neighbor, spoken for by the test byte by byte, beside two good ToRs.

Whatever it does, the ToRs' sessions hear nothing but keepalives and keep the routes, and `bgpd peers` says what is
wrong with it. `Rogue` knows just enough of RFC 4271 section 4 to come up and to break it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fabric.bgp_wire import MARKER, BgpType
from tests.fabric.netns import Namespace
from tests.fabric.node import BgpdNode
from tests.fabric.observe import BgpCapture
from tests.fabric.peer import many_prefixes
from tests.fabric.process import poll
from tests.fabric.test_lifecycle import never_without
from tests.fabric.topology import ASN, CABLE, GATEWAY, TwoTorFabric

pytestmark = pytest.mark.needs("bird")

KEEPALIVE = MARKER + struct.pack("!HB", 19, 4)


def message(kind: int, body: bytes) -> bytes:
    return MARKER + struct.pack("!HB", 19 + len(body), kind) + body


def open_message(asn: int = ASN, version: int = 4, hold_s: int = 9, identifier: str = GATEWAY) -> bytes:
    capabilities = b"\x01\x04\0\x01\0\x01" + b"\x41\x04" + struct.pack("!I", asn)
    parameters = b"\x02" + bytes([len(capabilities)]) + capabilities
    head = struct.pack("!BHH4s", version, asn, hold_s, socket.inet_aton(identifier))
    return message(1, head + bytes([len(parameters)]) + parameters)


class Rogue:
    """Listens on port 179 and gives its connections to `behave`, one after the other, in a thread."""

    def __init__(self, namespace: Namespace, address: str, behave: Callable[[socket.socket], None]) -> None:
        self._behave = behave
        self._listener = namespace.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((address, 179))
        self._listener.listen()
        self._connection = self._listener  # the one that is being talked on
        self.dialled: list[float] = []  # when it was, in monotonic seconds
        self._thread = threading.Thread(target=self._run, name="rogue", daemon=True)

    @classmethod
    def beside(cls, fabric: TwoTorFabric, behave: Callable[[socket.socket], None]) -> Rogue:
        """At the gateway's address: the third neighbor of `with_rogue`."""
        return cls(fabric.fabric, GATEWAY, behave)

    def __enter__(self) -> Rogue:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        for open_one in (self._listener, self._connection):
            with contextlib.suppress(OSError):
                open_one.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()

    def wait_dialled(self, times: int, timeout_s: float = 20.0) -> None:
        poll(lambda: len(self.dialled) >= times, timeout_s, lambda: f"dialled only at {self.dialled}")

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # the listener is shut down at the end
            while True:
                connection = self._connection = self._listener.accept()[0]
                self.dialled.append(time.monotonic())
                connection.settimeout(10)
                with connection, contextlib.suppress(OSError):
                    self._behave(connection)


def read_message(connection: socket.socket) -> int:
    """Reads one message; its type, 0 at the end of the connection."""
    head = connection.recv(19, socket.MSG_WAITALL)
    if len(head) < 19:
        return 0
    length, kind = struct.unpack_from("!HB", head, 16)
    connection.recv(length - 19, socket.MSG_WAITALL)
    return int(kind)


def skip_to(connection: socket.socket, kind: BgpType) -> None:
    """Reads up to the first message of this kind; OSError: the connection ended before."""
    while (found := read_message(connection)) != kind:
        if not found:
            raise ConnectionResetError("no more messages")


def establish(connection: socket.socket) -> None:
    connection.sendall(open_message() + KEEPALIVE)
    skip_to(connection, BgpType.KEEPALIVE)


def dial(fabric: TwoTorFabric, node: str) -> socket.socket | None:
    """A session that has had its first UPDATE; None: ExaBGP was not ready for it."""
    connection = fabric.fabric.socket(socket.AF_INET, socket.SOCK_STREAM)
    connection.settimeout(10)
    try:
        connection.bind((GATEWAY, 0))
        connection.connect((node, 179))
        establish(connection)
        skip_to(connection, BgpType.UPDATE)
    except OSError:
        connection.close()
        return None
    return connection


def saying(bad: bytes, *, established: bool) -> Callable[[socket.socket], None]:
    """A behaviour: say this, then keep the session up until the other side has had enough."""

    def behave(connection: socket.socket) -> None:
        if established:
            establish(connection)
        connection.sendall(bad)
        while read_message(connection):  # its keepalives too: each is answered
            if established:
                connection.sendall(KEEPALIVE)

    return behave


def with_rogue(fabric: TwoTorFabric) -> BgpdNode:
    """A node that announces to both ToRs and keeps a third peer, at the gateway."""
    node = BgpdNode.announcing(fabric)
    rogue = {"name": "rogue", "peerAddress": GATEWAY, "peerASN": ASN, "timers": {"holdTimeSeconds": 9}}
    node.config["bgp"]["peers"].append(rogue)
    node.write_config()
    return node


@contextlib.contextmanager
def unharmed(fabric: TwoTorFabric, node: BgpdNode) -> Iterator[None]:
    """Asserts that both ToRs keep every route, and hear nothing but keepalives, while the rogue peer is there."""
    place = fabric.nodes[0]
    with BgpCapture(place.namespace, CABLE) as capture, never_without(fabric, place.pod_cidrs):
        node.bgpd("reload")
        yield
        a, b = (row for row in node.status()["peers"] if row["peer"] != "rogue")
        assert (a["state"], b["state"]) == ("up", "up")
    for tor in fabric.tors:
        assert [str(it) for it in capture.besides_keepalives(src=tor.loopback)] == []
        assert [str(it) for it in capture.besides_keepalives(dst=tor.loopback)] == []


ORIGIN_TOO_LONG = struct.pack("!HH", 0, 5) + b"\x40\x01\x02\0\0" + bytes([24, 10, 0, 0])
CUT_SHORT = struct.pack("!HH", 0, 200) + b"\x40\x01\x01\0"
LENGTH_7 = MARKER + struct.pack("!HB", 7, 2)
NO_SUCH_LENGTH = struct.pack("!HH", 0, 0) + bytes([200, 10, 0, 0])


@pytest.mark.parametrize(
    ("bad", "established", "told"),
    [
        pytest.param(open_message(version=3), False, "(2,1): version number: 3", id="OPEN of version 3"),
        pytest.param(open_message()[:-4] + b"\xff" * 4, False, "peer rogue is down", id="OPEN of garbled AS"),
        pytest.param(open_message(identifier="0.0.0.0"), False, "peer rogue is down", id="OPEN without identifier"),  # noqa: S104
        pytest.param(b"GET / HTTP/1.1\r\nHost: tor\r\n\r\n", False, "peer rogue is down", id="no BGP at all"),
        pytest.param(LENGTH_7, True, "notification sent (1,2)", id="length 7"),
        pytest.param(message(9, b""), True, "(1,3): can not decode message of type", id="type 9"),
    ],
)
def test_a_malformed_message_ends_one_session_only(
    fabric: TwoTorFabric, bad: bytes, established: bool, told: str
) -> None:
    """The session with its sender falls and says why; both ToRs notice nothing."""
    node = with_rogue(fabric)
    with Rogue.beside(fabric, saying(bad, established=established)), unharmed(fabric, node):
        node.wait_problem(told)


@pytest.mark.parametrize(
    "update",
    [
        pytest.param(ORIGIN_TOO_LONG, id="ORIGIN of two bytes"),
        pytest.param(CUT_SHORT, id="cut short"),
        pytest.param(NO_SUCH_LENGTH, id="a prefix of length 200"),
    ],
)
def test_a_malformed_update_costs_no_session(fabric: TwoTorFabric, update: bytes) -> None:
    """Nothing that peers announce is looked at, so not even its sender's session falls."""
    place, node = fabric.nodes[0], with_rogue(fabric)
    with Rogue.beside(fabric, saying(message(2, update), established=True)) as rogue, unharmed(fabric, node):
        node.wait_status("rogue has no routes", lambda it: it["peers"][2].get("announced") == 1)
        with BgpCapture(place.namespace, CABLE) as capture:
            capture.wait(lambda it: it.dst == GATEWAY and it.type is BgpType.KEEPALIVE, what="keepalive")
        assert (node.peer("rogue")["state"], node.peer("rogue")["flaps"], len(rogue.dialled)) == ("up", 0, 1)


def test_a_peer_of_another_as_is_named_with_both_numbers(fabric: TwoTorFabric) -> None:
    """It answers with AS 64999 where 64512 is configured: `bgpd peers` shows both."""
    node = with_rogue(fabric)
    with Rogue.beside(fabric, saying(open_message(asn=64999), established=False)), unharmed(fabric, node):
        node.wait_problem("peer rogue is down: notification sent (2,2): ASN in OPEN (64999) did not match ASN")


def test_a_peer_that_flaps_every_second_harms_nobody(fabric: TwoTorFabric) -> None:
    """Fifteen sessions of a second each, dialled by the peer: it gets its routes each time, the ToRs keep theirs."""
    place, node = fabric.nodes[0], with_rogue(fabric)
    with unharmed(fabric, node):
        node.wait_status("no third peer", lambda it: len(it["peers"]) == 3)
        for _ in range(15):
            with poll(lambda: dial(fabric, place.address), 30, lambda: "no session") as connection:
                until = time.monotonic() + 1
                while time.monotonic() < until:
                    if select.select([connection], [], [], 0.05)[0]:
                        assert read_message(connection)
        node.wait_status("not 15 flaps", lambda it: it["peers"][2]["flaps"] >= 14)


def test_a_peer_that_breaks_every_session_is_left_alone_ever_longer(fabric: TwoTorFabric) -> None:
    """1, 2, 4 s between two attempts, a handful of log lines; and when it dials us itself, it is let in at once."""
    place, node = fabric.nodes[0], with_rogue(fabric)
    assert node.daemon is not None
    with Rogue.beside(fabric, saying(LENGTH_7, established=True)) as rogue, unharmed(fabric, node):
        rogue.wait_dialled(4)
        gaps = [later - earlier for earlier, later in itertools.pairwise(rogue.dialled)]
        assert [gap >= wait for gap, wait in zip(gaps, (0.9, 1.9, 3.9), strict=True)] == [True] * 3, gaps
        node.wait_status("not down", lambda it: (it["peers"][2]["flaps"], it["peers"][2]["state"]) == (3, "down"))
        with poll(lambda: dial(fabric, place.address), 5, lambda: "not let in"):
            assert time.monotonic() - rogue.dialled[-1] < 8, "let in only when its own turn had come"
            node.wait_status("not up", lambda it: it["peers"][2]["state"] == "up")
    told = [line for line in map(json.loads, node.daemon.log().splitlines()) if line.get("peer") == "rogue"]
    assert [line["event"] for line in told] == ["session"] * 6 + ["session flaps"]
    assert (told[-1]["downs"], told[-1]["reason"]) == (3, "notification sent (1,2)")


def test_a_hundred_thousand_routes_leave_no_trace(fabric: TwoTorFabric) -> None:
    """A ToR's full table: ExaBGP grows by 5 MB at most, the session stays, the kernel's table as it was."""
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric)
    assert node.speaker is not None
    tor, speaker = fabric.tors[0], node.speaker.pid
    before_kb, kernel = resident_kb(speaker), place.namespace.routes()
    with BgpCapture(place.namespace, CABLE) as capture:
        tor.speaker.reconfigure(originate=tuple(many_prefixes(100_000)))
        poll(lambda: announced(capture, tor.loopback) >= 100_000, 60, lambda: f"{announced(capture, tor.loopback)}")
        poll(
            lambda: unread(place.namespace.run(["cat", "/proc/net/tcp"]).stdout) == 0, 60, lambda: "not all was read"
        )
        node.wait_healthy()
        assert capture.messages(BgpType.OPEN, BgpType.NOTIFICATION) == []
    grown_kb = resident_kb(speaker) - before_kb
    assert grown_kb <= 5 * 1024, f"{grown_kb} KB"
    assert place.namespace.routes() == kernel
    assert tor.speaker.session(place.address).established


def announced(capture: BgpCapture, src: str) -> int:
    """How many v4 /28 prefixes were announced in the UPDATEs from `src`: five bytes each."""
    total = 0
    for it in capture.messages(BgpType.UPDATE, src=src):
        withdrawn = struct.unpack_from("!H", it.body)[0]
        attributes = struct.unpack_from("!H", it.body, 2 + withdrawn)[0]
        total += len(it.body) - 4 - withdrawn - attributes
    return total // 5


def unread(proc_net_tcp: str) -> int:
    """Bytes that have arrived on BGP connections and that nobody has read (the rx_queue of proc_net_tcp(5))."""
    rows = [line.split() for line in proc_net_tcp.splitlines()[1:]]
    bgp = [row for row in rows if "00B3" in (row[1][-4:], row[2][-4:]) and row[3] == "01"]
    return sum(int(row[4].partition(":")[2], 16) for row in bgp)


def resident_kb(pid: int) -> int:
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1])
