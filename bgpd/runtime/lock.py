"""Sees to it that one daemon owns a run directory.

The kernel keeps the lock (flock(2)) and drops it with the process, however that ends, so there is nothing to
clean up. The number in the file only serves the message. Who may start instead is the operator's decision.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from types import TracebackType


class RunLock:
    """Held from the moment it is made. OSError: `run` is not usable, or another daemon uses it (EBUSY).

    The file is left behind: deleting it would let two daemons lock two files of one name.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / "bgpd.lock"
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            who = f" (pid {holder})" if holder.isdigit() else ""
            text = f"another bgpd{who} uses {run}; stop it or move paths.run"
            raise OSError(errno.EBUSY, text, str(self.path)) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Lets the next one in; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
