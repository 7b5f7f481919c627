"""Pods made by Debian's CNI plugins, with ours behind them and the real attacher behind its socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from bgpd.cni.journal import Queue
from bgpd.cni.server import CniServer
from bgpd.model.outcome import Retry
from bgpd.observe.unixsocket import is_answered
from tests.contract.cni_runtime import DEBIAN, PLUGIN, PluginError, Runtime
from tests.fabric.attach_site import WAIT_S, Attaching, Node
from tests.fabric.disks import fill, small_disk
from tests.fabric.netns import Lab
from tests.fabric.process import poll

MAINS: Mapping[str, Mapping[str, Any]] = {
    "bridge": {"type": "bridge", "bridge": "cni0", "isGateway": True},
    "ptp": {"type": "ptp"},
    "macvlan": {"type": "macvlan", "master": "uplink", "mode": "bridge"},
}
TUNING: Mapping[str, Any] = {"type": "tuning", "mac": "02:00:00:00:00:42"}
SEEN_AT = {"bridge": "veth", "ptp": "veth", "macvlan": "uplink"}

pytestmark = pytest.mark.needs(*(str(DEBIAN / name) for name in (*MAINS, "tuning", "host-local")), str(PLUGIN))


@pytest.fixture
def node(lab: Lab) -> Node:
    return Node(lab)


def chain(node: Node, *plugins: Mapping[str, Any], ours: Mapping[str, Any] | None = None) -> Runtime:
    """`ours`: what our entry says besides where the daemon is; None: we are not in the chain."""
    directory = node.lab.directory
    subnets = [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd88::/64"}]]
    ipam = {"type": "host-local", "ranges": subnets, "dataDir": str(directory / "ipam")}
    entries = [{**plugins[0], "ipam": ipam}, *plugins[1:]]
    if ours is not None:
        entry = {"type": "bgpd-cni", "socket": str(directory / "cni.sock"), "queue": str(directory / "queue")}
        entries.append({**entry, "deadline-seconds": int(WAIT_S), **ours})
    programs = directory / "bin"
    programs.mkdir(exist_ok=True)
    (programs / "bgpd-cni").unlink(missing_ok=True)
    (programs / "bgpd-cni").symlink_to(PLUGIN)
    conflist = {"cniVersion": "1.0.0", "name": "cluster", "plugins": entries}
    return Runtime(conflist, node.namespace.path, (DEBIAN, programs))


def serve(node: Node, scenario: Any) -> None:
    """The CNI server and the attacher, while the scenario lasts."""

    async def main(at: Attaching) -> None:
        directory = node.lab.directory
        server = CniServer(directory / "cni.sock", at.attacher, at.journal, Queue(directory / "queue"))
        serving = asyncio.create_task(server.run())
        try:
            await asyncio.to_thread(poll, lambda: is_answered(directory / "cni.sock"), WAIT_S, lambda: "no socket")
            await scenario(at)
        finally:
            serving.cancel()
            await asyncio.wait([serving])

    node.run(main)


@pytest.mark.parametrize("main", MAINS)
@pytest.mark.parametrize("behind", [(), (TUNING,)], ids=["alone", "with another MAC"])
def test_a_pod_of_each_main_plugin(node: Node, main: str, behind: tuple[Mapping[str, Any], ...]) -> None:
    runtime, pod = chain(node, MAINS[main], *behind, ours={}), node.lab.namespace("pod")

    async def scenario(at: Attaching) -> None:
        result = await asyncio.to_thread(runtime.add, "c1", pod.path)
        (endpoint,) = at.endpoints.values()
        assert [str(each) for each in endpoint.addresses] == [
            each["address"].partition("/")[0] for each in result["ips"]
        ]
        assert endpoint.mac in (await asyncio.to_thread(pod.run, ["ip", "link", "show", "eth0"])).stdout
        assert not behind or endpoint.mac == TUNING["mac"]
        assert endpoint.link.name.startswith(SEEN_AT[main])
        assert getattr(endpoint.link, "bridge", None) == (node.link("cni0").index if main == "bridge" else None)
        await asyncio.to_thread(runtime.check, "c1", pod.path)
        await asyncio.to_thread(pod.ip, "link set eth0 address 02:00:00:00:00:66")
        with pytest.raises(PluginError, match="02:00:00:00:00:66"):
            await asyncio.to_thread(
                runtime.check, "c1", pod.path, [plugin["type"] for plugin in (MAINS[main], *behind)]
            )
        await asyncio.to_thread(runtime.delete, "c1", pod.path)
        assert (at.endpoints, dict(at.journal.attachments), at.attacher.ended) == ({}, {}, {})

    serve(node, scenario)


def test_a_pod_that_cannot_be_policed_does_not_start(node: Node) -> None:
    """Refused for good where its interface is unfit, for now where its policy is not in the kernel."""
    pod = node.lab.namespace("pod")

    async def refused(runtime: Runtime) -> tuple[int, str]:
        with pytest.raises(PluginError) as raised:
            await asyncio.to_thread(runtime.add, "c1", pod.path)
        await asyncio.to_thread(runtime.delete, "c1", pod.path)
        return raised.value.error["code"], raised.value.error["msg"]

    async def scenario(at: Attaching) -> None:
        code, text = await refused(chain(node, MAINS["macvlan"], ours={"chaining-mode": "generic-veth"}))
        assert (code, text[:55]) == (100, 'chaining-mode "generic-veth" is for veth, and eth0 is a')
        at.outcome = Retry("table inet bgpd-policy: no room")
        assert await refused(chain(node, MAINS["bridge"], ours={})) == (11, "table inet bgpd-policy: no room")
        assert (at.endpoints, dict(at.journal.attachments)) == ({}, {})

    serve(node, scenario)


@pytest.mark.needs("mount", "umount")
def test_a_full_disk_starts_no_pod_and_ends_those_that_there_are(node: Node) -> None:
    """What cannot be remembered is not attached; when there is room again, it is."""
    runtime, (one, other) = chain(node, MAINS["bridge"], ours={}), map(node.lab.namespace, ("one", "other"))

    async def scenario(at: Attaching) -> None:
        await asyncio.to_thread(runtime.add, "c1", one.path)
        attached = at.endpoints
        fill(ballast)
        with pytest.raises(PluginError) as raised:
            await asyncio.to_thread(runtime.add, "c2", other.path)
        text = f"the attachment cannot be remembered: {node.journal}: No space left on device"
        assert (raised.value.error["code"], raised.value.error["msg"]) == (11, text)
        assert at.endpoints == attached
        for name, pod in (("c2", other), ("c1", one)):
            await asyncio.to_thread(runtime.delete, name, pod.path)
        assert (at.endpoints, dict(at.journal.attachments)) == ({}, {})
        ballast.unlink()
        await asyncio.to_thread(runtime.add, "c2", other.path)
        assert len(at.endpoints) == 1

    with small_disk(node.journal) as ballast:
        serve(node, scenario)


@pytest.mark.parametrize("main", MAINS)
def test_a_pod_from_before_us_is_adopted_from_the_runtime_s_cache(node: Node, main: str) -> None:
    """Of a runtime that does not write down the namespace; then it is checked and ended as any other."""
    before, pod = chain(node, MAINS[main]), node.lab.namespace("pod")
    result = before.add("c1", pod.path)
    value = {"kind": "cniCacheV1", "containerId": "c1", "ifName": "eth0", "networkName": "cluster", "result": result}
    (node.caches / "results").mkdir(parents=True)
    (node.caches / "results" / "cluster-c1-eth0").write_text(json.dumps(value))
    runtime = chain(node, MAINS[main], ours={})
    runtime.results = before.results

    async def scenario(at: Attaching) -> None:
        await at.until_adopted()
        (endpoint,) = at.endpoints.values()
        assert endpoint.link.name.startswith(SEEN_AT[main])
        await asyncio.to_thread(runtime.check, "c1", pod.path)
        await asyncio.to_thread(runtime.delete, "c1", pod.path)
        assert (at.endpoints, dict(at.journal.attachments), at.attacher.ended) == ({}, {}, {})

    serve(node, scenario)
