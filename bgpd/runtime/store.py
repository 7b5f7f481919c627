"""Keeps the newest whole snapshot of something and wakes whoever waits for a newer one.

It never queues: a reader that was away sees only the latest value (level-triggered). A snapshot is immutable
and replaced as a whole. `synced` tells a first complete list from the emptiness before it, so that nobody
prunes on the strength of "not loaded yet".
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NewType, TypeVar

T = TypeVar("T")

Revision = NewType("Revision", int)


@dataclass(frozen=True, slots=True)
class Snapshot(Generic[T]):
    """`revision` grows by one with each publication; `at` is the monotonic time in seconds of its cause."""

    value: T
    revision: Revision
    synced: bool
    at: float


class Store(Generic[T]):
    """One value, its revision, and the tasks that wait for the next. Not thread-safe: one event loop owns it."""

    def __init__(self, initial: T, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._newest = Snapshot(initial, Revision(0), synced=False, at=clock())
        self._changed = asyncio.Event()
        self._listeners: list[Callable[[], object]] = []

    @property
    def newest(self) -> Snapshot[T]:
        return self._newest

    def publish(self, value: T, *, synced: bool = True, at: float | None = None) -> Revision:
        """Replaces the snapshot. An equal value with the same `synced` is no change and wakes nobody."""
        current = self._newest
        if current.revision and value == current.value and synced == current.synced:
            return current.revision
        self._newest = Snapshot(value, Revision(current.revision + 1), synced, self._clock() if at is None else at)
        self._changed.set()
        self._changed = asyncio.Event()
        for listener in self._listeners:
            listener()
        return self._newest.revision

    def on_change(self, listener: Callable[[], object]) -> None:
        """Calls `listener` (which must not block) after every publication, for as long as the store lives."""
        self._listeners.append(listener)

    async def newer_than(self, revision: Revision) -> Snapshot[T]:
        """The newest snapshot once its revision exceeds `revision`."""
        while self._newest.revision <= revision:
            await self._changed.wait()
        return self._newest
