"""What a source of Kubernetes objects promises, whichever it is.

`SourceContract` is the suite. It runs here against a directory of manifests, and in `tests/cluster` against a
real API server. An `Origin` is where the objects come from: what an operator or a controller does there.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Protocol

import pytest
import yaml

from bgpd.kube.feed import Feed, SourceState
from bgpd.kube.manifests import ManifestSource
from bgpd.kube.parse import NODE
from bgpd.kube.sources import Source
from bgpd.model.node import Node
from bgpd.runtime.store import Store
from tests.files import rewrite

SOON_S = 5.0

Nodes = Store[Mapping[str, Node]]


class Origin(Protocol):
    def source(self, feed: Feed[Node]) -> Source: ...

    def put(
        self,
        name: str,
        pod_cidrs: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        addresses: Sequence[str] = (),
    ) -> None:
        """Makes the Node, or changes the one that is there."""

    def touch(self, name: str) -> None:
        """Changes something in the Node that nobody reads."""

    def delete(self, name: str) -> None: ...


@asynccontextmanager
async def running(source: Source) -> AsyncIterator[None]:
    """`source` at work; a source that ends by itself fails the test."""
    task = asyncio.create_task(source.run())
    try:
        yield
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(store: Nodes, holds: Callable[[Mapping[str, Node]], bool]) -> Mapping[str, Node]:
    """The first synced mapping from now on of which `holds` is true."""
    async with asyncio.timeout(SOON_S):
        newest = store.newest
        while not (newest.synced and holds(newest.value)):
            newest = await store.newer_than(newest.revision)
    return newest.value


def node(name: str, pod_cidrs: Sequence[str], labels: Mapping[str, str], addresses: Sequence[str]) -> object:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": dict(labels)},
        "spec": {"podCIDR": pod_cidrs[0], "podCIDRs": list(pod_cidrs)} if pod_cidrs else {},
        "status": {"addresses": [{"type": "InternalIP", "address": address} for address in addresses]},
    }


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await scenario()

    asyncio.run(main())


class SourceContract:
    """Every test states one promise. `name` is a Node that no other test knows."""

    @pytest.fixture
    def name(self) -> str:
        return f"worker-{uuid.uuid4().hex[:8]}"

    def test_nothing_is_synced_before_it_runs(self, origin: Origin, name: str) -> None:
        """An empty store that was never filled is told from an origin that is empty."""

        async def scenario() -> None:
            store = Nodes({})
            source = origin.source(Feed(NODE, store, name))
            assert not store.newest.synced
            assert source.status.newest.value.state is SourceState.STARTING

        run(scenario)

    def test_absence_is_a_complete_answer(self, origin: Origin, name: str) -> None:
        """No such Node is published as an empty mapping that is synced."""

        async def scenario() -> None:
            store = Nodes({})
            source = origin.source(Feed(NODE, store, name))
            async with running(source):
                assert await until(store, lambda nodes: not nodes) == {}
                assert source.status.newest.value.state is SourceState.SYNCED

        run(scenario)

    def test_what_is_there_at_start_comes_whole(self, origin: Origin, name: str) -> None:
        """The first synced mapping holds every object, each with all that is read of it."""
        origin.put(name, ["10.1.2.0/24", "fd00:1::/64"], {"rack": "7"}, ["192.0.2.1", "2001:db8::1"])
        origin.put(f"{name}-b", ["10.1.3.0/24"])

        async def scenario() -> None:
            store = Nodes({})
            async with running(origin.source(Feed(NODE, store))):
                nodes = await until(store, lambda nodes: True)
            assert nodes[f"{name}-b"].pod_cidrs == (ip_network("10.1.3.0/24"),)
            found = nodes[name]
            assert found.pod_cidrs == (ip_network("10.1.2.0/24"), ip_network("fd00:1::/64"))
            assert found.internal_ips == (ip_address("192.0.2.1"), ip_address("2001:db8::1"))
            assert found.labels["rack"] == "7"
            assert found.problems == ()

        run(scenario)

    def test_name_keeps_the_others_out(self, origin: Origin, name: str) -> None:
        """With a name, no other object is ever published."""
        origin.put(f"{name}-b", ["10.1.3.0/24"])
        origin.put(name, ["10.1.2.0/24"])

        async def scenario() -> None:
            store = Nodes({})
            async with running(origin.source(Feed(NODE, store, name))):
                assert set(await until(store, bool)) == {name}

        run(scenario)

    def test_object_that_is_added_appears(self, origin: Origin, name: str) -> None:
        """An object made later joins the mapping."""

        async def scenario() -> None:
            store = Nodes({})
            async with running(origin.source(Feed(NODE, store, name))):
                await until(store, lambda nodes: not nodes)
                await asyncio.to_thread(origin.put, name, ["10.1.2.0/24"])
                nodes = await until(store, bool)
            assert nodes[name].pod_cidrs == (ip_network("10.1.2.0/24"),)

        run(scenario)

    def test_change_replaces_the_object(self, origin: Origin, name: str) -> None:
        """The controller manager gives a Node its pod CIDRs a moment after it is made."""
        origin.put(name)

        async def scenario() -> None:
            store = Nodes({})
            async with running(origin.source(Feed(NODE, store, name))):
                first = await until(store, bool)
                assert "--allocate-node-cidrs" in first[name].problems[0]
                await asyncio.to_thread(origin.put, name, ["10.1.2.0/24"], {"rack": "7"})
                nodes = await until(store, lambda nodes: bool(nodes[name].pod_cidrs))
            assert nodes[name].problems == ()
            assert nodes[name].labels["rack"] == "7"

        run(scenario)

    def test_change_of_nothing_we_read_is_no_news(self, origin: Origin, name: str) -> None:
        """A change in fields that nobody reads wakes nobody: heartbeats are many."""
        origin.put(name, ["10.1.2.0/24"])

        async def scenario() -> None:
            store = Nodes({})
            async with running(origin.source(Feed(NODE, store, name))):
                await until(store, bool)
                before = store.newest.revision
                await asyncio.to_thread(origin.touch, name)
                await asyncio.to_thread(origin.delete, name)
                await until(store, lambda nodes: not nodes)
            assert store.newest.revision == before + 1

        run(scenario)

    def test_deleted_object_disappears(self, origin: Origin, name: str) -> None:
        """What is deleted leaves the mapping, which stays synced."""
        origin.put(name, ["10.1.2.0/24"])

        async def scenario() -> None:
            store = Nodes({})
            async with running(origin.source(Feed(NODE, store, name))):
                await until(store, bool)
                await asyncio.to_thread(origin.delete, name)
                assert await until(store, lambda nodes: not nodes) == {}

        run(scenario)

    def test_recreated_object_has_its_new_content(self, origin: Origin, name: str) -> None:
        """Deleted and made again with other pod CIDRs: nothing of the first one is left."""
        origin.put(name, ["10.1.2.0/24"], {"rack": "7"})

        async def scenario() -> None:
            store = Nodes({})
            async with running(origin.source(Feed(NODE, store, name))):
                await until(store, bool)
                await asyncio.to_thread(origin.delete, name)
                await asyncio.to_thread(origin.put, name, ["10.9.9.0/24"])
                wanted = (ip_network("10.9.9.0/24"),)
                nodes = await until(store, lambda nodes: name in nodes and nodes[name].pod_cidrs == wanted)
            assert "rack" not in nodes[name].labels

        run(scenario)

    def test_bad_field_hurts_only_itself(self, origin: Origin, name: str) -> None:
        """An address that cannot be used is named with its remedy; the rest of the Node and others count."""
        origin.put(name, ["10.1.2.0/24"], {}, ["192.0.2.300", "192.0.2.1"])  # the API server takes this
        origin.put(f"{name}-b", ["10.1.3.0/24"])

        async def scenario() -> None:
            store = Nodes({})
            async with running(origin.source(Feed(NODE, store))):
                nodes = await until(store, lambda nodes: {name, f"{name}-b"} <= nodes.keys())
            assert nodes[name].pod_cidrs == (ip_network("10.1.2.0/24"),)
            assert nodes[name].internal_ips == (ip_address("192.0.2.1"),)
            (problem,) = nodes[name].problems
            assert problem.startswith(f"node {name}: status.addresses[0].address: '192.0.2.300' is not an IP")
            assert nodes[f"{name}-b"].problems == ()

        run(scenario)

    def test_two_readers_see_the_same(self, origin: Origin, name: str) -> None:
        """A second source of the same origin arrives at an equal mapping."""
        origin.put(name, ["10.1.2.0/24"], {"rack": "7"}, ["192.0.2.1"])

        async def scenario() -> None:
            first, second = Nodes({}), Nodes({})
            one, other = (origin.source(Feed(NODE, store, name)) for store in (first, second))
            async with running(one), running(other):
                assert await until(first, bool) == await until(second, bool)

        run(scenario)


class Directory:
    """A directory of manifests; every second file is written in place and every other one renamed into it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writes = 0

    def source(self, feed: Feed[Node]) -> Source:
        return ManifestSource(self._path, [feed], settle_s=0.05)

    def put(
        self,
        name: str,
        pod_cidrs: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        addresses: Sequence[str] = (),
    ) -> None:
        self._write(name, node(name, pod_cidrs, labels or {}, addresses))

    def touch(self, name: str) -> None:
        content = yaml.safe_load((self._path / f"{name}.yaml").read_text())
        content["metadata"]["annotations"] = {"touched": "yes"}
        self._write(name, content)

    def delete(self, name: str) -> None:
        (self._path / f"{name}.yaml").unlink()

    def _write(self, name: str, content: object) -> None:
        self._writes += 1
        target = self._path / f"{name}.yaml"
        if self._writes % 2:
            target.write_text(yaml.safe_dump(content))
        else:
            rewrite(target, json.dumps(content))


class TestManifests(SourceContract):
    """A directory keeps the contract."""

    @pytest.fixture
    def origin(self, tmp_path: Path) -> Iterator[Origin]:
        yield Directory(tmp_path)
