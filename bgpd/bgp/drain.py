"""Takes a node out of the fabric without losing a packet, and puts it back: the order of events and its memory.

Drain: announce everything with the graceful-shutdown community (RFC 8326), wait until the fabric has moved
away, withdraw, confirm by reading the adj-rib-out back. While it is not known what to announce, the routes that
are there cannot be changed, only withdrawn, so the drain begins with that. The state is a file, so a daemon that
restarts stays drained until `undrain`. What each phase announces is decided in `bgp.plan`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from bgpd.bgp.plan import Drain
from bgpd.bgp.routing import Routing, is_route
from bgpd.runtime.store import Store

CONFIRM_S = 20.0  # both are less than a client's patience with silence (`cli.client.SILENCE_S`)
REPORT_S = 10.0

Progress = Callable[[str], None]


class DrainError(Exception):
    """A step that could not be confirmed; the text says which, and what holds now."""


class Drainer:
    """`state` is what the plan reads; `file` keeps it over restarts."""

    def __init__(self, state: Store[Drain], file: Path) -> None:
        self._state, self._file = state, file
        self._busy = asyncio.Lock()
        state.publish(_stored(file))

    async def drain(self, routing: Routing, wait_s: float, progress: Progress) -> int:
        """Runs the whole drain; the number of routes withdrawn. Repeating it is harmless."""
        async with self._busy:
            announced = sum(map(is_route, routing.routes.have))
            if routing.undecided:
                reason = f"{routing.undecided}, so graceful-shutdown cannot be announced"
                progress(f"{reason}: withdrawing at once")
            elif self._state.newest.value is not Drain.WITHDRAWN:
                # also when a former drain was broken off here: nobody knows how long the fabric has had
                await self._show_the_door(routing, wait_s, progress)
            self._enter(Drain.WITHDRAWN)
            if not await _confirmed(routing, progress):
                raise DrainError(f"the withdrawal is not confirmed: {_why(routing)}; retried until it is")
            left = sum(map(is_route, routing.routes.have))
            if left:
                raise DrainError(f"{left} routes are still announced: {_why(routing, 'they have come back')}")
            progress("everything withdrawn; the adj-rib-out is empty")
            return announced

    async def undrain(self, routing: Routing, progress: Progress) -> int:
        """Announces again; the number of routes announced."""
        async with self._busy:
            self._enter(Drain.NO)
            if not await _confirmed(routing, progress):
                raise DrainError(f"the announcement is not confirmed: {_why(routing)}; retried until it is")
            announced = sum(map(is_route, routing.routes.have))
            progress(f"{announced} routes announced")
            return announced

    async def _show_the_door(self, routing: Routing, wait_s: float, progress: Progress) -> None:
        self._enter(Drain.SHUTDOWN)
        if not await _confirmed(routing, progress):
            raise DrainError(f"graceful-shutdown is not confirmed: {_why(routing)}; still announcing")
        announced = sum(key in routing.plan.routes for key in routing.routes.have)
        progress(f"{announced} routes announced with graceful-shutdown (65535:0)")
        progress(f"waiting {wait_s:g} s for the fabric to move away")
        for sleep_s, left_s in slices(wait_s):
            await asyncio.sleep(sleep_s)
            if left_s:
                progress(f"{left_s:g} s left")

    @property
    def broken_off(self) -> bool:
        """Whether a drain was left (Ctrl-C, a lost connection) while it waited: still announcing, as going away."""
        return self._state.newest.value is Drain.SHUTDOWN and not self._busy.locked()

    def _enter(self, phase: Drain) -> None:
        """Writes the phase down before acting on it: a crash in between repeats the step, never undoes it."""
        try:
            if phase is Drain.NO:
                self._file.unlink(missing_ok=True)
            else:
                temporary = self._file.with_suffix(".new")
                temporary.write_text(phase.value + "\n")
                temporary.replace(self._file)
        except OSError as error:
            raise DrainError(f"{self._file}: {error.strerror}; nothing has been changed") from None
        self._state.publish(phase)


def slices(wait_s: float) -> Iterator[tuple[float, float]]:
    """A wait cut into sleeps of `REPORT_S` at most, each with what is left after it: who waits must hear of it."""
    left_s = wait_s
    while left_s > 0:
        sleep_s = min(left_s, REPORT_S)
        left_s -= sleep_s
        yield sleep_s, left_s


def _stored(file: Path) -> Drain:
    """The phase a former life left. A drain that was cut short goes on to its end: the node was to leave."""
    with contextlib.suppress(FileNotFoundError):
        file.read_text()
        return Drain.WITHDRAWN
    return Drain.NO


async def _confirmed(routing: Routing, progress: Progress) -> bool:
    """Whether ExaBGP has it, within `CONFIRM_S`. Says first if that can only be after something else."""
    speaker = routing.speaker.state.newest.value
    if not speaker.connected:
        progress(f"no speaker ({speaker.reason}): waiting up to {CONFIRM_S:.0f} s for it")
    return await routing.confirm(CONFIRM_S)


def _why(routing: Routing, otherwise: str = f"no answer from the speaker in {CONFIRM_S:.0f} s") -> str:
    reasons = [outcome.reason for outcome in routing.routes.trouble.values()]
    return routing.routes.error or next(iter(reasons), otherwise)
