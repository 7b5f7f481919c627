"""One daemon per run directory, held by the kernel."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bgpd.runtime.lock import RunLock

HOLD = (
    "import sys, pathlib; from bgpd.runtime.lock import RunLock;"
    "lock = RunLock(pathlib.Path(sys.argv[1])); print(1, flush=True); input()"
)


def test_the_second_daemon_is_told_who_is_first(tmp_path: Path) -> None:
    """The message names the holder and what to do."""
    with RunLock(tmp_path), pytest.raises(OSError, match="another bgpd") as caught:
        RunLock(tmp_path)
    assert caught.value.errno == errno.EBUSY
    assert caught.value.strerror == (f"another bgpd (pid {os.getpid()}) uses {tmp_path}; stop it or move paths.run")


def test_a_released_lock_can_be_taken(tmp_path: Path) -> None:
    """After an orderly end the next daemon starts at once."""
    with RunLock(tmp_path):
        pass
    RunLock(tmp_path).release()


def test_a_killed_holder_leaves_nothing_behind(tmp_path: Path) -> None:
    """The kernel drops the lock of a killed process; the pid it left is replaced."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(OSError, match=f"pid {holder.pid}"):
            RunLock(tmp_path)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with RunLock(tmp_path):
        assert (tmp_path / "bgpd.lock").read_text() == f"{os.getpid()}\n"


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    """A run directory that is not there is an OSError with its path, not a surprise later."""
    with pytest.raises(FileNotFoundError, match=r"none/bgpd\.lock"):
        RunLock(tmp_path / "none")
