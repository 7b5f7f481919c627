"""What systemd receives, on a real datagram socket."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bgpd.runtime.notify import Notifier, watchdog, watchdog_interval_s


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(2)
        yield receiver


def to(receiver: socket.socket) -> Notifier:
    return Notifier({"NOTIFY_SOCKET": receiver.getsockname()})


def test_ready_with_a_status(systemd: socket.socket) -> None:
    """READY=1 and the status travel in one datagram."""
    to(systemd).ready("2 of 2 sessions up")
    assert systemd.recv(4096) == b"READY=1\nSTATUS=2 of 2 sessions up"


def test_reloading_tells_when(systemd: socket.socket) -> None:
    """RELOADING=1 needs the monotonic time in microseconds (sd_notify(3))."""
    to(systemd).reloading(lambda: 5_000_007_000)
    assert systemd.recv(4096) == b"RELOADING=1\nMONOTONIC_USEC=5000007"


def test_stopping_and_alive(systemd: socket.socket) -> None:
    """The other two states are one word each."""
    notifier = to(systemd)
    notifier.stopping()
    notifier.alive()
    assert (systemd.recv(99), systemd.recv(99)) == (b"STOPPING=1", b"WATCHDOG=1")


def test_a_status_is_one_line(systemd: socket.socket) -> None:
    """A line break in a status would be read as another assignment, READY=1 say."""
    to(systemd).status("waits\nREADY=1")
    assert systemd.recv(4096) == b"STATUS=waits READY=1"


def test_abstract_names() -> None:
    """`@name` is the abstract socket of that name."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0bgpd-test-{os.getpid()}")
        receiver.settimeout(2)
        Notifier({"NOTIFY_SOCKET": f"@bgpd-test-{os.getpid()}"}).stopping()
        assert receiver.recv(99) == b"STOPPING=1"


def test_without_systemd_nothing_happens() -> None:
    """Started by hand, the daemon says the same things to nobody."""
    Notifier({}).ready("hello")


def test_a_service_manager_that_is_away_does_no_harm(tmp_path: Path) -> None:
    """A socket that nobody reads, or that is not there, is no reason to stop."""
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready()


def test_a_service_manager_that_is_slow_does_not_block(systemd: socket.socket) -> None:
    """With the socket's queue full, messages are dropped and the event loop goes on."""
    notifier = to(systemd)
    for _ in range(2000):
        notifier.alive()
    assert systemd.recv(99) == b"WATCHDOG=1"


@pytest.mark.parametrize(
    ("environment", "interval_s"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_fed_twice_per_period(environment: dict[str, str], interval_s: float | None) -> None:
    """Half of what is allowed, and only if it is our process that systemd watches."""
    assert watchdog_interval_s(environment) == interval_s


def test_the_watchdog_starves_when_not_alive(systemd: socket.socket) -> None:
    """It is fed while the daemon is alive and no more once it is not."""
    answers = iter([True, True, False, False, False])

    async def scenario() -> None:
        async with asyncio.timeout(2):
            await watchdog(to(systemd), lambda: next(answers), 0.001)

    with pytest.raises(RuntimeError):  # the answers are used up
        asyncio.run(scenario())
    systemd.setblocking(False)
    assert [systemd.recv(99) for _ in range(2)] == [b"WATCHDOG=1"] * 2
    with pytest.raises(BlockingIOError):
        systemd.recv(99)


def test_no_watchdog_no_task(monkeypatch: pytest.MonkeyPatch, systemd: socket.socket) -> None:
    """Where systemd wants no watchdog the task ends at once."""
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    asyncio.run(watchdog(to(systemd), lambda: True))
