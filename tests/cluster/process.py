"""Runs one server of the control plane: start, stop, freeze, and its log.

Decides how a server is tied to the test run: it dies with the thread that started it, its output goes to a
file, and a start that fails shows the end of that file. It does not decide the command line or what "ready"
means; `controlplane.py` does.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from .netns import command_in

LOG_TAIL_LINES: Final = 40
STOP_DEADLINE_S: Final = 10.0


class StartError(Exception):
    """A server did not become ready; the message ends with the tail of its log."""


class Server:
    """One server, started and stopped any number of times; its log is appended to.

    The kernel kills it when the thread that called `start` ends (PR_SET_PDEATHSIG), whatever becomes of the
    test run: start servers from a thread that lives as long as they should.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path, netns: str | None) -> None:
        # setpriv and nsenter exec in place, so the process's id is the server's own.
        self._command = command_in(netns, ["setpriv", "--pdeathsig", "KILL", "--", *command])
        self._process: subprocess.Popen[bytes] | None = None
        self.name = name
        self.log = log

    @property
    def pid(self) -> int:
        """The id of the running server. Raises `RuntimeError` when it is not running."""
        if self._process is None:
            raise RuntimeError(f"{self.name} is not running")
        return self._process.pid

    def start(self) -> None:
        """Start the server in a session of its own, so that Ctrl-C reaches only the test runner."""
        if self._process is not None:
            raise RuntimeError(f"{self.name} is already running")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def check(self) -> None:
        """Raise `StartError` if the server has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            raise self.failure(f"ended with code {self._process.returncode}")

    def failure(self, what: str) -> StartError:
        """An error that says what happened and shows the end of the log."""
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return StartError("\n".join([f"{self.name} {what}; the end of {self.log}:", *lines]))

    def pause(self) -> None:
        """Freeze the server (SIGSTOP): its connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen server run on."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the server at once (SIGKILL), frozen or not. Does nothing when it is not running."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """End the server in its own time (SIGTERM), and kill it when that takes more than ten seconds."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_DEADLINE_S)
        self.kill()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            raise RuntimeError(f"{self.name} is not running")
        self._process.send_signal(number)
