"""Tells systemd how the daemon stands (sd_notify(3)): ready, reloading, stopping, alive, and a line for people.

Only the protocol: when each is true is decided in `daemon`. Without systemd (no NOTIFY_SOCKET) nothing happens.
A message that cannot be sent is dropped: the service manager may be restarting, and the next one tells it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Mapping


class Notifier:
    """Made from the process's environment unless another one is given."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))

    def ready(self, status: str = "") -> None:
        """The daemon is up, or done with reloading."""
        self._send("READY=1", *([_status(status)] if status else []))

    def reloading(self, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        """A reload begins; `ready` ends it. systemd compares the time with that of its own request."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={clock_ns() // 1000}")

    def status(self, text: str) -> None:
        """What `systemctl status` shows."""
        self._send(_status(text))

    def stopping(self) -> None:
        """The daemon is on its way out."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Feeds the watchdog."""
        self._send("WATCHDOG=1")

    def _send(self, *assignments: str) -> None:
        if self._address is None:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.setblocking(False)  # systemd may be slow; the event loop must not be
            try:
                channel.sendto("\n".join(assignments).encode(), self._address)
            except OSError:
                return


def watchdog_interval_s(environment: Mapping[str, str] = os.environ) -> float | None:
    """How often to feed the watchdog: half of what is allowed (sd_watchdog_enabled(3)). None: not wanted of us."""
    microseconds, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not microseconds.isdigit() or int(microseconds) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(microseconds) / 2e6


async def watchdog(notifier: Notifier, alive: Callable[[], bool], interval_s: float | None = None) -> None:
    """Feeds the watchdog for ever, as long as `alive`. Returns at once when no watchdog wants it.

    It runs on the event loop and so proves that the loop turns; `alive` proves the rest.
    """
    interval_s = interval_s or watchdog_interval_s()
    while interval_s is not None:
        if alive():
            notifier.alive()
        await asyncio.sleep(interval_s)


def _address(text: str) -> str | None:
    """A path, or an abstract name, which systemd writes with `@` for its leading zero byte."""
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else None


def _status(text: str) -> str:
    """One line: a second one would be read as another assignment."""
    return "STATUS=" + " ".join(text.split())
