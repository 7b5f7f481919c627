"""Who may try now: bounds the tries of monitors that are under way, and shares them out among namespaces.

Each is a file descriptor, so there is a limit for all. Of that a namespace has at most an equal share, counted as if
there were one namespace more than there is. So pods that never answer, or an expression that takes long, hold up the
monitors of their own namespace and no others, and a namespace that comes finds room. Within its share a namespace's
tries go in the order in which they asked; where several namespaces wait, the one with fewer under way goes first.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping


class Shares:
    """`limit` is for all namespaces together."""

    def __init__(self, limit: int) -> None:
        self._limit, self._namespaces = limit, 1
        self._under_way: Counter[str] = Counter()
        self._waiting: dict[str, dict[asyncio.Future[None], float]] = {}

    @property
    def each(self) -> int:
        """How many tries of one namespace may be under way."""
        return max(1, self._limit // (self._namespaces + 1))

    def among(self, namespaces: int) -> None:
        """So many share from now on. What is under way ends by itself."""
        self._namespaces = namespaces
        self._grant()

    def late(self, than_s: float) -> Mapping[str, int]:
        """By namespace, how many have waited for longer than this."""
        since = asyncio.get_running_loop().time() - than_s
        counts = {name: sum(began < since for began in queue.values()) for name, queue in self._waiting.items()}
        return {name: count for name, count in counts.items() if count}

    @contextlib.asynccontextmanager
    async def turn(self, namespace: str) -> AsyncIterator[None]:
        """Waits until one more of this namespace may be under way, and counts it until the end of the block."""
        loop = asyncio.get_running_loop()
        granted: asyncio.Future[None] = loop.create_future()
        self._waiting.setdefault(namespace, {})[granted] = loop.time()
        self._grant()
        try:
            await granted
            yield
        finally:
            if granted.cancelled():
                self._waited(namespace, granted)
            else:
                self._under_way[namespace] -= 1
                self._under_way += Counter()  # without those that have none
            self._grant()

    def _grant(self) -> None:
        while self._under_way.total() < self._limit:
            may = [name for name in self._waiting if self._under_way[name] < self.each]
            if not may:
                return
            name = min(may, key=self._under_way.__getitem__)
            first = next(iter(self._waiting[name]))
            self._waited(name, first)
            if not first.cancelled():
                self._under_way[name] += 1
                first.set_result(None)

    def _waited(self, namespace: str, granted: asyncio.Future[None]) -> None:
        queue = self._waiting.get(namespace, {})
        queue.pop(granted, None)
        if not queue:
            self._waiting.pop(namespace, None)
