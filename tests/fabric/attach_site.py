"""A node with a bridge and an uplink, pods of every kind, and the attacher that runs there.

The attacher is the real one, on real interfaces; whoever enforces policy only says what a test tells it to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path
from typing import TypeVar

from bgpd.cni.attach import RESYNC_S, PodAttacher
from bgpd.cni.frame import Frame
from bgpd.cni.journal import Journal
from bgpd.cni.protocol import attachment, parse
from bgpd.model.attachment import Attachment, AttachmentKey
from bgpd.model.endpoint import Endpoint, Endpoints
from bgpd.model.outcome import DONE, Outcome
from bgpd.netlink.link import Link
from bgpd.netlink.links import LinkError, Links
from bgpd.runtime.store import Store
from tests.fabric.netns import Lab, Namespace
from tests.unit.cni_requests import frame

T = TypeVar("T")
WAIT_S = 20.0


class Node:
    """The node of a lab. Pods are namespaces with an interface eth0."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.namespace = lab.namespace("node")
        self.ip = self.namespace.ip
        lab.bridge(self.namespace, "cni0")
        lab.bridge(self.namespace, "br1")
        lab.link(self.namespace, "uplink", lab.namespace("outside"), "eth0")
        self.journal, self.caches = lab.directory / "endpoints", lab.directory / "cni"

    def bridged(self, name: str) -> Namespace:
        pod = self.routed(name)
        self.ip(f"link set veth-{name} master cni0")
        return pod

    def routed(self, name: str) -> Namespace:
        pod = self.lab.namespace(name)
        self.lab.link(self.namespace, f"veth-{name}", pod, "eth0")
        return pod

    def macvlan(self, name: str) -> Namespace:
        """Made on the node and moved, as the plugin does."""
        pod = self.lab.namespace(name)
        self.ip(
            f"link add mv-{name} link uplink type macvlan mode bridge",
            f"link set mv-{name} netns {pod.netns_name} name eth0",
        )
        pod.ip("link set eth0 up")
        return pod

    def link(self, name: str) -> Link:
        def look() -> Link:
            with Links() as links:
                found = links.here(name)
                assert found is not None, name
                return found

        return self.namespace.call(look)

    def run(self, scenario: Callable[[Attaching], Awaitable[T]], *, resync_s: float = RESYNC_S) -> T:
        """What the scenario returns, with an attacher that runs in the node's namespace from before to after it."""

        async def main() -> T:
            attaching = Attaching(self, resync_s)
            attaching.following = asyncio.create_task(attaching.attacher.run())
            try:
                async with asyncio.timeout(WAIT_S * 2):
                    return await scenario(attaching)
            finally:
                await attaching.deafen()

        return self.namespace.call(lambda: asyncio.run(main()))


class Attaching:
    """The attacher and what is around it. `asked` are the endpoints whose enforcement was waited for."""

    def __init__(self, node: Node, resync_s: float) -> None:
        self.node = node
        self.store: Store[Endpoints] = Store({})
        self.journal = Journal(node.journal)
        self.unreadable = self.journal.load()
        self.following: asyncio.Task[None] | None = None
        self.asked: list[Endpoint] = []
        self.outcome: Outcome = DONE
        self.meanwhile: Callable[[], Awaitable[object]] | None = None
        self.unready = ""
        self.attacher = PodAttacher(
            self.store, self.journal, node.caches, self._enforced, lambda: self.unready, resync_s=resync_s
        )

    async def _enforced(self, endpoint: Endpoint) -> Outcome:
        assert self.endpoints[endpoint.key] == endpoint
        self.asked.append(endpoint)
        if self.meanwhile is not None:
            await self.meanwhile()
        return self.outcome

    async def deafen(self) -> None:
        """From now on the attacher hears of nothing, but what a test tells it."""
        assert self.following is not None
        self.following.cancel()
        await asyncio.wait([self.following])
        assert self.following.cancelled(), self.following.exception()

    @property
    def endpoints(self) -> Endpoints:
        return self.store.newest.value

    def endpoint(self, given: Attachment) -> Endpoint | None:
        return self.endpoints.get(given.key)

    async def add(self, pod: Namespace, **changes: str) -> Attachment:
        """Attached, or AssertionError."""
        request, given = add_of(self.node, pod, **changes)
        self.journal.add(request, given)
        assert await self.attacher.attach(given) == DONE
        return given

    async def until(self, holds: Callable[[Endpoints], bool]) -> Endpoints:
        """The first endpoints published that this holds of."""
        snapshot = self.store.newest
        async with asyncio.timeout(WAIT_S):
            while not (snapshot.synced and holds(snapshot.value)):
                snapshot = await self.store.newer_than(snapshot.revision)
        return snapshot.value

    async def until_adopted(self) -> Endpoints:
        return await self.until(lambda _: True)


def add_of(node: Node, pod: Namespace, **changes: str) -> tuple[Frame, Attachment]:
    """The ADD of a pod, as its main plugin's result tells it: `mac`, `network`, `mode`, `host`, `interface`."""
    interface = changes.get("interface", "eth0")
    mac = changes.get("mac")
    if mac is None:
        mac = node.namespace.call(lambda: _mac(pod.path, interface))
    host = [{"name": changes["host"]}] if "host" in changes else []
    address = f"10.244.1.{list(node.lab.namespaces).index(pod.name) + 10}"
    values = {
        "cniVersion": "1.0.0",
        "name": changes.get("network", "cluster"),
        "type": "bgpd-cni",
        "chaining-mode": changes.get("mode", "auto"),
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [*host, {"name": interface, "mac": mac, "sandbox": str(pod.path)}],
            "ips": [{"address": f"{address}/24", "interface": len(host)}],
        },
    }
    names = f"K8S_POD_NAMESPACE=shop;K8S_POD_NAME={pod.name}"
    request = frame(
        "ADD", values, CNI_CONTAINERID=pod.name, CNI_NETNS=str(pod.path), CNI_IFNAME=interface, CNI_ARGS=names
    )
    given = attachment(parse(request))
    assert given.addresses == (ip_address(address),)
    return request, given


def key_of(pod: Namespace, network: str = "cluster") -> AttachmentKey:
    return AttachmentKey(network, pod.name, "eth0")


def _mac(netns: Path, interface: str) -> str:
    try:
        with Links() as links:
            return links.pod(netns, interface).inside.mac
    except LinkError:
        return ""
