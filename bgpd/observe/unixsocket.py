"""Takes the name of a unix socket: nobody else may connect, and no daemon that lives is replaced.

What is said on the connections is decided by those who accept them.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path


def listen(path: Path, backlog: int = 16) -> socket.socket:
    """A listening socket at `path`, mode 0600 from its first moment, replacing one that nobody answers on."""
    _refuse_to_replace(path)
    temporary = path.with_name(f"{path.name}.new")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        temporary.unlink(missing_ok=True)
        listener.bind(str(temporary))
        temporary.chmod(0o600)  # before listen: until then nobody can connect
        listener.listen(backlog)
        listener.setblocking(False)
        temporary.rename(path)
    except OSError as error:
        listener.close()
        # a path that is too long has no errno: 108 bytes, sun_path in unix(7)
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None
    return listener


def identity_of(path: Path) -> tuple[int, int] | None:
    """Device and inode; None: there is nothing."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def is_answered(path: Path) -> bool:
    """Whether somebody listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            pass  # its queue is full: somebody has it, and is slow
        except OSError:
            return False
    return True


def _refuse_to_replace(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "is there and is no socket; remove it or move paths.run", str(path))
    if is_answered(path):
        raise OSError(errno.EADDRINUSE, "another bgpd answers on it; stop it or move paths.run", str(path))
