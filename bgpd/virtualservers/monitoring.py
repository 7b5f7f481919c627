"""Runs the monitors of local pods and keeps what they found; what follows from it is decided in `plan`.

Every pod has a task for each of its monitors, which tries, waits and tries again. New ones begin spread over a
second, so that a restart does not try hundreds of pods at one moment. At most `AT_ONCE` tries are under way, each for
`LONGEST_TRY_S` at most, however long the monitor's timeout is; `shares` says whose. A try that waits for its turn, or
is late because the daemon was held up, is not held against the pod.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from bgpd.model.virtualserver import Member, Monitor, VirtualServer
from bgpd.virtualservers.monitor import Check, Rule, delayed, expired, expires_at, judged, started
from bgpd.virtualservers.probe import Result, probe
from bgpd.virtualservers.shares import Shares

AT_ONCE = 256  # a file descriptor each, of the 1,024 that systemd gives a service
LONGEST_TRY_S = 60.0  # a timeout may be a day, and whoever is not done by then would keep others from their turn
SPREAD_S = 1.0
LATE_S = 1.0  # how long a try waits for its turn before an operator is told


class Watched(NamedTuple):
    """Two virtual servers of a namespace that ask the same of a pod share the answer."""

    namespace: str
    member: Member
    monitor: Monitor


class Monitoring:
    """`checks` are the newest. `changed` is called whenever a pod went up or down."""

    def __init__(
        self,
        rule: Callable[[], Rule],
        changed: Callable[[], None],
        rand: Callable[[], float] = random.random,
        probe: Callable[[Monitor, Member, float], Awaitable[Result]] = probe,
    ) -> None:
        self._rule, self._changed, self._rand, self._probe = rule, changed, rand, probe
        self._shares = Shares(AT_ONCE)
        self._tasks: dict[Watched, asyncio.Task[None]] = {}
        self._failed = asyncio.Event()
        self._error: BaseException | None = None
        self.checks: dict[Watched, Check] = {}

    def follow(self, wanted: Collection[Watched], in_service: Collection[Member]) -> None:
        """Watches these and no others. Those `in_service` that are new count as up until they fail."""
        now = asyncio.get_running_loop().time()
        self._shares.among(len({key.namespace for key in wanted}))
        for key in self._tasks.keys() - set(wanted):
            self._tasks.pop(key).cancel()
            del self.checks[key]
        for key in wanted:
            if key not in self._tasks:
                self.checks[key] = started(now, was_up=key.member in in_service)
                self._tasks[key] = asyncio.create_task(self._repeat(key), name=f"monitor {key.member}")
                self._tasks[key].add_done_callback(self._ended)

    def of(self, server: VirtualServer, member: Member) -> Mapping[Monitor, Check]:
        """What each of its monitors has found of a pod."""
        found = ((each, self.checks.get(Watched(server.namespace, member, each))) for each in server.monitors)
        return {monitor: check for monitor, check in found if check is not None}

    def problems(self) -> Iterator[str]:
        """Nothing as long as everybody is tried in time."""
        for namespace, count in self._shares.late(LATE_S).items():
            yield (
                f"{count} monitors of namespace {namespace} wait for their turn: {self._shares.each} tries at a time "
                "are its share; let its pods answer, or its monitors ask less often"
            )

    async def run(self) -> None:
        """Until cancelled; then nothing is watched any more. An unexpected error of a task ends it."""
        try:
            await self._failed.wait()
            assert self._error is not None
            raise self._error
        finally:
            for task in self._tasks.values():
                task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._error = error
            self._failed.set()

    async def _repeat(self, key: Watched) -> None:
        loop, monitor = asyncio.get_running_loop(), key.monitor
        meant_at = loop.time() + min(SPREAD_S, monitor.interval_s) * self._rand()
        while True:
            await asyncio.sleep(max(0.0, meant_at - loop.time()))
            async with self._shares.turn(key.namespace):
                begun_at = loop.time()
                check = self.checks[key] = delayed(self.checks[key], max(0.0, begun_at - meant_at))
                due = expires_at(check, monitor)
                within_s = min(monitor.timeout_s, LONGEST_TRY_S)
                if due is not None:
                    within_s = min(within_s, max(0.0, due - begun_at))
                result = await self._probe(monitor, key.member, within_s)
            self._note(key, judged(self.checks[key], monitor, self._rule(), loop.time(), *result))
            next_at = begun_at + monitor.interval_s
            due = expires_at(self.checks[key], monitor)
            if due is not None and due < next_at:
                await asyncio.sleep(max(0.0, due - loop.time()))
                self._note(key, expired(self.checks[key], monitor, loop.time()))
            meant_at = max(next_at, loop.time())  # what this daemon is late from here on is not the pod's fault

    def _note(self, key: Watched, check: Check) -> None:
        before, self.checks[key] = self.checks[key], check
        if replace(before, good_at=0, streak=0) != replace(check, good_at=0, streak=0):
            self._changed()
