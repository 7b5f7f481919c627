"""A real child process: started, logged, started again, stopped, and never left alone."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest
import structlog

from bgpd.runtime.backoff import Backoff
from bgpd.runtime.process import LINE_LIMIT, Child

SOON = Backoff(first_s=0.01, limit_s=0.02)
SLEEP = "echo ready; exec sleep 60"
DEAF = "trap '' TERM; echo ready; while true; do sleep 0.1; done"


Lines = list[MutableMapping[str, Any]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """What was logged so far."""
    with structlog.testing.capture_logs() as captured:
        yield captured


def shell(script: str) -> Child:
    return Child("speaker", ["/bin/sh", "-c", script], backoff=SOON, rand=lambda: 0.0)


def beside(child: Child, scenario: Callable[[], Awaitable[None]]) -> None:
    """Runs `scenario` while the child is supervised, then cancels the supervision."""

    async def both() -> None:
        running = asyncio.create_task(child.run())
        try:
            async with asyncio.timeout(5):
                await scenario()
        finally:
            running.cancel()
            await asyncio.wait((running,))

    asyncio.run(both())


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 - a process announces nothing
        await asyncio.sleep(0.002)


def said(lines: Lines, event: str) -> Callable[[], bool]:
    return lambda: any(line["event"] == event for line in lines)


def is_alive(pid: int) -> bool:
    """False for a zombie too."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def test_what_it_prints_is_logged(lines: Lines) -> None:
    """Each line of stdout and stderr is a log line under the child's name; blank ones are left out."""

    async def scenario() -> None:
        await until(said(lines, "two"))
        found = [line for line in lines if line["event"] in ("one", "two")]
        assert [(line["logger_name"], line["child"]) for line in found] == [("bgpd.speaker", "speaker")] * 2

    beside(shell("echo one; echo; echo two >&2; exec sleep 60"), scenario)


def test_it_gets_arguments_and_environment(lines: Lines) -> None:
    """The environment is exactly what was given."""
    child = Child("speaker", ["/bin/sh", "-c", 'echo "$0 $SPEED"', "it's"], {"SPEED": "0.1"}, SOON)
    beside(child, lambda: until(said(lines, "it's 0.1")))


def test_it_is_started_again(lines: Lines) -> None:
    """A child that ends is started again, and the log says how it ended and when it comes back."""
    child = shell("exit 3")

    async def scenario() -> None:
        await until(lambda: child.restarts >= 2)
        ended = next(line for line in lines if line["event"] == "child ended")
        assert (ended["log_level"], ended["how"]) == ("warning", "exit code 3")

    beside(child, scenario)


def test_a_signal_is_named(lines: Lines) -> None:
    """A child killed by a signal is logged with that signal's name, and replaced."""
    child = shell(SLEEP)

    async def scenario() -> None:
        await until(said(lines, "ready"))
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        await until(lambda: child.restarts == 1)
        assert any(line.get("how") == "SIGKILL" for line in lines)

    beside(child, scenario)


def test_a_program_that_is_not_there(lines: Lines) -> None:
    """It is logged by name and tried again; the daemon goes on."""
    child = Child("speaker", ["/nowhere/exabgp"], backoff=SOON)

    async def scenario() -> None:
        await until(said(lines, "/nowhere/exabgp: No such file or directory"))
        await until(lambda: child.restarts >= 1)

    beside(child, scenario)


def test_a_grandchild_does_not_hide_the_end(lines: Lines) -> None:
    """The child's end is seen although a process it left behind keeps its output open."""
    child = shell("sleep 60 & echo $!; exit 0")

    async def scenario() -> None:
        await until(lambda: child.restarts >= 1)

    beside(child, scenario)
    for line in lines:
        if line["event"].isdigit():
            os.kill(int(line["event"]), signal.SIGKILL)


def test_a_line_without_end_does_not_wedge_it(lines: Lines) -> None:
    """Output is read on whatever it is, so that the child never blocks on a full pipe."""
    beside(
        shell(f"head -c {3 * LINE_LIMIT} /dev/zero | tr '\\0' x; echo; echo after; exec sleep 60"),
        lambda: until(said(lines, "after")),
    )


def test_stop_asks_first(lines: Lines) -> None:
    """SIGTERM, and `run` returns instead of starting it again."""
    child = shell("trap 'echo bye; exit 0' TERM; echo ready; while true; do sleep 0.01; done")

    async def scenario() -> None:
        running = asyncio.create_task(child.run())
        await until(said(lines, "ready"))
        await child.stop()
        async with asyncio.timeout(2):
            await running
        assert said(lines, "bye")()
        assert (child.pid, child.restarts) == (None, 0)

    asyncio.run(scenario())


def test_stop_insists(lines: Lines) -> None:
    """A child that ignores SIGTERM is killed at the deadline, its own children with it."""
    child = shell("trap '' TERM; sleep 60 & echo $!; wait")

    async def scenario() -> None:
        running = asyncio.create_task(child.run())
        await until(lambda: any(line["event"].isdigit() for line in lines))
        grandchild = next(int(line["event"]) for line in lines if line["event"].isdigit())
        started = time.monotonic()
        await child.stop(0.05)
        await running
        assert 0.05 <= time.monotonic() - started < 2
        await until(lambda: not is_alive(grandchild))

    asyncio.run(scenario())


def test_stop_while_it_waits_to_start_again() -> None:
    """A stop in the pause between two starts ends the pause."""
    child = Child("speaker", ["/bin/false"], backoff=Backoff(first_s=60.0), rand=lambda: 0.0)

    async def scenario() -> None:
        running = asyncio.create_task(child.run())
        await asyncio.sleep(0.15)
        await child.stop()
        async with asyncio.timeout(1):
            await running

    asyncio.run(scenario())


def test_stop_before_it_has_started() -> None:
    """A stop that comes while the child is being started leaves none behind."""
    child = shell(SLEEP)

    async def scenario() -> None:
        running = asyncio.create_task(child.run())
        await asyncio.sleep(0)
        await child.stop()
        async with asyncio.timeout(2):
            await running
        assert child.pid is None

    asyncio.run(scenario())


def test_cancelling_leaves_none_behind(lines: Lines) -> None:
    """When the daemon's tasks are cancelled the child is gone with them."""
    child = shell(DEAF)
    seen: list[int] = []

    async def scenario() -> None:
        await until(said(lines, "ready"))
        assert child.pid is not None
        seen.append(child.pid)

    beside(child, scenario)
    assert not is_alive(seen[0])


def test_it_dies_with_a_killed_daemon() -> None:
    """SIGKILL of the daemon takes the child along, even one that ignores SIGTERM."""
    program = (
        "import asyncio, sys; from bgpd.observe import log; from bgpd.runtime.process import Child\n"
        "log.configure('info', 'json', sys.stdout)\n"
        f"asyncio.run(Child('speaker', ['/bin/sh', '-c', {DEAF!r}]).run())"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        said = [json.loads(daemon.stdout.readline()) for _ in range(2)]
        daemon.kill()
    assert said[1]["event"] == "ready"
    deadline = time.monotonic() + 2
    while is_alive(said[0]["pid"]) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not is_alive(said[0]["pid"])


def test_ctrl_c_does_not_reach_it(lines: Lines) -> None:
    """It has a session of its own, so that the daemon decides what is stopped in which order."""
    child = shell(SLEEP)

    async def scenario() -> None:
        await until(said(lines, "ready"))
        assert child.pid is not None
        assert os.getsid(child.pid) == child.pid != os.getsid(0)

    beside(child, scenario)
