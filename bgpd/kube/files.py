"""Tells whether a file is still the one that was read, and reads small files without risk of waiting.

Used for credentials and manifests alike. It never caches: who asks decides what a change means.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TypeAlias

Mark: TypeAlias = tuple[int, ...]


def mark_of(path: Path) -> Mark | None:
    """Differs once the file is written, replaced or made readable; None when there is none.

    A link counts as what it leads to. The change time is in it because a copy may keep the modification
    time and the size (`cp -p`); device and inode because a rename may keep all of them.
    """
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def read_regular(path: Path, limit: int) -> bytes:
    """The first `limit` bytes. OSError, whose `strerror` is set, for anything that is not a regular file."""
    # Opening a pipe would wait for its writer, and reading one for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "it is not a regular file", str(path))
        return file.read(limit)
