"""Calls something in another network namespace. A shell.

What can be asked about a pod's interfaces from outside is (`netlink.links`); a program can be put at one only from
within. It takes CAP_SYS_ADMIN. The caller stays where it is: a thread enters, and ends there.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000  # linux/sched.h
_REMEDY = "bgpd needs CAP_SYS_ADMIN, and RestrictNamespaces=net in its unit"


def within(netns: Path, function: Callable[[], T]) -> T:
    """What it returns, or raises. OSError: the namespace cannot be entered; ENOENT: it is no more."""

    def enter_and_call() -> T:
        _enter(netns)
        return function()

    return _in_thread(f"in {netns.name}", enter_and_call)


def within_each(namespaces: Iterable[Path], function: Callable[[Path], T]) -> dict[Path, T | OSError]:
    """What it returns in each, or why it does not: OSError as of `within`, or its own. One thread enters them all."""

    def go_through() -> dict[Path, T | OSError]:
        found: dict[Path, T | OSError] = {}
        for netns in namespaces:
            try:
                _enter(netns)
                found[netns] = function(netns)
            except OSError as error:
                found[netns] = error
        return found

    return _in_thread("in each namespace", go_through)


def _in_thread(name: str, function: Callable[[], T]) -> T:
    """What it returns, or raises, in a thread of its own that ends with it."""
    outcome: Future[T] = Future()

    def call() -> None:
        try:
            outcome.set_result(function())
        except BaseException as problem:  # noqa: BLE001 - raised again where it was called
            outcome.set_exception(problem)

    visitor = threading.Thread(target=call, name=name)
    visitor.start()
    visitor.join()
    return outcome.result()


def _enter(netns: Path) -> None:
    opened = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(opened, _CLONE_NEWNET):
            code = ctypes.get_errno()
            if code == errno.EINVAL:  # a file, where it was mounted
                raise FileNotFoundError(errno.ENOENT, "it is no network namespace any more", str(netns))
            remedy = f"; {_REMEDY}" if code == errno.EPERM else ""
            raise OSError(code, f"it cannot be entered: {os.strerror(code)}{remedy}", str(netns))
    finally:
        os.close(opened)
