"""Opens sockets inside a named network namespace, from a process that stays outside it.

Decides how the namespace is entered; what is sent over the socket is the caller's business. A socket belongs
for life to the namespace it was made in, so it is made on a thread that enters the namespace and then ends:
the calling process, its event loop and its other threads never move. The namespace is the file
/run/netns/NAME, as `ip netns add` makes it; None is always the caller's own.
"""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

CLONE_NEWNET: Final = 0x40000000

T = TypeVar("T")


def command_in(netns: str | None, command: Sequence[str]) -> list[str]:
    """`command`, run in the namespace.

    Not `ip netns exec`: that remounts /sys and hides bpffs and the cgroups from the command.
    """
    if netns is None:
        return list(command)
    return ["nsenter", f"--net={_path(netns)}", "--", *command]


def connect(netns: str | None, address: str, port: int, timeout_s: float) -> socket.socket:
    """A TCP connection opened from inside the namespace. Raises `OSError`."""
    return _run_in(netns, lambda: socket.create_connection((address, port), timeout_s))


def free_port(netns: str | None, address: str) -> int:
    """A TCP port free on `address` in the namespace, at this moment: nothing reserves it."""

    def pick() -> int:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
            return int(probe.getsockname()[1])

    return _run_in(netns, pick)


def _run_in(netns: str | None, action: Callable[[], T]) -> T:
    if netns is None:
        return action()

    def entered() -> T:
        handle = os.open(_path(netns), os.O_RDONLY | os.O_CLOEXEC)
        try:
            # setns(2) moves the calling thread only. os.setns exists from Python 3.12.
            if ctypes.CDLL(None, use_errno=True).setns(handle, CLONE_NEWNET) != 0:
                error = ctypes.get_errno()
                raise OSError(error, f"setns {netns}: {os.strerror(error)}")
        finally:
            os.close(handle)
        return action()

    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(entered).result()


def _path(netns: str) -> str:
    return f"/run/netns/{netns}"
