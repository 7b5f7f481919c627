"""Which daemon has maps open that are pinned: it fills them again, wherever its sockets are, whoever removes them.

For commands that take maps away; to be asked as root. What a daemon in a container has is seen from the node only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from bgpd.datapath import pins
from bgpd.datapath.libbpf import DatapathError


def daemon_with(directory: Path, patterns: Iterable[str]) -> int | None:
    """The process of a `bgpd run` that has one of the maps open that match; None: none is found."""
    ids = {*_pinned(directory, patterns)}
    for process in Path("/proc").glob("[0-9]*") if ids else ():
        with contextlib.suppress(OSError):  # it has ended
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"run" in words and not ids.isdisjoint(_opened(process)):
                return int(process.name)
    return None


def _pinned(directory: Path, patterns: Iterable[str]) -> Iterator[int]:
    """The kernel's numbers of the maps; what else is pinned there is none."""
    for path in (path for pattern in patterns for path in directory.glob(pattern)):
        with contextlib.suppress(DatapathError):
            found = pins.any_map(path)
            if found is not None:
                yield found.id


def _opened(process: Path) -> Iterator[int]:
    for path in (process / "fdinfo").iterdir():
        with contextlib.suppress(OSError):  # it was closed just then
            for line in path.read_text().splitlines():
                name, _, value = line.partition(":")
                if name == "map_id":
                    yield int(value)
