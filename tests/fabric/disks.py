"""Small disks, full ones, and other mounts that last for as long as a block does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.fabric.process import run


@contextlib.contextmanager
def mounted(path: Path, *options: str) -> Iterator[None]:
    """Something mounted at `path`; lazily unmounted at the end, whoever still uses it."""
    run(["mount", *options, str(path)])
    try:
        yield
    finally:
        run(["umount", "--lazy", str(path)])


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """A tmpfs of 64 KiB at `path`; the file that fills it, if somebody makes it, is `path`/ballast."""
    path.mkdir(parents=True, exist_ok=True)
    with mounted(path, "-t", "tmpfs", "-o", "size=64k", "tmpfs"):
        yield path / "ballast"


def fill(ballast: Path) -> None:
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
