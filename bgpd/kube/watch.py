"""Keeps a store equal to the objects of one kind in the API server, whatever happens to the server or the way.

Decides when to list, when to watch and from where, how long silence is bearable, and how long to wait after
which failure. What an answer means for the objects is `mirror`'s, how it gets here is `client`'s.

List, then watch from the list's resource version; a watch that ends is resumed at the last version seen, and
410 Gone leads back to a list (Kubernetes API Concepts, "Efficient detection of changes"). What is published
stays until a newer *whole* state replaces it, through any outage.

Lists ask for no resource version, that is for the newest. Version 0, any state from the server's cache, is
cheaper, but after a failover it may be older than what we have seen already: routes would go back in time.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Generic, TypeAlias, TypeVar

from bgpd.kube.client import ApiServer, UnreachableError
from bgpd.kube.feed import Feed, SourceState, SourceStatus, entered
from bgpd.kube.mirror import GarbledError, GoneError, Listing, Mirror, RefusedError
from bgpd.model.fault import FaultsError
from bgpd.runtime.backoff import Backoff
from bgpd.runtime.store import Store

T = TypeVar("T")

PAGE_LIMIT = 500  # what kubectl and client-go ask for
LINE_LIMIT = 16 * 1024 * 1024  # etcd takes 1.5 MB for an object; managedFields and escapes may double it

Failure: TypeAlias = GoneError | GarbledError | RefusedError | UnreachableError | FaultsError


@dataclass(frozen=True, slots=True)
class Timing:
    """`watch_s`: how long the server is asked to keep a watch, a quarter less at most so that nodes spread out.

    An honest server ends it then. One that has not `slack_s` later is taken for dead, so the sum bounds how
    long a watch can be silently lost: a frozen server answers TCP's probes, and only this finds it. `list_s`
    is for one page. A watch of less than `steady_s` does not count as a recovery. `relist_s` after a list comes
    another, between two watches: after etcd was restored from a backup a watch may stay silent for ever.
    """

    watch_s: float = 60.0
    slack_s: float = 5.0
    list_s: float = 30.0
    steady_s: float = 1.0
    relist_s: float = 600.0
    backoff: Backoff = field(default_factory=Backoff)


class ApiSource(Generic[T]):
    """Feeds one kind from `server`. `status` is a store of its own; `run` does the work until cancelled."""

    def __init__(
        self,
        server: ApiServer,
        feed: Feed[T],
        timing: Timing | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        rand: Callable[[], float] = random.random,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._server, self._feed, self._timing = server, feed, timing or Timing()
        self._clock, self._rand, self._pause = clock, rand, pause
        self._mirror = Mirror(feed.kind)
        namespace, _, name = (feed.name or "").rpartition("/")
        self._path = feed.kind.path(namespace)
        self._selector = {"fieldSelector": f"metadata.name={name}"} if name else {}
        if feed.label is not None:
            self._selector["labelSelector"] = "=".join(feed.label)
        self._verb = "list"
        self._unserved = ""
        self._listed_at = clock()
        self._watching_since = math.inf  # infinity: not watching
        self.status = Store(SourceStatus(SourceState.STARTING, clock()), clock)

    async def run(self) -> None:
        """Never returns; cancel it. What is published stays."""
        async with self._server:
            await self._keep_following()

    async def _keep_following(self) -> None:
        attempt = 0
        failure: Failure | None = None
        while True:
            before, failure = failure, await self._follow()
            if self._clock() - self._watching_since >= self._timing.steady_s:
                attempt, before = 0, None
                if failure is None:
                    continue
            attempt += 1  # also for a server that ends each watch at once
            delay = self._delay_s(attempt, failure, before)
            if delay:
                await self._pause(delay)

    async def _follow(self) -> Failure | None:
        """Lists if need be and watches until that ends; returns why, None being the server's timeout."""
        self._watching_since = math.inf
        try:
            if self._mirror.version is None or self._clock() - self._listed_at >= self._timing.relist_s:
                await self._list()
            await self._watch()
        except (GoneError, GarbledError, RefusedError, UnreachableError, FaultsError) as failure:
            self._failed(failure)
            return failure
        return None

    async def _list(self) -> None:
        self._verb = "list"
        listing = Listing(self._feed.kind)
        query = {"limit": str(PAGE_LIMIT)} | self._selector
        while more := listing.add(await self._server.get(self._path, query, self._timing.list_s)):
            query["continue"] = more
        self._listed_at, self._unserved = self._clock(), ""
        self._mirror.adopt(listing)
        self._publish(self._listed_at)
        self._reached()

    async def _watch(self) -> None:
        self._verb = "watch"
        assert self._mirror.version is not None
        seconds = max(1, round(self._timing.watch_s * (1 - self._rand() / 4)))
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._mirror.version,
            "timeoutSeconds": str(seconds),
        } | self._selector
        lines = Lines()
        async with self._server.stream(self._path, query, seconds + self._timing.slack_s) as pieces:
            self._watching_since = self._clock()
            self._reached()
            async for piece in pieces:
                received = self._clock()
                try:
                    for line in lines.take(piece):
                        self._mirror.apply(line)
                finally:
                    self._publish(received)  # what came before a bad line still counts
        if lines.rest:
            raise UnreachableError("the watch ended in the middle of an event")

    def _publish(self, received: float) -> None:
        store = self._feed.store
        synced = store.newest.synced or self._mirror.complete
        store.publish(self._mirror.objects, synced=synced, at=received)
        self._note_faults()

    # --- how it is doing ----------------------------------------------------------------------------------

    def _reached(self) -> None:
        """The server answers: what is published is what it has."""
        state = SourceState.SYNCED if self._feed.store.newest.synced else SourceState.STARTING
        self.status.publish(entered(self.status.newest.value, state, self._clock()))
        self._note_faults()

    def _note_faults(self) -> None:
        faults = (*self._mirror.faults, *self._server.faults)
        warning = self._unserved or (self._feed.emptiness if self._feed.store.newest.synced else "")
        self.status.publish(replace(self.status.newest.value, faults=faults, warning=warning))

    def _failed(self, failure: Failure) -> None:
        """Prepares the next attempt and says what went wrong with this one."""
        if self._is_unserved(failure):
            self._unserved = f"there is no {self._feed.kind.name}: {self._feed.kind.if_unserved}"
            self._feed.store.publish({})
            self._reached()
            return
        if isinstance(failure, RefusedError) and failure.status == 401:
            self._server.refused()
        elif isinstance(failure, GoneError | GarbledError) or _is_about_version(failure):
            self._mirror.version = None  # begin anew; what is published stays until that is done
        current = self.status.newest.value
        if current.state is SourceState.SYNCED:
            current = entered(current, SourceState.RETRYING, self._clock())
        text = explained(failure, self._verb, self._feed.kind.group, self._feed.kind.resource)
        faults = (*self._mirror.faults, *self._server.faults)
        self.status.publish(replace(current, last_error=text, reconnects=current.reconnects + 1, faults=faults))

    def _is_unserved(self, failure: Failure) -> bool:
        """The server does not know the kind (404), and never did: one whose definition went keeps its objects."""
        never = self._unserved or not self._feed.store.newest.revision
        unknown = isinstance(failure, RefusedError) and failure.status == 404
        return unknown and bool(never and self._feed.kind.if_unserved)

    def _delay_s(self, attempt: int, failure: Failure | None, before: Failure | None) -> float:
        if _has_remedy(failure) and not _has_remedy(before):
            return 0.0  # also at the end of a long outage, whose last pause would be half a minute more
        asked_s = failure.retry_after_s if isinstance(failure, RefusedError) else None
        return self._timing.backoff.delay_s(attempt, self._rand(), asked_s)


class Lines:
    """Cuts a stream of pieces into lines. `rest` tells whether a line has begun and not ended."""

    def __init__(self) -> None:
        self._begun: list[bytes] = []
        self._size = 0

    @property
    def rest(self) -> bool:
        return self._size > 0

    def take(self, piece: bytes) -> list[bytes]:
        """The lines that end in this piece, empty ones left out. Raises `GarbledError` for an endless one."""
        *ended, begun = piece.split(b"\n")
        if ended:
            ended[0] = b"".join((*self._begun, ended[0]))
            self._begun, self._size = [], 0
        self._begun.append(begun)
        self._size += len(begun)
        if self._size > LINE_LIMIT:
            raise GarbledError(f"a line of more than {LINE_LIMIT} bytes")
        return [line for line in ended if line]


def _is_about_version(failure: Failure) -> bool:
    """410 Gone, 400 for a version that is no number to this server, 404 when the kind came and went."""
    return isinstance(failure, RefusedError) and failure.status in (400, 404, 410)


def _has_remedy(failure: Failure | None) -> bool:
    """A new list, or credentials that were read anew, will do; a second time in a row they did not."""
    return isinstance(failure, GoneError) or (isinstance(failure, RefusedError) and failure.status in (401, 410))


def explained(failure: Failure, verb: str, group: str, resource: str) -> str:
    """A failure as the operator should read it: what, and what to do."""
    match failure:
        case RefusedError(status=401):
            return f"the API server does not accept the credentials (401): {failure.message}"
        case RefusedError(lacks_right=True):
            rule = f'apiGroups: ["{group}"], resources: ["{resource}"], verbs: ["{verb}"]'
            return f"not allowed to {verb} {resource}; the role lacks {rule} (403): {failure.message}"
        case RefusedError():
            return f"the API server refused to {verb} {resource} ({failure.status}): {failure.message}"
        case GoneError():
            return f"the API server cannot continue the watch of {resource}: {failure}"
        case _:
            return str(failure)
