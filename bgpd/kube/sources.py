"""Offers the sources of Kubernetes objects behind one face: an API server, a directory of manifests, several at once.

Decides only which modules a source loads: the API server's brings the Kubernetes client (40 MB resident), so
it is imported when that source is made, and a node that runs on manifests never pays for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from bgpd.kube.feed import Feed, SourceState, SourceStatus
from bgpd.kube.manifests import ManifestSource
from bgpd.kube.parse import Kind
from bgpd.model.custom import Condition, Target
from bgpd.model.notice import Notice
from bgpd.runtime.store import Store

if TYPE_CHECKING:
    from bgpd.kube.client import ApiServer

T = TypeVar("T")


class Source(Protocol):
    """Keeps the stores of its feeds up to date while `run` runs, which never returns by itself."""

    status: Store[SourceStatus]

    async def run(self) -> None: ...


def api_server(kubeconfig: Path | None) -> ApiServer:
    """The server that any number of `api_source` may share; None: the cluster that this pod runs in.

    Nothing is read yet. `await server.check()` raises `FaultsError` for a bad kubeconfig; `run` retries.
    """
    from bgpd.kube.client import ApiServer

    return ApiServer(kubeconfig)


def api_source(server: ApiServer, feed: Feed[T]) -> Source:
    """One kind of object from an API server, by list and watch."""
    from bgpd.kube.watch import ApiSource

    return ApiSource(server, feed)


def recorder(server: ApiServer, notices: Store[Mapping[str, Notice]], node: str) -> Coroutine[Any, Any, None]:
    """Tells the API server these notices as Events of this node, until cancelled."""
    from bgpd.kube.recorder import Recorder

    return Recorder(server, notices, node).run()


def condition_writer(
    server: ApiServer, kinds: tuple[Kind[Any], ...], wanted: Store[Mapping[Target, tuple[Condition, ...]]]
) -> Coroutine[Any, Any, None]:
    """Writes these conditions into the status of objects of these kinds, until cancelled."""
    from bgpd.kube.conditions import ConditionWriter

    return ConditionWriter(server, kinds, wanted).run()


def manifest_source(directory: Path, feeds: Sequence[Feed[Any]]) -> Source:
    """Any kinds of object from a directory, which is read once for all of them."""
    return ManifestSource(directory, feeds)


def several(sources: Sequence[Source]) -> Source:
    """Runs all of them; its status is that of the one that is worst off, with the faults and warnings of all."""
    return sources[0] if len(sources) == 1 else _Several(sources)


class _Several:
    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self.status = Store(self._worst())
        for source in sources:
            source.status.on_change(lambda: self.status.publish(self._worst()))

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for source in self._sources:
                group.create_task(source.run(), name="source")

    def _worst(self) -> SourceStatus:
        order = (SourceState.SYNCED, SourceState.RETRYING, SourceState.STARTING)
        found = [source.status.newest.value for source in self._sources]
        return replace(
            max(found, key=lambda status: order.index(status.state)),
            reconnects=sum(status.reconnects for status in found),
            faults=tuple(fault for status in found for fault in status.faults),
            warning="; ".join(filter(None, (status.warning for status in found))),
        )
