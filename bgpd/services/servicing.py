"""Service addresses put together: Services, EndpointSlices and configuration in, candidates for announcement out.

It holds what the plan remembers, knows the time, and says what an operator should know. Which peer gets which
candidate is up to `bgp.plan`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from bgpd.config.load import Loaded
from bgpd.model.candidate import Candidate
from bgpd.model.service import EndpointSlice, Service
from bgpd.observe import log
from bgpd.runtime.store import Store
from bgpd.services.plan import ANNOUNCED, ServicesPlan, State, plan
from bgpd.services.reach import Reaches, Rules

T = TypeVar("T")


class Servicing:
    """Keeps `candidates` as planned. `plan` is the newest.

    `never_empty`: the source is an API server, which has a Service and a slice of its own. One without any has lost
    them, and what it had before counts on.
    """

    def __init__(
        self,
        node_name: str,
        config: Store[Loaded],
        services: Store[Mapping[str, Service]],
        slices: Store[Mapping[str, EndpointSlice]],
        candidates: Store[tuple[Candidate, ...]],
        never_empty: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._services, self._slices, self._candidates = config, services, slices, candidates
        self._never_empty, self._clock = never_empty, clock
        self._reaches = Reaches(node_name)
        self._believed: tuple[Mapping[str, Service], Mapping[str, EndpointSlice]] = {}, {}
        self._settled = False  # both sources have been complete
        self._changed = asyncio.Event()
        self._log = log.get("services")
        self._kept = 0
        self._at = -math.inf  # of what came last from the source
        self.plan = ServicesPlan()
        for store in (config, services, slices):
            store.on_change(self._changed.set)

    @property
    def states(self) -> Counter[State]:
        """How many addresses there are in which state."""
        return Counter(each.state for each in self.plan.memory.values())

    def problems(self) -> Iterator[str]:
        """Everything about service addresses that an operator should know; nothing on a healthy node."""
        gone = "any more, not even that of the API server: those of before count on"
        if self._believed[0] and not self._services.newest.value:
            yield f"services: there is no Service {gone}"
        if self._believed[1] and not self._slices.newest.value:
            yield f"services: there is no EndpointSlice {gone}"
        kept = {key.prefix: each.since for key, each in self.plan.memory.items() if each.state is State.KEPT}
        if kept:
            withdrawn, age_s = len(self._withdrawn()), self._clock() - min(kept.values())
            percent = self._config.newest.value.config.services.max_withdrawn_percent
            yield (
                f"services: {len(kept)} addresses stay announced without a ready endpoint, one for {age_s:.0f} s, "
                f"because {withdrawn} are withdrawn for that already (services.maxWithdrawnPercent: {percent}; 100 "
                "lets them go): are they down, or is the cluster wrong about them?"
            )

    def _withdrawn(self) -> set[str]:
        """Addresses that no Service has announced."""
        found: dict[bool, set[str]] = {True: set(), False: set()}
        for key, each in self.plan.memory.items():
            if each.state is State.WITHDRAWN or each.state in ANNOUNCED:
                found[each.state in ANNOUNCED].add(key.prefix)
        return found[False] - found[True]

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._changed.clear()
            self._refresh()
            due = self.plan.due
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if due is None else max(due - self._clock(), 0)):
                    await self._changed.wait()

    def _refresh(self) -> None:
        """Nothing is remembered before both sources are complete: what they have not shown yet is not gone."""
        services, slices = self._services.newest, self._slices.newest
        config = self._config.newest.value.config
        self._believed = (
            self._or_before(services.value, self._believed[0]),
            self._or_before(slices.value, self._believed[1]),
        )
        rules = Rules.of(config)
        before = self.plan.memory if self._settled else None
        reaches = self._reaches.advance(rules, *self._believed)
        self.plan = plan(reaches, before, config.services, self._clock())
        self._settled = services.synced and slices.synced
        at = max(services.at, slices.at)
        news, self._at = at > self._at, at  # else it is time that brought it
        self._candidates.publish(self.plan.candidates, synced=self._settled, at=at if news else None)
        self._tell()

    def _or_before(self, newest: Mapping[str, T], before: Mapping[str, T]) -> Mapping[str, T]:
        return before if self._never_empty and not newest else newest

    def _tell(self) -> None:
        states = self.states
        if bool(states[State.KEPT]) != bool(self._kept):
            if states[State.KEPT]:
                self._log.warning("too many are without a ready endpoint", **{str(k): n for k, n in states.items()})
            else:
                self._log.info("none is kept by the brake any more")
        self._kept = states[State.KEPT]
