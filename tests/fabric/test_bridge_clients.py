"""What clients may do to the bridge, and what it does when there is none.

Whatever a client does, ExaBGP must not stand still, no session may fall, and no answer may reach anybody but
the client that asked. Real ExaBGP and a real peer; see `test_bridge_rig`.
"""

from __future__ import annotations

import itertools
import select
import socket

import pytest

from tests.fabric import exabgp
from tests.fabric.bgp_wire import BgpType
from tests.fabric.observe import BgpCapture
from tests.fabric.process import poll
from tests.fabric.test_bridge_rig import (
    NODE,
    TOR,
    Speaker,
    Talk,
    announce,
    kill,
    speaker,
    wait_up,
)

__all__ = ["speaker"]
pytestmark = pytest.mark.needs("bird", str(exabgp.PROGRAM))


def hung_up(talk: Talk) -> bool:
    """Whether the bridge has closed this connection; nothing is read from it."""
    poller = select.poll()
    poller.register(talk.sock, 0)
    return bool(poller.poll(0))


def still_served(talk: Talk) -> bool:
    return talk.ask("version")[0].startswith("exabgp 5.")


# --- clients


def test_a_client_that_does_not_read_stops_nobody(speaker: Speaker) -> None:
    """It asks for 10,000 routes again and again, and is dropped when 64 MiB wait for it: after 200,000 lines.

    Meanwhile the peer hears KEEPALIVE, and another client is served.
    """
    bird = speaker.tor()
    talk = speaker.start()
    wait_up(talk)
    announce(talk, 10_000)
    bird.wait_route_count(NODE, 10_000)
    stalled = speaker.talk()
    with BgpCapture(bird.namespace, "eth0") as capture:
        for _ in range(40):
            stalled.send("show adj-rib out json")
        poll(lambda: hung_up(stalled), 60, lambda: "it is still served")
        assert still_served(talk)
    assert capture.notifications() == []
    times = [it.time for it in capture.messages(BgpType.KEEPALIVE, src=NODE)]
    assert max(after - before for before, after in itertools.pairwise(times)) < 2
    assert len(talk.ask("show adj-rib out json")) == 10_000


def test_an_answer_nobody_waits_for_reaches_nobody(speaker: Speaker) -> None:
    """The client leaves in the middle of its answer; the next command's answer is its own."""
    talk = speaker.start()
    announce(talk, 2000)
    for _ in range(5):
        leaving = speaker.talk()
        leaving.send("show adj-rib out json")
        leaving.line()
        waiting = talk.send("version")
        leaving.close()
        end, output = talk.answer(waiting)
        assert (end, len(output)) == ("done", 1)


def test_commands_of_a_client_that_left_are_not_given(speaker: Speaker) -> None:
    """Neither those that wait behind another, nor half a line."""
    talk = speaker.start()
    announce(talk, 2000)
    leaving = speaker.talk()
    leaving.send("show adj-rib out json")
    leaving.send(f"neighbor {TOR} announce route 188.188.9.0/24 next-hop {NODE}")
    leaving.sock.sendall(f"9 neighbor {TOR} announce route 188.188.0.0/1".encode())
    leaving.line()
    leaving.close()
    assert not [line for line in talk.ask("show adj-rib out json") if "188.188" in line]


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"\n" * 100_000, id="empty lines"),
        pytest.param(bytes(range(256)) * 400, id="all bytes"),
        pytest.param(b"lonely\n" * 1000, id="an id alone"),
        pytest.param(b"1 \xff\x00\xfe neighbor\n" * 1000, id="no text"),
        pytest.param(b"1 " + b"x" * 60_000 + b"\n", id="a long line"),
        pytest.param(b"1 " + b"x" * (1 << 20), id="a line without end"),
    ],
)
def test_garbage_harms_only_who_sends_it(speaker: Speaker, garbage: bytes) -> None:
    """It is refused or its sender is hung up on; the bridge is the same one as before."""
    talk, rude = speaker.start(), speaker.talk()
    rude.sock.setblocking(True)
    try:
        rude.sock.sendall(garbage)
    except (BrokenPipeError, ConnectionResetError):
        assert len(garbage) > 1 << 20  # hung up on in the middle of it
    assert still_served(talk)
    assert speaker.talk().hello == talk.hello


@pytest.mark.parametrize("command", ["reset", "silence-ack", "disable-ack", "debug x", "x reset y"])
def test_commands_that_exabgp_never_answers_are_refused(speaker: Speaker, command: str) -> None:
    """Every client would wait for that answer."""
    talk = speaker.start()
    assert talk.answer(talk.send(command)) == ("error", ["ExaBGP would never answer"])
    assert still_served(talk)


def test_two_hundred_clients_are_served_at_once(speaker: Speaker) -> None:
    """Each gets its own answer, and what one does not close is no burden to the others."""
    speaker.start()
    talks = [speaker.talk() for _ in range(200)]
    idents = [talk.send("version") for talk in talks]
    for talk, ident in zip(talks, idents, strict=True):
        end, output = talk.answer(ident)
        assert (end, len(output)) == ("done", 1)


def test_one_client_too_many_is_hung_up_on(speaker: Speaker) -> None:
    """There are 500 places: the bridge never runs out of open files."""
    talk = speaker.start()
    others = [socket.socket(socket.AF_UNIX) for _ in range(600)]
    for sock in others:
        sock.connect(str(speaker.files.socket))
    assert still_served(talk)
    greeted = [sock.recv(100) != b"" for sock in others]
    for sock in others:
        sock.close()
    assert sum(greeted) == 499
    assert still_served(speaker.talk())


# --- the one who stops the speaker


def test_a_reservation_keeps_everybody_else_out(speaker: Speaker) -> None:
    """Others get `error`, whatever they ask but for the memory; they still hear events."""
    talk, other = speaker.start(), speaker.talk()
    talk.ask("#reserve")
    for command in ("version", "#reserve", f"neighbor {TOR} announce route 188.188.0.0/24 next-hop {NODE}"):
        assert other.answer(other.send(command)) == ("error", ["the speaker is being stopped"])
    assert talk.ask("show adj-rib out json") == []
    speaker.tor().wait_established(NODE)
    wait_up(other)
    assert [it["state"] for it in other.events][-1] == "up"


def test_a_reservation_outlasts_its_client(speaker: Speaker) -> None:
    """Between the end of `bgpd speaker stop` and SIGTERM nobody may announce again; but one may stop again."""
    talk, other = speaker.start(), speaker.talk()
    talk.ask("#reserve")
    talk.close()
    assert other.answer(other.send("version"))[0] == "error"
    again = speaker.talk()
    again.ask("#reserve")
    assert still_served(again)


# --- nobody


def test_end_of_rib_is_sent_when_nobody_does(speaker: Speaker) -> None:
    """For the families that no client sent it for, once."""
    bird = speaker.tor()
    with BgpCapture(bird.namespace, "eth0") as capture:
        talk = speaker.start(eor_after_s=1)
        wait_up(talk)
        talk.ask(f"neighbor {TOR} announce eor ipv4 unicast")
        capture.wait(lambda it: it.end_of_rib and it.src == NODE and len(it.body) > 4, 15, "End-of-RIB for IPv6")
        assert sorted(talk.memory()["eor"]) == ["ipv4 unicast", "ipv6 unicast"]
    assert len(capture.messages(BgpType.UPDATE, src=NODE)) == 2


def test_stale_routes_go_when_the_daemon_is_dead(speaker: Speaker) -> None:
    """ExaBGP is back without anybody to announce: the peer may not keep the old routes for ever."""
    bird = speaker.tor()
    talk = speaker.start(eor_after_s=1)
    wait_up(talk)
    (prefix,) = announce(talk)
    bird.wait_route(prefix)
    assert speaker.process is not None
    kill(speaker.process.pid)
    assert bird.wait_route(prefix, where=lambda it: it.stale)
    speaker.start(eor_after_s=1).close()
    bird.wait_no_route(prefix, 15)
