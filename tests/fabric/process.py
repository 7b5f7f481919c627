"""One child process of a test: started inside a network namespace, logged to a file, surely ended.

This decides how a program is entered into a namespace, how it is stopped and how its log is read. It does
not decide which namespaces exist (`netns`) nor what the programs are (`bird`, `frr`, `gobgp`). Every child
leads a process group of its own, so a terminal's Ctrl-C reaches only the test, and ending it ends its
helpers too; every child also carries PDEATHSIG, so it dies with the thread that started it even when that
thread is killed.

Trap: PDEATHSIG follows the *thread* that called `spawn`, not the process: start long-lived children from a
thread that lives as long as they shall. A program that changes its user id loses the signal; run it as root
here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TypeVar

T = TypeVar("T")

POLL_S = 0.01


def poll(
    probe: Callable[[], T | None], timeout_s: float, failure: Callable[[], str], every_s: float = POLL_S
) -> T:
    """Ask `probe` until its answer is neither None nor False; the only place where tests sleep.

    Raises `TimeoutError` with the text of `failure()` (asked once, at the deadline). The probe is always
    asked at least once, and once more after the deadline has passed, so a slow machine cannot turn a yes
    into a no.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        late = time.monotonic() >= deadline
        answer = probe()
        if answer is not None and answer is not False:
            return answer
        if late:
            raise TimeoutError(f"after {timeout_s:g} s: {failure()}")
        time.sleep(every_s)


def inside(netns: Path | None, argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` in the namespace at `netns` (None: where we are), and dies with us.

    `nsenter --net=` and not `ip netns exec`: the latter remounts /sys and hides bpffs and the cgroups.
    Every wrapper replaces itself, so the child's pid is the program's own. The shell looks whether we died
    before the signal was set.
    """
    entered = [] if netns is None else ["nsenter", f"--net={netns}"]
    alive = f'[ "$PPID" = {os.getpid()} ] && exec "$@"'
    return ["setpriv", "--pdeathsig", "KILL", "--", "sh", "-c", alive, "sh", *entered, *argv]


class Process:
    """A running child. Ends by `stop` or `kill`; both are idempotent and reap it."""

    def __init__(self, name: str, popen: subprocess.Popen[bytes], log_path: Path) -> None:
        self.name = name
        self.popen = popen
        self.log_path = log_path

    @property
    def pid(self) -> int:
        return self.popen.pid

    def running(self) -> bool:
        """Whether the program has not exited (a paused one is running)."""
        return self.popen.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send one signal to the program itself; nothing if it has exited."""
        if self.running():
            self.popen.send_signal(number)

    def pause(self) -> None:
        """Freeze the program: its sockets stay open and silent, as on a hung machine."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def stop(self, timeout_s: float = 5.0) -> int:
        """SIGTERM, then SIGKILL after `timeout_s`; returns the exit code (negative: the signal)."""
        if self.running():
            self.signal(signal.SIGTERM)
            self.signal(signal.SIGCONT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(timeout_s)
        return self.kill()

    def kill(self) -> int:
        """SIGKILL the program and all that is left of its process group; returns the exit code."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        return self.popen.wait(10)

    def log(self) -> str:
        """All the program has printed so far, standard output and error as they came."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of the log, for an error message."""
        tail = self.log().splitlines()[-lines:]
        state = "running" if self.running() else f"exited with {self.popen.returncode}"
        return "\n".join([f"--- {self.name} ({state}), end of its log:", *tail])

    def wait_log(self, text: str, timeout_s: float = 5.0, *, times: int = 1) -> None:
        """Wait until the log holds `text` so many `times`; `TimeoutError` with its tail otherwise."""
        failure = f"not {times} times in the log: {text!r}"
        poll(lambda: self.log().count(text) >= times, timeout_s, lambda: f"{failure}\n{self.log_tail()}")


def spawn(
    name: str,
    argv: Sequence[str],
    *,
    log_path: Path,
    netns: Path | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
) -> Process:
    """Start `argv` in the background; `env` is added to ours, the log is appended to, `pass_fds` stay open."""
    output: IO[bytes]
    with log_path.open("ab") as output:
        popen = subprocess.Popen(
            inside(netns, argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            pass_fds=pass_fds,
            start_new_session=True,
        )
    return Process(name, popen, log_path)


def run(
    argv: Sequence[str],
    *,
    netns: Path | None = None,
    check: bool = True,
    stdin: str | None = None,
    timeout_s: float = 30.0,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `argv` to its end. With `check`, a failure raises `RuntimeError` with what the program said."""
    done = subprocess.run(
        inside(netns, argv),
        input=stdin,
        stdin=None if stdin is not None else subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, **(env or {})},
        start_new_session=True,
        check=False,
    )
    if check and done.returncode != 0:
        said = (done.stderr + done.stdout).strip()
        raise RuntimeError(f"{' '.join(argv)!r} exited with {done.returncode}: {said}")
    return done
