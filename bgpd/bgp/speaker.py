"""Talks to ExaBGP through its bridge: one command after the other, and the sessions as they change.

A shell around `codec`: it keeps the connection, matches answers to commands by the bridge's ids, and publishes
`SpeakerState` whenever a session goes up or down or the bridge comes and goes. What to say is decided
elsewhere. A connection that dies fails the commands in flight with `TargetError`; the next one starts afresh.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path

from bgpd.bgp import codec
from bgpd.model.bgp import Session, SpeakerState
from bgpd.model.prefix import Address
from bgpd.runtime.reconcile import TargetError
from bgpd.runtime.store import Store

COMMAND_TIMEOUT_S = 20.0  # ExaBGP answers in milliseconds; 40,000 routes are listed in two seconds
RECONNECT_S = 0.1
START_S = 2.0  # ExaBGP listens half a second after it was started
PULSE_S = 5.0
SILENCE_S = 3.0  # ExaBGP answers in milliseconds; lists of very many routes take seconds
LINE_LIMIT = 1 << 24  # `show neighbor json` is one line for all neighbors


class CommandError(TargetError):
    """ExaBGP refused one command; its log says why."""


class Speaker:
    """`state` is the newest view of the sessions. `path` is the bridge's socket."""

    def __init__(self, path: Path, state: Store[SpeakerState], clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self.state = state
        self._clock = clock
        self._ids = itertools.count(1)
        self._pending: dict[str, _Pending] = {}
        self._writer: asyncio.StreamWriter | None = None
        self.identity = ""
        self._quiet_until = 0.0
        self._blame = ""  # why we gave this connection up ourselves

    async def run(self) -> None:
        """Keeps the connection for ever; cancel it."""
        self._quiet_until = self._clock() + START_S
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(str(self.path), limit=LINE_LIMIT)
            except OSError as error:
                self._lost(f"{self.path}: {error.strerror or error}; is bgpd-speaker.service running?")
            else:
                try:
                    await self._serve(reader, writer)
                except (OSError, ValueError) as error:
                    self._lost(f"{self.path}: {error}")
                else:
                    self._lost(self._blame or f"{self.path}: the speaker closed the connection")
                finally:
                    writer.close()
            await asyncio.sleep(RECONNECT_S)

    async def command(self, text: str, timeout_s: float = COMMAND_TIMEOUT_S) -> list[str]:
        """ExaBGP's output to one API command. TargetError: no connection, no answer, or refused."""
        writer = self._writer
        if writer is None:
            raise TargetError(self.state.newest.value.reason)
        ident = str(next(self._ids))
        pending = self._pending[ident] = _Pending(asyncio.get_running_loop().create_future(), self._clock())
        try:
            writer.write(f"{ident} {text}\n".encode())
            async with asyncio.timeout(timeout_s):
                accepted = await pending.end
        except TimeoutError:
            self._blame = f"ExaBGP did not answer in {timeout_s:.0f} s; is it stopped or overloaded?"
            writer.transport.abort()  # the answer may still come: never let it meet another command
            raise TargetError(self._blame) from None
        finally:
            del self._pending[ident]
        if not accepted:
            raise CommandError(": ".join(["ExaBGP refused", text[:120], *pending.lines[:1]]))
        return pending.lines

    @property
    def silence(self) -> str:
        """Why a speaker that is connected is of no use: ExaBGP hangs. Empty when it answers."""
        since = min((pending.since for pending in self._pending.values()), default=self._clock())
        waiting_s = self._clock() - since
        return f"ExaBGP has not answered for {waiting_s:.0f} s" if waiting_s > SILENCE_S else ""

    async def sessions(self) -> dict[Address, Session]:
        """Every session as the bridge remembers it now, End-of-RIB included."""
        lines = await self.command("#memory")
        now = self._clock()
        return dict(codec.session(entry, now) for line in lines for entry in json.loads(line))

    # --- the connection -----------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(SILENCE_S):
                hello = await reader.readline()
        except TimeoutError:  # the guardian takes connections while no bridge runs
            raise ValueError("the bridge does not answer; see the log of bgpd-speaker") from None
        if not hello.startswith(b"hello "):
            raise ValueError("whatever listens there is not the bridge")
        self.identity, self._blame = hello.decode().strip(), ""
        self._writer = writer
        tasks = [asyncio.ensure_future(self._recall()), asyncio.ensure_future(self._pulse())]
        try:
            while line := await reader.readline():
                self._hear(line.decode().rstrip("\n"))
        finally:
            for task in tasks:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, TargetError):
                    await task

    async def _pulse(self) -> None:
        """Asks now and then: an ExaBGP that hangs, its sessions lost to the hold timer, says so to nobody."""
        while True:
            await asyncio.sleep(PULSE_S)
            with contextlib.suppress(CommandError):
                await self.command("version")

    async def _recall(self) -> None:
        """What happened before we came. Events that arrive meanwhile are newer and are kept."""
        before = dict(self.state.newest.value.sessions)
        sessions = await self.sessions()
        heard = {
            address: session
            for address, session in self.state.newest.value.sessions.items()
            if before.get(address) is not session
        }
        self.state.publish(SpeakerState(connected=True, reason="", sessions=sessions | heard))

    def _hear(self, line: str) -> None:
        kind, _, rest = line.partition(" ")
        if kind == "event":
            address, session = codec.session(json.loads(rest), self._clock())
            current = self.state.newest.value
            self.state.publish(
                SpeakerState(current.connected, current.reason, current.sessions | {address: session})
            )
            return
        ident, _, text = rest.partition(" ")
        pending = self._pending.get(ident)
        if pending is None:
            return
        if kind == "line":
            pending.lines.append(text)
        elif not pending.end.done():
            pending.end.set_result(kind == "done")

    def _lost(self, reason: str) -> None:
        self._writer = None
        for pending in self._pending.values():
            if not pending.end.done():
                pending.end.set_exception(TargetError(reason))
        current = self.state.newest.value
        if not self.identity and self._clock() < self._quiet_until:
            return  # both have just been started: give it the time to come up before complaining
        if current.connected or current.reason != reason:
            self.state.publish(SpeakerState(connected=False, reason=reason, sessions=current.sessions))


class _Pending:
    """A command in flight: its output so far and the future of its end (True: done, False: refused)."""

    __slots__ = ("end", "lines", "since")

    def __init__(self, end: asyncio.Future[bool], since: float) -> None:
        self.end = end
        self.since = since
        self.lines: list[str] = []
