"""Writes notices to the API server as Events, and repeats them for as long as they hold.

Decides the pace, and how a failure is waited out and told; which notice is due, and what it is as an Event, is
`event`'s. Level-triggered: it looks at the newest notices only, one request is under way at a time, and nobody waits
for it. Nothing is read from the cluster: that an Event is there already is known from the refusal to create it again,
and how it stands from a patch that changes nothing, so that no right but these two is needed.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from bgpd.kube.client import ApiServer, UnreachableError
from bgpd.kube.event import GROUP, RESOURCE, Told, body, counted_on, next_due, path, worth_keeping
from bgpd.kube.mirror import GarbledError, RefusedError
from bgpd.kube.watch import Failure, explained
from bgpd.model.fault import FaultsError
from bgpd.model.notice import Notice
from bgpd.observe import log
from bgpd.runtime.backoff import Backoff
from bgpd.runtime.store import Store

PAUSE_S = 1.0  # between two notices: what does not fit may not fit on a thousand nodes at once
REQUEST_S = 30.0
BACKOFF = Backoff(1.0, 60.0)


class Recorder:
    """Of one node. `notices` are by a key of their own, which stays when the text of one changes."""

    def __init__(
        self,
        server: ApiServer,
        notices: Store[Mapping[str, Notice]],
        node: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        rand: Callable[[], float] = random.random,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._server, self._notices, self._node = server, notices, node
        self._clock, self._wall_clock, self._rand, self._pause = clock, wall_clock, rand, pause
        self._log = log.get("events")
        self._told: dict[str, Told] = {}
        self._verb = "create"
        self._failed = ""  # what kind of failure the log has already

    async def run(self) -> None:
        """Never returns; cancel it."""
        attempt = 0
        async with self._server:
            while True:
                key, notice = await self._next()
                failure = await self._tell(notice)
                self._told[key] = Told(notice if failure is None else None, self._clock())
                attempt = 0 if failure is None else attempt + 1
                self._log_change(failure)
                asked_s = failure.retry_after_s if isinstance(failure, RefusedError) else None
                await self._pause(BACKOFF.delay_s(attempt, self._rand(), asked_s) if attempt else PAUSE_S)

    async def _next(self) -> tuple[str, Notice]:
        """Waits until one is due."""
        while True:
            newest, now = self._notices.newest, self._clock()
            self._told = worth_keeping(self._told, newest.value, now)
            due = next_due(newest.value, self._told)
            if due is not None and due.at <= now:
                return due.key, newest.value[due.key]
            try:
                async with asyncio.timeout(None if due is None else due.at - now):
                    await self._notices.newer_than(newest.revision)
            except TimeoutError:
                continue

    async def _tell(self, notice: Notice) -> Failure | None:
        """Creates the Event, or counts on the one that is there; returns why it could not."""
        try:
            await self._write(body(notice, self._node, self._wall_clock()))
        except (GarbledError, RefusedError, UnreachableError, FaultsError) as failure:
            if isinstance(failure, RefusedError) and failure.status == 401:
                self._server.refused()
            return failure
        return None

    async def _write(self, event: dict[str, Any]) -> None:
        namespace, name = event["metadata"]["namespace"], event["metadata"]["name"]
        self._verb = "create"
        try:
            await self._server.create(path(namespace), event, REQUEST_S)
        except RefusedError as refused:
            if refused.status != 409:
                raise
        else:
            return
        self._verb = "patch"
        there = path(namespace, name)
        found = await self._server.patch(there, {}, REQUEST_S)
        try:
            patch = counted_on(found, self._wall_clock())
        except msgspec.MsgspecError as error:
            raise GarbledError(f"not an Event ({error})") from None
        await self._server.patch(there, patch, REQUEST_S)

    def _log_change(self, failure: Failure | None) -> None:
        """A line when the first of a kind of failure comes, and when it is over."""
        if failure is None:
            if self._failed:
                self._log.info("events are written again")
            self._failed = ""
            return
        refused = failure if isinstance(failure, RefusedError) else None
        kind = f"{type(failure).__name__} {refused.status if refused else 0} {self._verb}"
        if kind != self._failed:
            remedy = {"remedy": "apply config/rbac.yaml of this release"} if refused and refused.lacks_right else {}
            error = explained(failure, self._verb, GROUP, RESOURCE)
            self._log.warning("events cannot be written", error=error, **remedy)
        self._failed = kind
