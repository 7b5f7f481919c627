"""Reads a file that an operator named, without falling for what else a path can lead to. A shell.

Used for the configuration, for passwords and for manifests. A directory, a FIFO that would block the daemon
for ever, a device without end and a file beyond the limit are refused before anything is read.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from bgpd.config.document import MAX_BYTES


class UnreadableError(Exception):
    """The text says what is in the way and what would be right, without naming the path."""


class MissingError(UnreadableError):
    """There is no such file: nothing at the path, or a link that leads nowhere."""


@dataclass(frozen=True, slots=True)
class Contents:
    """`mode` holds the permission bits of the very file that was read, not of what the path means by now."""

    data: bytes
    mode: int


def read_limited(path: Path, max_bytes: int = MAX_BYTES) -> Contents:
    """The whole of a regular file (through links), or UnreadableError, which is MissingError when there is none."""
    try:
        file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115 - Path.open takes no opener
    except FileNotFoundError:
        raise MissingError("the file does not exist") from None
    except IsADirectoryError:
        raise UnreadableError("it is a directory; give a file") from None
    except OSError as error:
        raise UnreadableError(f"the file cannot be opened: {error.strerror}") from None
    with file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableError("it is not a regular file")
        try:
            data = file.read(max_bytes + 1)
        except OSError as error:
            raise UnreadableError(f"the file cannot be read: {error.strerror}") from None
    if len(data) > max_bytes:
        raise UnreadableError(f"it has more than {max_bytes} bytes")
    return Contents(data, stat.S_IMODE(status.st_mode))


def _open_at_once(path: str, mode: int) -> int:
    """Without O_NONBLOCK, opening a FIFO waits for its writer."""
    return os.open(path, mode | os.O_NONBLOCK | os.O_CLOEXEC)
