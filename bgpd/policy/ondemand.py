"""Actuators that are made when they are first needed, and loops that wait for news and for each other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from bgpd.model.outcome import Outcome
from bgpd.runtime.diff import Change
from bgpd.runtime.reconcile import Actuator, Reconciler, Round

LOOK_S = 1.0  # how long a loop that the kernel refuses everything may take until it is asked to try again
PAUSE_S = 0.5  # between two looks for news: a pod can make thousands in that, by its interface

Needs: TypeAlias = tuple[tuple[Reconciler[Any, Any], Collection[Any] | None], ...]
"""Loops, and the objects of each that matter; None: all."""


class OnDemand:
    """An actuator that is made when it is first looked at, so that a node without BPF says so and goes on.

    `looked`: it has been, so that what its loop has is what there is; before it was needed, nobody knows.
    """

    def __init__(self, make: Callable[[], Actuator[Any, Any]], needed: Callable[[], bool] = lambda: True) -> None:
        self._make, self._needed = make, needed
        self._made: Actuator[Any, Any] | None = None
        self.looked = False

    async def observe(self) -> Mapping[Any, Any]:
        if self._made is None and not self._needed():
            return {}
        if self._made is None:
            self._made = await asyncio.to_thread(self._make)
        found = await self._made.observe()
        self.looked = True
        return found

    async def apply(self, changes: Sequence[Change[Any, Any]]) -> Sequence[Outcome]:
        if self._made is None:  # it was not needed when the loop looked
            self._made = await asyncio.to_thread(self._make)
        return await self._made.apply(changes)


def then(report: Callable[[Round], None], following: Callable[[], object]) -> Callable[[Round], None]:
    """What one loop has done lets another go on."""

    def both(done: Round) -> None:
        report(done)
        following()

    return both


async def applied(loop: Reconciler[Any, Any]) -> None:
    """Returns when all that it wants has been written once, but for single objects."""
    while not loop.ever_applied:
        await loop.wait_until(loop.kick(), LOOK_S, ())


async def looked_at(loop: Reconciler[Any, Any]) -> None:
    """Returns when its target has been read from now on."""
    while not await loop.wait_until(loop.kick(stale=True), LOOK_S, ()):
        pass


class News(Protocol):
    async def news(self) -> object:
        """Waits for some."""

    def close(self) -> None: ...


async def heed(watch: News, tell: Callable[[], object], pause_s: float = PAUSE_S) -> None:
    """Calls `tell` for news, at once, then no sooner than after `pause_s`, however many come; until cancelled."""
    try:
        while True:
            await watch.news()
            tell()
            await asyncio.sleep(pause_s)
    finally:
        watch.close()
