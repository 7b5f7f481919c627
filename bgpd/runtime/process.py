"""Keeps one child process running: starts it, logs what it prints, starts it again when it ends.

For `bgp.speaker: managed` (demo, lab, tests), where no systemd does this. The child dies with the daemon,
however that dies, and Ctrl-C at the terminal reaches the daemon only, which then stops the child in its own
order. What to run, and what must happen before a stop, is decided by the caller.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from bgpd.observe import log
from bgpd.runtime.backoff import Backoff

STEADY_S = 30.0  # a child that ran so long starts with a fresh backoff
LINE_LIMIT = 1 << 16
STOP_S = 10.0
LAST_WORDS_S = 0.2  # a grandchild may keep the pipe open after the child has ended

# Runs between fork and the program, in the child: asks the kernel to kill it when we end (PR_SET_PDEATHSIG is 1,
# kept over exec) and gives up when we ended before that. A process of its own and not a preexec_fn, which would
# run Python after a fork while other threads hold locks.
_LEASH = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]): sys.exit(1)
try: os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error: sys.exit(f"{sys.argv[2]}: {error.strerror}")
"""


class Child:
    """`name` is what log lines call it. `pid` is None while it is not running; `restarts` counts."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        backoff: Backoff | None = None,
        rand: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self.restarts = 0
        self._command, self._environment = command, environment
        self._backoff, self._rand = backoff or Backoff(), rand
        self._logger = log.get(f"bgpd.{name}")
        self._process: asyncio.subprocess.Process | None = None
        self._starting = asyncio.Lock()
        self._stopping = asyncio.Event()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    async def run(self) -> None:
        """Returns after `stop`. Cancelled, it kills the child. Run it on the thread that outlives the child."""
        attempt = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            how = await self._once()
            if self._stopping.is_set():
                self._logger.info("child stopped", child=self.name, how=how)
                return
            attempt = 1 if time.monotonic() - started >= STEADY_S else attempt + 1
            delay_s = self._backoff.delay_s(attempt, self._rand())
            self._logger.warning("child ended", child=self.name, how=how, again_s=round(delay_s, 1))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._stopping.wait()
                    return
            self.restarts += 1

    async def stop(self, timeout_s: float = STOP_S) -> None:
        """SIGTERM, and SIGKILL to it and its own children after `timeout_s`. Returns when it is gone."""
        self._stopping.set()
        async with self._starting:  # a child that is being started has no id yet
            process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(timeout_s):
                await process.wait()
        except TimeoutError:
            self._logger.warning("child killed", child=self.name, after_s=timeout_s)
            _kill_group(process)
            await process.wait()

    async def _once(self) -> str:
        """Runs the child to its end; returns how it ended."""
        async with _output(self._tell) as output:
            try:
                async with self._starting:
                    if self._stopping.is_set():
                        return "not started"
                    process = self._process = await self._start(output)
            except OSError as error:
                return f"not started: {error}"
            self._logger.info("child started", child=self.name, pid=process.pid)
            try:
                return _how(await process.wait())
            finally:
                if process.returncode is None:
                    _kill_group(process)
                    await process.wait()
                self._process = None

    async def _start(self, output: int) -> asyncio.subprocess.Process:
        leash = (sys.executable, "-I", "-S", "-c", _LEASH, str(os.getpid()))
        return await asyncio.create_subprocess_exec(
            *leash,
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=self._environment,
            start_new_session=True,
        )

    def _tell(self, line: bytes) -> None:
        if text := line.decode("utf-8", "replace").rstrip():
            self._logger.info(text, child=self.name)


@contextlib.asynccontextmanager
async def _output(tell: Callable[[bytes], None]) -> AsyncIterator[int]:
    """A descriptor for a child to print to. It is always read: a child with a full pipe would hang.

    The pipe is ours and not asyncio's: with its own, wait() returns only when the last grandchild that inherited
    it has closed it (seen with Python 3.11.7).
    """
    read_end, write_end = os.pipe()
    reader = asyncio.StreamReader(LINE_LIMIT)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb", buffering=0)
    )
    printed = asyncio.create_task(_read(reader, tell), name="output of a child")
    try:
        yield write_end
    finally:
        os.close(write_end)
        await asyncio.wait((printed,), timeout=LAST_WORDS_S)
        printed.cancel()
        transport.close()


async def _read(reader: asyncio.StreamReader, tell: Callable[[bytes], None]) -> None:
    while True:
        try:
            line = await reader.readline()
        except ValueError:
            line = f"(more than {LINE_LIMIT} bytes without an end of line were left out)".encode()
        if not line:
            return
        tell(line)


def _kill_group(process: asyncio.subprocess.Process) -> None:
    """Its session is its own, so its id names its children too for as long as it has not been waited for."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
