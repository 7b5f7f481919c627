"""Actuators that are made when they are first needed, and loops that let others go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bgpd.model.outcome import Outcome
from bgpd.runtime.diff import Change
from bgpd.runtime.reconcile import Actuator, Round


class OnDemand:
    """An actuator that is made when it is first looked at, so that a node without BPF says so and goes on."""

    def __init__(self, make: Callable[[], Actuator[Any, Any]], needed: Callable[[], bool] = lambda: True) -> None:
        self._make, self._needed = make, needed
        self._made: Actuator[Any, Any] | None = None

    async def observe(self) -> Mapping[Any, Any]:
        if self._made is None and not self._needed():
            return {}
        if self._made is None:
            self._made = await asyncio.to_thread(self._make)
        return await self._made.observe()

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
