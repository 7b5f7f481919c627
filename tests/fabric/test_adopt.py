"""Pods that ran before the daemon: from our journal and the runtime's cache, whatever they did meanwhile."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from bgpd.cni.adopt import find
from bgpd.model.attachment import AttachmentKey
from bgpd.model.endpoint import VethLink
from bgpd.netlink.links import News
from tests.fabric.attach_site import Attaching, Node, add_of, key_of
from tests.fabric.netns import Lab, Namespace

DISGUISE = ("link set eth0 down", "link set eth0 name x address 02:00:00:00:00:99")
DECOY = ("link set eth0 down", "link set eth0 name x", "link add eth0 address {mac} type bridge")
SIBLING = ("link add s link eth0 type macvlan", "link del eth0", "link set s up")


@pytest.fixture
def node(lab: Lab) -> Node:
    return Node(lab)


def cache(node: Node, pod: Namespace, directory: str = "results", **changes: Any) -> Path:
    """What libcni keeps of the pod. `changes` are of the file; those of an ADD are named as `add_of` names them."""
    named = {name: changes.pop(name) for name in ("mac", "network", "host") if name in changes}
    request, given = add_of(node, pod, **named)
    value = {
        "kind": "cniCacheV1",
        "containerId": given.key.container,
        "ifName": given.key.interface,
        "networkName": given.key.network,
        "netns": given.netns,
        "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", "shop"], ["K8S_POD_NAME", pod.name]],
        "result": json.loads(request.configuration)["prevResult"],
    } | changes
    key = given.key
    file = node.caches / directory / f"{key.network}-{key.container}-{key.interface}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))
    return file


def journal(node: Node, pod: Namespace, **changes: str) -> None:
    async def scenario(at: Attaching) -> None:
        await at.add(pod, **changes)

    node.run(scenario)


def adopted(node: Node) -> dict[AttachmentKey, str]:
    """The endpoints of a new life, by the name of their link; the journal has the same ones then."""

    async def scenario(at: Attaching) -> dict[AttachmentKey, str]:
        found = await at.until_adopted()
        assert set(at.journal.attachments) == set(found)
        assert [await at.attacher.check(each) for each in at.journal.attachments.values()] == [()] * len(found)
        return {key: each.link.name for key, each in found.items()}

    return node.run(scenario)


def ignored(node: Node) -> list[str]:
    return node.namespace.call(lambda: find({}, node.caches)).ignored


def test_pods_of_either_memory(node: Node) -> None:
    """One that was attached through us, one from before, and one that both know."""
    ours, before, both = node.bridged("a"), node.macvlan("b"), node.routed("c")
    node.lab.namespace("host-network")
    journal(node, ours)
    journal(node, both)
    cache(node, before)
    cache(node, both)
    want = {key_of(ours): "veth-a", key_of(before): "uplink", key_of(both): "veth-c"}
    assert adopted(node) == want
    (node.caches / "results" / "cluster-b-eth0").unlink()
    assert adopted(node) == want  # from now on it is ours


def test_our_own_memory_comes_first(node: Node) -> None:
    """The runtime's may be of an ADD that we refused."""
    pod = node.bridged("a")
    _, given = add_of(node, pod)
    journal(node, pod)
    cache(node, pod, mac="02:00:00:00:00:55")

    async def scenario(at: Attaching) -> None:
        assert (await at.until_adopted())[given.key].mac == given.mac

    node.run(scenario)


def test_the_adopted_are_checked_collected_and_ended_as_others(node: Node) -> None:
    pods = [node.bridged("a"), node.macvlan("b"), node.bridged("c")]
    for pod in pods:
        cache(node, pod)

    async def scenario(at: Attaching) -> None:
        await at.until_adopted()
        given = at.journal.attachments[key_of(pods[0])]
        assert await at.attacher.check(given) == ()
        await at.attacher.collect({key_of(pods[0]), key_of(pods[1])})
        assert set(at.endpoints) == {key_of(pods[0]), key_of(pods[1])}
        await asyncio.to_thread(node.lab.remove, pods[1])
        await at.until(lambda endpoints: set(endpoints) == {key_of(pods[0])})
        await at.attacher.detach(key_of(pods[0]), None)
        assert at.endpoints == {}

    node.run(scenario)


def test_what_is_stale_is_ignored_and_says_why(node: Node) -> None:
    gone, empty, unfit, alive = (node.bridged(name) for name in ("gone", "empty", "unfit", "alive"))
    journal(node, gone)
    files = [cache(node, each) for each in (gone, empty, unfit, alive)]
    results = node.caches / "results"
    (results / "broken").write_text("{")
    (results / "cni-loopback-alive-lo").write_text(json.dumps({"kind": "cniCacheV1", "ifName": "lo"}))
    (results / "directory").mkdir()
    node.lab.remove(gone)
    empty.ip("link del eth0")
    unfit.ip("link del eth0", "link add eth0 type bridge")
    assert adopted(node) == {key_of(alive): "veth-alive"}
    assert ignored(node) == [
        f"{results}/broken: it is no JSON",
        f"{results}/directory: it is a directory; give a file",
        f"cluster,gone,eth0: there is no network namespace {gone.path}",
        f"cluster,empty,eth0: {empty.path} has no interface eth0 that leads to this node",
        "cluster,unfit,eth0: eth0 is of kind bridge: traffic can be judged of veth, macvlan and ipvlan only",
    ]
    assert [file.exists() for file in files] == [True] * 4  # they are the runtime's


def test_no_cache_is_an_empty_one(node: Node) -> None:
    assert (adopted(node), ignored(node)) == ({}, [])
    node.caches.write_text("a file in the way")
    assert ignored(node) == []


def test_multus_keeps_those_of_its_delegates_apart(node: Node) -> None:
    """The runtime knows the same interface under Multus' own name; both may be asked to end it."""
    pod = node.bridged("a")
    cache(node, pod, network="multus-cni-network")
    cache(node, pod, "multus/results", network="cbr0")
    want = {key_of(pod, "multus-cni-network"): "veth-a", key_of(pod, "cbr0"): "veth-a"}
    assert adopted(node) == want


def test_a_path_that_is_another_pod_s_by_now(node: Node) -> None:
    """As "/proc/PID/ns/net" after a reboot: the one with the right MAC address is believed."""
    pod = node.bridged("a")
    cache(node, pod)
    cache(node, pod, containerId="before", network="old", mac="02:00:00:00:00:55")
    assert adopted(node) == {key_of(pod): "veth-a"}


@pytest.mark.parametrize("memory", [journal, cache])
@pytest.mark.parametrize(
    ("kind", "commands"),
    [
        pytest.param("bridged", DISGUISE, id="disguised"),
        pytest.param("bridged", DECOY, id="with a decoy"),
        pytest.param("macvlan", SIBLING, id="replaced by a sibling"),
        pytest.param("macvlan", DISGUISE, id="macvlan disguised"),
    ],
)
def test_a_pod_does_not_get_away_while_we_are_down(
    node: Node, memory: Any, kind: str, commands: tuple[str, ...]
) -> None:
    """It stays an endpoint, with the MAC address that it was given, and is followed as before."""
    pod: Namespace = getattr(node, kind)("a")
    _, given = add_of(node, pod)
    memory(node, pod, **({"host": "veth-a"} if kind == "bridged" else {}))
    pod.ip(*(command.format(mac=given.mac) for command in commands))

    async def scenario(at: Attaching) -> None:
        await at.until_adopted()
        endpoint = at.endpoints[key_of(pod)]
        assert (endpoint.mac, endpoint.addresses) == (given.mac, given.addresses)
        assert endpoint.link.kind == ("veth" if kind == "bridged" else "macvlan")
        await at.attacher.take(News(lost=True))
        assert at.endpoints == {key_of(pod): endpoint}
        await asyncio.to_thread(node.lab.remove, pod)
        await at.until(lambda endpoints: not endpoints)

    node.run(scenario)


def test_a_pod_that_was_moved_to_another_bridge_while_we_were_down(node: Node) -> None:
    pod = node.bridged("a")
    journal(node, pod)
    node.ip("link set veth-a master br1")

    async def scenario(at: Attaching) -> None:
        await at.until_adopted()
        link = at.endpoints[key_of(pod)].link
        assert link == VethLink(node.link("veth-a").index, "veth-a", node.link("br1").index)

    node.run(scenario)


def test_what_cannot_be_remembered_is_adopted_all_the_same(node: Node) -> None:
    """And GC, which is told of what is remembered, leaves it alone."""
    pod = node.bridged("a")
    cache(node, pod)

    async def scenario(at: Attaching) -> None:
        (node.journal / ".cluster,a,eth0").mkdir()  # in the way of the file that would be renamed
        await at.until_adopted()
        assert (set(at.endpoints), dict(at.journal.attachments)) == ({key_of(pod)}, {})
        await at.attacher.collect(())
        assert set(at.endpoints) == {key_of(pod)}
        await at.attacher.detach(key_of(pod), None)
        assert at.endpoints == {}

    node.run(scenario)


def test_a_request_during_adoption_waits_for_it(node: Node) -> None:
    """A DEL that was overtaken would leave an endpoint behind."""
    pods = [node.bridged(f"p{number}") for number in range(10)]
    for pod in pods:
        cache(node, pod)

    async def scenario(at: Attaching) -> None:
        assert at.attacher.status()
        await at.attacher.detach(key_of(pods[0]), None)
        assert not at.attacher.status()
        assert set(at.endpoints) == {key_of(pod) for pod in pods[1:]}

    node.run(scenario)
