"""Writes conditions into the status of custom objects, on behalf of all nodes and without any of them in charge.

Every node finds the same conditions, so whoever writes first writes for all: each waits a random part of `SPREAD_S`,
and by then sees by its watch what another wrote. A thousand nodes come to a handful of equal requests for one
change, and there is no lease to hold, to lose, or to need rights for. One field manager for all, so that no node
takes another's conditions away. Two releases that disagree do not fight: a node repeats itself after `REPEAT_S` only.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

from bgpd.kube.client import ApiServer, UnreachableError
from bgpd.kube.mirror import RefusedError
from bgpd.kube.parse import Kind
from bgpd.kube.watch import explained
from bgpd.model.custom import Condition, Target
from bgpd.model.fault import FaultsError
from bgpd.observe import log
from bgpd.runtime.store import Store

Wanted: TypeAlias = Mapping[Target, tuple[Condition, ...]]

MANAGER = "bgpd"
SPREAD_S = 10.0
REPEAT_S = 600.0
REQUEST_S = 30.0
SUBRESOURCE = "status"


@dataclass(slots=True)
class _Turn:
    """When these conditions are due (again), in monotonic seconds."""

    conditions: tuple[Condition, ...]
    due: float
    written: bool = False


class ConditionWriter:
    """`wanted` are the objects whose status is not as it should be; who finds that out takes them out again."""

    def __init__(
        self,
        server: ApiServer,
        kinds: tuple[Kind[Any], ...],
        wanted: Store[Wanted],
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        rand: Callable[[], float] = random.random,
    ) -> None:
        self._server, self._wanted = server, wanted
        self._kinds = {kind.name: kind for kind in kinds}
        self._clock, self._wall_clock, self._rand = clock, wall_clock, rand
        self._turns: dict[Target, _Turn] = {}
        self._failed = ""
        self._log = log.get("conditions")

    async def run(self) -> None:
        """Never returns; cancel it."""
        async with self._server:
            while True:
                newest = self._wanted.newest
                self._line_up(newest.value)
                target = min(newest.value, key=lambda each: self._turns[each].due, default=None)
                left_s = None if target is None else self._turns[target].due - self._clock()
                if target is None or left_s is None or left_s > 0:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(left_s):
                            await self._wanted.newer_than(newest.revision)
                    continue
                await self._write(target, self._turns[target].conditions)
                self._turns[target].due, self._turns[target].written = self._clock() + REPEAT_S, True

    def _line_up(self, wanted: Wanted) -> None:
        """Each has a turn of its own; one that wants something else now has lost the one it had.

        So has one that another node has written for: all nodes' turns would be over, should it be wanted once more.
        """
        now = self._clock()
        kept = {it: turn for it, turn in self._turns.items() if it in wanted or (turn.written and turn.due > now)}
        for target, conditions in wanted.items():
            turn = kept.get(target)
            if turn is None or turn.conditions != conditions:
                kept[target] = _Turn(conditions, now + self._rand() * SPREAD_S)
        self._turns = kept

    async def _write(self, target: Target, conditions: tuple[Condition, ...]) -> None:
        kind = self._kinds[target.kind]
        body = {
            "apiVersion": kind.api_version,
            "kind": kind.name,
            "metadata": {"name": target.name},
            "status": {"conditions": [self._as_written(condition) for condition in conditions]},
        }
        path = f"{kind.path()}/{target.name}/{SUBRESOURCE}"
        try:
            await self._server.apply(path, body, MANAGER, REQUEST_S)
        except (RefusedError, UnreachableError, FaultsError) as failure:
            if isinstance(failure, RefusedError) and failure.status == 401:
                self._server.refused()
            self._note(explained(failure, "patch", kind.group, f"{kind.resource}/{SUBRESOURCE}"))
        else:
            self._note("")

    def _as_written(self, condition: Condition) -> dict[str, Any]:
        now = datetime.fromtimestamp(self._wall_clock(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "type": condition.type,
            "status": str(condition.status),
            "reason": condition.reason,
            "message": condition.message,
            "observedGeneration": condition.generation,
            "lastTransitionTime": condition.since or now,
        }

    def _note(self, failure: str) -> None:
        """A line when it begins to fail, and when that is over."""
        if failure and failure != self._failed:
            self._log.warning("conditions cannot be written", error=failure)
        elif self._failed and not failure:
            self._log.info("conditions are written again")
        self._failed = failure
