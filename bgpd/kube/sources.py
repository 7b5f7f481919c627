"""Offers the two sources of Kubernetes objects behind one face: the API server and a directory of manifests.

Decides only which modules a source loads: the API server's brings the Kubernetes client (40 MB resident), so
it is imported when that source is made, and a node that runs on manifests never pays for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from bgpd.kube.feed import Feed, SourceStatus
from bgpd.kube.manifests import ManifestSource
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


def manifest_source(directory: Path, feeds: Sequence[Feed[Any]]) -> Source:
    """Any kinds of object from a directory, which is read once for all of them."""
    return ManifestSource(directory, feeds)
