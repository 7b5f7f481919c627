"""Whether `bgp.turns` works off ExaBGP's commands as ExaBGP's own queue does, on the ExaBGP that is installed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from exabgp.environment import getenv
from exabgp.logger import log
from exabgp.reactor.asynchronous import ASYNC

from bgpd.bgp.turns import Turns

QUEUES = [ASYNC, Turns]
Queue = Callable[..., Any]


@pytest.fixture(autouse=True)
def _log() -> None:
    """The queue writes to ExaBGP's log, which there is in a running ExaBGP only.

    And it asks for an event loop, which is made, and never closed, for whoever is the first in a process to ask.
    """
    log.init(getenv())
    asyncio.set_event_loop(None)


def command(name: str, steps: int, done: list[str]) -> Iterator[bool]:
    """A command as ExaBGP has them: a step for each prefix, then its answer."""
    for step in range(steps):
        done.append(f"{name}{step}")
        yield False
    done.append(f"{name} done")


def refused() -> Iterator[bool]:
    yield False
    raise KeyError("a prefix that nobody can parse")


@pytest.mark.parametrize("steps", [[], [0], [1], [3, 2], [48, 48, 48], [49], [50], [51], [200, 1]])
def test_the_same_steps_are_done_at_the_same_turn(steps: list[int]) -> None:
    turns = []
    for kind in QUEUES:
        queue, done = kind(), list[str]()
        for number, count in enumerate(steps):
            queue.schedule("bridge", "announce", command(str(number), count, done))
        turns.append([(queue.run(), queue.ready(), tuple(done)) for _ in range(10)])
    assert turns[0] == turns[1]
    assert turns[1][-1][1], "steps are left after ten turns"


@pytest.mark.parametrize("kind", QUEUES)
def test_a_command_that_fails_is_answered_and_the_next_one_has_its_turn(kind: Queue) -> None:
    queue, done, failed = kind(), list[str](), list[str]()
    queue.set_error_handler(failed.append)
    queue.schedule("bridge", "announce", refused())
    queue.schedule("bridge", "announce", command("a", 1, done))
    queue.run()
    assert (failed, done) == (["bridge"], ["a0", "a done"])


@pytest.mark.parametrize("kind", QUEUES)
def test_a_command_that_waits_has_an_event_loop(kind: Queue) -> None:
    """No command of ExaBGP 5.0 does, and one of a later release may."""
    queue, done = kind(), list[str]()

    async def waits() -> None:
        await asyncio.sleep(0)
        done.append("waited")

    queue.schedule("bridge", "announce", waits())
    queue.run()
    assert done == ["waited"]


def test_a_turn_makes_no_event_loop() -> None:
    loops: list[object] = []

    def asks() -> Iterator[bool]:
        loops.append(asyncio._get_running_loop())
        yield False

    for kind in QUEUES:
        queue = kind()
        queue.schedule("bridge", "announce", asks())
        queue.run()
    assert [loop is None for loop in loops] == [False, True]
