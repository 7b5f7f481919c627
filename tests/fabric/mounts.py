"""A node's own /sys/fs/bpf: a mount namespace in which an empty bpffs lies over the machine's.

This decides where the pins of a node in the lab are; what is pinned there is the product's affair. The machine's own
mounts and pins are neither seen nor touched from inside, and nothing has to be unmounted: the namespace goes, with
its bpffs and all pins, when the test process and the last program inside have ended, however they end.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

BPFFS = "/sys/fs/bpf"
_CLONE_NEWNS = 0x20000
_MS_REC, _MS_SLAVE = 0x4000, 1 << 19
_LIBC = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def bpffs_at(place: Path) -> Iterator[Path]:
    """A bpffs at this directory, which is made if need be; with it everything that is pinned there goes."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "bpf", "bpf", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


class BpfMounts:
    """Such a mount namespace. OSError: this machine cannot have one, for instance without BPF in its kernel."""

    def __init__(self) -> None:
        made: list[int | OSError] = []

        def make() -> None:
            try:
                made.append(_enter_new())
            except OSError as problem:
                made.append(problem)

        visitor = threading.Thread(target=make, name="mounts")  # only this thread moves into the namespace
        visitor.start()
        visitor.join()
        if isinstance(made[0], OSError):
            raise made[0]
        self._held = made[0]

    def wrap(self, program: Path, wrapper: Path) -> Path:
        """Makes `wrapper` a command that runs `program` in here."""
        wrapper.parent.mkdir(parents=True, exist_ok=True)
        entered = f"nsenter --mount=/proc/{os.getpid()}/fd/{self._held}"
        wrapper.write_text(f'#!/bin/sh\nexec {entered} {program} "$@"\n')
        wrapper.chmod(0o755)
        return wrapper


def _enter_new() -> int:
    """Moves the calling thread into a new namespace; a descriptor of it."""
    _check(_LIBC.unshare(_CLONE_NEWNS), "a mount namespace cannot be made")
    # what the machine unmounts goes from here too; what is mounted here is not seen there
    _check(_LIBC.mount(None, b"/", None, _MS_REC | _MS_SLAVE, None), "mounts cannot be made private")
    _check(_LIBC.mount(b"bpf", BPFFS.encode(), b"bpf", 0, None), f"no bpffs at {BPFFS}")
    return os.open("/proc/thread-self/ns/mnt", os.O_RDONLY)


def _check(code: int, what: str) -> None:
    if code != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
