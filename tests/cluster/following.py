"""A source at work on a real API server, all that it published, and an administrator beside it.

Decides nothing about what is right: the tests do.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from bgpd.kube.client import ApiServer
from bgpd.kube.feed import Feed, SourceState, SourceStatus
from bgpd.kube.parse import NODE
from bgpd.kube.watch import ApiSource, Timing
from bgpd.model.node import Node
from bgpd.runtime.backoff import Backoff
from bgpd.runtime.store import Store
from tests.contract.test_source_contract import Nodes, running

from .controlplane import ControlPlane

NODES: Final = "/api/v1/nodes"
QUICK: Final = Timing(watch_s=1, slack_s=0.5, list_s=2, steady_s=0.2, backoff=Backoff(0.05, 0.2))
WITHIN_S: Final = 20.0


class Following:
    """A source at work, with all that it ever published of the one Node: its CIDRs, or None for no Node."""

    def __init__(self, source: ApiSource[Node], store: Nodes, name: str) -> None:
        self._source, self._store, self._name = source, store, name
        self.seen: list[str | None] = []
        store.on_change(lambda: self.seen.append(self.now))

    @property
    def now(self) -> str | None:
        found = self._store.newest.value.get(self._name)
        return None if found is None else ",".join(map(str, found.pod_cidrs))

    @property
    def status(self) -> SourceStatus:
        return self._source.status.newest.value

    async def published(self, *seen: str | None) -> None:
        """Everything published so far is `seen`, and the source is in step."""
        await self.state(SourceState.SYNCED)
        await _newer(self._store, lambda: len(self.seen) >= len(seen))
        assert self.seen == list(seen)
        assert self._store.newest.synced

    async def arrived(self, cidr: str) -> None:
        """The Node has this CIDR at last; events that came together may have been published as one."""
        await _newer(self._store, lambda: self.now == cidr)

    async def state(self, state: SourceState) -> None:
        await _newer(self._source.status, lambda: self.status.state is state)

    async def error(self, text: str) -> None:
        await _newer(self._source.status, lambda: text in self.status.last_error)

    async def failures(self, count: int) -> None:
        wanted = self.status.reconnects + count
        await _newer(self._source.status, lambda: self.status.reconnects >= wanted)


async def _newer(store: Store[Any], holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not holds():
            await store.newer_than(store.newest.revision)


@asynccontextmanager
async def following(
    kubeconfig: Path, name: str, timing: Timing = QUICK, dead_after_s: float = 2
) -> AsyncIterator[Following]:
    store = Nodes({})
    server = ApiServer(kubeconfig, connect_s=1, dead_after_s=dead_after_s)
    source = ApiSource(server, Feed(NODE, store, name), timing)
    async with running(source):
        yield Following(source, store, name)


# A server dies with the thread that started it, and other tests go on with the one that was started here.
_ADMINISTRATOR = ThreadPoolExecutor(max_workers=1)


async def aside(action: Callable[..., object], *arguments: object) -> None:
    """What an administrator does meanwhile, without holding the event loop up."""
    await asyncio.get_running_loop().run_in_executor(_ADMINISTRATOR, action, *arguments)


class Admin:
    """Makes and unmakes one Node."""

    def __init__(self, control_plane: ControlPlane, name: str) -> None:
        self._rest, self._name = control_plane.admin, name

    def make(self, cidr: str) -> None:
        spec = {"podCIDR": cidr, "podCIDRs": [cidr]}
        self._rest.create(NODES, {"metadata": {"name": self._name}, "spec": spec})

    def unmake(self) -> None:
        self._rest.delete(f"{NODES}/{self._name}")

    def remake(self, cidr: str) -> None:
        self.unmake()
        self.make(cidr)

    def others(self) -> None:
        """Moves the cluster's version on without a word about our Node."""
        for _ in range(3):
            other = f"other-{uuid.uuid4().hex[:8]}"
            self._rest.create(NODES, {"metadata": {"name": other}})
            self._rest.delete(f"{NODES}/{other}")
