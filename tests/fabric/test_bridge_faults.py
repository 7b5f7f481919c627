"""What the bridge withstands: its own death and its guardian's, however often.

Real ExaBGP, a real peer with a hold time of 3 s; see `test_bridge_rig`. No session may fall, nothing may be
said to the peer, and no answer may reach anybody but the client that asked. What clients may do is in
`test_bridge_clients`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fabric import exabgp
from tests.fabric.bird import Bird
from tests.fabric.netns import Namespace
from tests.fabric.observe import BgpCapture, RouteSampler
from tests.fabric.process import poll
from tests.fabric.test_bridge_rig import (
    NODE,
    Speaker,
    Talk,
    announce,
    end_of_rib,
    guardian,
    kill,
    speaker,
    wait_up,
)

__all__ = ["speaker"]
pytestmark = pytest.mark.needs("bird", str(exabgp.PROGRAM))

IPV4_END_OF_RIB = bytes(4)


def kilobytes(pid: int, what: str) -> int:
    """A process's share of memory (`Pss`), or all it maps (`Rss`)."""
    return int(Path(f"/proc/{pid}/smaps_rollup").read_text().partition(f"\n{what}:")[2].split()[0])


def successor(speaker: Speaker, before: Talk) -> Talk:
    """A client of the next bridge; that of a dead guardian still takes one while it finds out."""

    def connect() -> Talk | None:
        talk = speaker.talk()
        return talk if talk.hello["pid"] != before.hello["pid"] else None

    return poll(connect, 10, lambda: "the bridge outlives its guardian")


@contextlib.contextmanager
def silence(namespace: Namespace) -> Iterator[None]:
    """In this block the node says nothing to the peer but KEEPALIVE, and does say that."""
    with BgpCapture(namespace, "eth0") as capture:
        yield
        capture.wait(lambda it: it.src == NODE and it.time > time.time() - 1, what="KEEPALIVE")
    assert [str(it) for it in capture.besides_keepalives(src=NODE)] == []
    assert capture.notifications() == []


@pytest.fixture
def bird(speaker: Speaker) -> Bird:
    """The ToR, waiting for the node."""
    return speaker.tor()


@pytest.fixture
def talk(speaker: Speaker, bird: Bird) -> Talk:
    """A client, with the session up and a route announced."""
    made = speaker.start()
    wait_up(made)
    announce(made)
    with BgpCapture(bird.namespace, "eth0") as capture:
        end_of_rib(made)
        capture.wait(lambda it: it.end_of_rib and it.src == NODE and it.body != IPV4_END_OF_RIB)
    return made


# --- its death


def test_a_bridge_killed_twenty_times_is_not_noticed(speaker: Speaker, bird: Bird, talk: Talk) -> None:
    """Its guardian starts another: ExaBGP lives on, the peer hears nothing, and nothing is forgotten."""
    before = talk.memory()
    with silence(bird.namespace):
        for _ in range(20):
            talk.send("show adj-rib out json")
            kill(talk.hello["pid"])
            talk = speaker.talk()
            assert len(talk.ask("show adj-rib out json")) == 1
    after = talk.memory()
    assert {**after, "age_s": 0} == {**before, "age_s": 0}
    assert speaker.running()


def test_a_bridge_killed_in_a_long_answer_is_not_noticed(speaker: Speaker, bird: Bird, talk: Talk) -> None:
    """ExaBGP goes on talking to the next bridge, which waits for the end of what it did not ask for."""
    announce(talk, 5000)
    bird.wait_route_count(NODE, 5000)
    with silence(bird.namespace):
        for _ in range(5):
            talk.send("show adj-rib out json")
            talk.line()
            kill(talk.hello["pid"])
            talk = speaker.talk()
            assert talk.ask("version")[0].startswith("exabgp 5.")
    assert len(talk.ask("show adj-rib out json")) == 5000


def test_a_session_that_fell_while_no_bridge_was_there_is_known_to_be_down(
    speaker: Speaker, bird: Bird, talk: Talk
) -> None:
    """The events wait in the pipe for the next bridge, and what it asks ExaBGP agrees with them."""
    stopped = guardian(talk)
    os.kill(stopped, signal.SIGSTOP)
    kill(talk.hello["pid"])
    bird.stop()
    bird.start()
    bird.wait_established(NODE)
    os.kill(stopped, signal.SIGCONT)
    memory = wait_up(speaker.talk())
    assert (memory["ups"], memory["eor"]) == (2, [])


def test_a_guardian_killed_five_times_is_not_noticed(speaker: Speaker, bird: Bird, talk: Talk) -> None:
    """ExaBGP starts another, and the new bridge asks for the sessions, of which nobody tells it."""
    with silence(bird.namespace):
        for _ in range(5):
            kill(guardian(talk))
            talk = successor(speaker, talk)
            memory = wait_up(talk)
    assert (memory["ups"], memory["negotiated"]["hold_time"]) == (1, 3)
    assert memory["negotiated"]["families"] == ["ipv4 unicast", "ipv6 unicast"]
    assert speaker.running()


def test_a_guardian_killed_twenty_times_loses_no_route(speaker: Speaker, bird: Bird, talk: Talk) -> None:
    """The sixth death ends ExaBGP; its supervisor starts it again and graceful restart covers the gap."""
    (prefix,) = bird.routes(NODE)
    ends = 0
    with RouteSampler(bird.control_path, [prefix]) as sampler:
        sampler.wait_samples()
        for _ in range(20):
            try:
                kill(guardian(talk))
                talk = successor(speaker, talk)
            except (RuntimeError, ProcessLookupError):  # ExaBGP has ended, and its helpers with it
                ends += 1
                talk = speaker.start()
                wait_up(talk)
                announce(talk)
                end_of_rib(talk)
        bird.wait_route(prefix, where=lambda it: not it.stale)
    assert ends >= 2
    assert sampler.result().losses == 0


def test_exabgp_guardian_and_bridge_fit_into_50_megabytes(speaker: Speaker, talk: Talk) -> None:
    """Summed as resident, shared pages counted for each; the figures are printed."""
    assert speaker.process is not None
    pids = {"exabgp": speaker.process.pid, "guardian": guardian(talk), "bridge": talk.hello["pid"]}
    resident = {name: kilobytes(pid, "Rss") for name, pid in pids.items()}
    print("Rss", resident, "Pss", {name: kilobytes(pid, "Pss") for name, pid in pids.items()})
    assert sum(resident.values()) < 50_000
